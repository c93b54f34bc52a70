"""The bad network: what becomes of messages, and that older answers do reach a caller after newer ones."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from nightjar.policy.wire.settings import ExchangeReply
from tests.chaos.events import Event, EventKind, EventLog, EventReader
from tests.chaos.network import Conditions, Fate, Link, fate, read_conditions, write_conditions
from tests.chaos.schedule import FaultKind
from tests.policy.step.steering_settings import settings


def reply(sequence: int) -> bytes:
    return ExchangeReply(incarnation=1, issued=settings(sequence=sequence)).to_wire()


class Actor:
    """Answers each call with newer settings."""

    def __init__(self) -> None:
        self.calls = 0

    async def exchange(self, payload: bytes) -> bytes:
        self.calls += 1
        return reply(self.calls)


class World:
    """A link in a folder, and the actor behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.actor, self.is_restarting = folder, Actor(), False
        (folder / "events").mkdir()
        self.link = Link(folder, EventLog(folder / "events", "r1"), lambda: self.is_restarting, seed=1)

    async def call(self) -> int | None:
        """The sequence number of the answer, None where the call fails."""
        try:
            answer = ExchangeReply.from_wire(await self.link.carry(b"report", self.actor.exchange))
        except ConnectionError:
            return None
        assert answer.issued is not None
        return answer.issued.version.sequence

    def events(self, kind: EventKind) -> list[Event]:
        return [event for event in EventReader(self.folder / "events").read() if event.kind is kind]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def drawn(conditions: Conditions, *, has_old_one: bool) -> Counter[Fate]:
    rng = random.Random(1)
    return Counter(fate(conditions, rng, has_old_one=has_old_one) for _ in range(400))


def test_a_good_network_loses_nothing() -> None:
    assert drawn(Conditions(), has_old_one=True).keys() == {Fate.ARRIVES}


@pytest.mark.parametrize(
    ("kind", "fates"),
    [
        (FaultKind.DROPPED, {Fate.REQUEST_LOST, Fate.REPLY_LOST}),
        (FaultKind.DELAYED, {Fate.ARRIVES_LATE, Fate.ANSWERED_TOO_LATE, Fate.ANSWERED_BY_AN_OLD_ONE}),
        (FaultKind.DOUBLED, {Fate.ARRIVES_TWICE, Fate.ANSWERED_BY_AN_OLD_ONE}),
    ],
)
def test_a_bad_network_touches_its_share_of_the_messages_in_its_own_ways(kind: FaultKind, fates: set[Fate]) -> None:
    found = drawn(Conditions(1, kind, share=0.5), has_old_one=True)
    assert found.keys() == {Fate.ARRIVES, *fates}
    assert 150 < found[Fate.ARRIVES] < 250
    assert Fate.ANSWERED_BY_AN_OLD_ONE not in drawn(Conditions(1, kind, share=0.5), has_old_one=False)


def test_conditions_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_conditions(tmp_path) == Conditions()
    conditions = Conditions(3, FaultKind.PARTITION, share=0.5, cut_s=6.0)
    write_conditions(tmp_path, conditions)
    assert read_conditions(tmp_path) == conditions


async def test_a_lost_request_never_reaches_the_actor_and_a_lost_reply_has(world: World) -> None:
    write_conditions(world.folder, Conditions(1, FaultKind.DROPPED, share=1.0))
    answers = await asyncio.gather(*(world.call() for _ in range(20)))
    assert set(answers) == {None}
    assert 0 < world.actor.calls < 20
    assert len(world.events(EventKind.DROPPED)) == 20


async def test_a_doubled_request_reaches_the_actor_twice_and_an_older_answer_comes_after_a_newer_one(world: World) -> None:
    write_conditions(world.folder, Conditions(1, FaultKind.DOUBLED, share=1.0))
    answers = [await world.call() for _ in range(20)]
    newest, stale = 0, 0
    for answer in answers:
        assert answer is not None
        stale += answer < newest
        newest = max(newest, answer)
    assert stale == len(world.events(EventKind.STALE)) > 0
    assert world.actor.calls == 20 + len(world.events(EventKind.DOUBLED))


async def test_a_partition_begins_in_mid_restart_and_once(world: World) -> None:
    write_conditions(world.folder, Conditions(1, FaultKind.PARTITION, cut_s=0.0))
    assert await world.call() == 1
    world.is_restarting = True
    assert await world.call() is None
    assert await world.call() == 2
    assert [event.in_restart for event in world.events(EventKind.CUT)] == [True]
