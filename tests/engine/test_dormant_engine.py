"""INV-1, INV-2 and INV-9 on a real engine whose draft sleeps, catches up and lends its memory. Float32, few KV blocks."""

from __future__ import annotations

from typing import Any

import pytest

from nightjar.deployments.proof.driven_engine import GenerationRequest
from tests.engine.comparing import difference
from tests.engine.dormant_scenarios import BACK_AFTER_STEPS, CHUNK_TOKENS, OFF_AFTER_STEPS, WAKE_AFTER_STEPS
from tests.engine.requests import crowded_batch, greedy_batch, mixed_batch, shared_prefix_batch

pytestmark = pytest.mark.engine

BATCHES = {"mixed": mixed_batch(), "greedy": greedy_batch(), "prefix": shared_prefix_batch(), "crowded": crowded_batch()}
CATCH_UPS = [f"mixed catch-up {chunk_tokens}" for chunk_tokens in CHUNK_TOKENS]
SCENARIOS = [
    "mixed dormant",
    *CATCH_UPS,
    "mixed catch-up breaks off",
    "prefix written while dormant",
    "prefix read after",
    "greedy abort in catch-up",
    "crowded dormant and back",
    "mixed opt-out",
    "greedy opt-out",
    "mixed offloaded and back",
    "mixed offloaded for good",
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_inv_1_greedy_output_is_plain_vllms(scenario: str, reference: dict[str, Any], lending: dict[str, Any]) -> None:
    batch = scenario.split()[0]
    gone = lending[scenario].get("aborted", [])
    compared = [request for request in BATCHES[batch] if request.is_greedy and request.request_id not in gone]
    problems = [difference(request, reference[batch], lending[scenario]["outputs"]) for request in compared]
    assert [problem for problem in problems if problem] == []
    assert lending[scenario]["fault"] == ""


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name.startswith("mixed")])
def test_sampled_rows_in_the_same_batch_finish_with_text(scenario: str, lending: dict[str, Any]) -> None:
    sampled: list[GenerationRequest] = [request for request in BATCHES["mixed"] if not request.is_greedy]
    assert len(sampled) == 8
    for request in sampled:
        assert len(set(lending[scenario]["outputs"][request.request_id]["token_ids"])) > 1


def test_inv_2_a_dormant_draft_model_runs_no_forward(lending: dict[str, Any]) -> None:
    forwards, states = lending["mixed dormant"]["ranks"], lending["mixed dormant"]["states"]
    assert states[-1] == "dormant"
    assert forwards[OFF_AFTER_STEPS] > forwards[0]
    assert all(counted == forwards[OFF_AFTER_STEPS] for counted in forwards[OFF_AFTER_STEPS:])


def test_requests_waited_for_blocks_while_the_drafter_slept(lending: dict[str, Any]) -> None:
    assert [step for step in lending["mixed dormant"]["steps"] if step["state"] == "dormant" and step["waiting_for_blocks"]]


def test_requests_preempted_while_the_drafter_slept_are_caught_up_and_drafted_for_later(lending: dict[str, Any]) -> None:
    steps = lending["crowded dormant and back"]["steps"]
    asleep, awake = steps[:WAKE_AFTER_STEPS], steps[WAKE_AFTER_STEPS:]
    assert {step["state"] for step in asleep} == {"dormant"}
    preempted = {name for step in asleep for name in step["preempted"]}
    assert len(preempted) >= 3
    assert len(preempted & _names(awake, "recomputed") & _names(awake, "verified")) >= 3


@pytest.mark.parametrize("scenario", CATCH_UPS)
def test_after_catching_up_the_drafts_are_accepted_again(scenario: str, lending: dict[str, Any]) -> None:
    assert lending[scenario]["recomputed_tokens"] > 0
    assert lending[scenario]["probes"] > 0
    assert "active" in lending[scenario]["states"][OFF_AFTER_STEPS + 6 :]


def test_a_catch_up_that_breaks_off_puts_the_draft_to_sleep_and_a_later_one_wakes_it(lending: dict[str, Any]) -> None:
    outcome = lending["mixed catch-up breaks off"]
    broken, mended = outcome["states"][OFF_AFTER_STEPS + 8 : BACK_AFTER_STEPS + 1], outcome["states"][BACK_AFTER_STEPS + 1 :]
    assert set(broken) == {"dormant"}
    assert {"catching_up", "probing", "active"} <= set(mended)
    forwards = [ranks[0] for ranks in outcome["ranks"]]
    assert forwards[BACK_AFTER_STEPS] == forwards[OFF_AFTER_STEPS + 6]
    verified = [step for step in outcome["steps"][OFF_AFTER_STEPS + 8 :] if step["verified"]]
    assert verified[0]["num_speculative_tokens"] == 4


def test_prompts_found_in_the_cache_lag_where_the_drafter_had_not_read_them(lending: dict[str, Any]) -> None:
    outcome = lending["prefix read after"]
    assert all(output["cached_tokens"] >= 128 for output in outcome["outputs"].values())
    assert outcome["longest_lag"] >= 128


def test_an_abort_in_mid_catch_up_happened_and_left_nothing_behind(lending: dict[str, Any]) -> None:
    outcome = lending["greedy abort in catch-up"]
    assert outcome["aborted"] == ["greedy-7"]
    assert outcome["outputs"].keys() == {f"greedy-{index}" for index in range(7)}


def test_requests_that_opted_out_verify_no_draft_and_are_not_caught_up(lending: dict[str, Any]) -> None:
    opted_out = {request.request_id for request in BATCHES["mixed"] if request.is_greedy}
    steps = lending["mixed opt-out"]["steps"]
    assert opted_out <= _names(steps, "rows")
    assert _names(steps, "verified") & opted_out == set()
    assert _names(steps, "recomputed") & opted_out == set()


def test_requests_beside_those_that_opted_out_verify_drafts_and_are_caught_up(lending: dict[str, Any]) -> None:
    others = {request.request_id for request in BATCHES["mixed"] if not request.is_greedy}
    steps = lending["mixed opt-out"]["steps"]
    assert _names(steps, "verified") == others
    assert _names([step for step in steps if {*step["rows"]} - others], "verified") & others
    assert _names(steps, "recomputed")
    assert sum(sum(step["recomputed"].values()) for step in steps) == lending["mixed opt-out"]["recomputed_tokens"]


def test_where_every_request_opted_out_the_draft_runs_no_forward(lending: dict[str, Any]) -> None:
    outcome = lending["greedy opt-out"]
    assert {step["num_speculative_tokens"] for step in outcome["steps"]} == {0}
    assert _names(outcome["steps"], "verified") == set()
    assert len({tuple(forwards) for forwards in outcome["ranks"]}) == 1


def test_the_draft_left_lent_its_memory_came_back_and_drafted(lending: dict[str, Any]) -> None:
    outcome = lending["mixed offloaded and back"]
    assert (outcome["drafter"]["offloads"], outcome["drafter"]["reloads"]) == (1, 1)
    assert outcome["states"].index("offloaded") < BACK_AFTER_STEPS
    after = outcome["states"][outcome["states"].index("contracting") :]
    assert {"contracting", "catching_up", "probing"} <= set(after)
    assert outcome["drafter"]["moved_bytes"] > 2 * 220_000_000


def test_a_draft_whose_checkpoint_is_gone_stays_away_and_the_engine_serves_on(lending: dict[str, Any]) -> None:
    outcome = lending["mixed offloaded for good"]
    after = outcome["states"][outcome["states"].index("contracting") :]
    assert set(after) == {"contracting", "offloaded"}
    assert (outcome["drafter"]["offloads"], outcome["drafter"]["reloads"]) == (2, 1)
    assert "its last reload broke off (OSError: no such file)" in outcome["drafter"]["reason"]


def _names(steps: list[dict[str, Any]], column: str) -> set[str]:
    """Requests that a column of the steps' record names."""
    return {name for step in steps for name in step[column]}
