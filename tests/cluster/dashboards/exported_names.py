"""Every series and label that Nightjar, vLLM and Ray export, as far as rules and dashboards may use them."""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.rules import RECORDINGS
from nightjar.cluster.telemetry.metrics import Family
from nightjar.cluster.telemetry.policy_metrics import POLICY_METRICS
from nightjar.deployments.agent import ReplicaIdentity
from nightjar.deployments.metrics import REPLICA_METRICS, common_labels
from nightjar.policy.wire.report import GroupKey

FAMILIES: Final[tuple[Family, ...]] = (*REPLICA_METRICS, *POLICY_METRICS)

VLLM_COUNTERS: Final = {
    "vllm:generation_tokens",
    "vllm:num_preemptions",
    "vllm:prompt_tokens",
    "vllm:spec_decode_num_accepted_tokens_per_pos",
    "vllm:spec_decode_num_drafts",
}
VLLM_GAUGES: Final = {"vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting"}
VLLM_HISTOGRAMS: Final = {
    "vllm:e2e_request_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:time_to_first_token_seconds",
}

VLLM_OWN_SERIES: Final = {
    *(f"{name}_total" for name in VLLM_COUNTERS),
    *VLLM_GAUGES,
    *(f"{name}_bucket" for name in VLLM_HISTOGRAMS),
}
"""As a server's own page has them."""

VLLM_SERIES: Final = {
    *(f"ray_{name.replace(':', '_')}_total" for name in VLLM_COUNTERS),
    *(f"ray_{name.replace(':', '_')}" for name in VLLM_GAUGES),
    *(f"ray_{name.replace(':', '_')}_bucket" for name in VLLM_HISTOGRAMS),
}
"""As Ray's agent exports what vLLM counts."""

SERVE_COUNTERS: Final = {"serve_num_http_requests", "serve_num_http_error_requests"}
SERVE_GAUGES: Final = {
    "serve_application_status",
    "serve_autoscaling_target_replicas",
    "serve_deployment_replica_healthy",
    "serve_deployment_status",
}
SERVE_HISTOGRAMS: Final = {"serve_http_request_latency_ms"}
SERVE_LABELS: Final = {"application", "deployment", "replica", "error_code", "status_code"}

SERVE_SERIES: Final = {
    *(f"ray_{name}_total" for name in SERVE_COUNTERS),
    *(f"ray_{name}" for name in SERVE_GAUGES),
    *(f"ray_{name}_bucket" for name in SERVE_HISTOGRAMS),
}
"""As Ray's agent exports what Serve counts."""

SERIES: Final = {
    *(family.exported_name for family in FAMILIES),
    *VLLM_SERIES,
    *SERVE_SERIES,
    *(recording.name for recording in RECORDINGS),
    "ALERTS",  # of the Prometheus that evaluates the rules
}

LABELS: Final = {
    *common_labels(ReplicaIdentity("", "", "", "", GroupKey(target="any")), ""),
    *(label for family in FAMILIES for label in family.labels),
    *SERVE_LABELS,
    *("alertname", "alertstate"),  # of ALERTS
    "position",  # of vLLM's accepted tokens
    "le",  # of histograms
    *("namespace", "job", "ray_io_cluster"),  # of the chart's PodMonitor
}
