"""How an operator begins, ends and promotes a canary, and what a restarted policy still knows of it, in virtual time."""

from __future__ import annotations

import asyncio
import base64
import zlib
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.api.operations import OperationError
from nightjar.cluster.operator.canary import promotion
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.storage.checkpoint import Canaries, Checkpoint
from nightjar.policy.operator.canary.compare import Work
from nightjar.policy.operator.canary.order import CanaryOrder
from nightjar.policy.operator.canary.trial import Trial
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.state import FleetState
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.status import CanaryStatus, in_utc
from tests.cluster.protocol import MemoryJournal, MemoryStore, Replica, refusal, running_service, settled
from tests.policy.engines import KEY, Fleet
from tests.policy.engines import Replica as Engine

pytestmark = pytest.mark.looptime

CANARY: dict[str, object] = {"mode": "pin=3", "share": 0.5, "block_s": 1.0}


class Working(Replica):
    """A replica that generates half as much under pin=3, or twice as much."""

    steps_off, steps_pinned = 40, 20

    def work(self) -> None:
        self.run(self.steps_pinned if str(self.mode) == "pin=3" else self.steps_off)

    def report(self):  # type: ignore[no-untyped-def]
        """Busy all the time since it began, whatever it generated."""
        self.exchanges = getattr(self, "exchanges", 0) + 1
        report = super().report()
        counters = report.snapshot.counters.model_copy(update={"busy_seconds": 0.45 * self.exchanges, "cells": ()})
        return report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"counters": counters})})


class Better(Working):
    steps_off, steps_pinned = 20, 40


async def work(service: PolicyService, *replicas: Working, rounds: int) -> None:
    """So many exchange periods of half a second."""
    for _ in range(rounds):
        for replica in replicas:
            replica.work()
        await asyncio.gather(*(replica.exchange(service) for replica in replicas))


async def work_until(service: PolicyService, phase: str, *replicas: Working) -> CanaryStatus:
    """Until the canary has come to a phase, and everybody has heard of it."""
    for _ in range(200):
        await work(service, *replicas, rounds=1)
        canary = service.status().policy.canary
        if canary is not None and canary.phase == phase:
            await work(service, *replicas, rounds=3)
            return canary
    raise AssertionError(f"no {phase}: {service.status().policy.canary}")


async def test_what_a_canary_is_answered_with_when_it_begins_does_not_say_that_it_has_no_control() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        await settled(service, Replica("r1"), Replica("r2"))
        words = ((await service.canary(CANARY))["canary"] or {})["words"]
        assert words == "canary mode pin=3 on 50 % of the replicas: baseline, 0 of 8 blocks of 1 s"
        await asyncio.sleep(2.0)
        assert words in journal.causes


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "mode: missing; a canary tries a mode, max_step_ms, objective or settings"),
        ({"mode": "pin=3"}, "share: missing"),
        ({"mode": "fast", "share": 0.2}, "mode"),
        ({"mode": "pin=9", "share": 0.5}, "at most pin=5"),
        ({"mode": "pin=3", "share": 0.9}, "share"),
        ({"mode": "pin=3", "max_step_ms": 40.0, "share": 0.5}, "max_step_ms: 40 with mode pin=3"),
        (
            {"settings": {"planner": "off"}, "share": 0.5},
            "settings: planner is the same for all replicas of a group",
        ),
        ({"settings": {"dwel_steps": 3}, "share": 0.5}, "settings: dwel_steps is no setting"),
        ({"settings": {"dwell_steps": -3}, "share": 0.5}, "dwell_steps"),
        ({"mode": "pin=3", "share": 0.5, "application": "mail"}, "no group has both a canary and a control"),
        ({"mode": "pin=3", "application": "chat"}, "application: 'chat', and no group has both"),
        ({"mode": "pin=3", "share": 0.5, "block_s": 0.1}, "block_s"),
        ({"do": "end", "mode": "off"}, "mode: beside do end"),
        ({"do": "promote"}, "there is no canary to promote: none is past its baseline"),
        ({"do": "pause"}, "do"),
        ("pin=3", "record"),
    ],
)
async def test_a_wrong_request_is_answered_in_words_and_tries_nothing(values: object, named: str) -> None:
    async with running_service() as service:
        await settled(service, Replica("r1"), Replica("r2"))
        assert named in await refusal(service.canary(values))  # type: ignore[arg-type]
        assert service.status().policy.canary is None


async def test_a_canary_that_is_worse_goes_back_by_itself_and_status_journal_and_log_say_so() -> None:
    journal = MemoryJournal()
    async with running_service(journal=journal) as service:
        await service.configure({"mode": "auto"})
        replicas = [Working("r1"), Working("r2")]
        await work(service, *replicas, rounds=4)
        await service.canary({**CANARY, "reason": "is it"})
        second = await refusal(service.canary(CANARY))
        assert second.startswith("a canary runs already (canary mode pin=3 on 50 % of the replicas: baseline")
        trying = await work_until(service, "trial", *replicas)
        assert (trying.phase, len(trying.members), trying.controls, trying.reason) == ("trial", 1, 1, "is it")
        assert sorted(str(replica.mode) for replica in replicas) == ["auto", "pin=3"]
        with capture_logs() as logs:
            ended = await work_until(service, "rolled back", *replicas)
        assert (ended.phase, ended.members) == ("rolled back", ())
        assert ended.high is not None
        assert ended.high < 1.0
        assert {str(replica.mode) for replica in replicas} == {"auto"}
        assert service.status().policy.past_canaries == (ended.words,)
        phases = [cause.partition(": ")[2].partition(",")[0] for cause in journal.causes if cause.startswith("canary")]
        assert phases == ["baseline", "runs", f"rolled back {in_utc(ended.phase_since_s)}"]
        assert [entry["news"] for entry in logs if entry["event"] == "canary"] == [ended.words]


async def test_a_winner_waits_for_the_operator_who_promotes_it() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        replicas = [Better("r1"), Better("r2")]
        await work(service, *replicas, rounds=4)
        await service.canary(CANARY)
        await work_until(service, "better", *replicas)
        await service.canary({"do": "promote"})
        await work(service, *replicas, rounds=4)
        assert {str(replica.mode) for replica in replicas} == {"pin=3"}
        (override,) = service.status().overrides
        assert (override.scope, str(override.mode), override.reason) == ("fleet", "pin=3", "canary promoted")
        assert service.status().policy.past_canaries[-1].startswith("canary mode pin=3 on 50 % of the replicas: promoted")


def test_what_a_promoted_canary_did_not_try_stays_as_it_is_by_hand() -> None:
    order = CanaryOrder(max_step_ms=40.0, objective="throughput", share=0.5, since_s=0.0, over=Mode.parse("shadow"))
    fleet = replace(FleetState(), canary=Trial(order, phase="better"))
    by_hand = ModeOverride(scope="fleet", mode=Mode.parse("auto"), planner="fixed")
    settings = OperatorSettings(mode=Mode.parse("shadow"))
    assert promotion(fleet, settings, (by_hand,), 1.0) == {
        "mode": "auto", "planner": "fixed", "max_step_ms": 40.0, "objective": "throughput", "reason": "canary promoted",
    }  # fmt: skip
    assert promotion(fleet, settings, (), 1.0)["mode"] == "shadow"


class Trimmed(Engine):
    """A replica beside vLLM's adaptive verification."""

    def report(self, **changes: object) -> LoadReport:
        return super().report(group=KEY.model_copy(update={"adaptive_verification": True}), **changes)


def test_a_promotion_takes_no_replica_out_of_the_shadow_in_which_it_waits_for_a_mode_by_hand() -> None:
    engines = Fleet([Engine("plain"), Trimmed("trimmed")])
    engines.run(1.0)
    order = CanaryOrder(objective="throughput", share=0.5, since_s=0.0, over=Mode.parse("auto"))
    fleet, auto = replace(engines.state, canary=Trial(order, phase="better")), OperatorSettings(mode=Mode.parse("auto"))
    with pytest.raises(OperationError, match="chat waits in shadow for that beside vLLM's adaptive verification; set its own mode"):
        promotion(fleet, auto, (), 1.0)
    by_hand = ModeOverride(scope="application", name="chat", mode=Mode.parse("shadow"))
    assert promotion(fleet, auto, (by_hand,), 1.0)["mode"] == "auto"
    tried = order.model_copy(update={"mode": Mode.parse("pin=3")})
    assert promotion(replace(fleet, canary=Trial(tried, phase="better")), auto, (), 1.0)["mode"] == "pin=3"


async def test_an_operator_ends_a_canary_and_to_end_none_is_no_error() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        replicas = [Working("r1"), Working("r2")]
        await work(service, *replicas, rounds=4)
        await service.canary({"do": "end"})
        await service.canary(CANARY)
        answer = await service.canary({"do": "end"})
        assert answer["canary"] is not None
        assert answer["canary"]["phase"] == "ended"


async def test_what_is_tried_as_a_setting_is_promoted_in_the_user_config_alone() -> None:
    async with running_service() as service:
        await service.configure({"mode": "auto"})
        replicas = [Working("r1"), Working("r2")]
        await work(service, *replicas, rounds=4)
        await service.canary({"settings": {"dwell_steps": 9}, "share": 0.5, "block_s": 1.0})
        await work_until(service, "trial", *replicas)
        assert "put it into the policy's user_config" in await refusal(service.canary({"do": "promote"}))


async def test_no_canary_begins_in_a_frozen_fleet() -> None:
    async with running_service() as service:
        await settled(service, Replica("r1"), Replica("r2"))
        await service.freeze({"frozen": True})
        assert "no canary begins while the fleet is frozen since" in await refusal(service.canary(CANARY))


async def test_a_restarted_policy_goes_on_with_the_canary_and_remembers_those_before() -> None:
    store = MemoryStore()
    replicas = [Working("r1"), Working("r2")]
    async with running_service(store) as service:
        await service.configure({"mode": "auto"})
        await work(service, *replicas, rounds=4)
        await service.canary({**CANARY, "reason": "first"})
        await service.canary({"do": "end"})
        await service.canary(CANARY)
        before = await work_until(service, "trial", *replicas)
    async with running_service(store) as service:
        after = service.status().policy.canary
        assert after is not None
        assert (after.phase, after.since_s, after.members) == ("trial", before.since_s, before.members)
        assert len(service.status().policy.past_canaries) == 1
        await work(service, *replicas, rounds=4)
        assert sorted(str(replica.mode) for replica in replicas) == ["auto", "pin=3"]
        await work_until(service, "rolled back", *replicas)


STORED_BEFORE = zlib.decompress(
    base64.b85decode(
        b"c-pm5yH3L}6fMxtU?>tB6DkW5Rrv$p3nIt4P2D)Y!FCFrKphYR5^DK@g6bw}DH~!%0;VwV348_;3nA%Ch_!d}y~p>QW1pLq*V0*ZXtn+1u~FHw"
        b"-C`r&qvhelM(cg|;JbeG)Vz9IJ#8B;8R6Fkr33P^@1p}IV4_lv6==<btImz86A4N6qmb2z1OaE1XojK}DJCdbD%s!6(SZb_egT^!^%j6WHbM4D"
        b"sL=#<q97L@XJ>25Qkc}hh8jw^Fcd?f3r3?Re1=BqI7}VQug8HzC!~5lF*PQYp0#~W7CMv3Er~oL+Ok3EWqId_p2~;Mkq^ENQg!a+c1%%diCnEk"
        b"#3f89-5ci_*x(Ye@VQyCJdO5cM2R4>Wu2h(I^FKATWk+BdLYu+)~9|UC3aL&{mcjV6P<sTcK$AXP2Lcsb~{59P|B120eE2Kt^"
    )
)
"""A running canary as commit 373c197 stored it, its mappings as lists of pairs."""


async def test_a_canary_that_the_release_before_stored_goes_on() -> None:
    remembered = await Checkpoint(MemoryStore({"policy-v2:canary": STORED_BEFORE})).load()
    order = CanaryOrder(mode=Mode.parse("pin=3"), share=0.25, since_s=10.0, over=Mode.parse("auto"))
    tried, control = {("g", 4): Work(7.0, 0.5)}, {("g", 4): Work(20.0, 1.5)}
    trial = Trial(order, phase="trial", members=("r1",), controls=3, canary_work=tried, control_work=control)
    assert remembered.problems == ()
    assert remembered.canary == Canaries(trial, ("one before",))
