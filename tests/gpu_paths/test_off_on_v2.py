"""Off on runner V2: heads that write their KV alone and draft models that sleep draft afterwards as if they had never been off."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("vllm")
from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL
from nightjar.deployments.engine.arguments import V2_OBEYS_K_FROM
from nightjar.deployments.proof.combinations import STEERED, Combination
from nightjar.deployments.proof.scenarios import ENGINE_OPTIONS, MAX_NUM_SPECULATIVE_TOKENS
from tests.gpu_paths.multiply_adds import COUNTED_AFTER, LLAMA_3_1_8B, STEPS, TINY
from tests.gpu_paths.off_stretch import LOG_STEPS, STEPS_BACK, STEPS_BEFORE, STEPS_OFF
from tests.gpu_paths.overlay import version_under_test
from tests.gpu_paths.runs import Rig

STRESS_STEPS = int(os.environ.get("NIGHTJAR_STRESS_STEPS", "150"))
IN_MAKE_TEST = "v2-async-eagle"
ON_V2 = tuple(each for each in STEERED if each.runner == 2 and each.ranks == 1 and version_under_test() >= V2_OBEYS_K_FROM)
HEADS = tuple(each for each in ON_V2 if each.writes_kv_alone)
DRAFTS = tuple(each for each in ON_V2 if each.drafter == SEPARATE_DRAFT_MODEL)

pytestmark = pytest.mark.engine


@pytest.fixture(
    params=[pytest.param(each, id=each.name, marks=() if each.name == IN_MAKE_TEST else pytest.mark.long) for each in HEADS],
)
def head(request: pytest.FixtureRequest) -> Combination:
    combination: Combination = request.param
    return combination


def variant(rig: Rig, head: Combination, name: str) -> dict[str, Any]:
    outcome: dict[str, Any] = rig.off(head, STRESS_STEPS)[name]
    return outcome


def steps_of(run: dict[str, Any]) -> list[list[Any]]:
    """K, whole forwards, KV writes and catch-up of each step of both parts."""
    return [*run["off"]["steps"], *run["stress"]["steps"]]


def acceptance_back(run: dict[str, Any]) -> float:
    """Share of drafts accepted in the first steps that verify any after the off stretch."""
    back = [count for count in run["off"]["counts"][STEPS_BEFORE + STEPS_OFF :] if count[0]][:STEPS_BACK]
    verified, accepted = (sum(counts) for counts in zip(*back, strict=True))
    return float(accepted / verified)


def test_no_step_of_k_0_runs_the_whole_head_and_each_writes_its_kv_once(rig: Rig, head: Combination) -> None:
    ours = variant(rig, head, "ours")
    assert ours["fault"] == ""
    at_zero = [(forwards, kv_writes) for length, forwards, kv_writes, _ in steps_of(ours) if length == 0]
    assert len(at_zero) >= STEPS_OFF
    assert set(at_zero) == {(0, 1)}
    assert {kv_writes for length, _, kv_writes, _ in steps_of(ours) if length} == {0}
    stock = variant(rig, head, "stock")
    assert {(forwards, kv_writes) for length, forwards, kv_writes, _ in steps_of(stock) if length == 0} == {(1, 0)}


def test_a_head_that_owes_its_writes_makes_one_pass_in_sixteen_steps_of_k_0(rig: Rig, head: Combination) -> None:
    log = variant(rig, head, "log")
    assert log["fault"] == ""
    assert {forwards for length, forwards, _, _ in steps_of(log) if length == 0} == {0}
    off = [kv_writes for length, _, kv_writes, _ in log["off"]["steps"] if length == 0]
    assert len(off) >= STEPS_OFF, "vLLM 0.33 has one more, in which no row could use drafts"
    assert sum(off[:STEPS_OFF]) == STEPS_OFF // LOG_STEPS
    random_steps = log["stress"]["steps"]
    assert sum(kv_writes for _, _, kv_writes, _ in random_steps) < sum(length == 0 for length, *_ in random_steps)
    assert any(kv_writes for length, _, kv_writes, _ in random_steps if length), "some are made when the head comes back"


@pytest.mark.parametrize("name", ["ours", "log"])
@pytest.mark.parametrize("part", ["off", "stress", "limit"])
def test_every_drafted_token_of_every_step_and_every_answer_is_that_of_a_head_that_was_never_off(
    rig: Rig, head: Combination, part: str, name: str
) -> None:
    """INV-1. While off: preemptions, chunked prompts, prefixes found, aborts, requests that opted out."""
    ours, stock = (variant(rig, head, each)[part] for each in (name, "stock"))
    assert ours["answers"] == stock["answers"]
    assert ours["lengths"] == stock["lengths"]
    differ = [index for index, pair in enumerate(zip(ours["drafts"], stock["drafts"], strict=True)) if pair[0] != pair[1]]
    assert differ == []
    assert sum(map(bool, ours["drafts"])) > (8 if part == "limit" else 30), "steps that drafted"


@pytest.mark.parametrize(
    "combination",
    [pytest.param(each, id=each.name, marks=() if each.name == IN_MAKE_TEST else pytest.mark.long) for each in (*HEADS, *DRAFTS)],
)
def test_a_row_runs_to_the_last_position_that_the_model_has(rig: Rig, combination: Combination) -> None:
    answer = variant(rig, combination, "ours")["limit"]["answers"]["limit-0"]
    assert answer["prompt_tokens"] + len(answer["token_ids"]) == ENGINE_OPTIONS["max_model_len"]


def test_the_stress_preempts_and_takes_requests_back(rig: Rig, head: Combination) -> None:
    ours = variant(rig, head, "ours")
    assert ours["preemptions"]
    assert "aborted" in ours["stress"]["answers"].values()
    assert ours["stress"]["lengths"].count(0) > 20
    assert MAX_NUM_SPECULATIVE_TOKENS in ours["stress"]["lengths"]


def test_acceptance_comes_back_whole_and_a_head_that_forgets_loses_at_least_half_of_it(rig: Rig, head: Combination) -> None:
    stock, ours, log, forgets = (acceptance_back(variant(rig, head, name)) for name in ("stock", "ours", "log", "forgets"))
    assert ours == log == stock
    assert forgets <= stock / 2


@pytest.mark.long
@pytest.mark.parametrize("head", [each for each in HEADS if each.scheduling == "sync"], ids=lambda each: each.name)
def test_a_step_of_k_0_multiplies_what_the_formula_says_within_one_percent(rig: Rig, head: Combination) -> None:
    counted = rig.off(head, STRESS_STEPS)["multiply_adds"]
    assert len(counted) >= STEPS - COUNTED_AFTER - 2
    for tokens, target, of_head in counted:
        assert target == pytest.approx(tokens * TINY.target(), rel=0.01)
        assert of_head == pytest.approx(tokens * TINY.kv_part(head.drafter), rel=0.01)


@pytest.mark.parametrize("drafter", ["eagle", "eagle3", "mtp"])
def test_beside_a_model_of_8b_the_kv_of_a_head_is_less_than_two_percent_of_a_step(drafter: str) -> None:
    assert LLAMA_3_1_8B.target() + LLAMA_3_1_8B.kv_part(drafter) <= 1.02 * LLAMA_3_1_8B.target()


@pytest.fixture(params=[pytest.param(each, id=each.name, marks=pytest.mark.long) for each in DRAFTS])
def draft(request: pytest.FixtureRequest) -> Combination:
    combination: Combination = request.param
    return combination


def test_a_draft_model_runs_nothing_at_k_0_but_to_catch_up_and_the_maximum_at_no_smaller_k(rig: Rig, draft: Combination) -> None:
    ours = variant(rig, draft, "ours")
    assert ours["fault"] == ""
    at_zero = [forwards for length, forwards, _, catches_up in steps_of(ours) if length == 0 and not catches_up]
    assert len(at_zero) >= STEPS_OFF
    assert set(at_zero) == {0}
    assert all(forwards == length for length, forwards, _, catches_up in steps_of(ours) if length and not catches_up)
    stock = variant(rig, draft, "stock")
    assert {forwards for _, forwards, _, _ in steps_of(stock)} == {MAX_NUM_SPECULATIVE_TOKENS}


@pytest.mark.parametrize("part", ["off", "stress", "limit"])
def test_a_draft_model_that_slept_changes_no_answer(rig: Rig, draft: Combination, part: str) -> None:
    """INV-1."""
    ours, stock = (variant(rig, draft, name)[part]["answers"] for name in ("ours", "stock"))
    aborted = {name for answers in (ours, stock) for name, answer in answers.items() if answer == "aborted"}
    both = (ours.keys() & stock.keys()) - aborted
    assert len(both) >= (2 if part == "limit" else 4)
    assert {name: ours[name] for name in both} == {name: stock[name] for name in both}


def test_a_draft_model_that_caught_up_is_accepted_as_before_and_one_that_forgets_loses_at_least_half_of_it(
    rig: Rig, draft: Combination
) -> None:
    stock, ours, forgets = (acceptance_back(variant(rig, draft, name)) for name in ("stock", "ours", "forgets"))
    assert ours == pytest.approx(stock, abs=0.1)
    assert forgets <= stock / 2
