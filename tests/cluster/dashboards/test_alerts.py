"""When each alert fires, by Prometheus' own rule tester on invented series, a sample a minute. Skipped where it is absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from nightjar.cluster.dashboards import DASHBOARDS
from nightjar.cluster.dashboards.overview import ERRORS, OF_SERVE, REQUESTS, failed_requests
from nightjar.cluster.dashboards.promql import WINDOW
from nightjar.cluster.dashboards.rules import ALERTS, rule_file
from nightjar.cluster.telemetry.metrics import Family
from nightjar.cluster.telemetry.policy_metrics import POLICY_METRICS
from nightjar.deployments.metrics import REPLICA_METRICS
from tests.cluster.dashboards.exported_names import SERVE_COUNTERS, SERVE_GAUGES, SERVE_HISTOGRAMS, VLLM_GAUGES, VLLM_HISTOGRAMS
from tests.cluster.dashboards.promtool import complaints, expecting, needs_promtool, without_an_answer

VLLM: Final = 'model_name="m", engine="0", ReplicaId="r", WorkerId="w", ray_io_cluster="c"'
REPLICA: Final = f'{VLLM}, application="chat", deployment="LLM"'
POLICY: Final = 'WorkerId="p", ray_io_cluster="c"'
GROUP: Final = f'{POLICY}, group_id="g"'
INFO: Final = f'ray_nightjar_replica_info{{{REPLICA}, group_id="g", drafter_kind="draft_model"}}'
DRAFTS: Final = f"ray_vllm_spec_decode_num_drafts_total{{{VLLM}}}"
ACCEPTED: Final = f'ray_vllm_spec_decode_num_accepted_tokens_per_pos_total{{{VLLM}, position="0"}}'
RUNNING: Final = f"ray_vllm_num_requests_running{{{VLLM}}}"
WISHES: Final = f"ray_nightjar_waiting_wishes{{{GROUP}}}"
LEASES: Final = f"ray_nightjar_open_leases{{{GROUP}}}"
FROZEN: Final = f"ray_nightjar_restarts_frozen{{{GROUP}}}"
DORMANT: Final = f'ray_nightjar_drafter_state{{{REPLICA}, state="dormant"}}'
OFFLOADED: Final = f'ray_nightjar_drafter_state{{{REPLICA}, state="offloaded"}}'
OBSERVING: Final = f'ray_nightjar_steering{{{REPLICA}, level="observing"}}'
KV_USE: Final = f"ray_vllm_kv_cache_usage_perc{{{VLLM}}}"
WAITING: Final = f"ray_vllm_num_requests_waiting{{{VLLM}}}"
AGE: Final = f"ray_nightjar_policy_decision_age_seconds{{{POLICY}}}"
AGE_ELSEWHERE: Final = 'ray_nightjar_policy_decision_age_seconds{WorkerId="q", ray_io_cluster="other", job="other"}'
OF_CHAT: Final = 'application="chat", deployment="LLM", ray_io_cluster="c"'
HEALTHY: Final = f'ray_serve_deployment_replica_healthy{{{OF_CHAT}, replica="r"}}'
WANTED: Final = f"ray_serve_autoscaling_target_replicas{{{OF_CHAT}}}"
APPLICATION: Final = 'ray_serve_application_status{application="chat", ray_io_cluster="c"}'


@dataclass(frozen=True, slots=True)
class Scenario:
    """Series in promtool's notation (`start+step x times`), and whether the alert fires at a minute."""

    what: str
    alert: str
    series: dict[str, str]
    minute: int
    fires: bool = True


def _age(name: str, labels: str) -> dict[str, str]:
    return {f"{name}{{{labels}}}": "0+60x20"}


SCENARIOS: Final = (
    Scenario("nothing was ever accepted", "NightjarAcceptanceCollapse", {DRAFTS: "0+600x200"}, 60),
    Scenario("as ever", "NightjarAcceptanceCollapse", {DRAFTS: "0+600x200", ACCEPTED: "0+400x200"}, 60, fires=False),
    Scenario("a quarter of before", "NightjarAcceptanceCollapse", {DRAFTS: "0+600x300", ACCEPTED: "0+400x120 48000+100x180"}, 180),
    Scenario(
        "collapsed, and then the policy stopped drafting",
        "NightjarAcceptanceCollapse",
        {DRAFTS: "0+600x130 78000x100", ACCEPTED: "0+400x120 48100+100x9 49000x100"},
        150,
    ),
    Scenario("unheard of for ten minutes", "NightjarPolicySilent", _age("ray_nightjar_settings_age_seconds", REPLICA), 10),
    Scenario("undecided for ten minutes", "NightjarPolicyStuck", _age("ray_nightjar_policy_decision_age_seconds", POLICY), 10),
    Scenario("scraped no more", "NightjarMetricsAbsent", {AGE: "1x10 stale"}, 30),
    Scenario("one release of two", "NightjarMetricsAbsent", {AGE: "1x10 stale", AGE_ELSEWHERE: "1x60"}, 30),
    Scenario("never scraped", "NightjarMetricsAbsent", {RUNNING: "1x60"}, 30),
    Scenario("scraped", "NightjarMetricsAbsent", {AGE: "1x60"}, 30, fires=False),
    Scenario("replicas run unseen", "NightjarNoReplica", {AGE: "1x60", INFO: "1x10 stale", HEALTHY: "1x60"}, 30),
    Scenario("the last replica is gone", "NightjarNoReplica", {AGE: "1x60", INFO: "1x10 stale", HEALTHY: "0x60"}, 30, fires=False),
    Scenario("one replica", "NightjarNoReplica", {AGE: "1x60", INFO: "1x60", HEALTHY: "1x60"}, 30, fires=False),
    Scenario("unhealthy", "NightjarApplicationUnhealthy", {AGE: "1x60", APPLICATION: "6x5 2x60"}, 20),
    Scenario("never deployed", "NightjarApplicationUnhealthy", {AGE: "1x60", APPLICATION: "1x60"}, 20),
    Scenario("deploying, then running", "NightjarApplicationUnhealthy", {AGE: "1x60", APPLICATION: "5x30 6x60"}, 40, fires=False),
    Scenario("one of two waits for a node", "NightjarReplicasPending", {AGE: "1x90", WANTED: "2x90", HEALTHY: "1x90"}, 80),
    Scenario("both run", "NightjarReplicasPending", {AGE: "1x90", WANTED: "1x90", HEALTHY: "1x90"}, 80, fires=False),
    Scenario("vLLM goes on alone", "NightjarReplicaSilent", {INFO: "1x10 stale", RUNNING: "1x60"}, 30),
    Scenario("both go on", "NightjarReplicaSilent", {INFO: "1x60", RUNNING: "1x60"}, 30, fires=False),
    Scenario("both are gone", "NightjarReplicaSilent", {INFO: "1x10 stale", RUNNING: "1x10 stale"}, 30, fires=False),
    Scenario("served plainly", "NightjarServedPlainly", {f"ray_nightjar_served_plainly{{{REPLICA}}}": "1x20"}, 10),
    Scenario("started in shadow long ago", "NightjarOnlyObserving", {OBSERVING: "1x1600"}, 1500),
    Scenario("started in shadow today", "NightjarOnlyObserving", {OBSERVING: "1x1600"}, 1200, fires=False),
    Scenario("leases in use", "NightjarRestartBudgetExhausted", {WISHES: "3x40", LEASES: "1x40", FROZEN: "0x40"}, 30),
    Scenario("wishes that do not pay", "NightjarRestartBudgetExhausted", {WISHES: "3x40", LEASES: "0x40"}, 30, fires=False),
    Scenario("frozen", "NightjarRestartBudgetExhausted", {WISHES: "3x40", LEASES: "1x40", FROZEN: "1x40"}, 30, fires=False),
    Scenario("frozen", "NightjarRestartsFrozen", {FROZEN: "1x20"}, 5),
    Scenario("just now", "NightjarGuardTripped", {f"ray_nightjar_guard_trips_total{{{REPLICA}}}": "0x5 1x60"}, 10),
    Scenario("a while ago", "NightjarGuardTripped", {f"ray_nightjar_guard_trips_total{{{REPLICA}}}": "0x5 1x60"}, 40, fires=False),
    Scenario(
        "asleep and resident",
        "NightjarKvPressureWithDraftResident",
        {DORMANT: "1x20", OFFLOADED: "0x20", KV_USE: "0.95x20", WAITING: "4x20"},
        10,
    ),
    Scenario(
        "away",
        "NightjarKvPressureWithDraftResident",
        {DORMANT: "0x20", OFFLOADED: "1x20", KV_USE: "0.95x20", WAITING: "4x20"},
        10,
        fires=False,
    ),
    Scenario("a fault", "NightjarEngineFault", {f"ray_nightjar_engine_fault{{{REPLICA}}}": "1x20"}, 2),
)


@needs_promtool
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.alert}: {scenario.what}")
def test_an_alert_fires_when_it_should_and_only_then(scenario: Scenario, tmp_path: Path) -> None:
    firing = f'count(ALERTS{{alertname="{scenario.alert}", alertstate="firing"}}) or vector(0)'
    assert complaints(tmp_path, rule_file(), [expecting(firing, scenario.minute, float(scenario.fires), scenario.series)]) == ""


def test_every_alert_has_a_scenario_in_which_it_fires() -> None:
    assert {scenario.alert for scenario in SCENARIOS if scenario.fires} == {alert.name for alert in ALERTS}


@needs_promtool
def test_every_query_of_the_dashboards_gives_something_before_vllm_counted_anything(tmp_path: Path) -> None:
    queries = [with_nothing_chosen(query.expression) for dashboard in DASHBOARDS for query in dashboard.queries]
    assert without_an_answer(queries, rule_file(), of_a_replica_that_steps() | _of_serve(), tmp_path) == ""


@needs_promtool
@pytest.mark.parametrize(("failed", "share"), [("0+3x50", 0.25), (None, 0.0)], ids=["a quarter", "none yet"])
def test_the_error_rate_is_the_share_of_requests_that_failed_and_zero_before_one_did(
    failed: str | None, share: float, tmp_path: Path
) -> None:
    series = {f"{REQUESTS}{{{OF_CHAT}}}": "0+12x50"} | ({f'{ERRORS}{{{OF_CHAT}, error_code="500"}}': failed} if failed else {})
    rate = with_nothing_chosen(failed_requests(OF_SERVE).queries[0].expression)
    assert complaints(tmp_path, rule_file(), [expecting(f"sum({rate})", 10, share, series, interval="15s")]) == ""


def with_nothing_chosen(query: str) -> str:
    text = query.replace(WINDOW, "1m")
    for variable in ("cluster", "application", "group", "replica"):
        text = text.replace(f'"${variable}"', '".*"')
    return text


def of_a_replica_that_steps() -> dict[str, str]:
    """One series of everything that Nightjar exports, and vLLM's gauges and histograms; of its counters none."""
    own = _of_families(REPLICA_METRICS, REPLICA) | _of_families(POLICY_METRICS, POLICY)
    gauges = {f"ray_{name.replace(':', '_')}{{{VLLM}}}": "1x50" for name in VLLM_GAUGES}
    buckets = {f'ray_{name.replace(":", "_")}_bucket{{{VLLM}, le="+Inf"}}': "0+1x50" for name in VLLM_HISTOGRAMS}
    return own | gauges | buckets


def _of_serve() -> dict[str, str]:
    """One series of everything that Serve's proxies and controller export."""
    counters = {f'ray_{name}_total{{{OF_CHAT}, error_code="500"}}': "0+1x50" for name in SERVE_COUNTERS}
    gauges = {f"ray_{name}{{{OF_CHAT}}}": "1x50" for name in SERVE_GAUGES}
    buckets = {f'ray_{name}_bucket{{{OF_CHAT}, status_code="200", le="+Inf"}}': "0+1x50" for name in SERVE_HISTOGRAMS}
    return counters | gauges | buckets


def _of_families(families: Sequence[Family], common: str) -> dict[str, str]:
    series = {}
    for family in families:
        labels = ", ".join([common, *(f'{label}="0"' for label in family.labels)])
        series[f"{family.exported_name}{{{labels}}}"] = "0+1x50" if family.kind == "counter" else "1x50"
    return series
