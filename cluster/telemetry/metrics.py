"""Metrics as tables: what a host exports is declared once, and one thin edge hands it to a backend (Ray's).

A host (a replica's agent, the policy actor) has one table of metrics, each with a pure function from the host's record to the
values of its series. What a record counts is cumulative since its source (an engine) started, so the edge exports what was
added: a lost, doubled, late or coalesced record does no harm, a replaced engine counts on from zero, and no counter falls.

Fails silently for whoever calls it (INV-4): nothing here waits, whatever a backend raises is logged once and ignored, and what
it did not take is lost, never counted twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

import structlog

PUBLISH_PERIOD_S: Final = 5.0
"""Longest time between two publications of a living host. Ray drops a gauge's series that was not set anew for two of its export
intervals, 20 s by default: what is gone disappears by not being set, and what lives must be set again."""
MAX_SOURCES: Final = 4
"""Sources of one host whose counts are remembered: a late record of a replaced engine must not count from zero again."""

R = TypeVar("R")
Labels = tuple[str, ...]
"""One series of a metric: its label values, in the order of the metric's label names."""
Values = Callable[[R], Mapping[Labels, float]]
"""Every series of a metric that a record has."""
Marks = Mapping[str, Mapping[Labels, float]]
"""The highest value that was exported of each series of one counter, by source; the source heard last stands last."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric as a backend knows it. `name` is what Ray is given, `labels` are those beyond the host's common ones."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """The name that Prometheus sees.

        >>> Family(name="nightjar_steps", kind="counter", unit="steps", help="").exported_name
        'ray_nightjar_steps_total'
        """
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Family, Generic[R]):
    """A row of a host's table. `values` gives every series that exists, those at zero included; a counter's are cumulative."""

    values: Values[R]


def counter(name: str, unit: str, help_text: str, values: Values[R], labels: tuple[str, ...] = ()) -> Metric[R]:
    """A row whose values are cumulative."""
    return Metric(name=name, kind="counter", unit=unit, help=help_text, values=values, labels=labels)


def gauge(name: str, unit: str, help_text: str, values: Values[R], labels: tuple[str, ...] = ()) -> Metric[R]:
    """A row whose values are those of now."""
    return Metric(name=name, kind="gauge", unit=unit, help=help_text, values=values, labels=labels)


def one_series(read: Callable[[R], float]) -> Values[R]:
    """Of a metric without labels of its own."""
    return lambda record: {(): float(read(record))}


class Backend(Protocol):
    """Where values go. May raise anything; must not wait."""

    def add(self, family: Family, labels: Labels, amount: float) -> None:
        """Raise a counter's series by `amount` >= 0; by 0 creates it."""

    def set(self, family: Family, labels: Labels, value: float) -> None:
        """Set a gauge's series."""


def increments(marks: Marks, source: str, cumulative: Mapping[Labels, float]) -> tuple[dict[Labels, float], Marks]:
    """What to add to a counter now that `source` has counted `cumulative`, and the marks afterwards.

    A series that is named for the first time is in it, be it with 0. A value below its mark (a late record, or a sum of
    measured differences that fell for a while) adds nothing until it passes the mark.

    >>> added, marks = increments({}, "engine-1", {("0",): 5.0})
    >>> increments(marks, "engine-1", {("0",): 7.0, ("3",): 0.0})[0]
    {('0',): 2.0, ('3',): 0.0}
    """
    known = marks.get(source, {})
    added = {
        labels: max(value - known.get(labels, 0.0), 0.0)
        for labels, value in cumulative.items()
        if labels not in known or value > known[labels]
    }
    others = [(other, mark) for other, mark in marks.items() if other != source]
    mark = {**known, **{labels: max(cumulative[labels], 0.0) for labels in added}}
    return added, {**dict(others[-(MAX_SOURCES - 1) :]), source: mark}


class Exporter(Generic[R]):
    """Exports one host's table. Keeps one number per counter series and source."""

    def __init__(self, table: Sequence[Metric[R]], backend: Backend) -> None:
        self._table = table
        self._backend = backend
        self._marks: dict[str, Marks] = {}
        self._has_failed = False

    def create(self, record: R) -> None:
        """Create every counter series that `record` names, at zero: one that begins with its first increment has no rate of it."""
        for metric in self._table:
            if metric.kind == "counter":
                with self._logged_once(metric):
                    for labels in metric.values(record):
                        self._backend.add(metric, labels, 0.0)

    def publish(self, record: R, source: str) -> None:
        """Export what `record` says; its counters are cumulative since `source` started. Never raises."""
        for metric in self._table:
            with self._logged_once(metric):
                values = metric.values(record)
                if metric.kind == "counter":
                    self._count(metric, values, source)
                else:
                    for labels, value in values.items():
                        self._backend.set(metric, labels, value)

    def _count(self, family: Family, cumulative: Mapping[Labels, float], source: str) -> None:
        added, self._marks[family.name] = increments(self._marks.get(family.name, {}), source, cumulative)
        for labels, amount in added.items():
            self._backend.add(family, labels, amount)

    @contextlib.contextmanager
    def _logged_once(self, family: Family) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, the host lives on (INV-4)
            if not self._has_failed:
                self._has_failed = True
                log.warning(
                    "metrics_failed",
                    metric=family.name,
                    error=f"{type(error).__name__}: {error}",
                    consequence="metrics are incomplete; nothing else is affected",
                )
