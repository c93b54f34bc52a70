"""Metrics on the process's own Prometheus page: our names without Ray's prefix, and no gauge of what is gone."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nightjar.cluster.telemetry.metrics import Family
from nightjar.cluster.telemetry.prometheus import GAUGE_HOLDS_S, PrometheusBackend, PrometheusPage
from tests.cluster.dashboards.promtool import metrics_complaints, needs_promtool

STEPS = Family(name="nightjar_steps", kind="counter", unit="steps", help="Steps.", labels=("k",))
AGE = Family(name="nightjar_settings_age_seconds", kind="gauge", unit="seconds", help="Age.")


class Page:
    """What a scrape of one process sees, at a time that the test sets."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.now_s = 0.0
        self.ours = PrometheusPage(self.registry, lambda: self.now_s)

    def host(self, **common: str) -> PrometheusBackend:
        return self.ours.host(common)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def series(self) -> list[str]:
        return [line for line in self.text().splitlines() if not line.startswith("#")]


@pytest.fixture
def page() -> Page:
    return Page()


def two_ranks_and_a_policy(page: Page) -> None:
    ranks = [page.host(ReplicaId="r1", engine=str(rank)) for rank in range(2)]
    for number, rank in enumerate(ranks, start=1):
        rank.add(STEPS, ("3",), number)
        rank.set(AGE, (), 0.5)
    page.host().set(Family(name="nightjar_policy_incarnation", kind="gauge", unit="1", help="Incarnation."), (), 1.0)


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


def test_a_family_of_several_ranks_stands_once_on_the_page_with_a_series_of_each(page: Page) -> None:
    two_ranks_and_a_policy(page)
    heads = [line for line in page.text().splitlines() if line.startswith("#")]
    assert len(heads) == len(set(heads))
    families = list(text_string_to_metric_families(page.text()))
    assert [family.name for family in families] == [STEPS.name, AGE.name, "nightjar_policy_incarnation"]
    assert {sample.labels["engine"]: sample.value for sample in families[0].samples} == {"0": 1.0, "1": 2.0}


@needs_promtool
def test_prometheus_finds_nothing_wrong_with_a_page_of_several_ranks(page: Page) -> None:
    two_ranks_and_a_policy(page)
    assert metrics_complaints(page.text()) == ""


def test_labels_that_a_metric_does_not_have_are_refused(page: Page) -> None:
    with pytest.raises(ValueError, match="nightjar_steps: 0 label values, it has the labels k"):
        page.host().add(STEPS, (), 1.0)
