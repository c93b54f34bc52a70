"""PromQL as rules and dashboards share it: by which labels things are told apart, and how a series finds its application.

Rules keep the cluster's label everywhere, so that two clusters in one Prometheus are never added up; where nobody sets it (the
chart's PodMonitor does), it is empty in every series and changes nothing. Dashboards filter by it instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLUSTER: Final = "ray_io_cluster"
BY_APPLICATION: Final = f"{CLUSTER}, application"
BY_MODEL: Final = f"{CLUSTER}, model_name"
BY_GROUP: Final = f"{CLUSTER}, group_id"
BY_ENGINE: Final = f"{CLUSTER}, model_name, engine, ReplicaId"
"""What our series of a replica share with vLLM's."""

WINDOW: Final = "$__rate_interval"
"""Grafana's own: long enough for `rate` to see two scrapes, whatever the zoom."""


def aggregate(operation: str, by: str, expression: str) -> str:
    """`sum`, `max` or `min`, over everything where `by` is empty.

    >>> aggregate("sum", "", "up"), aggregate("max", "job", "up")
    ('sum(up)', 'max by (job) (up)')
    """
    return f"{operation} by ({by}) ({expression})" if by else f"{operation}({expression})"


@dataclass(frozen=True, slots=True)
class Scope:
    """The replicas that a dashboard's variables pick, as a selector of `ray_nightjar_replica_info`.

    Every expression is joined with it: vLLM's series know no application, and no counter knows its group. Nothing comes from a
    replica that is gone, because its information is.
    """

    info: str

    def of_replicas(self, vector: str) -> str:
        """A vector of a replica's series, only of these replicas, with application and group."""
        replicas = aggregate("max", f"{BY_ENGINE}, application, group_id", self.info)
        return f"{vector} * on ({BY_ENGINE}) group_left (application, group_id) {replicas}"

    def of_groups(self, operation: str, gauge: str) -> str:
        """A gauge of the policy's, by group, only of these replicas' groups. Two incarnations may both export it for 20 s."""
        return f"{aggregate(operation, BY_GROUP, gauge)} and on ({BY_GROUP}) {self.info}"

    def gauge(self, operation: str, selector: str, *, by: str = "") -> str:
        """A gauge of the replicas, aggregated."""
        return aggregate(operation, by, self.of_replicas(selector))

    def rate(self, counter: str, *, by: str = "") -> str:
        """What a counter of the replicas gains a second."""
        return aggregate("sum", by, self.of_replicas(f"rate({counter}[{WINDOW}])"))

    def rate_or_zero(self, counter: str, *, by: str = "") -> str:
        """As `rate`, for a counter that Ray exports only after its first increment, as vLLM's are."""
        zero = f"0 * {aggregate('max', by, self.info)}" if by else "vector(0)"
        return f"{self.rate(counter, by=by)} or {zero}"

    def quantile(self, share: float, histogram: str, *, by: str = "") -> str:
        """A quantile of a histogram of the replicas, in its unit."""
        buckets = self.rate(f"{histogram}_bucket", by=f"{by}, le" if by else "le")
        return f"histogram_quantile({share:g}, {buckets})"


def ratio(above: str, below: str) -> str:
    """One expression over another; NaN, which Grafana draws as a gap, where nothing happened."""
    return f"({above}) / ({below})"
