"""Settings that no replica is ever sent: each changes what the policy itself does, and by how much it should.

test_settings_live.py shows that every setting is taken up at once; here a whole policy service runs in virtual time, once with the
default and once with another value.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import pytest

from nightjar.cluster.service.policy_service import PolicyService
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import Table, k_at
from tests.cluster.protocol import Replica, running_service, settled
from tests.cluster.service.test_settings_live import CHANGES
from tests.policy import engines
from tests.policy.restarting import RestartingReplica

pytestmark = pytest.mark.looptime

BATCH = 64
"""K = 5 generates 12 % more than K = 0 there (tests.policy.engines)."""


@dataclass(frozen=True)
class Effect:
    """What `seen` finds with the setting's default and with `to`; `beside` stands in both."""

    to: object
    seen: Callable[[PolicyService], Awaitable[object]]
    by_default: object
    changed: object
    beside: Mapping[str, object] = field(default_factory=dict)


async def longest_time_between_decisions(service: PolicyService) -> float:
    """In seconds, over ten of them."""
    longest = 0.0
    for _ in range(200):
        await asyncio.sleep(0.05)
        longest = max(longest, service.status().policy.decision_age_s)
    return round(longest, 1)


async def replicas_after_20_s_of_silence(service: PolicyService) -> int:
    await settled(service, Replica())
    await asyncio.sleep(20.0)
    return len(service.status().replicas)


async def clean_steps_of_a_measurement(service: PolicyService) -> int:
    """That a group's only replica is asked for."""
    replica = Replica()
    await settled(service, replica)
    assert replica.settings is not None
    assert isinstance(replica.settings.plan, Table)
    return replica.settings.plan.segments[0].clean_steps


async def weight_of_2000_steps(service: PolicyService) -> float:
    """What a cell remembers of them, in clean steps to the next hundred. Time takes its part as well."""
    replica = Replica()
    for _ in range(40):
        replica.run(50)
        await replica.exchange(service)
        await asyncio.sleep(0.5)
    (group,) = service.status().groups
    return round(group.cells[0].clean_steps, -2)


async def planned_length(service: PolicyService) -> int:
    """K at BATCH, once a replica has measured for six seconds."""
    replica, rng = engines.Replica("r1", BATCH), random.Random(0)
    for second in range(6):
        replica.run_until(float(second), rng)
        reply = await service.exchange(replica.report().to_wire())
        if reply.issued is not None:
            replica.steering.adopt(reply.issued, replica.now_s)
        await asyncio.sleep(1.0)
    (group,) = service.status().groups
    return k_at(group.rows, BATCH)


async def lengths_of_two_applications(service: PolicyService) -> tuple[int, ...]:
    """K at BATCH that replicas of `chat` and of `code` are sent, once the first has measured for six seconds."""
    replicas, rng = [engines.Replica(name, BATCH, application=name) for name in ("chat", "code")], random.Random(0)
    sent: dict[str, int] = {}
    for second in range(6):
        for replica in replicas:
            replica.run_until(float(second), rng)
            reply = await service.exchange(replica.report().to_wire())
            if reply.issued is not None:
                replica.steering.adopt(reply.issued, replica.now_s)
                assert isinstance(reply.issued.settings.plan, Table)
                sent[replica.application] = k_at(reply.issued.settings.plan.rows, BATCH)
        await asyncio.sleep(1.0)
    return sent["chat"], sent["code"]


def wish(number: int, *, reload: bool) -> LoadReport:
    """A report of a replica, all on one node, that wishes to restart over what it missed."""
    replica = RestartingReplica(f"r{number}")
    replica.run_until(0.5)
    report = replica.report()
    wished = report.snapshot.restart_wish
    assert wished is not None
    snapshot = report.snapshot.model_copy(update={"restart_wish": wished.model_copy(update={"reload": reload})})
    return report.model_copy(update={"snapshot": snapshot})


async def leases_over_time(service: PolicyService, seconds: float, *, reload: bool = False) -> list[tuple[float, int]]:
    """Leases in flight of ten replicas that go on wishing, and when, from the policy's start."""
    reports, leases, clock = [wish(number, reload=reload) for number in range(10)], [], asyncio.get_running_loop().time
    end_s, number = clock() + seconds, 0
    while clock() < end_s:
        number += 1
        numbered = [report.model_copy(update={"report_number": number}) for report in reports]
        await asyncio.gather(*(service.exchange(report.to_wire()) for report in numbered))
        status = service.status()
        leases.append((status.policy.uptime_s, sum(len(group.restarts.open_leases) for group in status.groups)))
    return leases


async def leases_at_once(service: PolicyService) -> int:
    return max(count for _, count in await leases_over_time(service, 8.0))


async def reloads_at_once(service: PolicyService) -> int:
    return max(count for _, count in await leases_over_time(service, 8.0, reload=True))


async def seconds_before_the_first_lease(service: PolicyService) -> int:
    """Of a policy that has just started."""
    return next(round(at_s) for at_s, count in await leases_over_time(service, 80.0) if count)


ORDERED = {"mode": "auto", "planner": "fixed", "num_speculative_tokens": 3}
UNBOUNDED = {**ORDERED, "max_lease_ttl_s": 5.0, "max_restart_share": 1.0, "max_restart_slowdown": 1.0}
EFFECTS: Mapping[str, Effect] = {
    "decision_period_s": Effect(0.5, longest_time_between_decisions, 1.0, 0.5),
    "replica_timeout_s": Effect(10.0, replicas_after_20_s_of_silence, 1, 0),
    "calibration_clean_steps": Effect(16, clean_steps_of_a_measurement, 8, 16, {"mode": "auto"}),
    "evidence_half_life_steps": Effect(50.0, weight_of_2000_steps, 300, 100),
    "switch_margin": Effect(0.2, planned_length, 5, 0, {"mode": "auto", "allowed_num_speculative_tokens": [0, 5]}),
    "max_step_ms": Effect(12.0, planned_length, 5, 0, {"mode": "auto", "allowed_num_speculative_tokens": [0, 5]}),
    "max_step_ms_per_application": Effect(
        {"chat": 12.0}, lengths_of_two_applications, (5, 5), (0, 5), {"mode": "auto", "allowed_num_speculative_tokens": [0, 5]}
    ),
    "max_restart_share": Effect(0.5, leases_at_once, 2, 5, UNBOUNDED),
    "max_restart_slowdown": Effect(0.2, leases_at_once, 1, 7, UNBOUNDED),
    "max_reloads_per_node": Effect(2, reloads_at_once, 1, 2, UNBOUNDED),
    "max_lease_ttl_s": Effect(20.0, seconds_before_the_first_lease, 60, 20, ORDERED),
}


def test_every_setting_that_no_replica_is_sent_has_an_effect_here() -> None:
    assert {name for name, change in CHANGES.items() if change.shows is None} == EFFECTS.keys()


@pytest.mark.parametrize("name", EFFECTS)
async def test_a_setting_changes_what_the_policy_does_by_as_much_as_it_says(name: str) -> None:
    effect = EFFECTS[name]
    default = OperatorSettings.model_fields[name].default
    for value, expected in ((default, effect.by_default), (effect.to, effect.changed)):
        async with running_service() as service:
            await service.configure({**effect.beside, name: value})
            assert await effect.seen(service) == expected
