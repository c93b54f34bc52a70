"""PromQL as rules and dashboards share it: by which labels things are told apart, and how a series finds its application.

Rules keep namespace, job and cluster everywhere, so that two releases in one Prometheus are never added up, and an Alertmanager
that routes by namespace finds it. Where nobody sets one (the chart's PodMonitor does), it is empty in every series and changes
nothing. Dashboards filter by the cluster instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

RELEASE: Final = "namespace, job"
"""A release of the chart, whose PodMonitor sets both. It outlives its Ray clusters: KubeRay names each anew, at every upgrade."""
CLUSTER: Final = "ray_io_cluster"
BY_CLUSTER: Final = f"{RELEASE}, {CLUSTER}"
BY_APPLICATION: Final = f"{BY_CLUSTER}, application"
BY_MODEL: Final = f"{BY_CLUSTER}, model_name"
BY_GROUP: Final = f"{BY_CLUSTER}, group_id"
BY_ENGINE: Final = f"{BY_CLUSTER}, model_name, engine, ReplicaId"
"""What our series of a replica share with vLLM's."""

ANY_RELEASE: Final = 'job=~".*"'
"""In every selector of a rule and of a dashboard's choices. It matches everything; the chart puts its own release in its place."""

_SELECTED: Final = re.compile(r"\b((?:ray_(?:nightjar|vllm|serve)_|\w+:\w+:)\w+)(\{)?")
"""A series that is exported or recorded, and whether matchers follow."""

WINDOW: Final = "$__rate_interval"
"""Grafana's own: long enough for `rate` to see two scrapes, whatever the zoom."""


def of_any_release(expression: str) -> str:
    """The expression with ANY_RELEASE in every selector.

    >>> of_any_release('sum by (ray_io_cluster) (ray_serve_x) / level:y:z{a="b"}')
    'sum by (ray_io_cluster) (ray_serve_x{job=~".*"}) / level:y:z{job=~".*", a="b"}'
    """
    return _SELECTED.sub(lambda found: f"{found[1]}{{{ANY_RELEASE}" + (", " if found[2] else "}"), expression)


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
