"""Metrics by way of Ray: each node's agent exports what its processes recorded, with `ray_` before the names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util import metrics

from nightjar.cluster.telemetry.metrics import Backend, Family, Labels


class RayBackend(Backend):
    """Ray's metrics: values go to the node's agent, whose Prometheus endpoint shows them with `ray_` before the name.

    `common` are the labels that all series of this host carry. Recording is a call into this process's own memory, about a
    microsecond; Ray sends it on every `metrics_report_interval_ms` (10 s). Series of a process that ended: gauges disappear after
    twice that, counters stay as they were until the node's agent ends.
    """

    def __init__(self, common: Mapping[str, str]) -> None:
        self._common = dict(common)
        self._metrics: dict[str, Any] = {}

    def add(self, family: Family, labels: Labels, amount: float) -> None:
        """See Backend. `inc` refuses 0, and Ray has no other way to create a series, so that one goes below it."""
        counter, tags = self._metric(family), dict(zip(family.labels, labels, strict=True))
        if amount:
            counter.inc(amount, tags=tags)
        else:
            counter._record(0.0, tags=tags)

    def set(self, family: Family, labels: Labels, value: float) -> None:
        """See Backend."""
        self._metric(family).set(value, tags=dict(zip(family.labels, labels, strict=True)))

    def _metric(self, family: Family) -> Any:
        known = self._metrics.get(family.name)
        if known is None:
            kind = metrics.Counter if family.kind == "counter" else metrics.Gauge
            known = kind(family.name, description=family.help, tag_keys=(*self._common, *family.labels))
            known.set_default_tags(self._common)
            self._metrics[family.name] = known
        return known
