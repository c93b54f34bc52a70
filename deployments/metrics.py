"""What a replica exports of its engine: steps by K, the drafter's life, restarts, the guard, and whether it is steered at all.

The table maps what the agent saw (an engine's snapshot and the age of its settings) to series, and is pure; ReplicaMetrics is
the edge that the agent calls. A replica has at most 7 x (K_max + 1) series by K (K_max <= 32), one for each drafter state and
about 30 more, whatever its traffic: no label holds a request, a client or an adapter. An engine that does not answer is not
published: its gauges disappear, its counters stand still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from nightjar.cluster.telemetry.metrics import Backend, Exporter, Labels, Metric, Values, counter, gauge, one_series
from nightjar.deployments.agent import Metrics, ReplicaIdentity
from nightjar.deployments.steering_level import level_now
from nightjar.policy.wire.report import (
    NO_ENGINE_ID,
    Counters,
    DrafterState,
    EngineSnapshot,
    SteeringLevel,
)


@dataclass(frozen=True, slots=True)
class SeenEngine:
    """One engine as its agent sees it now."""

    identity: ReplicaIdentity
    snapshot: EngineSnapshot
    settings_age_s: float
    """Since the policy last said that the settings hold; before it ever did, since the agent started."""


def common_labels(identity: ReplicaIdentity, model_name: str) -> dict[str, str]:
    """What every series of a replica carries: vLLM's own labels, as its series of the same process have them, and Serve's names.

    `engine` is the index of an engine behind one front end: its rank of data parallelism.
    """
    return {
        "model_name": model_name,
        "engine": str(identity.rank or 0),
        "ReplicaId": identity.replica_id,
        "application": identity.application,
        "deployment": identity.deployment,
    }


class ReplicaMetrics(Metrics):
    """Exports one replica. Never raises and never waits, whatever `backend` does but hang."""

    def __init__(self, identity: ReplicaIdentity, backend: Backend) -> None:
        self._identity = identity
        self._exporter = Exporter(REPLICA_METRICS, backend)

    def begin(self) -> None:
        """See agent.Metrics."""
        nothing_yet = EngineSnapshot(counters=Counters(engine_id=NO_ENGINE_ID))
        self._exporter.create(SeenEngine(self._identity, nothing_yet, 0.0))

    def observe(self, snapshot: EngineSnapshot, settings_age_s: float) -> None:
        """See agent.Metrics. A control call that failed in the engine says nothing of it."""
        engine_id = snapshot.counters.engine_id
        if engine_id != NO_ENGINE_ID:
            self._exporter.publish(SeenEngine(self._identity, snapshot, settings_age_s), source=engine_id)


def _value(path: str) -> Values[SeenEngine]:
    """The one series of a number below SeenEngine, by its dotted name; a test reads each of them."""
    return one_series(attrgetter(path))


def _by_k(field: str) -> Values[SeenEngine]:
    """One series of a field of StepTotals for each K that the engine can run, and for each that it ran."""

    def values(engine: SeenEngine) -> Mapping[Labels, float]:
        unused: dict[Labels, float] = {(str(k),): 0.0 for k in range(engine.identity.group.max_num_speculative_tokens + 1)}
        totals = engine.snapshot.counters.totals
        return unused | {(str(sums.num_speculative_tokens),): float(getattr(sums, field)) for sums in totals}

    return values


def _restarts(engine: SeenEngine) -> Mapping[Labels, float]:
    """A restart is leased or it is micro; the counters hold all, and the micro ones."""
    micro = engine.snapshot.drafter.micro_restarts
    return {("micro",): float(micro), ("leased",): float(max(engine.snapshot.counters.restarts - micro, 0))}


def _states(engine: SeenEngine) -> Mapping[Labels, float]:
    return {(state.value,): float(state is engine.snapshot.drafter_state) for state in DrafterState}


def _levels(engine: SeenEngine) -> Mapping[Labels, float]:
    now = level_now(engine.identity.steered, engine.identity.group.drafter_kind, engine.snapshot).level
    return {(level.value,): float(level is now) for level in SteeringLevel}


def _is_served_plainly(engine: SeenEngine) -> bool:
    """An engine without a drafter has nothing to steer: it is served as it was configured."""
    return bool(engine.identity.serving_plainly) and engine.identity.group.drafter_kind != "none"


BY_K: Final = ("num_speculative_tokens",)
REPLICA_METRICS: Final[tuple[Metric[SeenEngine], ...]] = (
    gauge(
        "nightjar_replica_info",
        "1",
        "1 for every replica; joins it with its group, whose members share what they learn.",
        lambda engine: {(engine.identity.group.group_id, engine.identity.group.drafter_kind): 1.0},
        ("group_id", "drafter_kind"),
    ),
    counter("nightjar_steps", "steps", "Engine steps that drafted with this K.", _by_k("steps"), BY_K),
    counter(
        "nightjar_step_seconds",
        "seconds",
        "Time between two successive outputs of the busy engine.",
        _by_k("step_seconds"),
        BY_K,
    ),
    counter("nightjar_generated_tokens", "tokens", "Tokens that the steps delivered.", _by_k("generated_tokens"), BY_K),
    counter(
        "nightjar_decode_rows",
        "rows",
        "Requests in their decode phase, summed over the steps; divided by steps: the mean decode batch size.",
        _by_k("decode_rows"),
        BY_K,
    ),
    counter("nightjar_prefill_tokens", "tokens", "Prompt tokens that the steps computed.", _by_k("prefill_tokens"), BY_K),
    counter("nightjar_draft_tokens", "tokens", "Draft tokens that the steps verified.", _by_k("draft_tokens"), BY_K),
    counter("nightjar_accepted_tokens", "tokens", "Draft tokens that were accepted.", _by_k("accepted_tokens"), BY_K),
    gauge("nightjar_num_speculative_tokens", "tokens", "K of the last step.", _value("snapshot.load.num_speculative_tokens")),
    gauge(
        "nightjar_planned_num_speculative_tokens",
        "tokens",
        "K chosen for the last step by mode, plan, guard and dwell; in shadow it does not run.",
        _value("snapshot.load.planned_num_speculative_tokens"),
    ),
    gauge(
        "nightjar_decode_batch_size",
        "rows",
        "Requests in their decode phase in the last step, with those of a burst that join the next; 0 while the engine is idle.",
        _value("snapshot.load.decode_batch_size"),
    ),
    gauge("nightjar_drafter_state", "0 or 1", "1 for the state that the drafter is in, 0 for all others.", _states, ("state",)),
    gauge(
        "nightjar_lag_tokens",
        "tokens",
        "Tokens of running requests whose draft KV is missing: what a restart would recompute.",
        _value("snapshot.drafter.lag_tokens"),
    ),
    counter(
        "nightjar_restarts",
        "restarts",
        "Restarts of speculation that began, by cause: micro (within the local allowance) or leased.",
        _restarts,
        ("cause",),
    ),
    counter(
        "nightjar_probes",
        "probes",
        "Restarts that caught up and whose acceptance was put to the test. Restarts that gave up before have no probe.",
        _value("snapshot.drafter.probes"),
    ),
    counter(
        "nightjar_failed_probes",
        "probes",
        "Probes that found drafts not accepted as before: the drafter went back to dormant.",
        _value("snapshot.counters.failed_probes"),
    ),
    counter(
        "nightjar_catch_up_tokens", "tokens", "Draft tokens that were recomputed.", _value("snapshot.drafter.recomputed_tokens")
    ),
    counter(
        "nightjar_catch_up_measured_tokens",
        "tokens",
        "Draft tokens that were recomputed in pure decode steps, whose extra time nightjar_catch_up_seconds holds.",
        _value("snapshot.counters.catch_up.tokens"),
    ),
    counter(
        "nightjar_catch_up_seconds",
        "seconds",
        "How much longer pure decode steps took for recomputing draft tokens than K = 0 steps of their batch. A sum of noisy "
        "differences: what lies above its highest value so far is added.",
        _value("snapshot.counters.catch_up.seconds"),
    ),
    counter(
        "nightjar_draft_offloads",
        "moves",
        "Times that the draft's weights left the accelerator.",
        _value("snapshot.drafter.offloads"),
    ),
    counter(
        "nightjar_draft_reloads",
        "moves",
        "Times that the draft's weights came back to the accelerator.",
        _value("snapshot.drafter.reloads"),
    ),
    counter(
        "nightjar_draft_moved_bytes", "bytes", "Bytes of draft weights moved, both ways.", _value("snapshot.drafter.moved_bytes")
    ),
    counter(
        "nightjar_draft_moving_seconds",
        "seconds",
        "Time that moving the draft's weights took.",
        _value("snapshot.drafter.moving_seconds"),
    ),
    gauge(
        "nightjar_borrowed_kv_blocks",
        "blocks",
        "KV blocks in the memory of an offloaded draft that hold KV of requests now.",
        _value("snapshot.drafter.borrowed_blocks"),
    ),
    counter(
        "nightjar_relocated_kv_blocks",
        "blocks",
        "KV blocks that were moved so that the draft could come back.",
        _value("snapshot.drafter.relocated_blocks"),
    ),
    counter(
        "nightjar_contraction_preempted_requests",
        "requests",
        "Requests that were preempted so that the draft could come back.",
        _value("snapshot.drafter.preempted_requests"),
    ),
    counter(
        "nightjar_guard_trips",
        "trips",
        "Times that the guard found speculation worse than off in a batch bucket, and held it off there.",
        _value("snapshot.counters.guard_trips"),
    ),
    gauge(
        "nightjar_guard_held_batch_buckets",
        "buckets",
        "Batch buckets that the guard holds off now.",
        one_series(lambda engine: len(engine.snapshot.held_buckets)),
    ),
    counter(
        "nightjar_guard_dwell_steps",
        "steps",
        "Steps in which the guard kept K below the plan's because it had not been held for long enough.",
        _value("snapshot.counters.guard_holds"),
    ),
    gauge(
        "nightjar_settings_age_seconds",
        "seconds",
        "Time since the policy last said that the replica's settings hold, or since the agent started if it never did. Above "
        "settings_max_age_s the engine runs K = 0 only.",
        _value("settings_age_s"),
    ),
    gauge(
        "nightjar_engine_fault",
        "0 or 1",
        "1 after an error of Nightjar's own code in the step loop: the engine runs its own K and its steps are not counted.",
        one_series(lambda engine: bool(engine.snapshot.fault)),
    ),
    counter(
        "nightjar_draft_slot_breaches",
        "steps",
        "Steps whose drafts would have been written past the KV blocks of their requests. Such a step drafts nothing, and "
        "steering stops as for any fault.",
        _value("snapshot.counters.draft_slot_breaches"),
    ),
    gauge(
        "nightjar_steering",
        "0 or 1",
        "How much of the engine is steered: 1 for its level, 0 for the others; `nightjar status` says why.",
        _levels,
        ("level",),
    ),
    gauge(
        "nightjar_served_plainly",
        "0 or 1",
        "1 where a drafter is configured and the engine is served as plain vLLM all the same (fail open); `nightjar status` "
        "says why.",
        one_series(_is_served_plainly),
    ),
)
"""Labels beyond `common_labels` and Ray's own."""
