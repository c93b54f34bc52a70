"""INV-1 and INV-9 on two tensor-parallel ranks whose drafts sleep, catch up and lend their memory. Float32, few KV blocks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.engine.comparing import difference
from tests.engine.dormant_scenarios import BACK_AFTER_STEPS, OFF_AFTER_STEPS
from tests.engine.requests import mixed_batch
from tests.engine.tensor_parallel_scenarios import RANKS

pytestmark = pytest.mark.engine

SCENARIOS = ["catch-up", "offloaded and back"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_inv_1_greedy_output_is_that_of_plain_vllm_on_as_many_ranks(scenario: str, tensor_parallel: dict[str, Any]) -> None:
    found = tensor_parallel[scenario]
    compared = [request for request in mixed_batch() if request.is_greedy]
    problems = [difference(request, tensor_parallel["reference"], found["outputs"]) for request in compared]
    assert [problem for problem in problems if problem] == []
    assert found["fault"] == ""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sampled_rows_in_the_same_batch_finish_with_text(scenario: str, tensor_parallel: dict[str, Any]) -> None:
    for request in mixed_batch():
        if not request.is_greedy:
            assert len(set(tensor_parallel[scenario]["outputs"][request.request_id]["token_ids"])) > 1


def test_scheduler_and_ranks_agree_on_the_blocks_that_lie_beside_the_draft(tensor_parallel: dict[str, Any]) -> None:
    plan = tensor_parallel["plan"]
    assert plan["base_blocks_of_ranks"] == [plan["base_blocks"]] * RANKS
    assert plan["base_blocks"] < plan["blocks"] < 24


def test_inv_2_dormant_drafts_run_no_forward_on_any_rank(tensor_parallel: dict[str, Any]) -> None:
    outcome = tensor_parallel["catch-up"]
    asleep = slice(OFF_AFTER_STEPS + 1, OFF_AFTER_STEPS + 6)
    assert set(outcome["states"][asleep]) == {"dormant"}
    assert len({tuple(forwards) for forwards in outcome["ranks"][asleep]}) == 1
    assert outcome["ranks"][OFF_AFTER_STEPS][0] > outcome["ranks"][0][0]


def test_both_ranks_run_the_draft_equally_often(tensor_parallel: dict[str, Any]) -> None:
    assert all(len(set(forwards)) == 1 and len(forwards) == RANKS for forwards in tensor_parallel["catch-up"]["ranks"])


def test_after_catching_up_the_drafts_are_accepted_again(tensor_parallel: dict[str, Any]) -> None:
    outcome = tensor_parallel["catch-up"]
    assert outcome["recomputed_tokens"] > 0
    assert outcome["drafter"]["probes"] > 0
    assert "active" in outcome["states"][OFF_AFTER_STEPS + 6 :]


def test_both_drafts_leave_and_come_back_in_the_same_step(tensor_parallel: dict[str, Any]) -> None:
    gone = tensor_parallel["offloaded and back"]["ranks"]
    assert all(len(set(ranks)) == 1 and len(ranks) == RANKS for ranks in gone)
    changes = [now[0] for before, now in itertools.pairwise(gone) if now != before]
    assert changes == [True, False]


def test_inv_9_blocks_were_lent_taken_back_and_none_was_lost(tensor_parallel: dict[str, Any]) -> None:
    outcome = tensor_parallel["offloaded and back"]
    assert (outcome["drafter"]["offloads"], outcome["drafter"]["reloads"]) == (1, 1)
    assert outcome["states"].index("offloaded") < BACK_AFTER_STEPS
    assert outcome["most_borrowed_blocks"] > 0
    assert outcome["drafter"]["borrowed_blocks"] == 0
    assert outcome["drafter"]["relocated_blocks"] + outcome["drafter"]["preempted_requests"] > 0
    after = outcome["states"][outcome["states"].index("contracting") :]
    assert {"contracting", "catching_up", "probing"} <= set(after)
