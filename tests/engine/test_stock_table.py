"""The table that `nightjar export --vllm-table` prints is one that stock vLLM takes, and runs at those K."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import SpeculativeConfig
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup, validate_and_normalize_dynamic_sd_schedule

from tests.engine.engine_process import MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS
from tests.engine.stock_table_scenarios import learned_table

TABLE = json.loads(json.dumps(learned_table().vllm_rows))
"""As it is read from what was printed."""


def wanted(requests: int) -> int:
    """The table's K."""
    (k,) = [k for first, last, k in TABLE if first <= requests <= last]
    return int(k)


def test_vllms_own_validation_takes_the_table_and_its_lookup_gives_those_k_at_each_number_of_requests() -> None:
    assert len({k for _, _, k in TABLE}) > 2
    config = SpeculativeConfig(
        method="ngram",
        num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
        prompt_lookup_max=3,
        num_speculative_tokens_per_batch_size=TABLE,
    )
    taken = validate_and_normalize_dynamic_sd_schedule(config.num_speculative_tokens_per_batch_size)
    assert [list(row) for row in taken] == TABLE
    lookup = build_dynamic_sd_schedule_lookup(taken, MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS)
    assert lookup[1:] == [wanted(requests) for requests in range(1, MAX_NUM_SEQS + 1)]


@pytest.mark.engine
@pytest.mark.long
def test_a_stock_engine_started_with_the_table_drafts_its_k_for_as_many_requests_as_a_step_schedules(run_role: Any) -> None:
    steps = [step for step in run_role("with_table", VLLM_CPU_KVCACHE_SPACE="1")["steps"] if step["requests"]]
    assert [step["num_speculative_tokens"] for step in steps] == [wanted(step["requests"]) for step in steps]
    most_verified: dict[int, int] = {}
    for before, after in pairwise(steps):
        k = before["num_speculative_tokens"]
        most_verified[k] = max([most_verified.get(k, 0), *after["drafts"]])
    assert len(most_verified) > 2
    assert most_verified == {k: k for k in most_verified}
