"""Which Serve replicas Ray's memory monitor killed of late: the reason for an empty fleet that no report can tell.

The monitor is in each node's raylet, and the killed process says nothing. Ray's GCS keeps why an actor died, without a dashboard
and the server of its state API (`nightjar run` starts neither), so the policy actor asks there every LOOK_PERIOD_S. Fails towards
saying less: where Ray does not tell, that is logged once, and what was seen before stays. Actors without a Serve replica's name are
left out: a worker of vLLM's Ray executor that was killed shows as its replica's failure only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import structlog

from nightjar.policy.wire.status import shown_name

LOOK_PERIOD_S: Final = 5.0
LOOK_TIMEOUT_S: Final = 20.0
TOLD_FOR_S: Final = 3600.0
"""A kill that is longer ago is over."""
MOST_KILLS: Final = 1_000
"""That are remembered, the latest: Ray knows of up to 100,000 dead actors."""
REPLICA_PREFIX: Final = "SERVE_REPLICA::"
"""Of the actor's name of every Serve replica (ray.serve._private, Ray 2.60)."""
MEMORY: Final = re.compile(r"\(IP: ([^,]+),.*?\) was ([\d.]+GB used / [\d.]+GB limit)", re.DOTALL)
"""In Ray's message: the node's address and its memory at that moment."""

log = structlog.get_logger(__name__)


class DeadActor(NamedTuple):
    """An actor that died for want of memory, as Ray's GCS tells it."""

    name: str
    ended_at_s: float
    message: str


DeadActors = Callable[[], Awaitable[Sequence[DeadActor]]]
"""Those that Ray still knows of. May raise anything of Ray's."""


async def none_killed() -> Sequence[DeadActor]:
    """A world without Ray."""
    return ()


class MemoryKills:
    """The Serve replicas that were killed, the last one last."""

    def __init__(self, dead_actors: DeadActors = none_killed) -> None:
        self._dead_actors = dead_actors
        self._killed: tuple[DeadActor, ...] = ()
        self._has_failed = False

    async def keep_looking(self) -> None:
        """Look every LOOK_PERIOD_S, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_PERIOD_S)

    async def look(self) -> None:
        """Look once. Never raises."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                found = await self._dead_actors()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises: nothing is known anew
            if not self._has_failed:
                log.warning("memory_kills_not_seen", error=f"{type(error).__name__}: {error}")
            self._has_failed = True
            return
        self._has_failed = False
        replicas = [actor for actor in found if actor.name.startswith(REPLICA_PREFIX)]
        known = set(self._killed)
        self._killed = tuple(sorted(replicas, key=lambda actor: actor.ended_at_s)[-MOST_KILLS:])
        for actor in self._killed:
            if actor not in known:
                log.warning("replica_killed_for_memory", what=_in_words(actor))

    def of_late(self, now_s: float) -> tuple[int, str]:
        """How many were killed within TOLD_FOR_S, and the last one in words.

        >>> kills, message = MemoryKills(), "the node (IP: 10.0.0.5, ID: a) was 22.9GB used / 23.5GB limit"
        >>> kills._killed = (DeadActor("SERVE_REPLICA::chat#LLM#x1", 60.0, message),)
        >>> kills.of_late(90.0)
        (1, 'chat/x1 at 00:01:00 UTC on node 10.0.0.5, with 22.9GB used / 23.5GB limit')
        >>> kills.of_late(9000.0)
        (0, '')
        """
        recent = [actor for actor in self._killed if now_s - actor.ended_at_s <= TOLD_FOR_S]
        return len(recent), _in_words(recent[-1]) if recent else ""


def _in_words(actor: DeadActor) -> str:
    replica_id = actor.name.removeprefix(REPLICA_PREFIX)
    at = datetime.fromtimestamp(actor.ended_at_s, UTC).strftime("%H:%M:%S UTC")
    where = f" on node {found[1]}, with {found[2]}" if (found := MEMORY.search(actor.message)) else ""
    return f"{shown_name(replica_id.partition('#')[0], replica_id)} at {at}{where}"
