"""The edge between tables of metrics and a backend: counters count everything once, and trouble with metrics stays with metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nightjar.cluster.telemetry.metrics import MAX_SOURCES, Exporter, Family, Labels, Marks, Metric, increments
from tests.cluster.telemetry.exported import MemoryBackend

Record = Mapping[Labels, float]

STEPS: Metric[Record] = Metric(
    name="nightjar_steps", kind="counter", unit="steps", help="steps", labels=("k",), values=lambda record: record
)
PRESENT: Metric[Record] = Metric(
    name="nightjar_present", kind="gauge", unit="1", help="present", labels=("k",), values=lambda record: record
)


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=8), min_size=1, max_size=MAX_SOURCES),
    st.randoms(use_true_random=False),
)
def test_counter_holds_what_every_engine_counted_whatever_reports_are_lost_doubled_or_late(
    engines: list[list[int]], random: Any
) -> None:
    """Each engine counts up and is replaced; of its reports the last arrives, others are lost, doubled or late."""
    backend = MemoryBackend()
    exporter = Exporter((STEPS,), backend)
    heard: list[tuple[str, int]] = []
    for number, added in enumerate(engines):
        counts = [sum(added[: index + 1]) for index in range(len(added))]
        sent = [(f"engine-{number}", count) for count in counts]
        heard += [report for report in sent[:-1] if random.random() < 0.7]
        heard += [sent[-1], *random.sample(heard, random.randint(0, len(heard)))]
    for engine, count in heard:
        exporter.publish({("0",): float(count)}, engine)
    assert backend.value("nightjar_steps", "0") == sum(map(sum, engines))


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(-10.0, 1e6)), max_size=30))
def test_counter_is_the_sum_of_each_sources_highest_value(reports: list[tuple[str, float]]) -> None:
    marks: Marks = {}
    total = 0.0
    for source, value in reports:
        added, marks = increments(marks, source, {(): value})
        assert all(amount >= 0.0 for amount in added.values())
        total += sum(added.values())
    highest = {source: max([0.0, *(value for name, value in reports if name == source)]) for source in ("a", "b")}
    assert total == pytest.approx(sum(highest.values()))


def test_marks_are_bounded() -> None:
    marks: Marks = {}
    for engine in range(100):
        _, marks = increments(marks, f"engine-{engine}", {("0",): 1.0})
    assert list(marks) == [f"engine-{engine}" for engine in range(100 - MAX_SOURCES, 100)]


def test_created_series_stand_at_zero_before_anything_is_counted() -> None:
    backend = MemoryBackend()
    exporter = Exporter((STEPS, PRESENT), backend)
    exporter.create({("0",): 0.0, ("3",): 0.0})
    assert backend.values == {"nightjar_steps": {("0",): 0.0, ("3",): 0.0}}, "a gauge is not known before it is observed"
    exporter.publish({("0",): 5.0, ("3",): 0.0}, "e")
    assert backend.values["nightjar_steps"] == {("0",): 5.0, ("3",): 0.0}


def test_series_named_later_is_created_even_at_zero() -> None:
    backend = MemoryBackend()
    exporter = Exporter((STEPS,), backend)
    exporter.publish({("0",): 1.0}, "e")
    exporter.publish({("0",): 1.0, ("3",): 0.0}, "e")
    assert backend.values["nightjar_steps"] == {("0",): 1.0, ("3",): 0.0}


def test_backend_that_raises_is_logged_once_and_costs_its_own_metric_only() -> None:
    """INV-4."""
    backend = MemoryBackend(broken={"nightjar_steps"})
    exporter = Exporter((STEPS, PRESENT), backend)
    with capture_logs() as logs:
        exporter.create({("0",): 0.0})
        for count in range(10):
            exporter.publish({("0",): float(count)}, "e")
    assert backend.values == {"nightjar_present": {("0",): 9.0}}
    assert [(entry["event"], entry["metric"]) for entry in logs] == [("metrics_failed", "nightjar_steps")]


def test_what_a_backend_did_not_take_is_lost_and_never_counted_twice() -> None:
    backend = MemoryBackend()
    exporter = Exporter((STEPS,), backend)
    exporter.publish({("0",): 5.0}, "e")
    backend.broken = {"nightjar_steps"}
    exporter.publish({("0",): 7.0}, "e")
    backend.broken = set()
    exporter.publish({("0",): 8.0}, "e")
    assert backend.value("nightjar_steps", "0") == 6.0


def test_table_that_raises_takes_nobody_down() -> None:
    """INV-4."""

    def values(record: Record) -> Record:
        raise KeyError("a mistake of ours")

    broken: Metric[Record] = Metric(name="nightjar_broken", kind="gauge", unit="1", help="", values=values)
    backend = MemoryBackend()
    with capture_logs() as logs:
        Exporter((broken, PRESENT), backend).publish({("0",): 1.0}, "e")
    assert backend.value("nightjar_present", "0") == 1.0
    assert len(logs) == 1


class FakeRayMetric:
    """Refuses what ray.util.metrics refuses."""

    made: list[FakeRayMetric]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tag_keys = name, tag_keys
        self.default_tags: dict[str, str] = {}
        self.records: list[tuple[float, dict[str, str]]] = []
        self.made.append(self)

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tags.keys() <= set(self.tag_keys)
        self.default_tags = tags

    def _record(self, value: float, tags: dict[str, str]) -> None:
        assert {*self.default_tags, *tags} == set(self.tag_keys)
        self.records.append((value, tags))

    def inc(self, value: float, tags: dict[str, str]) -> None:
        if value <= 0:
            raise ValueError(f"value must be >0, got {value}")
        self._record(value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._record(value, tags)


def test_ray_gets_each_metric_once_with_the_hosts_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("ray.util.metrics")
    from nightjar.cluster.telemetry.ray_backend import RayBackend

    FakeRayMetric.made = []
    monkeypatch.setattr(metrics, "Counter", FakeRayMetric)
    monkeypatch.setattr(metrics, "Gauge", FakeRayMetric)
    backend = RayBackend({"ReplicaId": "r1"})
    for amount in (0.0, 2.0):
        backend.add(STEPS, ("3",), amount)
    backend.set(PRESENT, ("0",), 1.0)
    counter, gauge = FakeRayMetric.made
    assert (counter.name, counter.tag_keys, counter.default_tags) == ("nightjar_steps", ("ReplicaId", "k"), {"ReplicaId": "r1"})
    assert counter.records == [(0.0, {"k": "3"}), (2.0, {"k": "3"})]
    assert gauge.records == [(1.0, {"k": "0"})]


def test_rays_own_classes_take_what_the_backend_gives_them() -> None:
    """Without a cluster: Ray records into this process."""
    pytest.importorskip("ray")
    from nightjar.cluster.telemetry.ray_backend import RayBackend

    backend = RayBackend({"ReplicaId": "r1"})
    backend.add(STEPS, ("3",), 0.0)
    backend.add(STEPS, ("3",), 2.5)
    backend.set(PRESENT, ("0",), 1.0)
    with pytest.raises(ValueError, match="zip"):
        backend.set(PRESENT, (), 1.0)


def test_names_that_prometheus_sees() -> None:
    assert Family(name="nightjar_lag_tokens", kind="gauge", unit="tokens", help="").exported_name == "ray_nightjar_lag_tokens"
    assert STEPS.exported_name == "ray_nightjar_steps_total"
