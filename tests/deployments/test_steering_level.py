"""How much of an engine is steered: what its arguments promise, and what is left of that in the running engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.steering_level import FULLY, Steered, level_at_start, level_now
from nightjar.policy.wire.report import Counters, DrafterCounters, DrafterState, EngineSnapshot, Layer, SteeringLevel

PLAINLY, OBSERVING, WITHOUT_SLEEPING = SteeringLevel.PLAINLY, SteeringLevel.OBSERVING, SteeringLevel.WITHOUT_SLEEPING


def snapshot(state: DrafterState = DrafterState.ACTIVE, *, fault: str = "", reason: str = "") -> EngineSnapshot:
    return EngineSnapshot(
        counters=Counters(engine_id="e"), drafter_state=state, drafter=DrafterCounters(reason=reason), fault=fault
    )


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({}, SteeringLevel.FULLY),
        ({"why_never_asleep": "a KV connector is in use"}, WITHOUT_SLEEPING),
        ({"only_observing": True}, OBSERVING),
        ({"serving_plainly": "drafter 'medusa' does not obey"}, PLAINLY),
    ],
)
def test_arguments_promise_a_level_and_every_level_but_the_highest_has_a_reason(
    fields: dict[str, Any], level: SteeringLevel
) -> None:
    promised = level_at_start(EngineArguments({}, "draft_model", 4, **fields))
    assert promised.level is level
    assert bool(promised.reason) is (level is not SteeringLevel.FULLY)


def test_the_layers_that_work_go_with_the_level() -> None:
    all_on = (Layer.STEERING, Layer.SLEEPING, Layer.LENDING)
    arguments = EngineArguments({}, "draft_model", 4, layers=all_on)
    started = level_at_start(arguments)
    assert started.layers == all_on
    assert level_at_start(replace(arguments, why_never_asleep="a KV connector is in use")).layers == (Layer.STEERING,)
    assert level_at_start(replace(arguments, only_observing=True)).layers == ()
    assert level_at_start(replace(arguments, serving_plainly="no such hook")).layers == ()
    assert level_now(started, "draft_model", snapshot(DrafterState.DORMANT)).layers == all_on
    assert level_now(started, "draft_model", snapshot(DrafterState.IN_SYNC)).layers == (Layer.STEERING,)
    assert level_now(started, "draft_model", snapshot(fault="before_step: KeyError: 'x'")).layers == ()


def test_a_drafter_that_could_sleep_and_stays_in_sync_is_steered_without_sleeping_for_the_engines_reason() -> None:
    running = snapshot(DrafterState.IN_SYNC, reason="the engine has 2 KV cache groups, not one")
    assert level_now(FULLY, "draft_model", running) == Steered(WITHOUT_SLEEPING, "the engine has 2 KV cache groups, not one")
    assert level_now(FULLY, "draft_model", snapshot(DrafterState.DORMANT)) == FULLY


def test_a_drafter_without_a_model_is_steered_fully_although_it_is_never_asleep() -> None:
    assert level_now(FULLY, "ngram", snapshot(DrafterState.IN_SYNC)) == FULLY


@pytest.mark.parametrize("level", [SteeringLevel.FULLY, WITHOUT_SLEEPING, OBSERVING])
def test_an_error_in_the_hooks_leaves_plain_serving(level: SteeringLevel) -> None:
    now = level_now(Steered(level, "as started"), "draft_model", snapshot(fault="before_step: KeyError: 'x'"))
    assert now.level is PLAINLY
    assert "before_step: KeyError: 'x'" in now.reason


def test_what_serves_plainly_or_observes_does_so_until_a_new_start() -> None:
    for started in (Steered(PLAINLY, "hooks moved"), Steered(OBSERVING, "started in shadow")):
        assert level_now(started, "draft_model", snapshot(DrafterState.IN_SYNC)) == started
