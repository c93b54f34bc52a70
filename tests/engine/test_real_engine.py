"""INV-1 and the counters on real engines: float32, a real model, K off, fixed, by table and changed every few steps.

Two processes run once per session (engine_process.py): plain vLLM for the reference, and the steered engine.
"""

from __future__ import annotations

from typing import Any

import pytest

from nightjar.policy.wire.cause import Code
from tests.engine.comparing import difference
from tests.engine.engine_process import MAX_NUM_SPECULATIVE_TOKENS, SEGMENT_CLEAN_STEPS, TABLE
from tests.engine.requests import greedy_batch, mixed_batch, shared_prefix_batch

pytestmark = [pytest.mark.engine, pytest.mark.checkout]

BATCHES = {"mixed": mixed_batch(), "greedy": greedy_batch(), "prefix": shared_prefix_batch()}
SCENARIOS = [
    "mixed off",
    "mixed pin=3",
    "mixed toggled",
    "mixed table",
    "greedy pin=4",
    "greedy toggled",
    "prefix toggled",
    "prefix cached toggled",
]
SEEDED = ["seeded pin=4", "seeded pin=4 again", "seeded off", "seeded toggled"]


def texts_of(outputs: dict[str, Any], kind: str) -> list[list[int]]:
    """Tokens of this kind of the seeded batch's requests."""
    return [output["token_ids"] for name, output in sorted(outputs.items()) if name.startswith(kind)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_inv_1_greedy_output_is_plain_vllms(scenario: str, reference: dict[str, Any], steered: dict[str, Any]) -> None:
    batch = scenario.split()[0]
    problems = [
        problem
        for request in BATCHES[batch]
        if request.is_greedy and (problem := difference(request, reference[batch], steered[scenario]))
    ]
    assert problems == []


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name.startswith("mixed")])
def test_sampled_rows_in_the_same_batch_finish_with_text(scenario: str, steered: dict[str, Any]) -> None:
    for request in BATCHES["mixed"]:
        if not request.is_greedy:
            output = steered[scenario][request.request_id]
            assert output["finish_reason"] in {"length", "stop"}
            assert len(set(output["token_ids"])) > 1


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name.startswith("mixed")])
def test_logprobs_of_greedy_rows_are_plain_vllms(scenario: str, reference: dict[str, Any], steered: dict[str, Any]) -> None:
    wanted = [request for request in BATCHES["mixed"] if "logprobs" in request.options]
    assert wanted
    for request in wanted:
        expected, found = reference["mixed"][request.request_id], steered[scenario][request.request_id]
        assert len(found["logprobs"]) == len(found["token_ids"]) > 0
        for token, ours, theirs in zip(found["token_ids"], found["logprobs"], expected["logprobs"], strict=False):
            assert ours[str(token)] == pytest.approx(theirs[str(token)], abs=1e-3)


def test_a_seed_repeats_its_text_where_k_is_the_same_and_need_not_where_k_differs(steered: dict[str, Any]) -> None:
    """Which of acceptance, resampling and bonus draws a token depends on K: the distribution is repeated, and not the text."""
    texts = {name: texts_of(steered[name], "seeded") for name in SEEDED}
    assert texts["seeded pin=4"] == texts["seeded pin=4 again"]
    for name in ("seeded off", "seeded toggled"):
        assert texts[name] != texts["seeded pin=4"]


def test_a_seed_repeats_plain_vllms_text_in_a_request_without_drafts_whatever_k_the_others_have(
    reference: dict[str, Any], steered: dict[str, Any]
) -> None:
    for name in SEEDED:
        assert texts_of(steered[name], "opted-out") == texts_of(reference["seeded"], "opted-out")


def test_shared_prefixes_came_from_the_cache(steered: dict[str, Any]) -> None:
    assert all(output["cached_tokens"] >= 128 for output in steered["prefix cached toggled"].values())


@pytest.mark.parametrize("mode", ["off", "pin=3"])
def test_settings_adopted_through_the_engine_core_decide_the_length(mode: str, steered: dict[str, Any]) -> None:
    snapshot = steered[f"snapshot {mode}"]
    assert snapshot["load"]["num_speculative_tokens"] == (0 if mode == "off" else 3)
    assert snapshot["fault"] == ""
    assert snapshot["drafter_state"] == ("dormant" if mode == "off" else "active")


def test_before_any_settings_the_engine_says_so(steered: dict[str, Any]) -> None:
    assert steered["before_settings"]["settings_version"] is None
    assert [one["code"] for one in steered["before_settings"]["causes"]] == [Code.NO_SETTINGS]


def test_off_verifies_no_drafts(steered: dict[str, Any]) -> None:
    totals = {total["num_speculative_tokens"]: total for total in steered["snapshot off"]["counters"]["totals"]}
    assert set(totals) == {0}
    assert totals[0]["draft_tokens"] == 0


def test_the_table_is_followed_by_decode_batch_and_a_segment_measures_once(steered: dict[str, Any]) -> None:
    measured, followed = 0, set()
    for step in steered["table steps"]:
        load, is_asleep = step["load"], step["drafter_state"] in {"dormant", "catching_up"}
        codes = {one["code"] for one in step["causes"]}
        if Code.SEGMENT in codes:
            assert load["num_speculative_tokens"] == (0 if is_asleep else 3)
            measured += not is_asleep
        elif codes & {Code.PLAN, Code.BESIDE_PREFILL}:
            batch = max(load["decode_batch_size"], TABLE[0][0])  # a step of prompts alone takes the first row's K
            wanted = [length for first, last, length in TABLE if first <= batch <= last]
            assert [load["planned_num_speculative_tokens"]] == wanted
            assert load["num_speculative_tokens"] == (0 if is_asleep else wanted[0])
            followed.add(load["num_speculative_tokens"])
    assert measured >= SEGMENT_CLEAN_STEPS
    assert followed == {length for _, _, length in TABLE}
    assert steered["table steps"][-1]["finished_segment_id"] == 7


def test_counters_agree_with_vllms_own_statistics_position_by_position(steered: dict[str, Any]) -> None:
    assert steered["nightjar_counts"] == steered["vllm_counts"]
    assert steered["vllm_counts"][0][MAX_NUM_SPECULATIVE_TOKENS - 1] > 0
    totals = steered["end"]["counters"]["totals"]
    assert sum(total["draft_tokens"] for total in totals) == sum(steered["vllm_counts"][0])
    assert sum(total["accepted_tokens"] for total in totals) == sum(steered["vllm_counts"][1])


def test_an_aborted_request_gives_its_blocks_back(steered: dict[str, Any]) -> None:
    blocks = steered["abort"]
    assert blocks["during"] > blocks["before"] == blocks["after"] == 0
    assert blocks["free"] == blocks["total"]


def test_the_replicas_kill_switch_holds_until_a_command_carries_another(steered: dict[str, Any]) -> None:
    assert [reason.split(":")[0] for reason in steered["local_mode"]] == ["K=0", "K=0", f"K={MAX_NUM_SPECULATIVE_TOKENS}"]


def test_inv_5_stale_settings_are_refused_by_the_engine(steered: dict[str, Any]) -> None:
    assert "version 0.9" in steered["stale"]["refused"]
    assert steered["stale"]["settings_version"]["incarnation"] == 1


def test_bytes_that_are_no_command_are_answered_and_not_raised(steered: dict[str, Any]) -> None:
    assert "EngineCommand" in steered["garbage"]["refused"]


def test_a_scheduler_that_is_not_ours_answers_so(reference: dict[str, Any]) -> None:
    assert "the running scheduler is Scheduler" in reference["foreign_scheduler"]
