"""Every setting is live: a legal value is in force by the next decision and shows, a wrong one is refused and changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.policy.wire.operator import PLANNER_NAMES, OperatorSettings
from nightjar.policy.wire.settings import Local, Settings, Table
from tests.cluster.protocol import MemoryJournal, Replica, refusal, running_service, settled

pytestmark = pytest.mark.looptime

Shown = Callable[[Settings, PolicyService], object]


@dataclass(frozen=True)
class Change:
    """A setting's change: to what, beside what, what of it shows afterwards and as what; and a value that is refused, in words.

    `shows` None: it changes what the policy does, and no replica is sent it. What it changes is in test_settings_effects.py.
    """

    to: object
    wrong: object
    said: str
    beside: Mapping[str, object] = field(default_factory=dict)
    shows: Shown | None = None
    as_: object = None


def lengths(settings: Settings, _: PolicyService) -> list[int]:
    """K by row of the plan."""
    assert isinstance(settings.plan, Table)
    return [row.num_speculative_tokens for row in settings.plan.rows]


def option(name: str) -> Shown:
    """An option of the plan that the engine makes itself."""

    return lambda settings, _: settings.plan.options[name] if isinstance(settings.plan, Local) else None


def objective(_: Settings, service: PolicyService) -> object:
    """What the plan of the only replica is made for."""
    (replica,) = service.status().replicas
    return service.explain(replica.replica_id).objective


def offload(name: str) -> Shown:
    return lambda settings, _: getattr(settings.offload, name)


OFFLOAD = {"draft_offload": "under_memory_pressure"}
CHANGES: Mapping[str, Change] = {
    "mode": Change("pin=2", "fast", "mode 'fast' is none of auto, shadow, off, pin=K", shows=lambda s, _: str(s.mode), as_="pin=2"),
    "planner": Change(
        "nightjar",
        "magic",
        f"{', '.join(map(repr, PLANNER_NAMES[:-1]))} or {PLANNER_NAMES[-1]!r}",
        shows=lambda s, p: p.status().policy.planner,
        as_="nightjar",
    ),
    "num_speculative_tokens": Change(
        3, 33, "less than or equal to 32 (value 33)", {"mode": "auto", "planner": "fixed"}, shows=lengths, as_=[3]
    ),
    "num_speculative_tokens_per_batch_size": Change(
        [[1, 4, 5], [5, 8, 1]],
        [[1, 4, 5], [4, 8, 1]],
        "rows must ascend without overlap: 4 follows 4",
        {"mode": "auto", "planner": "schedule"},
        shows=lengths,
        as_=[5, 1],
    ),
    "allowed_num_speculative_tokens": Change(
        [0, 2], [0, 99], "less than or equal to 32 (value 99)", shows=lambda s, _: s.allowed_num_speculative_tokens, as_=(0, 2)
    ),
    "objective": Change("throughput", "speed", "'latency' or 'throughput'", shows=objective, as_="throughput"),
    "objective_per_application": Change(
        {"chat": "throughput"}, {"chat": 1}, "chat: Input should be 'latency' or 'throughput'", shows=objective, as_="throughput"
    ),
    "max_step_ms": Change(40.0, -1, "greater than 0 (value -1)"),
    "max_step_ms_per_application": Change({"chat": 40.0}, {"chat": 0}, "chat: Input should be greater than 0 (value 0)"),
    "dwell_steps": Change(7, -1, "greater than or equal to 0 (value -1)", shows=lambda s, _: s.dwell_steps, as_=7),
    "exchange_period_s": Change(
        0.25, 0.01, "greater than or equal to 0.1 (value 0.01)", shows=lambda s, _: s.exchange_period_s, as_=0.25
    ),
    "decision_period_s": Change(0.5, 31, "less than or equal to 30 (value 31)"),
    "settings_max_age_s": Change(
        60.0, 1, "greater than or equal to 5 (value 1)", shows=lambda s, _: s.settings_max_age_s, as_=60.0
    ),
    "replica_timeout_s": Change(10.0, 0, "greater than or equal to 2 (value 0)"),
    "calibration_clean_steps": Change(16, 0, "greater than or equal to 1 (value 0)"),
    "evidence_half_life_steps": Change(500.0, 10, "greater than or equal to 50 (value 10)"),
    "switch_margin": Change(0.1, 0.6, "less than or equal to 0.5 (value 0.6)"),
    "switch_cost_table": Change(
        [[64, 8, 0.5]],
        [[0, 8, 0.5]],
        "switch cost [0, 8, 0.5]: a row is [longest lag in tokens >= 1",
        {"mode": "auto", "planner": "nightjar"},
        shows=option("switch_cost"),
        as_="64x8=0.5",
    ),
    "seed_from": Change(
        "/data/learned.json",
        "learned.json",
        "allowed are an absolute path, an http or https address",
        shows=lambda _, p: p.status().policy.seed_problem[:30],
        as_="seed_from: /data/learned.json:",
    ),
    "max_restart_share": Change(0.5, 0, "greater than 0 (value 0)"),
    "max_restart_slowdown": Change(0.2, 1.5, "less than or equal to 1 (value 1.5)"),
    "max_reloads_per_node": Change(2, 0, "greater than or equal to 1 (value 0)"),
    "max_lease_ttl_s": Change(20.0, 700, "less than or equal to 600 (value 700)"),
    "catch_up_slowdown": Change(
        4.0, 5, "less than or equal to 4 (value 5)", shows=lambda s, _: (s.restarts.catch_up_chunk_tokens or 0) > 100, as_=True
    ),
    "draft_offload": Change(
        "under_memory_pressure", "always", "'never' or 'under_memory_pressure'", shows=lambda s, _: s.offload is not None, as_=True
    ),
    "offload_below_free_share": Change(
        0.05, 0.5, "must be above offload_below_free_share 0.5", OFFLOAD, shows=offload("free_share_below"), as_=0.05
    ),
    "offload_after_s": Change(3.0, -1, "greater than or equal to 0 (value -1)", OFFLOAD, shows=offload("pressure_s"), as_=3.0),
    "reload_above_free_share": Change(
        0.6, 0.05, "reload_above_free_share 0.05 must be above", OFFLOAD, shows=offload("reload_free_share"), as_=0.6
    ),
}


def test_no_setting_is_left_out() -> None:
    assert list(CHANGES) == list(OperatorSettings.model_fields)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_setting_is_in_force_by_the_next_decision_and_a_wrong_value_leaves_it_so(name: str) -> None:
    change, journal = CHANGES[name], MemoryJournal()
    async with running_service(journal=journal) as service:
        replica = Replica()
        with contextlib.suppress(OperationError):
            await service.configure(change.beside)  # refused where it needs this very setting: then the defaults stand
        await settled(service, replica)
        if change.shows is not None:
            assert shown(change.shows, replica, service) != change.as_, "it would show without the change"

        await service.configure({**change.beside, name: change.to})
        await settled(service, replica, rounds=2)
        entry = next(entry for entry in reversed(journal.entries) if any(name in cause for cause in entry.causes))
        wanted: Any = getattr(OperatorSettings.model_validate({**change.beside, name: change.to}), name)
        assert getattr(entry.operator_settings, name) == wanted != OperatorSettings.model_fields[name].default
        assert any(cause.startswith("operator's settings: ") and f"{name} " in cause for cause in entry.causes)
        if change.shows is not None:
            assert shown(change.shows, replica, service) == change.as_
        told = replica.settings

        refused = await refusal(service.configure({**change.beside, name: change.wrong}))
        assert name.split(".")[0] in refused
        assert change.said in refused
        assert "\n" not in refused
        assert service.status().policy.settings_error == refused
        await settled(service, replica, rounds=2)
        assert replica.settings == told
        if change.shows is not None:
            assert shown(change.shows, replica, service) == change.as_


def shown(shows: Shown, replica: Replica, service: PolicyService) -> object:
    """What of a setting shows at the replica, or in status."""
    assert replica.settings is not None
    return shows(replica.settings, service)
