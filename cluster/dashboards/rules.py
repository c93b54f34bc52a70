"""Prometheus rules: what is worth recording, and what a person should look at.

No alert is critical, because requests are answered in every one of these cases: Nightjar fails towards plain vLLM. `warning` is
for today, `info` for the next look at the dashboards. docs/runbook.md has a paragraph under each alert's name.

The file that is written is an ordinary rule file, and what the chart makes a release's own rules of: it puts its release in the
place of ANY_RELEASE, an operator's number in the place of the one before THRESHOLD, and takes out lines that end with BY_POLICY
where no name of the policy's application is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import yaml

from nightjar.cluster.dashboards.promql import BY_APPLICATION, BY_CLUSTER, BY_ENGINE, BY_GROUP, BY_MODEL, RELEASE, of_any_release
from nightjar.cluster.serve_config import POLICY_DEPLOYMENT, POLICY_NAME
from nightjar.policy.wire.report import DrafterState

RUNBOOK: Final = "docs/runbook.md"
"""The chart puts `monitoring.prometheusRule.runbookUrl` in its place."""

THRESHOLD: Final = "# threshold"
"""A comment behind the number of an alert that an operator may choose."""

BY_POLICY: Final = "# known by its policy"
"""A comment behind a line that knows a release of ours by its policy: its application's name, or metrics within a day. The chart
takes such lines out of the rules of a release without a policy's application, or with a Serve config of the user's own."""

HEADER: Final = "# Written by `python -m helm.monitoring_files` from cluster/dashboards/rules.py; edit that.\n"


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus keeps, named `level:what:how`."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a person should know of once it has lasted for `lasting`."""

    name: str
    expression: str
    lasting: str
    severity: Literal["warning", "info"]
    summary: str

    @property
    def runbook_url(self) -> str:
        """Where the runbook speaks of it: headings are the alerts' names."""
        return f"{RUNBOOK}#{self.name.lower()}"


ACCEPTANCE: Final = "model:vllm_first_draft_acceptance:ratio_rate5m"
"""Of the first draft token only: what follows depends on K, and K on the policy."""

RECORDINGS: Final = (
    Recording(
        "application:nightjar_generated_tokens:rate5m",
        f"sum by ({BY_APPLICATION}) (rate(ray_nightjar_generated_tokens_total[5m]))",
    ),
    Recording(
        "application_k:nightjar_goodput:tokens_per_engine_second5m",
        f"""\
sum by ({BY_APPLICATION}, num_speculative_tokens) (rate(ray_nightjar_generated_tokens_total[5m]))
/ (sum by ({BY_APPLICATION}, num_speculative_tokens) (rate(ray_nightjar_step_seconds_total[5m])) > 0)""",
    ),
    Recording(
        "application:nightjar_off_steps:ratio_rate5m",
        f"""\
sum by ({BY_APPLICATION}) (rate(ray_nightjar_steps_total{{num_speculative_tokens="0"}}[5m]))
/ (sum by ({BY_APPLICATION}) (rate(ray_nightjar_steps_total[5m])) > 0)""",
    ),
    Recording(
        "application:nightjar_acceptance:ratio_rate5m",
        f"""\
sum by ({BY_APPLICATION}) (rate(ray_nightjar_accepted_tokens_total[5m]))
/ (sum by ({BY_APPLICATION}) (rate(ray_nightjar_draft_tokens_total[5m])) > 0)""",
    ),
    Recording(
        ACCEPTANCE,
        f"""\
(
  sum by ({BY_MODEL}) (rate(ray_vllm_spec_decode_num_accepted_tokens_per_pos_total{{position="0"}}[5m]))
  or 0 * sum by ({BY_MODEL}) (rate(ray_vllm_spec_decode_num_drafts_total[5m]))
)
/ (sum by ({BY_MODEL}) (rate(ray_vllm_spec_decode_num_drafts_total[5m])) > 0.1)""",
    ),
    Recording(
        "application:nightjar_decode_batch_size:mean5m",
        f"""\
sum by ({BY_APPLICATION}) (rate(ray_nightjar_decode_rows_total[5m]))
/ (sum by ({BY_APPLICATION}) (rate(ray_nightjar_steps_total[5m])) > 0)""",
    ),
    Recording(
        "application:nightjar_catch_up_time:ratio_rate5m",
        f"""\
sum by ({BY_APPLICATION}) (rate(ray_nightjar_catch_up_seconds_total[5m]))
/ (sum by ({BY_APPLICATION}) (rate(ray_nightjar_step_seconds_total[5m])) > 0)""",
    ),
    Recording("group:nightjar_gain_over_off:max", f"max by ({BY_GROUP}) (ray_nightjar_gain_over_off_ratio)"),
)

MODELS: Final = "LLM|LLMServer:.+"
"""Deployments that serve a model: our own, and ray.serve.llm's with our server class."""
POLICY_STATUS: Final = f'ray_serve_application_status{{application="{POLICY_NAME}"}}'
"""Serve's, of the policy's application: there before anything runs, after ten idle minutes, and where it could not be built."""
POLICY_BESIDE_MODELS: Final = (
    f'ray_serve_deployment_status{{deployment="{POLICY_DEPLOYMENT}"}} '
    f'and on ({RELEASE}) ray_serve_deployment_status{{deployment=~"{MODELS}"}}'
)
"""The policy's deployment, whatever its application is called."""
SIGNS: Final = f"max_over_time(ray_nightjar_policy_decision_age_seconds[1d]) or {POLICY_STATUS} or {POLICY_BESIDE_MODELS}"
OF_OURS: Final = f"""\
and on ({RELEASE}) ({SIGNS}) {BY_POLICY}
unless on ({BY_APPLICATION}) (
  max by ({BY_APPLICATION}) (ray_serve_deployment_status)
  unless on ({BY_APPLICATION}) ray_serve_deployment_status{{deployment=~"{MODELS}|{POLICY_DEPLOYMENT}"}}
  unless on ({BY_APPLICATION}) max_over_time(ray_nightjar_replica_info[1d])
)"""
"""Only where Serve has the policy's application or deployment, or a policy ran within a day, without applications that have
deployments of which none is ours. One that could not be built has no deployment, and is kept."""
BY_DEPLOYMENT: Final = f"{BY_APPLICATION}, deployment"
RUNNING: Final = f"max by ({BY_DEPLOYMENT}, replica) (ray_serve_deployment_replica_healthy)"
"""Replicas that pass Serve's health checks. A controller that was replaced still has its series for a while."""

CAME_UP: Final = f"{RUNNING} unless max by ({BY_DEPLOYMENT}, replica) (ray_serve_deployment_replica_healthy offset 15m)"
"""Replicas that came up within a quarter of an hour: an update or a growing fleet that lacks some all the time, and goes on."""

RESIDENT: Final = f"{DrafterState.ACTIVE}|{DrafterState.DORMANT}|{DrafterState.CATCHING_UP}|{DrafterState.PROBING}"
"""States in which a draft model that can sleep holds memory which requests could use."""

ALERTS: Final = (
    Alert(
        name="NightjarAcceptanceCollapse",
        expression=f"""\
last_over_time({ACCEPTANCE}[1h]) < avg_over_time({ACCEPTANCE}[1d] offset 1h) * 0.5 {THRESHOLD}
or last_over_time({ACCEPTANCE}[1h]) < 0.02""",
        lasting="10m",
        severity="warning",
        summary="Drafts for {{ $labels.model_name }} are hardly accepted: {{ $value | humanizePercentage }} of first tokens.",
    ),
    Alert(
        name="NightjarPolicySilent",
        expression=f"max by ({BY_APPLICATION}) (ray_nightjar_settings_age_seconds) > 60 {THRESHOLD}",
        lasting="1m",
        severity="warning",
        summary="A replica of {{ $labels.application }} has not heard from the policy for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        name="NightjarPolicyStuck",
        expression=f"max by ({BY_CLUSTER}) (ray_nightjar_policy_decision_age_seconds) > 60 {THRESHOLD}",
        lasting="1m",
        severity="warning",
        summary="The policy has not decided anything for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        name="NightjarMetricsAbsent",
        expression=f"""\
max by ({RELEASE}) (ray_nightjar_replica_info) unless max by ({RELEASE}) (ray_nightjar_policy_decision_age_seconds)
or max by ({RELEASE}) (max_over_time(ray_nightjar_policy_decision_age_seconds[1d]))
  unless max by ({RELEASE}) (ray_nightjar_policy_decision_age_seconds)
  unless max by ({RELEASE}) (ray_serve_application_status)
or absent_over_time(ray_nightjar_policy_decision_age_seconds[1d])
  unless on () (
    ray_serve_application_status
    > 2 {BY_POLICY}
    or {POLICY_STATUS}
  )""",
        lasting="10m",
        severity="warning",
        summary="No metric of a policy{{ with $labels.job }} of {{ . }}{{ end }}: no other alert of Nightjar can fire.",
    ),
    Alert(
        name="NightjarNoReplica",
        expression=f"""\
max by ({BY_CLUSTER}) (ray_nightjar_policy_decision_age_seconds)
unless max by ({BY_CLUSTER}) (ray_nightjar_replica_info)
and on ({BY_CLUSTER}) max by ({BY_CLUSTER}) (ray_serve_deployment_replica_healthy{{deployment=~"{MODELS}"}}) > 0""",
        lasting="10m",
        severity="warning",
        summary="The policy of {{ $labels.ray_io_cluster }} and its replicas run, and no replica exports anything.",
    ),
    Alert(
        name="NightjarApplicationUnhealthy",
        expression=f"""\
max by ({BY_APPLICATION}) (ray_serve_application_status) < 3
{OF_OURS}""",
        lasting="5m",
        severity="warning",
        summary="Serve could not deploy {{ $labels.application }}, or it is unhealthy.",
    ),
    Alert(
        name="NightjarReplicasPending",
        expression=f"""\
max by ({BY_DEPLOYMENT}) (ray_serve_autoscaling_target_replicas)
- (sum by ({BY_DEPLOYMENT}) ({RUNNING}) or 0 * max by ({BY_DEPLOYMENT}) (ray_serve_autoscaling_target_replicas))
> 0 {THRESHOLD}
unless on ({BY_DEPLOYMENT}) ({CAME_UP})
{OF_OURS}""",
        lasting="45m",
        severity="warning",
        summary="{{ $value }} replicas of {{ $labels.application }} are wanted and do not start.",
    ),
    Alert(
        name="NightjarReplicaSilent",
        expression=f"""\
(
  max by ({BY_ENGINE}, application) (max_over_time(ray_nightjar_replica_info[1h]))
  unless max by ({BY_ENGINE}, application) (ray_nightjar_replica_info)
)
and on ({BY_ENGINE}) ray_vllm_num_requests_running""",
        lasting="5m",
        severity="warning",
        summary="Replica {{ $labels.ReplicaId }} of {{ $labels.application }} exports vLLM's metrics and no longer Nightjar's.",
    ),
    Alert(
        name="NightjarServedPlainly",
        expression=f"sum by ({BY_APPLICATION}) (ray_nightjar_served_plainly) > 0 {THRESHOLD}",
        lasting="5m",
        severity="warning",
        summary="{{ $value }} replicas of {{ $labels.application }} have a drafter and are served as plain vLLM.",
    ),
    Alert(
        name="NightjarOnlyObserving",
        expression=f'sum by ({BY_APPLICATION}) (ray_nightjar_steering{{level="observing"}}) > 0 {THRESHOLD}',
        lasting="24h",
        severity="info",
        summary="{{ $value }} replicas of {{ $labels.application }} started in shadow and only observe.",
    ),
    Alert(
        name="NightjarRestartBudgetExhausted",
        expression=f"""\
(
  max by ({BY_GROUP}) (ray_nightjar_waiting_wishes) > 0
  and max by ({BY_GROUP}) (avg_over_time(ray_nightjar_open_leases[10m])) > 0.5 {THRESHOLD}
)
unless max by ({BY_GROUP}) (ray_nightjar_restarts_frozen) > 0""",
        lasting="10m",
        severity="info",
        summary="{{ $value }} replicas of group {{ $labels.group_id }} wait to restart speculation; leases are always in use.",
    ),
    Alert(
        name="NightjarRestartsFrozen",
        expression=f"max by ({BY_GROUP}) (ray_nightjar_restarts_frozen) > 0",
        lasting="1m",
        severity="warning",
        summary="Restarts of group {{ $labels.group_id }} are frozen: drafts were not accepted after catching up.",
    ),
    Alert(
        name="NightjarGuardTripped",
        expression=f"sum by ({BY_APPLICATION}) (increase(ray_nightjar_guard_trips_total[15m])) > 0 {THRESHOLD}",
        lasting="0m",
        severity="info",
        summary="Speculation measured worse than off in {{ $labels.application }}; the guard holds it off for a while.",
    ),
    Alert(
        name="NightjarKvPressureWithDraftResident",
        expression=f"""\
max by ({BY_ENGINE}, application) (ray_nightjar_drafter_state{{state=~"{RESIDENT}"}}) == 1
and on ({BY_ENGINE}) ray_vllm_kv_cache_usage_perc > 0.9 {THRESHOLD}
and on ({BY_ENGINE}) ray_vllm_num_requests_waiting > 0""",
        lasting="5m",
        severity="info",
        summary="Replica {{ $labels.ReplicaId }} of {{ $labels.application }} is short of KV blocks; its draft holds memory.",
    ),
    Alert(
        name="NightjarEngineFault",
        expression=f"max by ({BY_ENGINE}, application) (ray_nightjar_engine_fault) > 0",
        lasting="0m",
        severity="warning",
        summary="Nightjar failed inside replica {{ $labels.ReplicaId }} of {{ $labels.application }}; vLLM serves on without it.",
    ),
)


def rule_file(recordings: Sequence[Recording] = RECORDINGS, alerts: Sequence[Alert] = ALERTS) -> str:
    """The rule file, as Prometheus and the operator's PrometheusRule take it."""
    groups = [
        {
            "name": "nightjar.recording",
            "rules": [{"record": rule.name, "expr": of_any_release(rule.expression)} for rule in recordings],
        },
        {"name": "nightjar.alerts", "rules": [_alert(alert) for alert in alerts]},
    ]
    return HEADER + yaml.dump({"groups": groups}, Dumper=_BlockDumper, sort_keys=False, width=1000)


def _alert(alert: Alert) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": of_any_release(alert.expression),
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": alert.runbook_url},
    }


class _BlockDumper(yaml.SafeDumper):
    """Writes text of several lines as a block, as a person would."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _text)
