"""What a replay needs (INV-7), noted while the policy runs: which reports were observed when, and what each tick decided on them.

Costs the event loop one comparison and one list entry a report: the fleet's state is a value, so that "could a replay have come
to this very state?" is whether it is the same object that the recorder saw last. Whatever else changes the state (a new
incarnation, an import) therefore needs no telling: the next tick is recorded with its whole state. Fails open: where the sink
takes no more, reports are too many, or the fleet is larger than `max_replicas`, ticks are left out, and the next one taken begins
with its whole state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.state import FleetState
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.settings import Settings

MAX_RECORDED_REPLICAS: Final = 256
"""A larger fleet is not recorded: at 512 reports a second the work beside the event loop, and the disk, begin to count."""
RECORDED_REPLICAS_VARIABLE: Final = "NIGHTJAR_RECORDED_REPLICAS"
MAX_WAITING_BYTES: Final = 32 << 20
"""Of reports between two ticks: above it the tick is left out, so that no storm of reports fills the actor's memory (INV-8)."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """A LoadReport as it came, in msgpack, and when it was observed in seconds since the epoch."""

    time_s: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class Moment:
    """Everything that a tick decides on. `seed` is that of its random numbers."""

    incarnation: int
    tick: int
    time_s: float
    seed: int
    state: FleetState
    settings: OperatorSettings
    overrides: tuple[ModeOverride, ...]


@dataclass(frozen=True, slots=True)
class RecordedTick:
    """One tick: the moment, what came in since the tick before (reports, and settings as soon as they were in force), and the
    decisions by replica id, or why there are none.

    `is_chained`: the inputs lead from the state after the tick before to the moment's. Else only the moment's own state tells.
    """

    moment: Moment
    inputs: tuple[Heard | OperatorSettings, ...]
    is_chained: bool
    decisions: Mapping[str, Settings]
    error: str = ""


class TickSink(Protocol):
    """Where ticks go, in order."""

    def take(self, tick: RecordedTick) -> bool:
        """Keep a tick; False where it is left out. Neither blocks nor raises."""
        ...

    def holds_s(self, now_s: float) -> float | None:
        """Seconds of ticks that are kept at the present pace; None while that is not known."""
        ...

    @property
    def problem(self) -> str:
        """Why it takes no tick any more; empty while it does."""
        ...


class Recorder:
    """Notes inputs and hands ticks on. All on the policy's event loop; without a sink, or for 0 replicas, none is."""

    def __init__(self, sink: TickSink | None = None, max_replicas: int = MAX_RECORDED_REPLICAS) -> None:
        self._sink = sink if max_replicas else None
        self._max_replicas = max_replicas
        self._at: FleetState | None = None
        self._settings: OperatorSettings | None = None
        self._inputs: list[Heard | OperatorSettings] = []
        self._waiting_bytes = 0
        self._is_too_large = False

    def holds_s(self, now_s: float) -> float | None:
        """Seconds that can be replayed at the present pace; None while that is not known, and where nothing is recorded."""
        return self._sink.holds_s(now_s) if self._sink is not None and not self.problem else None

    @property
    def problem(self) -> str:
        """Why nothing is recorded, as far as this is meant to be told; empty where something is."""
        if self._is_too_large:
            return f"the fleet is larger than {self._max_replicas} replicas ({RECORDED_REPLICAS_VARIABLE})"
        return self._sink.problem if self._sink is not None else f"recording is off ({RECORDED_REPLICAS_VARIABLE}=0)"

    def observed(self, before: FleetState, after: FleetState, payload: bytes, now_s: float, settings: OperatorSettings) -> None:
        """A report was observed at `now_s` under `settings`; it led from one state to the other."""
        if self._at is None or after is before:
            return
        self._waiting_bytes += len(payload)
        if before is not self._at or self._waiting_bytes > MAX_WAITING_BYTES:
            self._break()
            return
        self._note(settings)
        self._inputs.append(Heard(now_s, payload))
        self._at = after

    def decided(self, moment: Moment, decisions: Mapping[str, Settings], after: FleetState) -> None:
        """A tick decided, which led from the moment's state to `after`."""
        self._hand_on(moment, decisions, "", after)

    def failed(self, moment: Moment, error: str) -> None:
        """A tick failed and left the state as it was."""
        self._hand_on(moment, {}, error, moment.state)

    def _hand_on(self, moment: Moment, decisions: Mapping[str, Settings], error: str, after: FleetState) -> None:
        if self._sink is None or self._is_over_limit(len(moment.state.replicas)):
            self._break()
            return
        is_chained = self._at is moment.state
        if is_chained:
            self._note(moment.settings)
        taken = self._sink.take(RecordedTick(moment, tuple(self._inputs), is_chained, decisions, error))
        self._break()
        if taken:
            self._at, self._settings = after, moment.settings

    def _note(self, settings: OperatorSettings) -> None:
        if settings is not self._settings:
            self._inputs.append(settings)
            self._settings = settings

    def _break(self) -> None:
        """Forget what was noted; without a state to go on from, nothing is noted until a tick is taken."""
        self._at, self._inputs, self._waiting_bytes = None, [], 0

    def _is_over_limit(self, replicas: int) -> bool:
        too_large = replicas > self._max_replicas
        if too_large != self._is_too_large:
            log.info("journal_inputs_paused" if too_large else "journal_inputs_resumed", replicas=replicas, most=self._max_replicas)
        self._is_too_large = too_large
        return too_large


def recorded_replicas() -> int:
    """Replicas up to which the fleet's inputs are recorded for a replay: $NIGHTJAR_RECORDED_REPLICAS, 0 for never."""
    chosen = os.environ.get(RECORDED_REPLICAS_VARIABLE, "")
    if chosen.isdecimal():
        return int(chosen)
    if chosen:
        log.warning("recorded_replicas_unreadable", value=chosen, allowed="a whole number", used=MAX_RECORDED_REPLICAS)
    return MAX_RECORDED_REPLICAS
