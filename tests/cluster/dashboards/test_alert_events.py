"""Which alerts fire over an event: an upgrade, nights at zero replicas, a second release, a pod without a node.

Series as Ray 2.60 exports them, a sample a minute, in promtool's virtual time. Ray drops a gauge 20 s after its source is gone, so
its samples end. A policy leaves ten minutes after the last report. Skipped where promtool is absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nightjar.cluster.serve_config import POLICY_NAME
from tests.cluster.dashboards.promtool import Cluster, firing, needs_promtool

pytestmark = needs_promtool

DAY: Final = 24 * 60
MONDAY: Final = 2 * DAY


def test_no_alert_fires_over_an_upgrade_to_a_new_cluster_whose_model_loads_for_half_an_hour(tmp_path: Path) -> None:
    old = Cluster("nightjar-abcde").policy((0, 60, 1)).replica((0, 60, 1)).wanted((0, 60, 1)).status((0, 60, 6))
    new = Cluster("nightjar-fghij").policy((22, 32, 1), (52, 2 * DAY, 1)).replica((52, 2 * DAY, 1))
    new.wanted((22, 2 * DAY, 1)).status((22, 51, 5), (53, 2 * DAY, 6))
    assert firing((30, 45, 60, 75, 90, 300, DAY, DAY + 120), [old, new], 0, "", tmp_path) == ""


def test_no_alert_fires_while_nothing_is_wanted_be_it_for_a_weekend(tmp_path: Path) -> None:
    night = Cluster("c").policy((0, 70, 1)).replica((0, 60, 1)).status((0, 4 * DAY, 6))
    night.series.update(Cluster("c").wanted((0, 60, 1), (62, 4 * DAY, 0)).series)
    assert firing((65, 72, 75, 90, 600, DAY + 90, 3 * DAY), [night], 0, "", tmp_path) == ""


def test_no_alert_fires_over_a_rolling_update_of_hours_as_long_as_replicas_come_up(tmp_path: Path) -> None:
    fleet = Cluster("c").policy((0, DAY, 1)).status((0, DAY, 6)).wanted((0, DAY, 7)).replica((0, DAY, 1))
    for number in range(6):
        fleet.running((0, 30 + 40 * number, 1), (32 + 40 * number, 33 + 40 * number, 0), replica=f"old{number}")
        fleet.running((70 + 40 * number, DAY, 1), replica=f"new{number}")
    assert firing((60, 100, 180, 230, 280), [fleet], 0, "", tmp_path) == ""


def test_a_replica_that_no_node_takes_is_told_of_after_three_quarters_of_an_hour_and_not_before(tmp_path: Path) -> None:
    fleet = Cluster("c").policy((0, DAY, 1)).status((0, DAY, 5)).replica((0, DAY, 1))
    fleet.wanted((0, 59, 1), (61, DAY, 3))
    pending = ', alertname="NightjarReplicasPending", application="chat", deployment="LLM", namespace="llm", job="nightjar"'
    assert firing((100, 104), [fleet], 0, "", tmp_path) == ""
    assert firing((107, 600), [fleet], 1, pending, tmp_path) == ""


def test_a_first_deployment_that_no_node_takes_is_told_of_by_the_alert_on_pending_replicas_alone(tmp_path: Path) -> None:
    fleet = Cluster("c").policy((0, 10, 1)).status((0, 2 * DAY, 5)).wanted((0, 2 * DAY, 1)).policy_application(6, 2 * DAY)
    assert firing((15, 40), [fleet], 0, "", tmp_path) == ""
    assert firing((60, 600, DAY + 90), [fleet], 1, ', alertname="NightjarReplicasPending"', tmp_path) == ""
    assert firing((60, 600), [fleet], 1, "", tmp_path) == ""


def test_a_first_install_of_which_serve_could_build_nothing_is_told_of_for_each_application_for_as_long_as_it_lasts(
    tmp_path: Path,
) -> None:
    unbuilt = Cluster("c").status((0, 2 * DAY, 1)).policy_application(1, 2 * DAY)
    assert firing((10, DAY + 90), [unbuilt], 2, ', alertname="NightjarApplicationUnhealthy"', tmp_path) == ""
    assert firing((10, 60), [unbuilt], 2, "", tmp_path) == ""


def test_where_nothing_could_be_built_and_the_policys_application_has_another_name_its_metrics_are_said_to_be_absent(
    tmp_path: Path,
) -> None:
    unbuilt = Cluster("c").status((0, DAY, 1)).status((0, DAY, 1), application="steering")
    assert firing((15, 600), [unbuilt], 1, ', alertname="NightjarMetricsAbsent"', tmp_path) == ""
    assert firing((15,), [unbuilt], 1, "", tmp_path) == ""


def test_replicas_that_no_node_takes_after_a_weekend_at_zero_are_told_of_and_nothing_before(tmp_path: Path) -> None:
    fleet = _after_a_weekend_at_zero(5)
    assert firing((90, DAY + 120, MONDAY + 40), [fleet], 0, "", tmp_path) == ""
    assert firing((MONDAY + 60,), [fleet], 1, ', alertname="NightjarReplicasPending"', tmp_path) == ""


def test_an_application_that_fails_after_a_weekend_at_zero_is_told_of(tmp_path: Path) -> None:
    unhealthy = ', alertname="NightjarApplicationUnhealthy", application="chat"'
    assert firing((MONDAY + 15,), [_after_a_weekend_at_zero(1)], 1, unhealthy, tmp_path) == ""


def test_what_does_not_start_after_a_weekend_is_told_of_though_the_policys_application_has_another_name(tmp_path: Path) -> None:
    fleet = _after_a_weekend_at_zero(5, policy="steering").wanted((0, 3 * DAY, 1), application="steering", deployment="Policy")
    fleet.running((0, 3 * DAY, 1), application="steering", deployment="Policy", replica="p")
    assert firing((MONDAY + 60,), [fleet], 1, ', alertname="NightjarReplicasPending"', tmp_path) == ""


def test_a_deployment_called_policy_makes_no_release_ours_without_a_model_beside_it(tmp_path: Path) -> None:
    theirs = (
        Cluster("d", job="robots")
        .status((0, DAY, 2), application="walk")
        .wanted((0, DAY, 1), application="walk", deployment="Policy")
    )
    ours = Cluster("c").policy((0, DAY, 1)).replica((0, DAY, 1)).wanted((0, DAY, 1)).status((0, DAY, 6))
    assert firing((60,), [ours, theirs], 0, "", tmp_path) == ""


def _after_a_weekend_at_zero(status: float, policy: str = POLICY_NAME) -> Cluster:
    """Two replicas are wanted on Monday, none comes up, and Serve's status of the application is this one."""
    fleet = Cluster("c").policy((0, 70, 1)).replica((0, 60, 1)).status((0, 3 * DAY, 6), application=policy)
    fleet.status((0, MONDAY, 6), (MONDAY + 2, 3 * DAY, status))
    return fleet.wanted((0, 60, 1), (62, MONDAY, 0), (MONDAY + 2, 3 * DAY, 2))


def test_of_two_releases_the_one_whose_replica_is_cut_off_fires_with_its_namespace_and_job(tmp_path: Path) -> None:
    well = Cluster("c", namespace="one").policy((0, DAY, 1)).replica((0, DAY, 1)).wanted((0, DAY, 1)).status((0, DAY, 6))
    cut_off = Cluster("c", namespace="two", job="other").policy((0, DAY, 1)).replica((0, DAY, 1), settings_age_s=90)
    cut_off.wanted((0, DAY, 1)).status((0, DAY, 6))
    own = ', alertname="NightjarPolicySilent", namespace="two", job="other", ray_io_cluster="c", application="chat"'
    assert firing((10, 600), [well, cut_off], 1, own, tmp_path) == ""
    assert firing((10, 600), [well, cut_off], 1, "", tmp_path) == ""


def test_a_release_that_nobody_scrapes_any_more_is_told_of_though_another_is_scraped(tmp_path: Path) -> None:
    well = Cluster("c", namespace="one").policy((0, DAY, 1)).replica((0, DAY, 1)).wanted((0, DAY, 1)).status((0, DAY, 6))
    lost = Cluster("d", namespace="two").policy((0, 60, 1)).replica((0, 60, 1)).wanted((0, 60, 1)).status((0, 60, 6))
    absent = ', alertname="NightjarMetricsAbsent", namespace="two", job="nightjar"'
    assert firing((65,), [well, lost], 0, "", tmp_path) == ""
    assert firing((75, 600), [well, lost], 1, absent, tmp_path) == ""


def test_replicas_without_a_policy_are_told_of_though_serve_is_scraped(tmp_path: Path) -> None:
    alone = Cluster("c").policy((0, 60, 1)).replica((0, 3 * DAY, 1)).wanted((0, 3 * DAY, 1)).status((0, 3 * DAY, 6))
    absent = ', alertname="NightjarMetricsAbsent", namespace="llm", job="nightjar"'
    assert firing((75, 600, 2 * DAY), [alone], 1, absent, tmp_path) == ""


def test_an_unhealthy_application_is_told_of_where_it_is_ours_alone(tmp_path: Path) -> None:
    ours = Cluster("c").policy((0, DAY, 1)).replica((0, DAY, 1)).wanted((0, DAY, 1)).status((0, 30, 6), (32, DAY, 2))
    theirs = (
        Cluster("d", job="shop").wanted((0, DAY, 1), application="shop", deployment="Shop").status((0, DAY, 2), application="shop")
    )
    beside = Cluster("c").wanted((0, DAY, 1), application="search", deployment="Index").status((0, DAY, 2), application="search")
    plain = Cluster("e", job="plain").wanted((0, DAY, 1), deployment="LLMServer:chat").status((0, DAY, 1))
    unbuilt = Cluster("c").status((0, DAY, 1), application="typo")
    clusters = [ours, theirs, beside, plain, unbuilt]
    unhealthy = ', alertname="NightjarApplicationUnhealthy"'
    assert firing((60,), clusters, 1, f'{unhealthy}, namespace="llm", job="nightjar", application="chat"', tmp_path) == ""
    assert firing((60,), clusters, 1, f'{unhealthy}, application="typo"', tmp_path) == ""
    assert firing((60,), clusters, 2, unhealthy, tmp_path) == ""


def test_an_application_whose_server_class_has_another_name_is_known_by_its_replicas(tmp_path: Path) -> None:
    other = Cluster("c").policy((0, DAY, 1)).replica((0, 100, 1)).wanted((0, DAY, 1), deployment="Ours:chat").status((0, DAY, 2))
    assert firing((300,), [other], 1, ', alertname="NightjarApplicationUnhealthy", application="chat"', tmp_path) == ""
