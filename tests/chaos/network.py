"""The network between an agent and the policy actor, as bad as a test wants it.

`PolicyClient` takes what resolves the actor's handle; here it resolves to a handle whose `exchange` goes over a `Link`. What the
link does to a message is chosen by `fate`, from the conditions that the test wrote into a file. The caller of a late message gave
up: its answer is kept, and comes as the answer of a later call, and so does the second copy of one that was doubled. Older settings
reach an agent after newer ones in both ways, and the link counts how often.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from nightjar.policy.wire.settings import ExchangeReply
from tests.chaos.events import EventKind, EventLog, Version
from tests.chaos.schedule import FaultKind

FILE_NAME: Final = "network.json"
KEPT_REPLIES: Final = 16
MOST_DELAY_S: Final = 1.5
NOTICED_S: Final = 0.1
"""Until a caller hears that its message was lost. A real one may wait for the whole of its timeout, and learns no more by that."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the network does from now on. `fault` is the number in the schedule, 0: all is well. A partition lasts `cut_s`."""

    fault: int = 0
    kind: FaultKind | None = None
    share: float = 0.0
    cut_s: float = 0.0


def write_conditions(folder: Path, conditions: Conditions) -> None:
    """Put them in force for all replicas."""
    fresh = folder / f"{FILE_NAME}.new"
    fresh.write_text(json.dumps(asdict(conditions)), encoding="utf-8")
    fresh.replace(folder / FILE_NAME)


def read_conditions(folder: Path) -> Conditions:
    """Those in force; all is well where nobody wrote any."""
    try:
        values = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Conditions()
    kind = values.pop("kind")
    return Conditions(**values, kind=None if kind is None else FaultKind(kind))


class Fate(Enum):
    """What becomes of one call."""

    ARRIVES = auto()
    ARRIVES_LATE = auto()
    """The request takes its time."""
    ANSWERED_TOO_LATE = auto()
    """The actor answers, the caller has given up; the answer is kept."""
    REQUEST_LOST = auto()
    REPLY_LOST = auto()
    ARRIVES_TWICE = auto()
    ANSWERED_BY_AN_OLD_ONE = auto()
    """The actor answers, and an answer to an earlier call comes instead."""


def fate(conditions: Conditions, rng: random.Random, *, has_old_one: bool) -> Fate:
    """Draw what becomes of a call. `has_old_one`: an answer older than the newest is at hand."""
    if rng.random() >= conditions.share:
        return Fate.ARRIVES
    match conditions.kind:
        case FaultKind.DROPPED:
            return rng.choice((Fate.REQUEST_LOST, Fate.REPLY_LOST))
        case FaultKind.DELAYED:
            return Fate.ANSWERED_BY_AN_OLD_ONE if has_old_one and rng.random() < 0.5 else _late(rng)
        case FaultKind.DOUBLED:
            return Fate.ANSWERED_BY_AN_OLD_ONE if has_old_one and rng.random() < 0.5 else Fate.ARRIVES_TWICE
        case _:
            return Fate.ARRIVES


def _late(rng: random.Random) -> Fate:
    return rng.choice((Fate.ARRIVES_LATE, Fate.ANSWERED_TOO_LATE))


class Link:
    """One replica's way to the policy actor and back. `is_restarting` tells whether its engine restarts under a lease."""

    def __init__(self, folder: Path, log: EventLog, is_restarting: Callable[[], bool], seed: int) -> None:
        self._folder = folder
        self._log = log
        self._is_restarting = is_restarting
        self._rng = random.Random(seed)
        self._replies: deque[tuple[Version, bytes]] = deque(maxlen=KEPT_REPLIES)
        self._newest: Version = (0, 0)
        self._cut_by = 0
        self._cut_until_s = 0.0

    async def carry(self, payload: bytes, call: Callable[[bytes], Awaitable[bytes]]) -> bytes:
        """One exchange. Raises ConnectionError where the network fails it, and whatever the call raises."""
        conditions = read_conditions(self._folder)
        self._fail_if_cut(conditions)
        fault, old = conditions.fault, self._old_ones()
        match fate(conditions, self._rng, has_old_one=bool(old)):
            case Fate.ARRIVES_LATE:
                self._log.note(EventKind.DELAYED, fault=fault)
                await asyncio.sleep(self._rng.uniform(0.1, MOST_DELAY_S))
                return self._deliver(await call(payload))
            case Fate.ANSWERED_TOO_LATE:
                self._keep(await call(payload))
                self._log.note(EventKind.DELAYED, fault=fault)
                raise ConnectionError("the answer did not come in time")
            case Fate.REQUEST_LOST:
                self._log.note(EventKind.DROPPED, fault=fault)
                await asyncio.sleep(NOTICED_S)
                raise ConnectionError("the request was lost")
            case Fate.REPLY_LOST:
                await call(payload)
                self._log.note(EventKind.DROPPED, fault=fault)
                raise ConnectionError("the answer was lost")
            case Fate.ARRIVES_TWICE:
                self._log.note(EventKind.DOUBLED, fault=fault)
                first, second = await asyncio.gather(call(payload), call(payload))
                self._keep(first)
                return self._deliver(second)
            case Fate.ANSWERED_BY_AN_OLD_ONE:
                self._keep(await call(payload))
                version, reply = self._rng.choice(old)
                self._log.note(EventKind.STALE, fault=fault, version=version)
                return reply
            case _:
                return self._deliver(await call(payload))

    def _fail_if_cut(self, conditions: Conditions) -> None:
        """Of each partition a replica is cut off once: when its engine is in the middle of a restart under a lease."""
        now_s = time.monotonic()
        is_new = conditions.kind is FaultKind.PARTITION and self._cut_by != conditions.fault
        if is_new and self._is_restarting():
            self._cut_by, self._cut_until_s = conditions.fault, now_s + conditions.cut_s
            self._log.note(EventKind.CUT, fault=conditions.fault, in_restart=True)
        elif now_s < self._cut_until_s:
            self._log.note(EventKind.CUT, fault=self._cut_by)
        else:
            return
        raise ConnectionError("no way to the policy actor")

    def _old_ones(self) -> list[tuple[Version, bytes]]:
        return [(version, reply) for version, reply in self._replies if version < self._newest]

    def _keep(self, reply: bytes) -> Version:
        """Remember an answer that carries settings; their version, (0, 0) where there are none."""
        issued = ExchangeReply.from_wire(reply).issued
        if issued is None:
            return 0, 0
        version = (issued.version.incarnation, issued.version.sequence)
        self._replies.append((version, reply))
        return version

    def _deliver(self, reply: bytes) -> bytes:
        self._newest = max(self._newest, self._keep(reply))
        return reply


class BadHandle:
    """The policy actor's handle, with a link before its `exchange`. Calls nothing else."""

    def __init__(self, actor: Any, link: Link) -> None:
        self.exchange = _OverLink(actor.exchange, link)


class _OverLink:
    def __init__(self, method: Any, link: Link) -> None:
        self._method = method
        self._link = link

    def remote(self, payload: bytes) -> Awaitable[bytes]:
        """As Ray's."""
        return self._link.carry(payload, self._call)

    async def _call(self, payload: bytes) -> bytes:
        reply: bytes = await self._method.remote(payload)
        return reply
