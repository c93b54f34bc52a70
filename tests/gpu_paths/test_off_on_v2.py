"""Off on runner V2: heads that write their KV alone and draft models that sleep draft afterwards as if they had never been off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

pytest.importorskip("vllm")
from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine.start.vllm_versions import V2_LEAVES_QUERIES_OUT_FROM, V2_OBEYS_K_FROM
from nightjar.deployments.proof.scenarios import ENGINE_OPTIONS, MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.proof.verdict import difference
from nightjar.loadtests.arms.texts import NEAR_TIE
from tests.gpu_paths.engines.combinations import ALONE, BESIDE, COMPILED, Combination
from tests.gpu_paths.engines.multiply_adds import COUNTED_AFTER, LLAMA_3_1_8B, STEPS, TINY
from tests.gpu_paths.engines.off_stretch import IS_BY_HAND, STEPS_BACK, STEPS_BEFORE, STEPS_OFF, STRESS_SEED
from tests.gpu_paths.overlay import version_under_test
from tests.gpu_paths.runs import Rig

IN_TEST_SLOW = ("v2-async-eagle3",)
COMPILED_HEAD = Combination(2, "async", "eagle", compiled="piecewise")
"""One is enough: the KV part of the other heads stops in the same layer of vLLM's."""
OFF = {
    "v2-sync-eagle",
    "v2-async-eagle",
    "v2-sync-eagle3",
    "v2-async-eagle3",
    "v2-sync-mtp",
    "v2-async-draft_model",
    "v2-async-dflash",
    "v2-sync-dspark",
    COMPILED_HEAD.name,
}
BY_HAND = {"v2-sync-eagle", "v2-sync-eagle3"}
"""`make stress-gpu-paths` alone has them: their asynchronous twins run the same code, and each takes four minutes of a core."""
ON_V2 = tuple(
    each
    for each in (*ALONE, *COMPILED)
    if each.name in OFF and (each.name not in BY_HAND or IS_BY_HAND) and version_under_test() >= V2_OBEYS_K_FROM
)
HEADS = tuple(each for each in ON_V2 if each.writes_kv_alone)
DRAFTS = tuple(each for each in ON_V2 if each.drafter == SEPARATE_DRAFT_MODEL)
BLOCKS = tuple(each for each in ON_V2 if kind_of(each.drafter).drafts_a_block and version_under_test() < V2_LEAVES_QUERIES_OUT_FROM)
"""From 0.33 vLLM itself runs no queries at K = 0."""
KEPT_IN_STEP = tuple(each for each in BESIDE if each.name == "v2-async-draft_model-kv-connector" and DRAFTS)
"""A draft model that runs at K = 0 as well, once: what it writes there must lie in its own request's blocks."""

AGAIN = f"make stress-gpu-paths SEED={STRESS_SEED} repeats it"

pytestmark = pytest.mark.engine


@pytest.fixture(
    params=[pytest.param(each, id=each.name, marks=() if each.name in IN_TEST_SLOW else pytest.mark.long) for each in HEADS],
)
def head(request: pytest.FixtureRequest) -> Combination:
    combination: Combination = request.param
    return combination


def variant(rig: Rig, head: Combination, name: str) -> dict[str, Any]:
    outcome: dict[str, Any] = rig.off(head)[name]
    return outcome


def steps_of(run: dict[str, Any]) -> list[list[Any]]:
    """K, whole forwards, KV writes and catch-up of each step of both parts."""
    return [*run["off"]["steps"], *run["stress"]["steps"]]


def acceptance_back(run: dict[str, Any]) -> float:
    """Share of drafts accepted in the first steps that verify any after the off stretch."""
    back = [count for count in run["off"]["counts"][STEPS_BEFORE + STEPS_OFF :] if count[0]][:STEPS_BACK]
    verified, accepted = (sum(counts) for counts in zip(*back, strict=True))
    return float(accepted / verified)


def aborted(*runs: Mapping[str, Any]) -> set[str]:
    """Requests that were taken back in one of these."""
    return {name for run in runs for name, answer in run["answers"].items() if answer == "aborted"}


def compared_drafts(found: Iterable[list[Any]], expected: Iterable[list[Any]]) -> tuple[int, list[str]]:
    """How many drafts continue a text that `expected` has a draft for, and those that differ before any near tie."""
    theirs = {(name, tokens_before): (tokens, margins) for name, tokens_before, tokens, margins in expected}
    same, wrong = 0, []
    for name, tokens_before, tokens, _ in found:
        if (name, tokens_before) not in theirs:
            continue
        same += 1
        for place, (ours, their, margin) in enumerate(zip(tokens, *theirs[name, tokens_before], strict=False)):
            if margin < NEAR_TIE:
                break
            if ours != their:
                wrong.append(f"{name}, draft {place} after {tokens_before} tokens: {ours} for {their} (margin {margin:.3g})")
                break
    return same, wrong


def same_tokens(expected: list[int], found: list[int]) -> int:
    """Up to the first that differs."""
    return next((place for place, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), len(expected))


def wrong_text(expected: dict[str, Any], token_ids: list[int]) -> str:
    """What is wrong with an answer of which only the tokens are known."""
    return difference(expected, {**expected, "token_ids": token_ids, "logprobs": []})


def test_no_step_of_k_0_runs_the_whole_head_and_each_writes_its_kv_once(rig: Rig, head: Combination) -> None:
    ours = variant(rig, head, "ours")
    assert ours["fault"] == ""
    at_zero = [(forwards, kv_writes) for length, forwards, kv_writes, _ in steps_of(ours) if length == 0]
    assert len(at_zero) >= STEPS_OFF
    assert set(at_zero) == {(0, 1)}
    assert {kv_writes for length, _, kv_writes, _ in steps_of(ours) if length} == {0}
    stock = variant(rig, head, "stock")
    assert {(forwards, kv_writes) for length, forwards, kv_writes, _ in steps_of(stock) if length == 0} == {(1, 0)}


@pytest.mark.parametrize("part", ["off", "stress", "limit"])
def test_every_drafted_token_of_every_step_and_every_answer_is_that_of_a_head_that_was_never_off(
    rig: Rig, head: Combination, part: str
) -> None:
    """INV-1. While off: preemptions, chunked prompts, prefixes found, aborts, requests that opted out."""
    ours, stock = (variant(rig, head, each)[part] for each in ("ours", "stock"))
    assert ours["answers"] == stock["answers"], AGAIN
    assert ours["lengths"] == stock["lengths"], AGAIN
    differ = [index for index, pair in enumerate(zip(ours["drafts"], stock["drafts"], strict=True)) if pair[0] != pair[1]]
    assert differ == [], AGAIN
    assert sum(map(bool, ours["drafts"])) > (8 if part == "limit" else 30), "steps that drafted"


@pytest.mark.parametrize(
    "combination",
    [pytest.param(each, id=each.name, marks=() if each.name in IN_TEST_SLOW else pytest.mark.long) for each in (*HEADS, *DRAFTS)],
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
    stock, ours, forgets = (acceptance_back(variant(rig, head, name)) for name in ("stock", "ours", "forgets"))
    assert ours == stock
    assert forgets <= stock / 2


@pytest.mark.long
@pytest.mark.parametrize("head", [each for each in HEADS if each.scheduling == "sync"], ids=lambda each: each.name)
def test_a_step_of_k_0_multiplies_what_the_formula_says_within_one_percent(rig: Rig, head: Combination) -> None:
    counted = rig.off(head)["multiply_adds"]
    assert len(counted) >= STEPS - COUNTED_AFTER - 2
    for tokens, target, of_head in counted:
        assert target == pytest.approx(tokens * TINY.target(), rel=0.01)
        assert of_head == pytest.approx(tokens * TINY.kv_part(head.drafter), rel=0.01)


@pytest.mark.parametrize("drafter", ["eagle", "eagle3", "mtp"])
def test_beside_a_model_of_8b_the_kv_of_a_head_is_less_than_two_percent_of_a_step(drafter: str) -> None:
    assert LLAMA_3_1_8B.target() + LLAMA_3_1_8B.kv_part(drafter) <= 1.02 * LLAMA_3_1_8B.target()


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS, ids=lambda each: each.name)
def test_no_step_of_k_0_runs_a_blocks_queries_and_every_draft_is_that_of_one_that_ran_them(rig: Rig, block: Combination) -> None:
    """INV-1. The control forgets what it should keep, and drafts something else."""
    ours, stock, forgets = (variant(rig, block, name) for name in ("ours", "stock", "forgets"))
    assert ours["fault"] == ""
    assert {(forwards, kv_writes) for length, forwards, kv_writes, _ in steps_of(ours) if length == 0} == {(0, 0)}
    assert {(forwards, kv_writes) for _, forwards, kv_writes, _ in steps_of(stock)} == {(1, 0)}
    assert {forwards for length, forwards, _, _ in steps_of(ours) if length} == {1}
    for part in ("off", "stress", "limit"):
        for what in ("answers", "lengths", "drafts"):
            assert ours[part][what] == stock[part][what], AGAIN
    assert sum(map(bool, ours["off"]["drafts"])) > 30
    assert forgets["off"]["answers"] == ours["off"]["answers"]
    assert forgets["off"]["drafts"] != ours["off"]["drafts"]


@pytest.mark.long
@pytest.mark.parametrize("block", [each for each in BLOCKS if each.scheduling == "sync"], ids=lambda each: each.name)
def test_what_a_block_keeps_of_a_step_of_k_0_multiplies_what_the_formula_says(rig: Rig, block: Combination) -> None:
    counted = rig.off(block)["multiply_adds"]
    assert len(counted) >= STEPS - COUNTED_AFTER - 2
    for tokens, _, of_block in counted:
        assert of_block == pytest.approx(tokens * TINY.block_context(layers=1, read=1), rel=0.01)


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


@pytest.mark.long
@pytest.mark.parametrize("part", ["off", "stress", "limit"])
@pytest.mark.parametrize("draft", [*DRAFTS, *KEPT_IN_STEP], ids=lambda each: each.name)
def test_a_draft_model_that_was_off_changes_no_answer_and_drafts_as_one_that_never_was(
    rig: Rig, draft: Combination, part: str
) -> None:
    """INV-1. Each verified draft is held against what stock vLLM drafts there, each answer against plain decoding's tokens."""
    ours, every = variant(rig, draft, "ours")[part], variant(rig, draft, "every")
    answers = {name: answer for name, answer in ours["answers"].items() if answer != "aborted"}
    assert len(answers) >= (2 if part == "limit" else 4)
    until: dict[str, float] = {}
    for name, answer in answers.items():
        expected = every["answers"][name]
        token_ids = answer["token_ids"] if isinstance(answer, dict) else answer
        assert wrong_text(expected, token_ids) == "", AGAIN
        until[name] = expected["prompt_tokens"] + same_tokens(expected["token_ids"], token_ids)
    same, wrong = compared_drafts(
        (draft_made for draft_made in ours["verified"] if draft_made[1] <= until.get(draft_made[0], 0)), every["drafts"]
    )
    assert wrong == [], AGAIN
    assert same >= (8 if part == "limit" else 30)


def test_a_draft_model_that_caught_up_is_accepted_as_before_and_one_that_forgets_loses_at_least_half_of_it(
    rig: Rig, draft: Combination
) -> None:
    stock, ours, forgets = (acceptance_back(variant(rig, draft, name)) for name in ("stock", "ours", "forgets"))
    assert ours == pytest.approx(stock, abs=0.1)
    assert forgets <= stock / 2
