"""INV-1 and honest acceptance for requests that run right up to `max_model_len`, with restarts shortly before it. Float32."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.comparing import difference
from tests.engine.engine_process import MAX_NUM_SPECULATIVE_TOKENS
from tests.engine.length_limit_scenarios import MAX_MODEL_LEN, long_batch

pytestmark = pytest.mark.engine

SCENARIOS = ["fixed", "restarted", "restarted alone"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_inv_1_greedy_output_up_to_the_last_position_is_plain_vllms(
    scenario: str, length_limit_reference: dict[str, Any], length_limit: dict[str, Any]
) -> None:
    outputs = length_limit[scenario]["outputs"]
    compared = long_batch()[-1:] if scenario == "restarted alone" else long_batch()
    assert outputs.keys() == {request.request_id for request in compared}
    problems = [difference(request, length_limit_reference, outputs) for request in compared]
    assert [problem for problem in problems if problem] == []
    assert length_limit[scenario]["fault"] == ""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_request_ends_at_the_limit_and_by_it(scenario: str, length_limit: dict[str, Any]) -> None:
    for output in length_limit[scenario]["outputs"].values():
        assert output["finish_reason"] == "length"
        assert output["prompt_tokens"] + len(output["token_ids"]) == MAX_MODEL_LEN


def test_while_the_drafter_runs_a_row_verifies_as_many_drafts_as_still_have_a_position(length_limit: dict[str, Any]) -> None:
    decoding = [row for step in length_limit["fixed"]["steps"][2:] for row in step["rows"]]
    assert any(row["room"] < MAX_NUM_SPECULATIVE_TOKENS for row in decoding)
    assert all(len(row["drafts"]) == min(MAX_NUM_SPECULATIVE_TOKENS, row["room"]) for row in decoding)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_row_is_given_zeros_as_drafts(scenario: str, length_limit: dict[str, Any]) -> None:
    drafts = [row["drafts"] for step in length_limit[scenario]["steps"] for row in step["rows"] if row["drafts"]]
    assert drafts
    assert not any(set(tokens) == {0} for tokens in drafts)


def test_rows_beside_one_at_the_limit_have_their_drafts_accepted_as_ever(length_limit: dict[str, Any]) -> None:
    beside: list[bool] = []
    apart: list[bool] = []
    for step in length_limit["fixed"]["steps"]:
        is_beside = any(row["room"] < MAX_NUM_SPECULATIVE_TOKENS for row in step["rows"])
        rows = [row for row in step["rows"] if len(row["drafts"]) == MAX_NUM_SPECULATIVE_TOKENS]
        (beside if is_beside else apart).extend(row["accepted"] > 0 for row in rows)
    assert len(beside) >= 10
    assert sum(beside) / len(beside) > 0.5 * sum(apart) / len(apart) > 0.1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_positions_beyond_the_limit_are_neither_hits_nor_misses(scenario: str, length_limit: dict[str, Any]) -> None:
    outcome = length_limit[scenario]
    for step in outcome["steps"]:
        verified = [row for row in step["rows"] if row["drafts"]]
        for position in range(MAX_NUM_SPECULATIVE_TOKENS):
            assert step["reached"][position] == sum(len(row["drafts"]) > position for row in verified)
            assert step["accepted"][position] == sum(row["accepted"] > position for row in verified)
    before, after = outcome["totals"]
    rows = [row for step in outcome["steps"] for row in step["rows"] if row["drafts"]]
    assert rows
    assert after[0] - before[0] == sum(len(row["drafts"]) for row in rows)
    assert after[1] - before[1] == sum(row["accepted"] for row in rows)


@pytest.mark.parametrize("scenario", ["restarted", "restarted alone"])
def test_the_drafter_restarted_again_and_again_and_shortly_before_the_limit(scenario: str, length_limit: dict[str, Any]) -> None:
    outcome = length_limit[scenario]
    assert outcome["restarts"] >= 3
    near = [step for step in outcome["steps"] if any(row["room"] <= 2 * MAX_NUM_SPECULATIVE_TOKENS for row in step["rows"])]
    assert {step["state"] for step in near} & {"catching_up", "probing"}
