"""INV-5 as a state machine: restarts, lost and late replies, a store that comes and goes, several replicas; also over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import TypeVar

import looptime
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nightjar.cluster.service.policy_service import PolicyService
from nightjar.policy.wire.settings import ExchangeReply, IssuedSettings, SettingsVersion
from tests.cluster.over_http import over_http
from tests.cluster.protocol import MemoryStore, Reached, Replica, directly, running_service, settled

T = TypeVar("T")

REPLICAS = ("r1", "r2", "r3")


class FencedFleet(RuleBasedStateMachine):
    """Every restart is a new policy with the same store; replies may be lost or arrive after their policy died."""

    reached: Reached = staticmethod(directly)

    def __init__(self) -> None:
        super().__init__()
        self.loop = looptime.new_event_loop()
        self.store = MemoryStore()
        self.replicas = {name: Replica(name) for name in REPLICAS}
        self.late: list[tuple[str, ExchangeReply]] = []
        self.applied: dict[str, list[SettingsVersion]] = {name: [] for name in REPLICAS}
        self.issued: dict[str, dict[SettingsVersion, IssuedSettings]] = {name: {} for name in REPLICAS}
        self.highest_incarnation = 0
        self.stack = AsyncExitStack()
        self.service: PolicyService

    @initialize()
    def start(self) -> None:
        self._start_policy()

    @rule(name=st.sampled_from(REPLICAS), fate=st.sampled_from(("arrives", "lost", "late")))
    def exchange(self, name: str, fate: str) -> None:
        replica = self.replicas[name]
        running = replica.version
        reply = self._run(self.service.exchange(replica.report().to_wire()))
        if reply.issued is not None:
            assert reply.issued.version.is_newer_than(running), "nothing older than what runs is ever sent"
            earlier = self.issued[name].setdefault(reply.issued.version, reply.issued)
            assert earlier == reply.issued, "one version names one content"
        if fate == "arrives":
            self._apply(name, reply)
        elif fate == "late":
            self.late.append((name, reply))

    @rule(data=st.data())
    def late_reply_arrives(self, data: st.DataObject) -> None:
        if self.late:
            self._apply(*self.late.pop(data.draw(st.integers(0, len(self.late) - 1))))

    @rule(mode=st.sampled_from(("auto", "off", "pin=1", "pin=3")))
    def operator_changes_the_mode(self, mode: str) -> None:
        self._run(self.service.configure({"mode": mode}))

    @rule(seconds=st.floats(0.1, 5.0))
    def time_passes(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))

    @rule(store_is_reachable=st.booleans())
    def policy_restarts(self, store_is_reachable: bool) -> None:
        self._run(self.stack.aclose())
        self.store.is_reachable = store_is_reachable
        self._start_policy()
        self.store.is_reachable = True
        if store_is_reachable:
            assert self.service.incarnation > self.highest_incarnation, "a new incarnation is above anything stored"

    @invariant()
    def replicas_only_move_forward(self) -> None:
        for versions in self.applied.values():
            pairs = [(version.incarnation, version.sequence) for version in versions]
            assert pairs == sorted(set(pairs))

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self._run(self.service.configure({"mode": "pin=2"}))
            self._run(settled(self.service, *self.replicas.values(), rounds=12))
            for replica in self.replicas.values():
                assert str(replica.mode) == "pin=2", "whatever happened, the living policy is obeyed"
            self._run(self.stack.aclose())
        self.loop.close()

    def _start_policy(self) -> None:
        self.stack = AsyncExitStack()
        self.service = self.reached(self._run(self.stack.enter_async_context(running_service(self.store))))

    def _apply(self, name: str, reply: ExchangeReply) -> None:
        replica = self.replicas[name]
        before = replica.version
        replica.apply(reply)
        if replica.version is not None and replica.version != before:
            self.applied[name].append(replica.version)

    def _run(self, running: Coroutine[None, None, T]) -> T:
        result: T = self.loop.run_until_complete(running)
        return result


class FencedFleetOverHttp(FencedFleet):
    """The same, whose replicas know the policy by its address."""

    reached = staticmethod(over_http)


TestFencedFleet = pytest.mark.heavy(FencedFleet.TestCase)
TestFencedFleet.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestFencedFleetOverHttp = pytest.mark.heavy(FencedFleetOverHttp.TestCase)
TestFencedFleetOverHttp.settings = settings(TestFencedFleet.settings, max_examples=20)
