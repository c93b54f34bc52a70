"""What a replica exports: a value for each number that its records hold, from the start, whatever happens to its engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.telemetry.metrics import MAX_SOURCES, Family
from nightjar.cluster.telemetry.policy_metrics import POLICY_METRICS
from nightjar.deployments.agent import ReplicaIdentity
from nightjar.deployments.metrics import REPLICA_METRICS, ReplicaMetrics, SeenEngine, common_labels
from nightjar.deployments.steering_level import Steered
from nightjar.policy.wire.record import MAX_NUM_SPECULATIVE_TOKENS
from nightjar.policy.wire.report import (
    NO_ENGINE_ID,
    CatchUpCounters,
    Counters,
    DrafterCounters,
    DrafterState,
    EngineLoad,
    EngineSnapshot,
    GroupKey,
    SteeringLevel,
    StepTotals,
)
from tests.cluster.telemetry.exported import MemoryBackend
from tests.reference.metrics import replica_series

GROUP = GroupKey(target="llama-8b", drafter_kind="draft_model", max_num_speculative_tokens=3)
IDENTITY = ReplicaIdentity(replica_id="abc", application="chat", deployment="LLM", node_id="n", group=GROUP)
COUNTERS = {metric.name for metric in REPLICA_METRICS if metric.kind == "counter"}


def totals(length: int, steps: int) -> StepTotals:
    return StepTotals(
        num_speculative_tokens=length,
        steps=steps,
        step_seconds=steps * 0.5,
        decode_rows=2 * steps,
        prefill_tokens=3 * steps,
        generated_tokens=4 * steps,
        draft_tokens=5 * steps,
        accepted_tokens=6 * steps,
    )


def snapshot(engine_id: str = "e1", steps: int = 10) -> EngineSnapshot:
    """An engine in the middle of its life; every number that is exported differs from every other."""
    return EngineSnapshot(
        counters=Counters(
            engine_id=engine_id,
            step_count=steps,
            guard_holds=101,
            catch_up=CatchUpCounters(tokens=102, seconds=103.5),
            restarts=107,
            failed_probes=104,
            guard_trips=105,
            draft_slot_breaches=106,
            totals=(totals(0, steps), totals(3, 100 * steps)),
        ),
        load=EngineLoad(decode_batch_size=201, num_running_reqs=4, num_speculative_tokens=2, planned_num_speculative_tokens=3),
        drafter_state=DrafterState.CATCHING_UP,
        held_buckets=(0, 1, 2, 5),
        drafter=DrafterCounters(
            lag_tokens=301,
            recomputed_tokens=302,
            micro_restarts=60,
            probes=304,
            offloads=305,
            reloads=306,
            moved_bytes=307,
            moving_seconds=308.5,
            borrowed_blocks=309,
            relocated_blocks=310,
            preempted_requests=311,
        ),
    )


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def metrics(backend: MemoryBackend) -> ReplicaMetrics:
    return ReplicaMetrics(IDENTITY, backend)


def test_every_metric_of_the_table_is_exported_and_no_other(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    metrics.observe(snapshot(), 1.0)
    assert set(backend.values) == {metric.name for metric in REPLICA_METRICS}


def test_every_number_of_the_records_arrives(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    metrics.begin()
    metrics.observe(snapshot(), 12.5)
    assert {name: series[()] for name, series in backend.values.items() if () in series} == {
        "nightjar_num_speculative_tokens": 2,
        "nightjar_planned_num_speculative_tokens": 3,
        "nightjar_decode_batch_size": 201,
        "nightjar_lag_tokens": 301,
        "nightjar_probes": 304,
        "nightjar_failed_probes": 104,
        "nightjar_catch_up_tokens": 302,
        "nightjar_catch_up_measured_tokens": 102,
        "nightjar_catch_up_seconds": 103.5,
        "nightjar_draft_offloads": 305,
        "nightjar_draft_reloads": 306,
        "nightjar_draft_moved_bytes": 307,
        "nightjar_draft_moving_seconds": 308.5,
        "nightjar_borrowed_kv_blocks": 309,
        "nightjar_relocated_kv_blocks": 310,
        "nightjar_contraction_preempted_requests": 311,
        "nightjar_guard_trips": 105,
        "nightjar_guard_held_batch_buckets": 4,
        "nightjar_guard_dwell_steps": 101,
        "nightjar_settings_age_seconds": 12.5,
        "nightjar_engine_fault": 0,
        "nightjar_draft_slot_breaches": 106,
        "nightjar_served_plainly": 0,
    }
    assert backend.values["nightjar_restarts"] == {("micro",): 60, ("leased",): 47}
    assert backend.values["nightjar_replica_info"] == {(GROUP.group_id, "draft_model"): 1}


@pytest.mark.parametrize(
    ("name", "per_step"),
    [
        ("nightjar_steps", 1),
        ("nightjar_step_seconds", 0.5),
        ("nightjar_decode_rows", 2),
        ("nightjar_prefill_tokens", 3),
        ("nightjar_generated_tokens", 4),
        ("nightjar_draft_tokens", 5),
        ("nightjar_accepted_tokens", 6),
    ],
)
def test_steps_are_told_by_length(metrics: ReplicaMetrics, backend: MemoryBackend, name: str, per_step: float) -> None:
    metrics.observe(snapshot(steps=10), 0.0)
    assert backend.values[name] == {("0",): 10 * per_step, ("1",): 0.0, ("2",): 0.0, ("3",): 1000 * per_step}


@pytest.mark.parametrize("state", DrafterState)
def test_drafter_is_in_one_state(metrics: ReplicaMetrics, backend: MemoryBackend, state: DrafterState) -> None:
    metrics.observe(snapshot(), 0.0)
    metrics.observe(snapshot().model_copy(update={"drafter_state": state}), 0.0)
    assert backend.values["nightjar_drafter_state"] == {(other.value,): float(other is state) for other in DrafterState}


def test_every_counter_begins_at_zero(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    metrics.begin()
    assert set(backend.values) == COUNTERS, "gauges wait for the engine"
    assert {value for series in backend.values.values() for value in series.values()} == {0.0}
    begun = {name: set(series) for name, series in backend.values.items()}
    metrics.observe(snapshot(), 0.0)
    assert {name: set(backend.values[name]) for name in COUNTERS} == begun, "the first engine creates no counter's series"


def test_counters_go_on_with_a_new_engine(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    for seen in (snapshot(steps=10), snapshot(steps=12), snapshot("e2", steps=1), snapshot(steps=12), snapshot("e2", steps=3)):
        metrics.observe(seen, 0.0)
    assert backend.value("nightjar_steps", "0") == 12 + 3
    assert backend.value("nightjar_guard_trips") == 2 * 105


def test_control_call_that_failed_in_the_engine_changes_nothing(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    metrics.observe(snapshot(), 1.0)
    before = {name: dict(series) for name, series in backend.values.items()}
    for _ in range(2 * MAX_SOURCES):
        metrics.observe(EngineSnapshot(counters=Counters(engine_id=NO_ENGINE_ID), refused="nightjar_exchange: no"), 99.0)
    assert backend.values == before
    metrics.observe(snapshot(), 1.0)
    assert backend.values == before


def test_catch_up_seconds_never_fall(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    """Each is a difference of measured times, and may be negative."""
    exported = []
    for seconds in (-0.5, 1.0, 0.25, 0.75, 1.5):
        counters = snapshot().counters.model_copy(update={"catch_up": CatchUpCounters(seconds=seconds)})
        metrics.observe(snapshot().model_copy(update={"counters": counters}), 0.0)
        exported.append(backend.value("nightjar_catch_up_seconds"))
    assert exported == [0.0, 1.0, 1.0, 1.0, 1.5]


def test_fault_shows(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    metrics.observe(snapshot().model_copy(update={"fault": "before_step: KeyError"}), 0.0)
    assert backend.value("nightjar_engine_fault") == 1


@pytest.mark.parametrize(
    ("drafter_kind", "reason", "expected"), [("draft_model", "hooks moved", 1), ("draft_model", "", 0), ("none", "no drafter", 0)]
)
def test_serving_plainly_counts_where_a_drafter_was_configured(
    backend: MemoryBackend, drafter_kind: str, reason: str, expected: int
) -> None:
    group = GroupKey(target="llama-8b", drafter_kind=drafter_kind)
    level = SteeringLevel.PLAINLY if reason else SteeringLevel.FULLY
    identity = ReplicaIdentity("r", "a", "d", "n", group, Steered(level, reason))
    ReplicaMetrics(identity, backend).observe(EngineSnapshot(counters=Counters(engine_id="e")), 0.0)
    assert backend.value("nightjar_served_plainly") == expected


def test_backend_that_is_out_of_order_is_logged_once(metrics: ReplicaMetrics, backend: MemoryBackend) -> None:
    """INV-4."""
    backend.broken = {metric.name for metric in REPLICA_METRICS}
    with capture_logs() as logs:
        metrics.begin()
        for steps in range(5):
            metrics.observe(snapshot(steps=steps), 0.0)
    assert [entry["event"] for entry in logs] == ["metrics_failed"]


@pytest.mark.parametrize("most", [0, 5, MAX_NUM_SPECULATIVE_TOKENS])
def test_number_of_series_is_bounded_by_the_engines_maximum_length(backend: MemoryBackend, most: int) -> None:
    group = GROUP.model_copy(update={"max_num_speculative_tokens": most})
    every_length = tuple(totals(length, 1) for length in range(most + 1))
    counters = snapshot().counters.model_copy(update={"totals": every_length})
    identity = ReplicaIdentity("r", "a", "d", "n", group)
    ReplicaMetrics(identity, backend).observe(snapshot().model_copy(update={"counters": counters}), 0.0)
    assert sum(map(len, backend.values.values())) == replica_series(most)


def test_labels_join_with_vllms_and_collide_with_none_of_a_metrics_own() -> None:
    common = common_labels(IDENTITY, "chat-model")
    assert common == {"model_name": "chat-model", "engine": "0", "ReplicaId": "abc", "application": "chat", "deployment": "LLM"}
    assert all(common.keys().isdisjoint(metric.labels) for metric in REPLICA_METRICS)


def test_a_rank_carries_vllms_index_of_its_engine_and_its_replicas_id() -> None:
    common = common_labels(replace(IDENTITY, rank=1), "chat-model")
    assert (common["engine"], common["ReplicaId"]) == ("1", "abc")


def test_vllms_own_series_carry_these_labels() -> None:
    ray_wrappers = pytest.importorskip("vllm.v1.metrics.ray_wrappers")
    of_vllm = ray_wrappers.RayPrometheusMetric._get_tag_keys(["model_name", "engine"])
    assert set(of_vllm) <= common_labels(IDENTITY, "m").keys()


def test_tables_hold_names_once_and_end_them_as_prometheus_wants() -> None:
    families: list[Family] = [*REPLICA_METRICS, *POLICY_METRICS]
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert all(name.startswith("nightjar_") and not name.endswith("_total") for name in names)
    for family in families:
        assert family.help.endswith("."), family.name
        assert family.name.endswith("_seconds") or family.unit != "seconds", family.name


def test_pure_mapping_is_total() -> None:
    """Whatever the engine's state, every metric has its values."""
    for state in DrafterState:
        engine = SeenEngine(IDENTITY, EngineSnapshot(counters=Counters(engine_id="e"), drafter_state=state), 0.0)
        assert all(metric.values(engine) for metric in REPLICA_METRICS)
