"""What is made of an engine's run: every way in which one can be wrong is found, and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from nightjar.deployments.proof.scenarios import CAPPED_SCENARIO
from nightjar.deployments.proof.verdict import Verdict, difference, judge
from tests.gpu_paths.engines.combinations import Combination

EAGLE = Combination(1, "async", "eagle")
EAGLE_ON_V2 = Combination(2, "async", "eagle")
DRAFT_MODEL = Combination(1, "async", "draft_model")
PLAIN_TOKENS = [11, 12, 13, 14]
LOGPROBS = [{str(token): -0.1, "99": -0.10001, "98": -3.0} for token in PLAIN_TOKENS]


def answer(tokens: list[int], logprobs: list[dict[str, float]] | None = None, **other: Any) -> dict[str, Any]:
    text = " ".join(map(str, tokens))
    return {"token_ids": tokens, "text": text, "finish_reason": "length", "logprobs": logprobs or []} | other


def step(pinned: int | None, ordered: int, forwards: int, **other: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "verified": {},
        "requests": ["a"],
        "drafter_state": "",
        "catches_up": False,
        "skips_drafts": False,
        "stray_slot": "",
        "replays": 0,
        "kv_writes": 0,
    }
    return {"pinned": pinned, "num_speculative_tokens": ordered, "forwards": forwards} | plain | other


REFERENCE: dict[str, Any] = {"scenarios": {"changing K": {"answers": {"a": answer(PLAIN_TOKENS, LOGPROBS)}}}}
RIGHT: dict[str, Any] = {
    "serving_plainly": "",
    "aborted": "",
    "fault": "",
    "scenarios": {
        "changing K": {
            "greedy": ["a"],
            "answers": {"a": answer(PLAIN_TOKENS)},
            "missed": "",
            "ranks": [[step(3, 3, 3), step(0, 0, 1, verified={"a": 3}), step(1, 1, 1), step(2, 2, 2)]],
        }
    },
}


def is_proved(verdict: Verdict) -> bool:
    return not (verdict.texts or verdict.wrong_steps or verdict.missed)


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A run in which one thing is wrong; `change` gets its scenario."""
    outcome = copy.deepcopy(RIGHT)
    change(outcome["scenarios"]["changing K"])
    return outcome


def test_a_run_in_which_all_is_well_is_proved_and_says_what_each_k_cost() -> None:
    verdict = judge(EAGLE, RIGHT, REFERENCE)
    assert is_proved(verdict)
    assert verdict.forwards == {0: [1], 1: [1], 2: [2], 3: [3]}
    assert (verdict.steps, verdict.compared) == (4, 1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (step(2, 3, 3), "settings pinned K = 2, the scheduler ordered 3"),
        (step(2, 0, 1), "settings pinned K = 2, the scheduler ordered 0"),
        (step(0, 0, 3), "K = 0 took 3 forwards of the drafter, expected 1"),
        (step(2, 2, 2, verified={"a": 3}), "3 drafts of a request were verified after a step of K = 2"),
    ],
)
def test_a_step_that_was_told_one_thing_and_did_another_is_named(wrong: dict[str, Any], words: str) -> None:
    verdict = judge(EAGLE, changed(lambda part: part["ranks"][0].append(wrong)), REFERENCE)
    assert verdict.wrong_steps == [f"changing K, step 4: {words}"]
    assert not is_proved(verdict)


def test_a_request_that_was_left_out_of_a_step_verifies_the_drafts_of_the_step_before_it() -> None:
    left_out = [step(3, 3, 3), step(0, 0, 1, requests=["b"], verified={}), step(1, 1, 1, verified={"a": 3})]
    assert is_proved(judge(EAGLE, changed(lambda part: part["ranks"][0].extend(left_out)), REFERENCE))


def test_a_k_that_was_never_ordered_is_not_proved() -> None:
    verdict = judge(EAGLE, changed(lambda part: part["ranks"][0].pop()), REFERENCE)
    assert verdict.wrong_steps == ["K = 2 was never ordered"]


@pytest.mark.parametrize(
    ("at_zero", "words"),
    [
        ({"forwards": 0, "kv_writes": 1}, ""),
        ({"forwards": 1, "kv_writes": 0}, "K = 0 took 1 forwards of the drafter, expected 0"),
        ({"forwards": 0, "kv_writes": 0}, "K = 0 wrote the drafter's KV alone 0 times, expected 1"),
        ({"forwards": 0, "kv_writes": 2}, "K = 0 wrote the drafter's KV alone 2 times, expected 1"),
    ],
)
def test_a_head_on_runner_v2_writes_its_kv_alone_at_k_0_once_a_step(at_zero: dict[str, int], words: str) -> None:
    run = changed(lambda part: part["ranks"][0][1].update(at_zero))
    assert [wrong.partition(": ")[2] for wrong in judge(EAGLE_ON_V2, run, REFERENCE).wrong_steps] == ([words] if words else [])


def test_where_the_drafters_graphs_are_replayed_one_replay_may_hold_several_forwards_and_none_at_k_0() -> None:
    def replayed(step: int, forwards: int, replays: int) -> list[str]:
        change = {"forwards": forwards, "replays": replays}
        return judge(EAGLE, changed(lambda part: part["ranks"][0][step].update(change)), REFERENCE).wrong_steps

    assert replayed(0, 0, 2) == replayed(0, 0, 3) == replayed(1, 0, 1) == []
    assert replayed(0, 0, 4) == ["changing K, step 0: K = 3 took 4 forwards of the drafter, expected 3"]
    assert replayed(1, 0, 2) == ["changing K, step 1: K = 0 took 2 forwards of the drafter, expected 1"]
    assert replayed(0, 0, 0) == ["changing K, step 0: K = 3 took 0 forwards of the drafter, expected 3"]


def test_ranks_that_did_not_do_the_same_are_found() -> None:
    verdict = judge(EAGLE, changed(lambda part: part["ranks"].append(part["ranks"][0][:-1])), REFERENCE)
    assert verdict.wrong_steps == ["changing K: the ranks' steps differ"]


def test_a_sleeping_drafter_may_wait_and_read_what_it_missed_and_do_nothing_else() -> None:
    asleep = [step(3, 0, 0, drafter_state="dormant"), step(3, 3, 5, drafter_state="probing", catches_up=True), step(0, 0, 0)]
    right = changed(lambda part: part.update(ranks=[[step(1, 1, 1), step(2, 2, 2), step(3, 3, 3), *asleep]]))
    assert is_proved(judge(DRAFT_MODEL, right, REFERENCE))
    for wrong in (step(0, 0, 1, drafter_state="dormant"), step(3, 2, 2, drafter_state="dormant"), step(3, 0, 0)):
        steps = [step(1, 1, 1), step(2, 2, 2), step(3, 3, 3), *asleep, wrong]
        run = changed(lambda part, steps=steps: part.update(ranks=[steps]))  # type: ignore[misc]
        assert len(judge(DRAFT_MODEL, run, REFERENCE).wrong_steps) == 1


def test_a_step_whose_drafts_vllm_leaves_out_may_be_one_at_k_0_and_no_other() -> None:
    for ordered, wrong in ((0, 0), (2, 1)):
        skipping = step(3, ordered, max(ordered, 1), skips_drafts=True)
        run = changed(lambda part, skipping=skipping: part["ranks"][0].append(skipping))  # type: ignore[misc]
        assert len(judge(EAGLE, run, REFERENCE).wrong_steps) == wrong


@pytest.mark.parametrize(
    ("state", "allowed"), [("active", {1}), ("probing", {1}), ("dormant", {0}), ("catching_up", {0}), ("", {0, 1})]
)
def test_where_vllm_leaves_the_drafts_out_a_draft_model_that_is_awake_reads_the_steps_tokens_once(
    state: str, allowed: set[int]
) -> None:
    for forwards in range(3):
        skipping = step(3, 0, forwards, drafter_state=state, skips_drafts=True)
        steps = [step(1, 1, 1), step(2, 2, 2), step(3, 3, 3), step(0, 0, 0), skipping]
        run = changed(lambda part, steps=steps: part.update(ranks=[steps]))  # type: ignore[misc]
        verdict = judge(DRAFT_MODEL, run, REFERENCE)
        assert is_proved(verdict) is (forwards in allowed)
        assert verdict.forwards[0] == [0], "what K = 0 costs is told by steps whose drafts are not left out"


def test_a_slot_that_is_not_its_requests_is_told_with_its_step() -> None:
    stray = "row 0 (a): slots [32] are not all in blocks [[0, 1]] of 16 tokens"
    run = changed(lambda part: part["ranks"][0][2].update(stray_slot=stray))
    assert judge(EAGLE, run, REFERENCE).wrong_steps == [f"changing K, step 2: the drafter wrote past its request's blocks: {stray}"]


def test_where_clients_cap_their_drafts_k_may_be_lower_than_pinned_and_not_higher() -> None:
    lower = {"scenarios": {CAPPED_SCENARIO: RIGHT["scenarios"]["changing K"] | {"ranks": [[step(3, 1, 1)]]}}}
    reference = {"scenarios": {CAPPED_SCENARIO: REFERENCE["scenarios"]["changing K"]}}
    assert not any("pinned" in wrong for wrong in judge(EAGLE, RIGHT | lower, reference).wrong_steps)
    lower["scenarios"][CAPPED_SCENARIO]["ranks"] = [[step(1, 3, 3)]]
    assert any("pinned" in wrong for wrong in judge(EAGLE, RIGHT | lower, reference).wrong_steps)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (answer(PLAIN_TOKENS), ""),
        (answer([11, 99, 5, 6]), ""),
        (answer([11, 98, 5, 6]), "token 1 is 98, plain decoding's 12 (gap 2.9)"),
        (answer([11, 50, 5, 6]), "token 1 is 50, plain decoding's 12 (gap inf)"),
        (answer(PLAIN_TOKENS[:-1]), "ends after"),
        (answer(PLAIN_TOKENS, finish_reason="stop"), "ends after"),
        (answer(PLAIN_TOKENS, [{str(token): -0.2} for token in PLAIN_TOKENS]), "token 0 has another logprob"),
    ],
)
def test_an_answer_may_differ_from_plain_decodings_only_from_a_near_tie_on(found: dict[str, Any], words: str) -> None:
    wrong = difference(answer(PLAIN_TOKENS, LOGPROBS), found)
    assert wrong.startswith(words)
    assert bool(wrong) is bool(words)


def test_a_scenario_that_failed_or_did_not_meet_what_it_is_for_is_named() -> None:
    failed = changed(lambda part: part.update(error="Traceback\nValueError: no\n"))
    assert "changing K: ValueError: no" in judge(EAGLE, failed, REFERENCE).missed
    for_nothing = changed(lambda part: part.update(missed="nothing was preempted"))
    assert judge(EAGLE, for_nothing, REFERENCE).missed == ["changing K: nothing was preempted"]
    for what in ("aborted", "fault"):
        assert judge(EAGLE, RIGHT | {what: "wrong"}, REFERENCE).missed == [f"{what}: wrong"]


def test_of_an_engine_that_is_served_plainly_only_the_reason_is_told() -> None:
    verdict = judge(EAGLE, {"serving_plainly": "hooks moved", "scenarios": {}}, REFERENCE)
    assert verdict.served_plainly == "hooks moved"
    assert verdict.compared == 0
