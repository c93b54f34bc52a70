"""What Ray Serve counts: failed requests, the time until an answer has ended, replicas wanted and running.

Proxies and controller count these, not the replicas, so they are there when every replica is gone. They know application and
deployment, no group. `selector` is what a dashboard's variables pick of them.
"""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.panels import Panel, Query
from nightjar.cluster.dashboards.promql import WINDOW, Scope, ratio

REQUESTS: Final = "ray_serve_num_http_requests_total"
ERRORS: Final = "ray_serve_num_http_error_requests_total"
LATENCY_MS: Final = "ray_serve_http_request_latency_ms"
WANTED: Final = "ray_serve_autoscaling_target_replicas"
"""Of every deployment, autoscaled or not."""
HEALTHY: Final = "ray_serve_deployment_replica_healthy"
BY_DEPLOYMENT: Final = "application, deployment"


def failed_requests(selector: str) -> Panel:
    """The error rate, and of which kind errors are."""
    requests = f"sum by (application) (rate({REQUESTS}{{{selector}}}[{WINDOW}]))"
    errors = f"sum by (application) (rate({ERRORS}{{{selector}}}[{WINDOW}])) or 0 * {requests}"
    by_code = f"sum by (application, error_code) (rate({ERRORS}{{{selector}}}[{WINDOW}]))"
    return Panel(
        title="Failed requests",
        description="Share of HTTP requests that Serve's proxies answered with an error: 4xx is the client's, 5xx ours. Requests "
        "that no application takes have an empty name; the policy's own application is counted, too.",
        queries=(
            Query(ratio(errors, requests), "{{application}}"),
            Query(f"{by_code} / on (application) group_left () {requests}", "{{application}} HTTP {{error_code}}"),
        ),
        unit="percentunit",
    )


def end_to_end(scope: Scope, selector: str) -> Panel:
    """From a request's arrival to the end of its answer."""
    answered = f'{selector}, status_code=~"2.."'
    buckets = f"sum by (application, le) (rate({LATENCY_MS}_bucket{{{answered}}}[{WINDOW}]))"
    in_engine = "ray_vllm_e2e_request_latency_seconds"
    return Panel(
        title="End-to-end latency",
        description="From arrival to the last token: as Serve's proxies see it, and within vLLM. What lies between them waited in "
        "front of the engines. Each histogram's last bucket is as far as it sees.",
        queries=(
            Query(f"histogram_quantile(0.5, {buckets}) / 1000", "{{application}} median"),
            Query(f"histogram_quantile(0.99, {buckets}) / 1000", "{{application}} 99 %"),
            Query(scope.quantile(0.5, in_engine, by="application"), "{{application}} median in vLLM"),
            Query(scope.quantile(0.99, in_engine, by="application"), "{{application}} 99 % in vLLM"),
        ),
        unit="s",
    )


def replicas_of_serve(selector: str) -> Panel:
    """What Serve wants and what it has."""
    wanted = f"max by ({BY_DEPLOYMENT}) ({WANTED}{{{selector}}})"
    return Panel(
        title="Replicas wanted and running",
        description="Replicas that Serve, or its autoscaler, wants of each deployment, and those that pass their health checks.",
        queries=(
            Query(wanted, "{{application}} {{deployment}} wanted"),
            Query(f"sum by ({BY_DEPLOYMENT}) ({HEALTHY}{{{selector}}}) or 0 * {wanted}", "{{application}} {{deployment}} running"),
        ),
    )
