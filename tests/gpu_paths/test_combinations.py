"""Which engines are proved: every drafter that we steer, wherever vLLM runs it."""

from __future__ import annotations

import pytest

from nightjar.deployments.drafter_kinds import KINDS, STEERABLE
from tests.gpu_paths.engines.combinations import (
    BESIDE,
    COMPILED,
    LENDING,
    REFERENCE,
    SERVED_PLAINLY,
    STEERED,
    STEERED_ON_V2,
    Combination,
)


def test_every_drafter_that_we_steer_is_proved_on_runner_v1_and_where_it_obeys_on_v2() -> None:
    proved = {(each.runner, each.drafter) for each in STEERED}
    assert proved >= {(1, kind.method) for kind in KINDS.values() if kind.obeys_k_on_v1}
    assert {drafter for runner, drafter in proved if runner == 2} == STEERED_ON_V2
    assert {each.scheduling for each in STEERED if KINDS[each.drafter].runs_asynchronously} == {"sync", "async"}


def test_every_drafter_that_drafts_token_by_token_runs_compiled_once_and_as_a_cpu_engine_that_serves_compiles() -> None:
    assert {each.drafter for each in COMPILED if each.compiled == "piecewise"} == {
        method for method in STEERABLE if not KINDS[method].drafts_a_block
    }
    assert [(each.runner, each.scheduling) for each in COMPILED if each.compiled == "whole"] == [(1, "sync")]


def test_an_engine_beside_what_keeps_a_draft_in_step_runs_it_once_at_k_0() -> None:
    at_zero = {(each.drafter, each.beside): each.forwards(0) for each in BESIDE}
    assert {beside: forwards for (drafter, beside), forwards in at_zero.items() if drafter == "draft_model"} == {
        "sliding-window": 1,
        "kv-connector": 1,
        "shorter-draft": 1,
    }
    assert at_zero["eagle", "kv-connector"] == 1
    assert at_zero["eagle", "sliding-window"] == 0


def test_a_combination_is_found_by_its_name_and_an_unknown_name_is_refused() -> None:
    for combination in (*STEERED, *LENDING, *SERVED_PLAINLY, REFERENCE, REFERENCE.reference):
        assert Combination.named(combination.name) == combination
    with pytest.raises(ValueError, match="no combination 'v3-sync-eagle'"):
        Combination.named("v3-sync-eagle")


@pytest.mark.parametrize(
    ("drafter", "forwards"), [("eagle", [1, 1, 2]), ("draft_model", [0, 1, 2]), ("dflash", [0, 1, 1]), ("ngram", [None] * 3)]
)
def test_what_a_k_costs_in_forwards_is_known_of_each_drafter(drafter: str, forwards: list[int | None]) -> None:
    assert [Combination(1, "sync", drafter).forwards(length) for length in range(3)] == forwards


def test_on_runner_v2_a_head_runs_no_whole_forward_at_k_0() -> None:
    assert [Combination(2, "sync", "eagle").forwards(length) for length in range(3)] == [0, 1, 2]
    assert {each.drafter for each in STEERED if each.writes_kv_alone} == {"eagle", "eagle3", "mtp"}
    assert Combination(2, "sync", "draft_model").forwards(0) == 0
