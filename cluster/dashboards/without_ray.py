"""The same dashboards and rules for servers of `nightjar serve`, which are scraped themselves, without Ray's agents between.

Their page has our names without `ray_` before them, vLLM's with its colon, and no series of Serve's. vLLM's series there know no
replica, so a server is told by the address that it is scraped at (`instance`), and servers by their job, not by a Ray cluster: a
policy that several servers share belongs to their job. What asks for Serve's series is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from nightjar.cluster.dashboards.one_replica import ONE_REPLICA
from nightjar.cluster.dashboards.overview import OVERVIEW
from nightjar.cluster.dashboards.panels import Dashboard, Panel, Row, Variable
from nightjar.cluster.dashboards.promql import BY_CLUSTER, CLUSTER, RELEASE
from nightjar.cluster.dashboards.rules import ALERTS, RECORDINGS, rule_file

JOB: Final = "job"
OF_SERVE: Final = "ray_serve_"


def without_ray(text: str) -> str:
    """PromQL, or a text with PromQL in it, that asks for the names and labels of such a page.

    >>> without_ray('ray_vllm_x_total{ray_io_cluster="c"} / on (ReplicaId) ray_nightjar_y')
    'vllm:x_total{job="c"} / on (instance) nightjar_y'
    """
    names = (BY_CLUSTER, RELEASE), (CLUSTER, JOB), ("ReplicaId", "instance"), ("ray_nightjar_", "nightjar_"), ("ray_vllm_", "vllm:")
    for with_ray, plain in names:
        text = text.replace(with_ray, plain)
    return text


def plain_rule_file() -> str:
    """The rule file of such servers. In one Prometheus with the other, an alert of both files is one: their labels are equal."""
    return without_ray(rule_file(RECORDINGS, [alert for alert in ALERTS if OF_SERVE not in alert.expression]))


def _dashboard(dashboard: Dashboard) -> Dashboard:
    """With an identity of its own, so that a Grafana may have both."""
    return replace(
        dashboard,
        uid=dashboard.uid.replace("nightjar-", "nightjar-vllm-"),
        title=dashboard.title.replace("Nightjar", "Nightjar, plain vLLM"),
        variables=tuple(map(_variable, dashboard.variables)),
        rows=tuple(Row(row.title, tuple(_panels(row))) for row in dashboard.rows),
    )


def _panels(row: Row) -> Iterator[Panel]:
    for panel in row.panels:
        kept = [query for query in panel.queries if OF_SERVE not in query.expression]
        queries = tuple(
            replace(query, expression=without_ray(query.expression), legend=without_ray(query.legend)) for query in kept
        )
        if queries:
            yield replace(panel, queries=queries)


def _variable(variable: Variable) -> Variable:
    return replace(variable, label=variable.label.replace("Cluster", "Job"), query=without_ray(variable.query))


PLAIN_DASHBOARDS: Final = tuple(map(_dashboard, (OVERVIEW, ONE_REPLICA)))
