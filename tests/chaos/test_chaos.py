"""A real system under every fault: Ray's nodes, Serve, agents, client and policy actor; only engines and network are the test's.

Verdicts are counts, never times. One run of a seed serves all its tests; `make test-chaos SEEDS="4 5"` takes others.
"""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

pytest.importorskip("ray")
from tests.chaos.run import STALE_MAKERS, ChaosRun, chaos_run
from tests.chaos.schedule import FaultKind
from tests.chaos.table import print_table

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

SEEDS = [int(seed) for seed in os.environ.get("NIGHTJAR_CHAOS_SEEDS", "1").split()]


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed-{seed}")
def run(request: pytest.FixtureRequest) -> ChaosRun:
    """The cluster is gone before the first test looks at what happened on it. Faults and tables are shown as they come."""
    run = chaos_run(request.param, lambda words: show(request, f"seed {request.param}: {words}"))
    page = Console(file=io.StringIO(), width=150)
    print_table(page, f"seed {run.seed}", run.observed)
    print_table(page, f"seed {run.seed}, without the fence", run.unfenced)
    assert isinstance(page.file, io.StringIO)
    show(request, page.file.getvalue())
    return run


def show(request: pytest.FixtureRequest, text: str) -> None:
    """Print to whoever runs the tests, at once. What Ray and Serve print meanwhile is captured."""
    plugins = request.config.pluginmanager
    terminal = plugins.getplugin("terminalreporter")
    if terminal is None:  # in a worker of pytest-xdist
        return
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        terminal.write_line(text)


def test_every_fault_happened_and_the_system_recovered_from_each(run: ChaosRun) -> None:
    assert {one.fault.kind for one in run.observed.endured} == set(FaultKind)
    assert all(one.proof.words for one in run.observed.endured)


def test_no_request_fails_but_those_in_flight_on_what_was_killed(run: ChaosRun) -> None:
    """INV-4: whatever becomes of the policy, they are answered."""
    assert run.observed.failed.others == ()
    assert len(run.observed.answers) >= 5 * len(run.observed.endured)


def test_settings_that_come_after_newer_ones_are_never_applied(run: ChaosRun) -> None:
    """INV-5."""
    assert run.observed.stale_delivered > 0
    assert run.observed.stale_applied == ()


def test_restarts_by_lease_never_exceed_the_budget(run: ChaosRun) -> None:
    """INV-6."""
    assert run.observed.most_restarts_at_once == run.observed.most_leases
    assert run.observed.over_budget == 0


def test_the_journal_of_all_incarnations_replays_to_the_same_decisions(run: ChaosRun) -> None:
    """INV-7."""
    assert run.observed.replayed.is_equal
    assert run.observed.replayed.incarnations >= 3


def test_a_build_without_the_fence_is_found_out_by_the_same_faults(run: ChaosRun) -> None:
    """INV-5."""
    assert {one.fault.kind for one in run.unfenced.endured} == STALE_MAKERS
    assert run.unfenced.stale_applied != ()
    assert all(words.startswith("stale settings applied") for words in run.unfenced.broken())
