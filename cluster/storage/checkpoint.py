"""What the policy actor remembers over a restart, how it is sealed, and the store that keeps it.

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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, get_type_hints

import structlog
from pydantic import Field

from nightjar.cluster.storage.handover import Beginning
from nightjar.cluster.storage.plain_values import packed, restored, unpacked
from nightjar.policy.learned import LearnedGroup, LearnedTables, Measurable
from nightjar.policy.operator.canary.trial import Trial
from nightjar.policy.operator.freeze import Freeze
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import PROTOCOL_VERSION

FORMAT_VERSION: Final = 1
LARGE: Final = frozenset({"learned", "waiting"})
"""Up to a mebibyte: what an operator waits for is saved without them."""
READ_PROTOCOLS: Final = (PROTOCOL_VERSION, PROTOCOL_VERSION - 1)
"""Newest first. The values of both have one format."""
SAVE_PERIOD_S: Final = 10.0
LOAD_PATIENCE_S: Final = 15.0
"""How long a start waits for a store that does not answer, as after a restart of the head node. Replicas keep their settings for
minutes, while a start without the operator's word runs the defaults."""
LOAD_PAUSE_S: Final = 1.0
STORE_TIMEOUT_S: Final = 2.0
"""Longest that one read or write may take: a policy that starts must not keep replicas waiting for a sick store."""

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


class StoreError(RuntimeError):
    """The store did not take or give a value. The message names the key and what went wrong."""


class KeyValueStore(Protocol):
    """Small values by key. Both methods raise StoreError, and neither blocks the event loop."""

    async def get(self, key: str) -> bytes | None:
        """The value last put under `key`, None where nothing was."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Replace the value under `key`."""
        ...


@dataclass(frozen=True, slots=True)
class Canaries:
    """The canary that runs, or ran last, and what became of it and of those before, in words."""

    trial: Trial | None = None
    past: tuple[str, ...] = ()


class Stored(TypedDict, total=False):
    """What is stored, by name, in the order in which it is saved.

    A `ModeOverride` expires at a second of the epoch, which means the same to the next actor.
    """

    incarnation: int
    fleet_id: Annotated[str, Field(min_length=1, max_length=64)]
    beginning: Beginning
    operator_settings: OperatorSettings
    overrides: tuple[ModeOverride, ...]
    freeze: Freeze | None
    canary: Canaries
    learned: LearnedTables
    waiting: tuple[Measurable, ...]


KINDS: Final[Mapping[str, Any]] = get_type_hints(Stored, include_extras=True)


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
    canary: Canaries = field(default_factory=Canaries)
    learned: LearnedTables | None = None
    waiting: tuple[LearnedGroup, ...] = ()
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
        found: dict[str, Any] = {}
        problems: list[str] = []
        for name, kind in KINDS.items():
            values: list[Any] = []
            for protocol in READ_PROTOCOLS:
                sealed = await self._store.get(_key(name, protocol))
                try:
                    values += [restored(kind, _as_stored_now(name, unseal(sealed)))] if sealed is not None else []
                except (ValueError, TypeError, KeyError) as error:
                    problems.append(f"stored {name} cannot be used ({error})")
            if values:
                found[name] = max(values) if name == "incarnation" else values[0]
        self._has_read = True
        return Remembered(problems=tuple(problems), **found)

    def keep(self, *, soon: bool = False, **values: Unpack[Stored]) -> None:
        """Mark values for saving, in place of those marked before; `soon` and an incarnation are saved at once."""
        self._unsaved.update(values)
        if soon or "incarnation" in values:
            self._is_urgent.set()

    async def save(self, *, but: Collection[str] = ()) -> None:
        """Write what is marked, the incarnation first, without the names in `but`.

        Never raises: what the store does not take stays marked, and is logged; what cannot be packed is logged and left out. What
        was being written when a save is cancelled stays marked as well.
        """
        async with self._saving:
            if not await self._may_overwrite():
                return
            for name in [name for name in KINDS if name in self._unsaved and name not in but]:
                value = self._unsaved.pop(name)
                try:
                    sealed = seal(value)
                except Exception:
                    log.exception("policy_state_has_no_plain_form", value=name)
                    continue
                try:
                    await self._store.put(_key(name), sealed)
                except BaseException as error:  # a cancelled save, too: the store may have taken it or not
                    self._unsaved.setdefault(name, value)  # unless a newer value was marked meanwhile
                    if not isinstance(error, StoreError):
                        raise
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
    """msgpack of [format version, SHA-256 of the body, body], the body being what `packed` makes of `value`."""
    body = packed(value)
    return packed([FORMAT_VERSION, hashlib.sha256(body).digest(), body])


def unseal(sealed: bytes) -> Any:
    """What `seal` was given, as plain types. Raises ValueError naming what is wrong: not sealed, another format or checksum."""
    try:
        version, digest, body = unpacked(sealed)
        seen = hashlib.sha256(body).digest()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{len(sealed)} bytes that are no sealed value") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version!r}, this release reads {FORMAT_VERSION}")
    if seen != digest:
        raise ValueError(f"checksum of {len(body)} bytes does not match")
    return unpacked(body)


def _as_stored_now(name: str, value: Any) -> Any:
    """For one release: what was stored before has lists of pairs in the place of mappings whose keys are no text."""
    trial: Any = value["trial"] if name == "canary" else None
    for work in ("canary_work", "control_work") if trial else ():
        trial[work] = dict(trial[work])
    return value


def _key(name: str, protocol: int = PROTOCOL_VERSION) -> str:
    return f"policy-v{protocol}:{name}"


async def called_in_time(key: str, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """What `call` of a store answers, which blocks: in a thread, for STORE_TIMEOUT_S. Raises StoreError, which names `key`."""
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S + 0.5):  # above Ray's own timeout, which frees the thread
            return await asyncio.to_thread(call, *arguments, **keywords)
    except TimeoutError as error:
        raise StoreError(f"key {key}: no answer within {STORE_TIMEOUT_S} s") from error
    except Exception as error:  # Ray's KV client raises RpcError, RuntimeError and plain Exception alike, a disk OSError
        raise StoreError(f"key {key}: {type(error).__name__}: {error}") from error
