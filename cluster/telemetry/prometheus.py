"""Metrics without Ray: values stand on the Prometheus page of the process itself, under their own names.

A page has one collector, whatever the hosts of the process are: a family that several of them have stands there once, as the
exposition format wants it, with a series of each. As on a page of Ray's, a gauge that is not set any more disappears. Values are
set on one thread and read on another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from nightjar.cluster.telemetry.metrics import PUBLISH_PERIOD_S, Backend, Family, Labels

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry

GAUGE_HOLDS_S: Final = 4 * PUBLISH_PERIOD_S
"""As long as Ray shows a gauge that is not set anew."""

Series = tuple[tuple[str, str], ...]
"""The labels of one series, with their values."""


class PrometheusPage:
    """All that a process exports of ours. A collector of `registry` from its making on."""

    def __init__(self, registry: CollectorRegistry = REGISTRY, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._families: dict[str, Family] = {}
        self._values: dict[str, dict[Series, tuple[float, float]]] = {}
        self._lock = threading.Lock()
        self.show_on(registry)

    def show_on(self, registry: CollectorRegistry) -> None:
        """Be a collector of this registry, too."""
        registry.register(self)

    def host(self, common: Mapping[str, str]) -> PrometheusBackend:
        """Where a host puts its values; `common` are the labels that all of its series carry."""
        return PrometheusBackend(self, common)

    def put(self, family: Family, series: Series, value: float, *, counts_on: bool) -> None:
        """Show a value from now on, beside what the series had or in its place."""
        with self._lock:
            self._families[family.name] = family
            values = self._values.setdefault(family.name, {})
            before = values.get(series, (0.0, 0.0))[0] if counts_on else 0.0
            values[series] = (before + value, self.clock())

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that a registry does not ask for values before there are any."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every series as it stands, when the page is asked for."""
        now_s = self.clock()
        with self._lock:
            found = [(self._families[name], list(values.items())) for name, values in self._values.items()]
        for family, values in found:
            shown = Metric(family.name, family.help, family.kind)
            for series, (value, set_at_s) in values:
                if family.kind == "counter":
                    shown.add_sample(f"{family.name}_total", dict(series), value)
                elif now_s - set_at_s < GAUGE_HOLDS_S:
                    shown.add_sample(family.name, dict(series), value)
            yield shown


class PrometheusBackend(Backend):
    """The series of one host of a page."""

    def __init__(self, page: PrometheusPage, common: Mapping[str, str]) -> None:
        self._page = page
        self._common = tuple(common.items())

    def add(self, family: Family, labels: Labels, amount: float) -> None:
        """See Backend."""
        self._page.put(family, self._series(family, labels), amount, counts_on=True)

    def set(self, family: Family, labels: Labels, value: float) -> None:
        """See Backend."""
        self._page.put(family, self._series(family, labels), value, counts_on=False)

    def _series(self, family: Family, labels: Labels) -> Series:
        if len(labels) != len(family.labels):
            raise ValueError(f"{family.name}: {len(labels)} label values, it has the labels {', '.join(family.labels) or 'none'}")
        return (*self._common, *zip(family.labels, labels, strict=True))
