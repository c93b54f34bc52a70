"""What a replica exports of its engine: steps by K, the drafter's life, restarts, the guard, and whether it is steered at all.

The table maps what the agent saw (an engine's snapshot and the age of its settings) to series, and is pure; ReplicaMetrics is
the edge that the agent calls. A replica has at most 7 x (K_max + 1) series by K (K_max <= 32), one for each drafter state and
about 30 more, whatever its traffic: no label holds a request, a client or an adapter. An engine that does not answer is not
published: its gauges disappear, its counters stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nightjar.cluster.metrics import Backend, Exporter, Labels, Metric
from nightjar.deployments.agent import Metrics, ReplicaIdentity
from nightjar.deployments.steering_level import level_now
from nightjar.policy.wire.report import (
    NO_ENGINE_ID,
    Counters,
    DrafterCounters,
    DrafterState,
    EngineLoad,
    EngineSnapshot,
    SteeringLevel,
    StepTotals,
)

VLLM_ENGINE: Final = "0"
"""vLLM's `engine` label, the index of an engine behind one front end: a replica has one."""


@dataclass(frozen=True, slots=True)
class EngineLook:
    """One engine as its agent sees it now."""

    identity: ReplicaIdentity
    snapshot: EngineSnapshot
    settings_age_s: float
    """Since the policy last said that the settings hold; before it ever did, since the agent started."""


def common_labels(identity: ReplicaIdentity, model_name: str) -> dict[str, str]:
    """What every series of a replica carries: vLLM's own labels, as its series of the same process have them, and Serve's names."""
    return {
        "model_name": model_name,
        "engine": VLLM_ENGINE,
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
        self._exporter.create(EngineLook(self._identity, nothing_yet, 0.0))

    def observe(self, snapshot: EngineSnapshot, settings_age_s: float) -> None:
        """See agent.Metrics. A control call that failed in the engine says nothing of it."""
        engine_id = snapshot.counters.engine_id
        if engine_id != NO_ENGINE_ID:
            self._exporter.publish(EngineLook(self._identity, snapshot, settings_age_s), source=engine_id)


Values = Callable[[EngineLook], Mapping[Labels, float]]


def _plain(read: Callable[[EngineLook], float]) -> Values:
    return lambda engine: {(): float(read(engine))}


def _of_counters(read: Callable[[Counters], float]) -> Values:
    return _plain(lambda engine: read(engine.snapshot.counters))


def _of_drafter(read: Callable[[DrafterCounters], float]) -> Values:
    return _plain(lambda engine: read(engine.snapshot.drafter))


def _of_load(read: Callable[[EngineLoad], float]) -> Values:
    return _plain(lambda engine: read(engine.snapshot.load))


def _by_length(read: Callable[[StepTotals], float]) -> Values:
    """One series for each K that the engine can run, and for each that it ran."""

    def values(engine: EngineLook) -> Mapping[Labels, float]:
        unused: dict[Labels, float] = {
            (str(length),): 0.0 for length in range(engine.identity.group.max_num_speculative_tokens + 1)
        }
        totals = engine.snapshot.counters.totals
        return unused | {(str(sums.num_speculative_tokens),): float(read(sums)) for sums in totals}

    return values


def _restarts(engine: EngineLook) -> Mapping[Labels, float]:
    """A restart is leased or it is micro; the counters hold all, and the micro ones."""
    micro = engine.snapshot.drafter.micro_restarts
    return {("micro",): float(micro), ("leased",): float(max(engine.snapshot.counters.restarts - micro, 0))}


def _states(engine: EngineLook) -> Mapping[Labels, float]:
    return {(state.value,): float(state is engine.snapshot.drafter_state) for state in DrafterState}


def _levels(engine: EngineLook) -> Mapping[Labels, float]:
    now = level_now(engine.identity.steered, engine.identity.group.drafter_kind, engine.snapshot).level
    return {(level.value,): float(level is now) for level in SteeringLevel}


def _is_served_plainly(engine: EngineLook) -> bool:
    """An engine without a drafter has nothing to steer: it is served as it was configured."""
    return bool(engine.identity.serving_plainly) and engine.identity.group.drafter_kind != "none"


LENGTH: Final = ("num_speculative_tokens",)

REPLICA_METRICS: Final[tuple[Metric[EngineLook], ...]] = (
    Metric(
        name="nightjar_replica_info",
        kind="gauge",
        unit="1",
        help="1 for every replica; joins it with its group, whose members share what they learn.",
        labels=("group_id", "drafter_kind"),
        values=lambda engine: {(engine.identity.group.group_id, engine.identity.group.drafter_kind): 1.0},
    ),
    Metric(
        name="nightjar_steps",
        kind="counter",
        unit="steps",
        help="Engine steps that drafted with this K.",
        labels=LENGTH,
        values=_by_length(lambda sums: sums.steps),
    ),
    Metric(
        name="nightjar_step_seconds",
        kind="counter",
        unit="seconds",
        help="Time between two successive outputs of the busy engine.",
        labels=LENGTH,
        values=_by_length(lambda sums: sums.step_seconds),
    ),
    Metric(
        name="nightjar_generated_tokens",
        kind="counter",
        unit="tokens",
        help="Tokens that the steps delivered.",
        labels=LENGTH,
        values=_by_length(lambda sums: sums.generated_tokens),
    ),
    Metric(
        name="nightjar_decode_rows",
        kind="counter",
        unit="rows",
        help="Requests in their decode phase, summed over the steps; divided by steps: the mean decode batch size.",
        labels=LENGTH,
        values=_by_length(lambda sums: sums.decode_rows),
    ),
    Metric(
        name="nightjar_prefill_tokens",
        kind="counter",
        unit="tokens",
        help="Prompt tokens that the steps computed.",
        labels=LENGTH,
        values=_by_length(lambda sums: sums.prefill_tokens),
    ),
    Metric(
        name="nightjar_draft_tokens",
        kind="counter",
        unit="tokens",
        help="Draft tokens that the steps verified.",
        labels=LENGTH,
        values=_by_length(lambda sums: sums.draft_tokens),
    ),
    Metric(
        name="nightjar_accepted_tokens",
        kind="counter",
        unit="tokens",
        help="Draft tokens that were accepted.",
        labels=LENGTH,
        values=_by_length(lambda sums: sums.accepted_tokens),
    ),
    Metric(
        name="nightjar_num_speculative_tokens",
        kind="gauge",
        unit="tokens",
        help="K of the last step.",
        values=_of_load(lambda load: load.num_speculative_tokens),
    ),
    Metric(
        name="nightjar_planned_num_speculative_tokens",
        kind="gauge",
        unit="tokens",
        help="K that the plan gives the last step; in shadow it does not run.",
        values=_of_load(lambda load: load.planned_num_speculative_tokens),
    ),
    Metric(
        name="nightjar_decode_batch_size",
        kind="gauge",
        unit="rows",
        help="Requests in their decode phase in the last step; 0 while the engine is idle.",
        values=_of_load(lambda load: load.decode_batch_size),
    ),
    Metric(
        name="nightjar_drafter_state",
        kind="gauge",
        unit="0 or 1",
        help="1 for the state that the drafter is in, 0 for all others.",
        labels=("state",),
        values=_states,
    ),
    Metric(
        name="nightjar_lag_tokens",
        kind="gauge",
        unit="tokens",
        help="Tokens of running requests whose draft KV is missing: what a restart would recompute.",
        values=_of_drafter(lambda drafter: drafter.lag_tokens),
    ),
    Metric(
        name="nightjar_restarts",
        kind="counter",
        unit="restarts",
        help="Restarts of speculation that began, by cause: micro (within the local allowance) or leased.",
        labels=("cause",),
        values=_restarts,
    ),
    Metric(
        name="nightjar_probes",
        kind="counter",
        unit="probes",
        help="Restarts that caught up and whose acceptance was put to the test. Restarts that gave up before have no probe.",
        values=_of_drafter(lambda drafter: drafter.probes),
    ),
    Metric(
        name="nightjar_failed_probes",
        kind="counter",
        unit="probes",
        help="Probes that found drafts not accepted as before: the drafter went back to dormant.",
        values=_of_counters(lambda counters: counters.failed_probes),
    ),
    Metric(
        name="nightjar_catch_up_tokens",
        kind="counter",
        unit="tokens",
        help="Draft tokens that were recomputed.",
        values=_of_drafter(lambda drafter: drafter.recomputed_tokens),
    ),
    Metric(
        name="nightjar_catch_up_measured_tokens",
        kind="counter",
        unit="tokens",
        help="Draft tokens that were recomputed in pure decode steps, whose extra time nightjar_catch_up_seconds holds.",
        values=_of_counters(lambda counters: counters.catch_up.tokens),
    ),
    Metric(
        name="nightjar_catch_up_seconds",
        kind="counter",
        unit="seconds",
        help="How much longer pure decode steps took for recomputing draft tokens than K = 0 steps of their batch. A sum of noisy "
        "differences: what lies above its highest value so far is added.",
        values=_of_counters(lambda counters: counters.catch_up.seconds),
    ),
    Metric(
        name="nightjar_draft_offloads",
        kind="counter",
        unit="moves",
        help="Times that the draft's weights left the accelerator.",
        values=_of_drafter(lambda drafter: drafter.offloads),
    ),
    Metric(
        name="nightjar_draft_reloads",
        kind="counter",
        unit="moves",
        help="Times that the draft's weights came back to the accelerator.",
        values=_of_drafter(lambda drafter: drafter.reloads),
    ),
    Metric(
        name="nightjar_draft_moved_bytes",
        kind="counter",
        unit="bytes",
        help="Bytes of draft weights moved, both ways.",
        values=_of_drafter(lambda drafter: drafter.moved_bytes),
    ),
    Metric(
        name="nightjar_draft_moving_seconds",
        kind="counter",
        unit="seconds",
        help="Time that moving the draft's weights took.",
        values=_of_drafter(lambda drafter: drafter.moving_seconds),
    ),
    Metric(
        name="nightjar_borrowed_kv_blocks",
        kind="gauge",
        unit="blocks",
        help="KV blocks in the memory of an offloaded draft that hold KV of requests now.",
        values=_of_drafter(lambda drafter: drafter.borrowed_blocks),
    ),
    Metric(
        name="nightjar_relocated_kv_blocks",
        kind="counter",
        unit="blocks",
        help="KV blocks that were moved so that the draft could come back.",
        values=_of_drafter(lambda drafter: drafter.relocated_blocks),
    ),
    Metric(
        name="nightjar_contraction_preempted_requests",
        kind="counter",
        unit="requests",
        help="Requests that were preempted so that the draft could come back.",
        values=_of_drafter(lambda drafter: drafter.preempted_requests),
    ),
    Metric(
        name="nightjar_guard_trips",
        kind="counter",
        unit="trips",
        help="Times that the guard found speculation worse than off in a batch bucket, and held it off there.",
        values=_of_counters(lambda counters: counters.guard_trips),
    ),
    Metric(
        name="nightjar_guard_held_batch_buckets",
        kind="gauge",
        unit="buckets",
        help="Batch buckets that the guard holds off now.",
        values=_plain(lambda engine: len(engine.snapshot.held_buckets)),
    ),
    Metric(
        name="nightjar_guard_dwell_steps",
        kind="counter",
        unit="steps",
        help="Steps in which the guard kept K below the plan's because it had not been held for long enough.",
        values=_of_counters(lambda counters: counters.guard_holds),
    ),
    Metric(
        name="nightjar_settings_age_seconds",
        kind="gauge",
        unit="seconds",
        help="Time since the policy last said that the replica's settings hold, or since the agent started if it never did. "
        "Above settings_max_age_s the engine runs K = 0 only.",
        values=_plain(lambda engine: engine.settings_age_s),
    ),
    Metric(
        name="nightjar_engine_fault",
        kind="gauge",
        unit="0 or 1",
        help="1 after an error of Nightjar's own code in the step loop: the engine runs its own K and its steps are not counted.",
        values=_plain(lambda engine: bool(engine.snapshot.fault)),
    ),
    Metric(
        name="nightjar_draft_slot_breaches",
        kind="counter",
        unit="steps",
        help="Steps whose drafts would have been written past the KV blocks of their requests. Such a step drafts nothing, and "
        "steering stops as for any fault.",
        values=_of_counters(lambda counters: counters.draft_slot_breaches),
    ),
    Metric(
        name="nightjar_steering",
        kind="gauge",
        unit="0 or 1",
        help="How much of the engine is steered: 1 for its level, 0 for the others; `nightjar status` says why.",
        labels=("level",),
        values=_levels,
    ),
    Metric(
        name="nightjar_served_plainly",
        kind="gauge",
        unit="0 or 1",
        help="1 where a drafter is configured and the engine is served as plain vLLM all the same (fail open); `nightjar status` "
        "says why.",
        values=_plain(_is_served_plainly),
    ),
)
"""Labels beyond `common_labels` and Ray's own."""
