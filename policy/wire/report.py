"""What goes up: a replica's report of what its engine counted, how it is loaded and where its drafter is.

Counters are cumulative since the engine started, so a report that is lost, doubled or late does no harm.
Fails closed on what is out of bounds (record.py).
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from nightjar.policy.wire.cause import SomeCauses
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import (
    MAX_BATCH_SIZE,
    MAX_NUM_SPECULATIVE_TOKENS,
    PROTOCOL_VERSION,
    BatchSize,
    Count,
    Identifier,
    NumSpeculativeTokens,
    Reason,
    Record,
    Seconds,
)
from nightjar.policy.wire.settings import SettingsVersion

MAX_STEP_CAUSES: Final = 8
"""An engine names three at most."""
MAX_CELLS: Final = 2048
"""Of one engine: 24 batch buckets at 33 K, with prefill and without."""
MAX_ADAPTERS: Final = 64
"""Of one engine, whose acceptance is told apart."""
NO_ENGINE_ID: Final = "none"
"""`engine_id` of a snapshot that stands for a control call that failed: it tells nothing of the engine but `refused`."""


class GroupKey(Record):
    """What must agree before replicas share what they learn (docs/how-it-works.md)."""

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
    adaptive_verification: bool = False
    """Whether vLLM verifies as many of the K drafts as it likes. How many stays on the GPU, so acceptance by position is censored:
    what `reached` counts was drafted, and not all of it was verified."""

    @property
    def group_id(self) -> str:
        """Readable and unique: the target's name and a digest of every field (of the two last where they say anything)."""
        unsaid = {name for name in ("graph_tiers", "adaptive_verification") if not getattr(self, name)}
        digested = self.model_dump_json(exclude=unsaid)
        digest = hashlib.sha256(digested.encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.target.rstrip("/").rsplit("/", 1)[-1])[:48]
        return f"{name}-{digest}"


class CellCounters(Record):
    """Cumulative sums over the steps of one cell: decode steps of one batch bucket at one K, with prefill or without.

    Without prefill only clean steps count: such as scheduled no prefill and no catch-up, in which every row verified K drafts or
    the fewer its end or its grammar allows, with K held for at least two steps. `reached[i]` counts decode rows that verified more
    than i draft tokens, `accepted[i]` those of which more than i were accepted (so accepted[i] / reached[i] estimates
    acceptance[i+1] where no row was cut short). Where a drafter may find nothing to propose (ngram), a row without drafts counts as
    reached and not accepted. Prompt tokens and verified drafts are not counted.

    With prefill all steps count that computed prompt tokens besides their decode rows. K is what the step drafted, `draft_tokens`
    are the drafts that it verified, which the step before had drafted; positions are counted where these were at most K for each
    row. Logarithms, context and generated tokens are not counted.
    """

    batch_bucket: Annotated[int, Field(ge=0, lt=64)]
    num_speculative_tokens: NumSpeculativeTokens
    prefill: bool = False
    steps: Count = 0
    step_seconds: Seconds = 0.0
    log_step_seconds: Annotated[float, Field(ge=-1e12, le=1e12)] = 0.0
    log_step_seconds_squared: Annotated[float, Field(ge=0.0, le=1e13)] = 0.0
    decode_rows: Count = 0
    context_tokens: Count = 0
    prefill_tokens: Count = 0
    draft_tokens: Count = 0
    generated_tokens: Count = 0
    reached: Annotated[tuple[Count, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS)] = ()
    accepted: Annotated[tuple[Count, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS)] = ()


class StepTotals(Record):
    """Cumulative sums over every step at one K, clean or not: what metrics and reports show.

    `first_tokens` of the generated tokens are those that begin an answer.
    """

    num_speculative_tokens: NumSpeculativeTokens
    steps: Count = 0
    step_seconds: Seconds = 0.0
    decode_rows: Count = 0
    prefill_tokens: Count = 0
    generated_tokens: Count = 0
    first_tokens: Count = 0
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
    saw last, ignores anything older, and starts from zero for a new engine. `draft_slot_breaches` are steps whose drafts would have
    been written past their requests' blocks.
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
    draft_slot_breaches: Count = 0
    totals: Annotated[tuple[StepTotals, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS + 1)] = ()
    cells: Annotated[tuple[CellCounters, ...], Field(max_length=MAX_CELLS)] = ()


class EngineLoad(Record):
    """The engine as it is now.

    `num_deferred_reqs` of `num_waiting_reqs` can run in no step yet, since what they wait for is to come: KV from elsewhere, say.
    """

    decode_batch_size: BatchSize = 0
    num_running_reqs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    num_waiting_reqs: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    num_deferred_reqs: Annotated[int, Field(ge=0, le=10_000_000)] = 0
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


class Layer(StrEnum):
    """What of Nightjar works in an engine, each by itself.

    STEERING  K in every step
    SLEEPING  a separate draft model runs nothing at K = 0, and reads later what it missed
    HEADS  an EAGLE or MTP head writes its KV alone at K = 0
    LENDING  a sleeping draft model's memory goes to requests
    """

    STEERING = "steering"
    SLEEPING = "sleeping"
    HEADS = "heads"
    LENDING = "lending"


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
    because speculation there measured worse than off. `causes` say why its last step ran its K. `refused` says why this command's
    settings were not adopted; `fault` is the last error of our own code in the step loop, after which the engine runs its own K
    (fail open).
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
    causes: Annotated[SomeCauses, Field(max_length=MAX_STEP_CAUSES)] = ()
    refused: Reason = ""
    fault: Reason = ""


class LoadReport(Record):
    """One replica's report to the policy. `notice` is what its operator should know, such as a refused `user_config`.

    `serving_plainly` says why the engine has no scheduler of ours, `steering_reason` why `steering` is not the highest level.
    `layers` are those that work now; empty also where the replica is older than the field.
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
    layers: Annotated[tuple[Layer, ...], Field(max_length=len(Layer))] = ()
    local_mode: Mode | None = None
    notice: Reason = ""
