"""Every drafter that we steer, on the code paths that a GPU takes (docs/gpu.md): real engines on the rig.

`make test-gpu-paths` runs all and prints the table; `make test-slow` runs one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

pytest.importorskip("vllm")
from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine.start.vllm_versions import V2_OBEYS_K_FROM
from tests.gpu_paths.engines.combinations import LENDING, SERVED_PLAINLY, STEERED, Combination
from tests.gpu_paths.overlay import version_under_test
from tests.gpu_paths.runs import Rig, is_in_test_slow, row

pytestmark = pytest.mark.engine
V2_ENDS_WHERE_ITS_DRAFT_DOES_FROM = (0, 33)
"""A draft with a smaller `max_model_len` lowers the engine's (`_limit_max_model_len_to_draft`), so that none is shorter."""
THERE = tuple(
    each
    for each in STEERED
    if not (each.runner == 2 and each.beside == "shorter-draft" and version_under_test() >= V2_ENDS_WHERE_ITS_DRAFT_DOES_FROM)
)
STEERED_HERE = tuple(each for each in THERE if each.runner == 1 or version_under_test() >= V2_OBEYS_K_FROM)
LENDING_HERE = tuple(each for each in LENDING if each.runner == 1 or version_under_test() >= V2_OBEYS_K_FROM)
REFUSED_BY_VLLM = tuple(each for each in THERE if each not in STEERED_HERE and each.drafter in {SEPARATE_DRAFT_MODEL, "ngram"})
"""Before 0.32 vLLM itself does not start its runner V2 with these."""
SERVED_PLAINLY_HERE = (*SERVED_PLAINLY, *(each for each in THERE if each not in (*STEERED_HERE, *REFUSED_BY_VLLM)))


def each(combinations: tuple[Combination, ...]) -> list[object]:
    return [
        pytest.param(combination, id=combination.name, marks=() if is_in_test_slow(combination) else pytest.mark.long)
        for combination in combinations
    ]


@pytest.mark.parametrize("combination", each(STEERED_HERE))
def test_with_k_changing_in_every_step_texts_are_plain_decodings_and_each_k_is_obeyed(
    rig: Rig, combination: Combination, record_property: Callable[[str, object], None]
) -> None:
    """INV-1 and INV-2, on each model runner, with each scheduling."""
    began_s = time.monotonic()
    verdict = rig.verdict(combination)
    record_property("gpu_path", row(combination, verdict, time.monotonic() - began_s))
    assert verdict.served_plainly == ""
    assert verdict.missed == []
    assert verdict.texts == []
    assert verdict.wrong_steps == []
    assert verdict.compared >= (36 if combination.answers_all_kinds else 25)


@pytest.mark.parametrize("combination", each(LENDING_HERE))
def test_a_draft_lends_its_memory_by_cudas_code_on_pages_that_fault_and_texts_are_plain_decodings(
    rig: Rig, combination: Combination
) -> None:
    """INV-1. Whatever touched a page that was released, of weights or of KV, would have ended the engine."""
    verdict = rig.verdict(combination)
    assert verdict.served_plainly == ""
    assert verdict.missed == []
    assert verdict.texts == []
    assert verdict.compared > 5


@pytest.mark.parametrize("combination", each(SERVED_PLAINLY_HERE))
def test_where_the_runner_would_ignore_k_the_engine_serves_plainly_and_says_why(rig: Rig, combination: Combination) -> None:
    reason = "parallel_drafting" if combination.beside == "parallel-drafting" else "drafts its maximum"
    if kind_of(combination.drafter).drafts_a_block:
        reason = f"this engine has runner V{combination.runner}"
    assert reason in rig.verdict(combination).served_plainly
