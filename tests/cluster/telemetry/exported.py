"""A metrics backend in memory, as Prometheus would see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from nightjar.cluster.telemetry.metrics import Backend, Family, Labels


@dataclass
class MemoryBackend(Backend):
    """Keeps every series. Raises for the metrics named in `broken`, as a backend would that is out of order."""

    values: dict[str, dict[Labels, float]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def add(self, family: Family, labels: Labels, amount: float) -> None:
        series = self._series(family, labels, "counter")
        assert amount >= 0.0, "a counter never falls"
        series[labels] = series.get(labels, 0.0) + amount

    def set(self, family: Family, labels: Labels, value: float) -> None:
        self._series(family, labels, "gauge")[labels] = value

    def _series(self, family: Family, labels: Labels, kind: str) -> dict[Labels, float]:
        if family.name in self.broken:
            raise RuntimeError("the backend is out of order")
        assert family.kind == kind
        assert len(labels) == len(family.labels)
        return self.values.setdefault(family.name, {})

    def value(self, name: str, *labels: str) -> float:
        """The value of one series. Raises KeyError where it does not exist."""
        return self.values[name][labels]
