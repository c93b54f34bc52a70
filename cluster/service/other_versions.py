"""Policy actors of other protocol versions in the same cluster, and what one owes the other while both are there (INV-6).

An actor's name carries the protocol version, so that replicas of two releases whose protocols differ never share a policy. But they
may share nodes, and a node bears one reload. So the newest actor alone grants: an older one looks for newer names every
LOOK_PERIOD_S, and grants nothing while there is one, nor for one longest lease after it is gone. A new one that finds an older, or
cannot tell, begins to grant later by the time in which the older notices. Plans and everything else go on in both. A look that
fails changes nothing of what was seen before: an actor that cannot reach Ray's control store may grant beside a newer one that has
only just come.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from nightjar.policy.controller import Controller
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.report import LoadReport

ACTOR_NAME_PREFIX: Final = "nightjar-policy-v"
LOOK_PERIOD_S: Final = 2.0
LOOK_TIMEOUT_S: Final = 2.0

NamesOfActors = Callable[[], Awaitable[Sequence[str]]]
"""Names of the actors that live beside this one. May raise anything."""

log = structlog.get_logger(__name__)


class OtherPolicies(Protocol):
    """What a policy is told of others that may grant beside it. All on one event loop; nothing raises."""

    async def notice_s(self) -> float:
        """How long after now another one may still grant because it has not noticed this one."""
        ...

    async def keep_looking(self) -> None:
        """Look, for ever."""
        ...

    def hold_back(self, controller: Controller, now_s: float) -> list[str]:
        """Have nothing granted while another one has the right to. Answers news, in words."""
        ...


def grant_nothing(controller: Controller, now_s: float, *, is_held: bool, has_turned: bool) -> None:
    """Have nothing granted while `is_held`, nor for one longest lease after that has turned."""
    since_s = controller.state.quiet_since_s
    is_wearing_off = since_s is None or now_s - since_s >= controller.settings.max_lease_ttl_s / 2
    if has_turned or (is_held and is_wearing_off):
        controller.await_leases(max(now_s, since_s or now_s))


async def no_other_actors() -> Sequence[str]:
    """A cluster of one policy."""
    return ()


def foreign_protocol(report: LoadReport) -> str:
    """Why a report of another protocol version is not taken; empty where it is ours."""
    if report.protocol_version == PROTOCOL_VERSION:
        return ""
    return (
        f"protocol_version: {report.protocol_version} of replica {report.replica_id}, this policy speaks {PROTOCOL_VERSION}; "
        "it serves on with the settings it has, give it a start with this release"
    )


class OtherVersions:
    """What was seen of actors of other protocol versions. All on one event loop; nothing raises."""

    def __init__(self, names: NamesOfActors, version: int = PROTOCOL_VERSION) -> None:
        self._names = names
        self._version = version
        self._newest: int | None = None
        self._has_failed = False
        self._held_back_by = 0

    async def notice_s(self) -> float:
        """Look, and say how long after now an older actor may still grant because it has not noticed this one."""
        versions = await self._look()
        has_older = versions is None or any(version < self._version for version in versions)
        return LOOK_PERIOD_S + LOOK_TIMEOUT_S if has_older else 0.0

    async def keep_looking(self) -> None:
        """Look every LOOK_PERIOD_S, for ever."""
        while True:
            await self._look()
            await asyncio.sleep(LOOK_PERIOD_S)

    def hold_back(self, controller: Controller, now_s: float) -> list[str]:
        """Have nothing granted while a newer actor is there, nor for one longest lease afterwards. Answers news, in words."""
        newest, before = self._newest or 0, self._held_back_by
        self._held_back_by = newer = newest if newest > self._version else 0
        turned = []
        if newer != before:
            what = f"the policy of protocol {newer} is here" if newer else f"the policy of protocol {before} is gone"
            turned = [
                f"{what}: this one, of protocol {self._version}, grants no restarts" + ("" if newer else " for one lease more")
            ]
            log.warning("other_protocol_version", newer=newer, before=before, mine=self._version)
        grant_nothing(controller, now_s, is_held=newer > 0, has_turned=newer != before)
        return turned

    async def _look(self) -> list[int] | None:
        """Versions of the actors that are there, None where Ray does not tell."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                names = await self._names()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises: nothing is known anew
            if not self._has_failed:
                log.warning("other_versions_not_seen", error=f"{type(error).__name__}: {error}")
            self._has_failed = True
            return None
        self._has_failed = False
        versions = [int(found[1]) for name in names if (found := re.fullmatch(rf"{ACTOR_NAME_PREFIX}(\d{{1,3}})", name))]
        self._newest = max(versions, default=None)
        return versions
