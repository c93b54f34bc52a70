"""Records that cross a process or a file boundary: reports up, settings down, the journal aside.

Every record is frozen and validated where it enters; a report is data from a stranger (INV-10), so each field has
bounds and every sequence a maximum length. On the wire a record is msgpack of plain types: unknown fields are ignored
and new fields are optional, so that replicas and actors of neighbouring versions understand each other.
Fails closed: bytes that are too long, not msgpack or out of bounds raise `WireError`, which names field, value and limit.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

PROTOCOL_VERSION: Final = 1
MAX_RECORD_BYTES: Final = 1 << 20
MAX_NUM_SPECULATIVE_TOKENS: Final = 32
MAX_BATCH_SIZE: Final = 4096
MAX_CELLS: Final = 1024
MAX_ADAPTERS: Final = 64
MAX_REASON_LENGTH: Final = 1024
NO_ENGINE_ID: Final = "none"
"""`engine_id` of a snapshot that stands for a control call that failed: it tells nothing of the engine but `refused`."""

Identifier = Annotated[str, Field(min_length=1, max_length=256)]
Reason = Annotated[str, Field(max_length=MAX_REASON_LENGTH)]
NumSpeculativeTokens = Annotated[int, Field(ge=0, le=MAX_NUM_SPECULATIVE_TOKENS)]
BatchSize = Annotated[int, Field(ge=0, le=MAX_BATCH_SIZE)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Seconds = Annotated[float, Field(ge=0.0, le=1e9)]
MOST_SUM: Final = 1e30
"""Of what many reports add up to. Thousands of replicas may add counts of 2^53 each, and what was counted must always be storable:
the bound only keeps out what would overflow when it is squared."""
DecayedSum = Annotated[float, Field(ge=0.0, le=MOST_SUM)]
PositiveSum = Annotated[float, Field(gt=0.0, le=MOST_SUM)]
SignedSum = Annotated[float, Field(ge=-MOST_SUM, le=MOST_SUM)]


class WireError(ValueError):
    """Bytes that are not the record they should be. The message names the field, the value seen and what is allowed."""


def describe_validation_error(error: ValidationError, limit: int = 3) -> str:
    """The first `limit` problems of a pydantic error on one line: `field: what was wrong (got value)`."""
    problems = []
    for detail in error.errors(include_url=False, include_context=False)[:limit]:
        path = ".".join(str(part) for part in detail["loc"]) or "record"
        problems.append(f"{path}: {detail['msg']} (got {str(detail['input'])[:80]!r})")
    remaining = error.error_count() - len(problems)
    return "; ".join(problems) + (f"; and {remaining} more" if remaining > 0 else "")


class Record(BaseModel):
    """A frozen value with a msgpack form."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    max_wire_bytes: ClassVar[int] = MAX_RECORD_BYTES
    """The longest wire form that is parsed."""

    def to_wire(self) -> bytes:
        """msgpack of the record's plain form; fields that are None are left out."""
        packed: bytes = msgpack.packb(self.model_dump(mode="json", exclude_none=True))
        return packed

    @classmethod
    def from_wire(cls, payload: bytes) -> Self:
        """Parse what `to_wire` wrote.

        Raises WireError for more than `max_wire_bytes`, for bytes that are not msgpack and for values out of bounds.
        """
        if len(payload) > cls.max_wire_bytes:
            raise WireError(f"{cls.__name__}: {len(payload)} bytes, allowed are at most {cls.max_wire_bytes}")
        try:
            return cls.model_validate(msgpack.unpackb(payload))
        except ValidationError as error:
            raise WireError(f"{cls.__name__}: {describe_validation_error(error)}") from error
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise WireError(f"{cls.__name__}: {len(payload)} bytes that are not msgpack ({error})") from error


class Mode(Record):
    """What the operator wants: `auto` runs the planner, `shadow` plans and touches nothing, `off`, `pin=K`.

    A plain string on every wire and in every file. `pin` holds num_speculative_tokens, the other kinds do not.
    """

    kind: Literal["auto", "shadow", "off", "pin"]
    num_speculative_tokens: NumSpeculativeTokens | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if value is False:
            return {"kind": "off"}  # YAML reads an unquoted off as false
        if isinstance(value, Mapping | Mode):
            return value
        if not isinstance(value, str):
            value = str(value)
        if value in {"auto", "shadow", "off"}:
            return {"kind": value}
        pinned = re.fullmatch(r"pin=(\d{1,3})", value)
        if pinned and int(pinned[1]) <= MAX_NUM_SPECULATIVE_TOKENS:
            return {"kind": "pin", "num_speculative_tokens": int(pinned[1])}
        raise ValueError(f"mode {value[:40]!r} is none of auto, shadow, off, pin=K with K from 0 to {MAX_NUM_SPECULATIVE_TOKENS}")

    @model_validator(mode="after")
    def _only_pin_holds_a_length(self) -> Self:
        if (self.kind == "pin") != (self.num_speculative_tokens is not None):
            raise ValueError("num_speculative_tokens belongs to mode pin, and only to it")
        return self

    @model_serializer(mode="plain")
    def _to_text(self) -> str:
        return str(self)

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Parse `auto`, `shadow`, `off` or `pin=K`. Raises ValueError (pydantic's) naming what is allowed."""
        return cls.model_validate(text)

    def __str__(self) -> str:
        return f"pin={self.num_speculative_tokens}" if self.kind == "pin" else self.kind


class GroupKey(Record):
    """What must agree before replicas share what they learn (docs/planner.md)."""

    target: Identifier
    draft: Annotated[str, Field(max_length=256)] = ""
    drafter_kind: Annotated[str, Field(max_length=32)] = "none"
    accelerator: Annotated[str, Field(max_length=64)] = "cpu"
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    data_parallel_size: Annotated[int, Field(ge=1, le=4096)] = 1
    dtype: Annotated[str, Field(max_length=32)] = "auto"
    max_num_speculative_tokens: NumSpeculativeTokens = 0
    max_num_seqs: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)] = 1
    graph_mode: Annotated[str, Field(max_length=32)] = "none"
    engine_version: Annotated[str, Field(max_length=64)] = ""
    graph_tiers: Annotated[tuple[NumSpeculativeTokens, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS + 1)] = ()
    """The K that the engines captured graphs for; empty where any K runs as well as any other."""

    @property
    def group_id(self) -> str:
        """Readable and unique: the target's name and a digest of every field (of `graph_tiers` where there are any)."""
        digested = self.model_dump_json(exclude=None if self.graph_tiers else {"graph_tiers"})
        digest = hashlib.sha256(digested.encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.target.rstrip("/").rsplit("/", 1)[-1])[:48]
        return f"{name}-{digest}"


class CellCounters(Record):
    """Cumulative sums over the clean steps of one cell: pure decode steps of one batch bucket at one K.

    A step is clean when it scheduled no prefill and no catch-up, every row verified K drafts or the fewer its end or its grammar
    allows, and K had been held for at least two steps. `reached[i]` counts decode rows that verified more than i draft tokens,
    `accepted[i]` those of which more than i were accepted (so accepted[i] / reached[i] estimates acceptance[i+1] where no row
    was cut short). Where a drafter may find nothing to propose (ngram), a row without drafts counts as reached and not accepted.
    """

    batch_bucket: Annotated[int, Field(ge=0, lt=64)]
    num_speculative_tokens: NumSpeculativeTokens
    steps: Count = 0
    step_seconds: Seconds = 0.0
    log_step_seconds: Annotated[float, Field(ge=-1e12, le=1e12)] = 0.0
    log_step_seconds_squared: Annotated[float, Field(ge=0.0, le=1e13)] = 0.0
    decode_rows: Count = 0
    context_tokens: Count = 0
    generated_tokens: Count = 0
    reached: Annotated[tuple[Count, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS)] = ()
    accepted: Annotated[tuple[Count, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS)] = ()


class MixedCounters(Record):
    """Cumulative sums over the steps of one batch bucket and K that computed prompt tokens besides their decode rows."""

    batch_bucket: Annotated[int, Field(ge=0, lt=64)]
    num_speculative_tokens: NumSpeculativeTokens
    steps: Count = 0
    step_seconds: Seconds = 0.0
    decode_rows: Count = 0
    prefill_tokens: Count = 0


class StepTotals(Record):
    """Cumulative sums over every step at one K, clean or not: what metrics and reports show."""

    num_speculative_tokens: NumSpeculativeTokens
    steps: Count = 0
    step_seconds: Seconds = 0.0
    decode_rows: Count = 0
    prefill_tokens: Count = 0
    generated_tokens: Count = 0
    draft_tokens: Count = 0
    accepted_tokens: Count = 0


class CatchUpCounters(Record):
    """Cumulative sums over pure decode steps that recomputed draft tokens: `tokens` n and n squared, `seconds` t that the step
    took longer than K=0 steps of its batch, and n times t. A single t is mostly noise and may be negative.
    """

    steps: Count = 0
    tokens: Count = 0
    tokens_squared: Count = 0
    seconds: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    token_seconds: Annotated[float, Field(ge=-1e15, le=1e15)] = 0.0


class Counters(Record):
    """Everything an engine has counted since it started. Never reset: a lost, doubled or late report does no harm.

    `engine_id` is new with every engine process and `step_count` never falls, so a receiver takes the difference to what it
    saw last, ignores anything older, and starts from zero for a new engine.
    """

    engine_id: Identifier
    step_count: Count = 0
    busy_seconds: Seconds = 0.0
    transition_steps: Count = 0
    guard_holds: Count = 0
    catch_up: CatchUpCounters = CatchUpCounters()
    restarts: Count = 0
    failed_probes: Count = 0
    guard_trips: Count = 0
    totals: Annotated[tuple[StepTotals, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS + 1)] = ()
    cells: Annotated[tuple[CellCounters, ...], Field(max_length=MAX_CELLS)] = ()
    mixed_cells: Annotated[tuple[MixedCounters, ...], Field(max_length=MAX_CELLS)] = ()


class EngineLoad(Record):
    """The engine as it is now."""

    decode_batch_size: BatchSize = 0
    num_running_reqs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    num_waiting_reqs: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    kv_cache_usage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    num_speculative_tokens: NumSpeculativeTokens = 0
    planned_num_speculative_tokens: NumSpeculativeTokens = 0
    step_seconds: Seconds = 0.0


class DrafterState(StrEnum):
    """Life of a drafter (docs/restarts.md). `IN_SYNC` drafters run on at K=0; `ABSENT` is an engine served plainly."""

    ACTIVE = "active"
    DORMANT = "dormant"
    OFFLOADED = "offloaded"
    CONTRACTING = "contracting"
    RELOADING = "reloading"
    CATCHING_UP = "catching_up"
    PROBING = "probing"
    IN_SYNC = "in_sync"
    ABSENT = "absent"


class SteeringLevel(StrEnum):
    """How much of an engine is steered.

    FULLY  K in every step, and at K = 0 no drafter runs, or only the part of a head that writes its KV
    WITHOUT_SLEEPING  K in every step; the drafter runs at K = 0 as well, as in vLLM
    OBSERVING  nothing; its steps are counted
    PLAINLY  nothing: it serves as plain vLLM
    """

    FULLY = "fully"
    WITHOUT_SLEEPING = "without_sleeping"
    OBSERVING = "observing"
    PLAINLY = "plainly"


class SettingsVersion(Record):
    """Fence of settings and leases (INV-5): pairs are ordered, an older one is never applied."""

    incarnation: Annotated[int, Field(ge=0, lt=1 << 53)]
    sequence: Annotated[int, Field(ge=0, lt=1 << 53)]

    def is_newer_than(self, other: SettingsVersion | None) -> bool:
        """Whether this pair may replace `other` (None: nothing is known yet)."""
        return other is None or (self.incarnation, self.sequence) > (other.incarnation, other.sequence)

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.sequence}"


class RestartWish(Record):
    """A replica asks for a lease to restart speculation, again with every report until it may or need not.

    `wish_id` rises with every wish and starts anywhere, so that no lease of an earlier engine fits. `reload` says that the draft's
    weights are in host memory, `reload_seconds` how long moving them took last time (0: never moved).
    """

    wish_id: Annotated[int, Field(ge=1, lt=1 << 53)]
    lag_tokens: Count
    reload: bool = False
    reload_seconds: Annotated[float, Field(ge=0.0, le=3600.0)] = 0.0


class DrafterCounters(Record):
    """What a draft model's life did so far, cumulative but for `lag_tokens`, `borrowed_blocks` and `reason`, which are as of now.

    `reason` says in words why it is where it is, where that is not the plan's wish.
    """

    lag_tokens: Count = 0
    recomputed_tokens: Count = 0
    micro_restarts: Count = 0
    probes: Count = 0
    offloads: Count = 0
    reloads: Count = 0
    moved_bytes: Count = 0
    moving_seconds: Seconds = 0.0
    borrowed_blocks: Count = 0
    relocated_blocks: Count = 0
    preempted_requests: Count = 0
    reason: Reason = ""


class AdapterCounters(Record):
    """Cumulative sums over the rows of one LoRA adapter that verified drafts. A draft knows no adapters: theirs may be rejected."""

    adapter: Identifier
    rows: Count = 0
    draft_tokens: Count = 0
    accepted_tokens: Count = 0


class EngineSnapshot(Record):
    """What the engine answers on its control channel: counters, load and what it did with the settings.

    `finished_wish_id` is the highest wish whose lease is used up; `held_buckets` are the batch buckets that its guard holds off
    because speculation there measured worse than off. `refused` says why this command's settings were not adopted; `fault` is the
    last error of our own code in the step loop, after which the engine runs its own K (fail open).
    """

    counters: Counters
    load: EngineLoad = EngineLoad()
    settings_version: SettingsVersion | None = None
    drafter_state: DrafterState = DrafterState.ABSENT
    finished_segment_id: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    finished_wish_id: Count = 0
    held_buckets: Annotated[tuple[Annotated[int, Field(ge=0, lt=64)], ...], Field(max_length=64)] = ()
    restart_wish: RestartWish | None = None
    drafter: DrafterCounters = DrafterCounters()
    adapters: Annotated[tuple[AdapterCounters, ...], Field(max_length=MAX_ADAPTERS)] = ()
    decision_reason: Reason = ""
    refused: Reason = ""
    fault: Reason = ""

    @property
    def fault_in_words(self) -> str:
        """The fault and what follows from it; empty where there is none."""
        return f"the engine runs its own K since an error in the hooks: {self.fault}" if self.fault else ""


class LoadReport(Record):
    """One replica's report to the policy. `notice` is what its operator should know, such as a refused `user_config`.

    `serving_plainly` says why the engine has no scheduler of ours, `steering_reason` why `steering` is not the highest level.
    """

    protocol_version: Annotated[int, Field(ge=1, le=1_000)] = PROTOCOL_VERSION
    replica_id: Identifier
    application: Identifier
    deployment: Annotated[str, Field(max_length=256)] = ""
    node_id: Annotated[str, Field(max_length=256)] = ""
    group: GroupKey
    report_number: Count
    snapshot: EngineSnapshot
    serving_plainly: Reason = ""
    steering: SteeringLevel = SteeringLevel.FULLY
    steering_reason: Reason = ""
    local_mode: Mode | None = None
    notice: Reason = ""


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

    The replica obeys once, counts down only clean steps in the range, and drops the segment `time_to_live_s` after it arrived.
    """

    segment_id: Annotated[int, Field(ge=1, lt=1 << 53)]
    first_batch_size: BatchSize
    last_batch_size: BatchSize
    num_speculative_tokens: NumSpeculativeTokens
    clean_steps: Annotated[int, Field(ge=1, le=10_000)]
    time_to_live_s: Seconds


class OffStep(Record):
    """How long an OFF step should take at a decode batch: what speculation must not be worse than."""

    decode_rows: Annotated[float, Field(ge=1.0, le=MAX_BATCH_SIZE)]
    step_seconds: Annotated[float, Field(gt=0.0, le=1e4)]


class Table(Record):
    """A plan the fleet decided: K by decode batch size, measurements to make on the way, and what OFF would take.

    Rows ascend and do not overlap. A batch below the first row takes the first row's K, one above the last row K = 0, and one in a
    gap that of the row before it, as in vLLM. `length_at` looks it up.
    """

    kind: Literal["table"] = "table"
    rows: Annotated[tuple[TableRow, ...], Field(min_length=1, max_length=256)]
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
        for earlier, later in zip(self.rows, self.rows[1:], strict=False):
            if later.first_batch_size <= earlier.last_batch_size:
                raise ValueError(f"rows must ascend without overlap: {later.first_batch_size} follows {earlier.last_batch_size}")
        return self


def length_at(rows: Sequence[TableRow], decode_batch_size: int) -> int:
    """K that rows which ascend give a decode batch, as `Table` says; 0 without rows.

    >>> rows = (TableRow(first_batch_size=2, last_batch_size=3, num_speculative_tokens=3),
    ...         TableRow(first_batch_size=6, last_batch_size=6, num_speculative_tokens=1))
    >>> [length_at(rows, batch) for batch in (0, 2, 3, 5, 6, 7)], length_at((), 1)
    ([3, 3, 3, 3, 1, 0], 0)
    """
    if not rows or decode_batch_size > rows[-1].last_batch_size:
        return 0
    begun = bisect_right(rows, decode_batch_size, key=_FIRST_BATCH_SIZE)
    return rows[max(begun - 1, 0)].num_speculative_tokens


_FIRST_BATCH_SIZE: Final = attrgetter("first_batch_size")


class Local(Record):
    """A plan that the engine makes itself, step by step, with the named planner."""

    kind: Literal["local"] = "local"
    planner: Identifier
    options: dict[str, float | int | str | bool] = Field(default_factory=dict, max_length=64)


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


class Settings(Record):
    """What the policy tells one replica. Complete each time, never a difference.

    `micro_restart_tokens` is the allowance of lag that restarts may recompute without a lease (policy.drafter_life says how it
    is spent), `catch_up_chunk_tokens` bounds what one step may recompute (None: as the engine does itself), and without
    `offload` weights never leave the accelerator.
    """

    version: SettingsVersion
    mode: Mode
    plan: Plan
    allowed_num_speculative_tokens: Annotated[tuple[NumSpeculativeTokens, ...], Field(min_length=1, max_length=33)]
    dwell_steps: Annotated[int, Field(ge=0, le=10_000)] = 0
    settings_max_age_s: Seconds = 300.0
    exchange_period_s: Annotated[float, Field(ge=0.05, le=60.0)] = 0.5
    micro_restart_tokens: Count = 0
    catch_up_chunk_tokens: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    offload: OffloadRules | None = None
    leases: Annotated[tuple[Lease, ...], Field(max_length=16)] = ()
    reason: Reason = ""


class EngineCommand(Record):
    """What the replica tells its engine on the control channel. Complete each time: an absent field means none.

    `settings` are adopted if newer; `confirmed` names settings that the policy said still hold, and restarts their age;
    `local_mode` is the replica's own kill switch, which overrides the settings' mode until a command carries another value.
    """

    settings: Settings | None = None
    confirmed: SettingsVersion | None = None
    local_mode: Mode | None = None


class ExchangeReply(Record):
    """The policy's answer to a report: settings if newer ones exist, or why the report was refused."""

    protocol_version: int = PROTOCOL_VERSION
    incarnation: Annotated[int, Field(ge=0, lt=1 << 53)]
    settings: Settings | None = None
    refused: Reason = ""


def to_plain(record: Record) -> dict[str, Any]:
    """The record as JSON-ready plain types, as the journal and the HTTP API write it."""
    return record.model_dump(mode="json", exclude_none=True)
