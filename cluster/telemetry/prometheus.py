"""Metrics without Ray: values stand on the Prometheus page of the process itself, under their own names.

As on a page of Ray's, a gauge that is not set any more disappears. Values are set on one thread and read on another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from nightjar.cluster.telemetry.metrics import PUBLISH_PERIOD_S, Backend, Family, Labels

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

GAUGE_HOLDS_S: Final = 4 * PUBLISH_PERIOD_S
"""As long as Ray shows a gauge that is not set anew."""


class PrometheusBackend(Backend):
    """The series of one host; `common` are the labels that all of them carry. A collector of `registry` from its making on."""

    def __init__(
        self,
        common: Mapping[str, str],
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._common = dict(common)
        self._registry = registry
        self._clock = clock
        self._families: dict[str, Family] = {}
        self._values: dict[str, dict[Labels, tuple[float, float]]] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def close(self) -> None:
        """Take the series off the page."""
        self._registry.unregister(self)

    def add(self, family: Family, labels: Labels, amount: float) -> None:
        """See Backend."""
        with self._lock:
            series = self._series(family, labels)
            series[labels] = (series.get(labels, (0.0, 0.0))[0] + amount, self._clock())

    def set(self, family: Family, labels: Labels, value: float) -> None:
        """See Backend."""
        with self._lock:
            self._series(family, labels)[labels] = (value, self._clock())

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Nothing, so that a registry does not ask for values before there are any."""
        return ()

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Every series as it stands, when the page is asked for."""
        now_s = self._clock()
        with self._lock:
            found = [(self._families[name], list(series.items())) for name, series in self._values.items()]
        for family, series in found:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            shown = kind(family.name, family.help, labels=[*self._common, *family.labels])
            for labels, (value, set_at_s) in series:
                if family.kind == "counter" or now_s - set_at_s < GAUGE_HOLDS_S:
                    shown.add_metric([*self._common.values(), *labels], value)
            yield shown

    def _series(self, family: Family, labels: Labels) -> dict[Labels, tuple[float, float]]:
        if len(labels) != len(family.labels):
            raise ValueError(f"{family.name}: {len(labels)} label values, it has the labels {', '.join(family.labels) or 'none'}")
        self._families[family.name] = family
        return self._values.setdefault(family.name, {})
