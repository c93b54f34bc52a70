"""What the policy actor remembers over a restart, and how it is sealed in the store.

Nine values: the incarnation (INV-5), the id of the fleet and how it began, the settings and overrides of the operator, a freeze,
a canary, what was learned, and imported groups that wait for their replicas. Each is msgpack of plain types behind a format
version and a checksum. Keys name the protocol, so that actors of two releases never write over each other; what this protocol has
not stored yet is read from the one before, and the incarnation is above both. Fails open and apart: a value that cannot be used,
because it was cut or comes from another format, is logged and counts as absent. A store that does not answer is asked for a
while, then the actor starts cold; nothing stored is written over before it was read and handed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Annotated, Any, Final, TypeVar

import msgpack
import structlog
from pydantic import Field, TypeAdapter

from nightjar.cluster.handover import Beginning
from nightjar.cluster.plain_values import plain, restored
from nightjar.cluster.store import KeyValueStore, StoreError
from nightjar.policy.canary.trial import Trial
from nightjar.policy.freeze import Freeze
from nightjar.policy.modes import ModeOverride
from nightjar.policy.prior.learned import LearnedTables
from nightjar.policy.prior.seed import SeedGroup
from nightjar.policy.wire.operator import OperatorSettings, parse_operator_settings
from nightjar.policy.wire.record import PROTOCOL_VERSION, to_plain

FORMAT_VERSION: Final = 1
NAMES: Final = ("incarnation", "fleet_id", "beginning", "operator_settings", "overrides", "freeze", "canary", "learned", "waiting")
LARGE: Final = frozenset({"learned", "waiting"})
"""Up to a mebibyte: what an operator waits for is saved without them."""
READ_PROTOCOLS: Final = (PROTOCOL_VERSION, PROTOCOL_VERSION - 1)
"""Newest first. The values of both have one format."""
SAVE_PERIOD_S: Final = 10.0
LOAD_PATIENCE_S: Final = 15.0
"""How long a start waits for a store that does not answer, as after a restart of the head node. Replicas keep their settings for
minutes, while a start without the operator's word runs the defaults."""
LOAD_PAUSE_S: Final = 1.0

T = TypeVar("T")

log = structlog.get_logger(__name__)
_fleet_id = TypeAdapter(Annotated[str, Field(min_length=1, max_length=64)])
_overrides = TypeAdapter(tuple[ModeOverride, ...])
_freeze = TypeAdapter(Freeze | None)
_waiting = TypeAdapter(tuple[SeedGroup, ...])


@dataclass(frozen=True, slots=True)
class Canaries:
    """The canary that runs, or ran last, and what became of it and of those before, in words."""

    trial: Trial | None = None
    past: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the store gave at start; `problems` says in words what it could not give.

    `beginning` is None of a fleet that an older release began.
    """

    incarnation: int = 0
    fleet_id: str = ""
    beginning: Beginning | None = None
    operator_settings: OperatorSettings = field(default_factory=OperatorSettings)
    overrides: tuple[ModeOverride, ...] = ()
    freeze: Freeze | None = None
    canaries: Canaries = field(default_factory=Canaries)
    learned: LearnedTables | None = None
    waiting: tuple[SeedGroup, ...] = ()
    problems: tuple[str, ...] = ()


class Checkpoint:
    """Loads the nine values, and saves what was marked since. Neither raises, neither blocks the event loop."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._unsaved: dict[str, Any] = {}
        self._saving = asyncio.Lock()
        self._is_urgent = asyncio.Event()
        self._has_read = False
        self._found: Remembered | None = None

    async def load(self) -> Remembered:
        """Everything that can be used, or nothing where the store gives no answer within LOAD_PATIENCE_S."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + LOAD_PATIENCE_S
        while True:
            try:
                remembered = await self._read()
            except StoreError as error:
                if loop.time() + LOAD_PAUSE_S < give_up_s:
                    await asyncio.sleep(LOAD_PAUSE_S)
                    continue
                remembered = Remembered(problems=(f"the store cannot be read ({error})",))
            break
        for problem in remembered.problems:
            log.warning("policy_cold_start", problem=problem)
        return remembered

    def take_found(self) -> Remembered | None:
        """What the store gave only after `load` had given up, once. Until it is taken nothing is saved."""
        found, self._found = self._found, None
        return found

    @property
    def has_read(self) -> bool:
        """Whether what is stored is known, so that there is nothing left to find."""
        return self._has_read and self._found is None

    async def _read(self) -> Remembered:
        """Raises StoreError."""
        stored = {name: [await self._store.get(_key(name, protocol)) for protocol in READ_PROTOCOLS] for name in NAMES}
        self._has_read = True
        problems: list[str] = []

        def opened(name: str, parse: Callable[[Any], T], default: T, choose: Callable[[list[T]], T] = itemgetter(0)) -> T:
            found = []
            for sealed in stored[name]:
                try:
                    found += [parse(unseal(sealed))] if sealed is not None else []
                except (ValueError, TypeError) as error:  # pydantic's errors and SettingsError are ValueErrors, too
                    problems.append(f"stored {name} cannot be used ({error})")
            return choose(found) if found else default

        return Remembered(
            incarnation=opened("incarnation", int, 0, max),
            fleet_id=opened("fleet_id", _fleet_id.validate_python, ""),
            beginning=opened("beginning", Beginning.model_validate, None),
            operator_settings=opened("operator_settings", parse_operator_settings, OperatorSettings()),
            overrides=opened("overrides", _overrides.validate_python, ()),
            freeze=opened("freeze", _freeze.validate_python, None),
            canaries=opened("canary", partial(restored, Canaries), Canaries()),
            learned=opened("learned", LearnedTables.model_validate, None),
            waiting=opened("waiting", _waiting.validate_python, ()),
            problems=tuple(problems),
        )

    def keep_incarnation(self, incarnation: int) -> None:
        """Mark the incarnation in force for saving, soon."""
        self._unsaved["incarnation"] = incarnation
        self._is_urgent.set()

    def keep_fleet_id(self, fleet_id: str) -> None:
        """Mark the fleet's id for saving."""
        self._unsaved["fleet_id"] = fleet_id

    def keep_beginning(self, beginning: Beginning) -> None:
        """Mark how the fleet began for saving."""
        self._unsaved["beginning"] = to_plain(beginning)

    def keep_operator_settings(self, settings: OperatorSettings) -> None:
        """Mark the operator's last accepted settings for saving."""
        self._unsaved["operator_settings"] = settings.model_dump(mode="json", exclude_none=True)

    def keep_overrides(self, overrides: tuple[ModeOverride, ...]) -> None:
        """Mark the overrides for saving. They expire at a second of the epoch, which means the same to the next actor."""
        self._unsaved["overrides"] = _overrides.dump_python(overrides, mode="json", exclude_none=True)

    def keep_freeze(self, freeze: Freeze | None) -> None:
        """Mark the freeze in force for saving, or that there is none."""
        self._unsaved["freeze"] = _freeze.dump_python(freeze, mode="json", exclude_none=True)

    def keep_canaries(self, canaries: Canaries, *, soon: bool) -> None:
        """Mark the canary that runs, or ran last, and those before it for saving; `soon` where it came to another phase."""
        self._unsaved["canary"] = plain(canaries)
        if soon:
            self._is_urgent.set()

    def keep_learned(self, learned: LearnedTables) -> None:
        """Mark what the fleet has learned for saving."""
        self._unsaved["learned"] = learned.model_dump(mode="json", exclude_none=True)

    def keep_waiting(self, waiting: tuple[SeedGroup, ...]) -> None:
        """Mark the imported groups that wait for saving."""
        self._unsaved["waiting"] = _waiting.dump_python(waiting, mode="json", exclude_none=True)

    async def save(self, *, but: Collection[str] = ()) -> None:
        """Write what is marked, the incarnation first, without the names in `but`.

        Never raises: what the store does not take stays marked, and is logged.
        """
        async with self._saving:
            if not await self._may_overwrite():
                return
            for name in [name for name in NAMES if name in self._unsaved and name not in but]:
                value = self._unsaved.pop(name)
                try:
                    await self._store.put(_key(name), seal(value))
                except StoreError as error:
                    self._unsaved.setdefault(name, value)  # unless a newer value was marked meanwhile
                    log.warning("policy_state_not_saved", value=name, problem=str(error))
                    return

    async def _may_overwrite(self) -> bool:
        """Whether what is stored is known: else it is read now, and must be taken first."""
        if not self._has_read:
            try:
                self._found = await self._read()
            except StoreError as error:
                log.warning("policy_state_not_saved", problem=str(error))
        return self.has_read

    async def keep_saving(self) -> None:
        """Save what is marked every SAVE_PERIOD_S, a new incarnation at once, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_PERIOD_S):
                    await self._is_urgent.wait()
            self._is_urgent.clear()
            await self.save()


def seal(value: object) -> bytes:
    """msgpack of [format version, SHA-256 of the body, body], the body being msgpack of `value`."""
    body = msgpack.packb(value)
    packed: bytes = msgpack.packb([FORMAT_VERSION, hashlib.sha256(body).digest(), body])
    return packed


def unseal(sealed: bytes) -> Any:
    """What `seal` was given. Raises ValueError naming what is wrong: not sealed, another format, or a checksum that differs."""
    try:
        version, digest, body = msgpack.unpackb(sealed)
        seen = hashlib.sha256(body).digest()
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"{len(sealed)} bytes that are no sealed value") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version!r}, this release reads {FORMAT_VERSION}")
    if seen != digest:
        raise ValueError(f"checksum of {len(body)} bytes does not match")
    return msgpack.unpackb(body)


def _key(name: str, protocol: int = PROTOCOL_VERSION) -> str:
    return f"policy-v{protocol}:{name}"
