"""What goes down: one replica's settings, its plan, its leases and what it shall measure, and the version they are issued under.

Two envelopes carry them: the policy's reply to a report, and the agent's command to its engine. Complete each time, never a
difference; an older version never replaces a newer one (INV-5). Fails closed on what is out of bounds (record.py), and on a table
with a gap or an overlap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from nightjar.policy.wire.cause import SomeCauses
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import (
    MAX_BATCH_SIZE,
    PROTOCOL_VERSION,
    BatchSize,
    Count,
    Identifier,
    NumSpeculativeTokens,
    Reason,
    Record,
    Seconds,
)

DELIVERY_S: Final = 5.0
"""What the way of settings to a replica, and of its answer back, may take. A lease and an exploration segment live so much longer
than their work should take; what a segment did not bring is asked for again after it; a report that is older is late."""


class SettingsVersion(Record):
    """Fence of settings and leases (INV-5): pairs are ordered, an older one is never applied."""

    incarnation: Annotated[int, Field(ge=0, lt=1 << 53)]
    sequence: Annotated[int, Field(ge=0, lt=1 << 53)]

    def is_newer_than(self, other: SettingsVersion | None) -> bool:
        """Whether this pair may replace `other` (None: nothing is known yet)."""
        return other is None or (self.incarnation, self.sequence) > (other.incarnation, other.sequence)

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.sequence}"


class TableRow(Record):
    """K for decode batches from `first_batch_size` to `last_batch_size`, both included (vLLM's `[first, last, K]`)."""

    first_batch_size: BatchSize
    last_batch_size: BatchSize
    num_speculative_tokens: NumSpeculativeTokens

    @model_validator(mode="after")
    def _first_is_not_after_last(self) -> Self:
        if self.first_batch_size > self.last_batch_size:
            raise ValueError(f"first_batch_size {self.first_batch_size} is above last_batch_size {self.last_batch_size}")
        return self


class ExplorationSegment(Record):
    """Hold one K for a number of clean steps while the decode batch lies in a range: one measurement.

    The replica obeys once, counts down only clean steps in the range, and drops the segment `time_to_live_s` after it arrived. If
    it is `beside_prefill`, steps with prefill beside their decode rows begin it and count as well.
    """

    segment_id: Annotated[int, Field(ge=1, lt=1 << 53)]
    first_batch_size: BatchSize
    last_batch_size: BatchSize
    num_speculative_tokens: NumSpeculativeTokens
    clean_steps: Annotated[int, Field(ge=1, le=10_000)]
    time_to_live_s: Seconds
    beside_prefill: bool = False


class OffStep(Record):
    """How long an OFF step should take at a decode batch: what speculation must not be worse than."""

    decode_rows: Annotated[float, Field(ge=1.0, le=MAX_BATCH_SIZE)]
    step_seconds: Annotated[float, Field(gt=0.0, le=1e4)]


class Table(Record):
    """A plan the fleet decided: K by decode batch size, measurements to make on the way, and what OFF would take.

    `mixed_rows` is K for drafts that are expected to be verified in a step that also computes prompt tokens; empty: as `rows`.

    Rows ascend and do not overlap. A batch below the first row takes the first row's K, one above the last row K = 0, and one in a
    gap that of the row before it, as in vLLM. `k_at` looks it up.
    """

    kind: Literal["table"] = "table"
    rows: Annotated[tuple[TableRow, ...], Field(min_length=1, max_length=256)]
    mixed_rows: Annotated[tuple[TableRow, ...], Field(max_length=256)] = ()
    segments: Annotated[tuple[ExplorationSegment, ...], Field(max_length=64)] = ()
    off_steps: Annotated[tuple[OffStep, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _off_steps_ascend(self) -> Self:
        if any(
            later.decode_rows <= earlier.decode_rows for earlier, later in zip(self.off_steps, self.off_steps[1:], strict=False)
        ):
            raise ValueError("off_steps must ascend by decode_rows")
        return self

    @model_validator(mode="after")
    def _rows_ascend(self) -> Self:
        for rows in (self.rows, self.mixed_rows):
            for earlier, later in pairwise(rows):
                if later.first_batch_size <= earlier.last_batch_size:
                    raise ValueError(
                        f"rows must ascend without overlap: {later.first_batch_size} follows {earlier.last_batch_size}"
                    )
        return self


def k_at(rows: Sequence[TableRow], decode_batch_size: int) -> int:
    """K that rows which ascend give a decode batch, as `Table` says; 0 without rows.

    >>> rows = (TableRow(first_batch_size=2, last_batch_size=3, num_speculative_tokens=3),
    ...         TableRow(first_batch_size=6, last_batch_size=6, num_speculative_tokens=1))
    >>> [k_at(rows, batch) for batch in (0, 2, 3, 5, 6, 7)], k_at((), 1)
    ([3, 3, 3, 3, 1, 0], 0)
    """
    if not rows or decode_batch_size > rows[-1].last_batch_size:
        return 0
    begun = bisect_right(rows, decode_batch_size, key=_FIRST_BATCH_SIZE)
    return rows[max(begun - 1, 0)].num_speculative_tokens


_FIRST_BATCH_SIZE: Final = attrgetter("first_batch_size")


class Local(Record):
    """A plan that the engine makes itself, step by step, with the named planner.

    A planner that learns forgets what it knew before `anew_at_s`, a second of the epoch: an engine builds it anew.
    """

    kind: Literal["local"] = "local"
    planner: Identifier
    options: dict[str, float | int | str | bool] = Field(default_factory=dict, max_length=64)
    anew_at_s: float | None = None

    def begun_anew(self, at_s: float | None) -> Local:
        """The same plan, of which engines keep nothing that they learned before this second (None: they keep it)."""
        return self if at_s is None else self.model_copy(update={"anew_at_s": at_s})


Plan = Annotated[Table | Local, Field(discriminator="kind")]


class Lease(Record):
    """The policy's permission for one restart: the answer to one wish, good once.

    Its time to live counts from when the replica sent that wish, which is before the policy granted it: however long a lease
    travels, it ends where it is used before it ends where it is counted (INV-6).
    """

    wish_id: Annotated[int, Field(ge=1, lt=1 << 53)]
    time_to_live_s: Seconds
    reload: bool = False


class OffloadRules(Record):
    """When a dormant drafter's weights may leave the accelerator, and when they may come back.

    Memory pressure is a share of free KV blocks below `free_share_below` while requests wait; it must persist for `pressure_s`.
    Weights come back only while at least `reload_free_share` of the blocks is free, because the pool shrinks first.
    """

    free_share_below: Annotated[float, Field(ge=0.0, le=1.0)]
    pressure_s: Seconds
    reload_free_share: Annotated[float, Field(ge=0.0, le=1.0)]


class RestartLimits(Record):
    """What one replica's drafter may do to come back, and why it waits (empty where it does not).

    `micro_restart_tokens` is the allowance of lag that restarts may recompute without a lease (policy.step.drafter says how it
    is spent), `catch_up_chunk_tokens` bounds what one step may recompute (None: as the engine does itself).
    """

    micro_restart_tokens: Count = 0
    catch_up_chunk_tokens: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    leases: Annotated[tuple[Lease, ...], Field(max_length=16)] = ()
    causes: SomeCauses = ()


class Settings(Record):
    """What the policy decides for one replica. Complete each time, never a difference; `causes` hold no live numbers, so that
    settings are equal for as long as nothing changed. Without `offload` weights never leave the accelerator.
    """

    mode: Mode
    plan: Plan
    allowed_num_speculative_tokens: Annotated[tuple[NumSpeculativeTokens, ...], Field(min_length=1, max_length=33)]
    dwell_steps: Annotated[int, Field(ge=0, le=10_000)] = 0
    settings_max_age_s: Seconds = 300.0
    exchange_period_s: Annotated[float, Field(ge=0.05, le=60.0)] = 0.5
    restarts: RestartLimits = RestartLimits()
    offload: OffloadRules | None = None
    causes: SomeCauses = ()

    def without_causes(self) -> Settings:
        """What of them an engine obeys: equal for two settings that differ in their causes alone."""
        return self.model_copy(update={"causes": (), "restarts": self.restarts.model_copy(update={"causes": ()})})


class IssuedSettings(Record):
    """One replica's settings under the version that the policy issued them with (policy.issuer)."""

    version: SettingsVersion
    settings: Settings


class EngineCommand(Record):
    """What the replica tells its engine on the control channel. Complete each time: an absent field means none.

    `issued` settings are adopted if newer; `confirmed` names settings that the policy said still hold, and restarts their age;
    `local_mode` is the replica's own kill switch, which overrides the settings' mode until a command carries another value.
    """

    issued: IssuedSettings | None = None
    confirmed: SettingsVersion | None = None
    local_mode: Mode | None = None


class ExchangeReply(Record):
    """The policy's answer to a report: settings if newer ones exist, or why the report was refused."""

    protocol_version: int = PROTOCOL_VERSION
    incarnation: Annotated[int, Field(ge=0, lt=1 << 53)]
    issued: IssuedSettings | None = None
    refused: Reason = ""
