"""Metrics on the process's own Prometheus page: our names without Ray's prefix, and no gauge of what is gone."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from nightjar.cluster.telemetry.metrics import Family
from nightjar.cluster.telemetry.prometheus import GAUGE_HOLDS_S, PrometheusBackend

STEPS = Family(name="nightjar_steps", kind="counter", unit="steps", help="Steps.", labels=("k",))
AGE = Family(name="nightjar_settings_age_seconds", kind="gauge", unit="seconds", help="Age.")


class Page:
    """What a scrape of one process sees, at a time that the test sets."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.now_s = 0.0

    def host(self, **common: str) -> PrometheusBackend:
        return PrometheusBackend(common, self.registry, lambda: self.now_s)

    def series(self) -> list[str]:
        lines = generate_latest(self.registry).decode().splitlines()
        return [line for line in lines if not line.startswith("#")]


@pytest.fixture
def page() -> Page:
    return Page()


def test_a_counter_counts_on_and_has_its_own_name_and_its_hosts_labels(page: Page) -> None:
    host = page.host(ReplicaId="r1")
    for amount in (0.0, 2.0, 1.0):
        host.add(STEPS, ("3",), amount)
    assert page.series() == ['nightjar_steps_total{ReplicaId="r1",k="3"} 3.0']


def test_a_gauge_that_is_not_set_any_more_disappears_and_a_counter_stays(page: Page) -> None:
    host = page.host()
    host.add(STEPS, ("3",), 1.0)
    host.set(AGE, (), 7.0)
    assert "nightjar_settings_age_seconds 7.0" in page.series()
    page.now_s = GAUGE_HOLDS_S
    assert page.series() == ['nightjar_steps_total{k="3"} 1.0']


def test_replica_and_policy_share_a_page_and_each_can_leave_it(page: Page) -> None:
    replica, policy = page.host(ReplicaId="r1"), page.host()
    replica.add(STEPS, ("3",), 1.0)
    policy.set(AGE, (), 1.0)
    replica.close()
    assert page.series() == ["nightjar_settings_age_seconds 1.0"]


def test_labels_that_a_metric_does_not_have_are_refused(page: Page) -> None:
    with pytest.raises(ValueError, match="nightjar_steps: 0 label values, it has the labels k"):
        page.host().add(STEPS, (), 1.0)
