"""The fleet at a glance: what is wrong now, what speculation earns, the load, restarts and the policy.

What Ray Serve counts is among it: proxies and controller count failed requests, the time until an answer has ended, and replicas
wanted and running, so these are there when every replica is gone. They know application and deployment, no group.
"""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.panels import Dashboard, Panel, Query, Row
from nightjar.cluster.dashboards.promql import CLUSTER, WINDOW, Scope, ratio
from nightjar.cluster.dashboards.rules import RECORDINGS
from nightjar.cluster.dashboards.shared_panels import (
    CHOICES,
    CHOSEN,
    OF_CLUSTER,
    STEP_SECONDS,
    STEPS,
    engine_time_by_k,
    first_token,
    goodput_by_k,
    per_token,
)

FLEET: Final = Scope(f"ray_nightjar_replica_info{{{CHOSEN}}}")
STEPS_OFF: Final = f'{STEPS}{{num_speculative_tokens="0"}}'
OF_SERVE: Final = f'{OF_CLUSTER}, application=~"$application"'
"""Serve's own series know no group, and are there where every replica is gone."""
OUR_ALERTS: Final = f'ALERTS{{alertname=~"Nightjar.+", alertstate="firing", {OF_CLUSTER}}}'
"""Prometheus' own series, of rules that it evaluates itself."""
RULES_ARE_HERE: Final = RECORDINGS[0].name
"""Recorded by the same file as the alerts: no alert fires, and none could, look different."""
REQUESTS: Final = "ray_serve_num_http_requests_total"
ERRORS: Final = "ray_serve_num_http_error_requests_total"
LATENCY_MS: Final = "ray_serve_http_request_latency_ms"
WANTED: Final = "ray_serve_autoscaling_target_replicas"
"""Of every deployment, autoscaled or not."""
HEALTHY: Final = "ray_serve_deployment_replica_healthy"
BY_DEPLOYMENT: Final = "application, deployment"


def _number(title: str, description: str, expression: str, *, unit: str = "short", alarm_above: float | None = None) -> Panel:
    """A number of today, in a sixth of a line."""
    return Panel(
        title=title,
        description=description,
        queries=(Query(expression),),
        kind="stat",
        unit=unit,
        width=4,
        height=4,
        alarm_above=alarm_above,
    )


def failed_requests(selector: str) -> Panel:
    """The error rate, and of which kind errors are. `selector` is what a dashboard's variables pick of Serve's series."""
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
        description="From arrival to the last token: within vLLM and, on Ray Serve, as its proxies see it. What lies between them "
        "waited in front of the engines. Each histogram's last bucket is as far as it sees.",
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


STATE: Final = Row(
    "Now",
    (
        _number("Replicas", "Replicas that export Nightjar's metrics.", f"count({FLEET.info}) or vector(0)"),
        _number(
            "Served plainly",
            "Replicas with a drafter that are served as plain vLLM; `nightjar status` says why.",
            f"{FLEET.gauge('sum', 'ray_nightjar_served_plainly')} or vector(0)",
            alarm_above=1,
        ),
        _number(
            "Engine faults",
            "Replicas in which Nightjar failed; vLLM serves on without it.",
            f"{FLEET.gauge('sum', 'ray_nightjar_engine_fault')} or vector(0)",
            alarm_above=1,
        ),
        _number(
            "Held by the guard",
            "Batch buckets, over all replicas, in which speculation measured worse than off and is held off.",
            f"{FLEET.gauge('sum', 'ray_nightjar_guard_held_batch_buckets')} or vector(0)",
            alarm_above=1,
        ),
        _number(
            "Oldest settings",
            "The longest that a replica has not heard from the policy. Above settings_max_age_s it runs K = 0 only.",
            FLEET.gauge("max", "ray_nightjar_settings_age_seconds"),
            unit="s",
            alarm_above=60,
        ),
        _number(
            "Last decision",
            "How long ago the policy last decided without an error.",
            f"max(ray_nightjar_policy_decision_age_seconds{{{OF_CLUSTER}}})",
            unit="s",
            alarm_above=60,
        ),
        _number(
            "Firing alerts",
            "Alerts of Nightjar that fire now; the runbook speaks of each. Nothing where this Prometheus lacks the rules.",
            f"count({OUR_ALERTS}) or 0 * count({RULES_ARE_HERE}{{{OF_CLUSTER}}})",
            alarm_above=1,
        ),
        Panel(
            title="Alerts",
            description="When which alert of Nightjar fired.",
            queries=(
                Query(
                    f"max by (alertname) ({OUR_ALERTS}) or "
                    f'label_replace(0 * count({RULES_ARE_HERE}{{{OF_CLUSTER}}}), "alertname", "none", "", "")',
                    "{{alertname}}",
                ),
            ),
            kind="state-timeline",
            width=20,
            height=4,
            alarm_above=1,
        ),
    ),
)

GOODPUT: Final = Row(
    "Goodput and speculation",
    (
        Panel(
            title="Generated tokens a second",
            description="As vLLM counts them, replicas that are served plainly included.",
            queries=(Query(FLEET.rate_or_zero("ray_vllm_generation_tokens_total", by="application"), "{{application}}"),),
        ),
        goodput_by_k(FLEET),
        engine_time_by_k(FLEET),
        Panel(
            title="Steps without speculation",
            description="Share of engine steps that ran with K = 0.",
            queries=(
                Query(ratio(FLEET.rate(STEPS_OFF, by="application"), FLEET.rate(STEPS, by="application")), "{{application}}"),
            ),
            unit="percentunit",
            highest=1.0,
        ),
        Panel(
            title="Acceptance of the first draft token",
            description="Share of drafts whose first token was accepted. What follows in a draft depends on K, this does not.",
            queries=(
                Query(
                    ratio(
                        FLEET.rate_or_zero(
                            'ray_vllm_spec_decode_num_accepted_tokens_per_pos_total{position="0"}', by="application"
                        ),
                        FLEET.rate_or_zero("ray_vllm_spec_decode_num_drafts_total", by="application"),
                    ),
                    "{{application}}",
                ),
            ),
            unit="percentunit",
            highest=1.0,
        ),
        Panel(
            title="Predicted gain over off",
            description="Predicted tokens a second with the plan over those without speculation: 1 where the plan is off. "
            "Predicted, not measured; absent where nothing is predicted.",
            queries=(Query(FLEET.of_groups("max", "ray_nightjar_gain_over_off_ratio"), "{{group_id}}"),),
        ),
    ),
)

LOAD: Final = Row(
    "Load",
    (
        Panel(
            title="Requests",
            description="Requests in the engines and in front of them.",
            queries=(
                Query(FLEET.gauge("sum", "ray_vllm_num_requests_running", by="application"), "{{application}} running"),
                Query(FLEET.gauge("sum", "ray_vllm_num_requests_waiting", by="application"), "{{application}} waiting"),
            ),
        ),
        replicas_of_serve(OF_SERVE),
        failed_requests(OF_SERVE),
        Panel(
            title="KV cache in use",
            description="The fullest replica of each application.",
            queries=(Query(FLEET.gauge("max", "ray_vllm_kv_cache_usage_perc", by="application"), "{{application}}"),),
            unit="percentunit",
            highest=1.0,
            alarm_above=0.9,
        ),
        Panel(
            title="Mean decode batch",
            description="Requests in their decode phase per engine step.",
            queries=(
                Query(
                    ratio(FLEET.rate("ray_nightjar_decode_rows_total", by="application"), FLEET.rate(STEPS, by="application")),
                    "{{application}}",
                ),
            ),
        ),
        first_token(FLEET),
        per_token(FLEET),
        end_to_end(FLEET, OF_SERVE),
        Panel(
            title="Preemptions a second",
            description="Requests that vLLM threw out of the KV cache, and those preempted so that a draft could come back.",
            queries=(
                Query(FLEET.rate_or_zero("ray_vllm_num_preemptions_total"), "by vLLM"),
                Query(FLEET.rate("ray_nightjar_contraction_preempted_requests_total"), "for a draft"),
            ),
        ),
    ),
)

RESTARTS: Final = Row(
    "Drafters and restarts",
    (
        Panel(
            title="Drafters by state",
            description="Replicas whose drafter is in this state.",
            queries=(Query(FLEET.gauge("sum", "ray_nightjar_drafter_state", by="state"), "{{state}}"),),
            is_stacked=True,
        ),
        Panel(
            title="Restarts a second",
            description="Restarts of speculation that began, by cause; probes that found drafts not accepted as before.",
            queries=(
                Query(FLEET.rate("ray_nightjar_restarts_total", by="cause"), "{{cause}}"),
                Query(FLEET.rate("ray_nightjar_failed_probes_total"), "failed probes"),
            ),
        ),
        Panel(
            title="Time spent catching up",
            description="Share of busy engine time that recomputing draft tokens took.",
            queries=(
                Query(
                    ratio(
                        FLEET.rate("ray_nightjar_catch_up_seconds_total", by="application"),
                        FLEET.rate(STEP_SECONDS, by="application"),
                    ),
                    "{{application}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            title="Leases and wishes",
            description="Restarts that the policy permitted and that are not over; replicas that wish to restart and hold no "
            "lease, be it that the budget is in use or that a restart would not pay.",
            queries=(
                Query(FLEET.of_groups("max", "ray_nightjar_open_leases"), "{{group_id}} leases"),
                Query(FLEET.of_groups("max", "ray_nightjar_waiting_wishes"), "{{group_id}} wishes"),
            ),
        ),
        Panel(
            title="Restarts frozen",
            description="1 while a group's restarts are frozen because probes failed.",
            queries=(Query(FLEET.of_groups("max", "ray_nightjar_restarts_frozen"), "{{group_id}}"),),
            highest=1.0,
        ),
        Panel(
            title="Guard trips a second",
            description="Times that the guard found speculation worse than off.",
            queries=(Query(FLEET.rate("ray_nightjar_guard_trips_total", by="application"), "{{application}}"),),
        ),
    ),
)

POLICY: Final = Row(
    "Policy",
    (
        Panel(
            title="Reports a second",
            description="Reports of replicas that were taken, and those that were refused or counted in part.",
            queries=(
                Query(f"sum(rate(ray_nightjar_policy_reports_total{{{OF_CLUSTER}}}[{WINDOW}]))", "taken"),
                Query(f"sum(rate(ray_nightjar_policy_refused_reports_total{{{OF_CLUSTER}}}[{WINDOW}]))", "refused"),
            ),
        ),
        Panel(
            title="Replicas",
            description="Replicas that the policy knows, and those heard of just now.",
            queries=(
                Query(FLEET.of_groups("max", "ray_nightjar_replicas"), "{{group_id}} known"),
                Query(FLEET.of_groups("max", "ray_nightjar_fresh_replicas"), "{{group_id}} fresh"),
            ),
        ),
        Panel(
            title="Incarnation and measurements",
            description="The incarnation rises with every restart of the policy; measurements: dealt out and not finished.",
            queries=(
                Query(f"max by ({CLUSTER}) (ray_nightjar_policy_incarnation{{{OF_CLUSTER}}})", "incarnation"),
                Query(FLEET.of_groups("max", "ray_nightjar_open_segments"), "{{group_id}} measurements"),
            ),
        ),
    ),
)

OVERVIEW: Final = Dashboard(
    uid="nightjar-overview",
    title="Nightjar: overview",
    description="The fleet: goodput, speculation, load, restarts and the policy.",
    variables=CHOICES,
    rows=(STATE, GOODPUT, LOAD, RESTARTS, POLICY),
)
