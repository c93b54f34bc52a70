"""An engine whose drafter's optional passes find no memory serves on, on both runners and under both schedulings."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")
from nightjar.deployments.engine.start.vllm_versions import V2_OBEYS_K_FROM
from tests.gpu_paths.engines.combinations import Combination
from tests.gpu_paths.overlay import version_under_test
from tests.gpu_paths.runs import Rig

NAMES = ("v1-async-draft_model", "v2-sync-draft_model", "v2-async-draft_model", "v2-async-eagle")
DRAFTS = [name for name in NAMES if name.endswith("draft_model")]

pytestmark = [pytest.mark.engine, pytest.mark.long]


def outcome_of(rig: Rig, name: str) -> dict[str, Any]:
    if name.startswith("v2") and version_under_test() < V2_OBEYS_K_FROM:
        pytest.skip("this vLLM's runner V2 obeys no K")
    return rig.failing(Combination.named(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_the_same_where_a_pass_breaks_off(rig: Rig, name: str) -> None:
    outcome = outcome_of(rig, name)
    assert outcome["broken"] == outcome["whole"]
    assert outcome["fault"] == ""


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_whose_catch_up_breaks_off_sleeps_and_says_why(rig: Rig, name: str) -> None:
    outcome = outcome_of(rig, name)
    assert outcome["state"] == "dormant"
    assert "its last catch-up broke off (OutOfMemoryError: out of memory): no other for" in outcome["reason"]
    in_flight = "async" in name
    (tried,) = [index for index, (*_, catches_up) in enumerate(outcome["steps"]) if catches_up]
    later = [forwards for _, forwards, *_ in outcome["steps"][tried + 1 + in_flight :]]
    assert len(later) > 20
    assert set(later) == {0}


def test_a_head_whose_pass_breaks_off_runs_as_in_vllm_from_then_on_and_says_so(rig: Rig) -> None:
    outcome = outcome_of(rig, "v2-async-eagle")
    assert outcome["reason"] == (
        "the head runs once a step at K=0, as in vLLM: a pass for its KV alone broke off (OutOfMemoryError: out of memory)"
    )
    off = [(forwards, kv_writes) for length, forwards, kv_writes, _ in outcome["steps"] if length == 0]
    assert set(off) == {(1, 0)}
