"""The engines of the rig, and the table of what they did."""

from __future__ import annotations

import os

import pytest
from rich.console import Console
from rich.table import Table

from tests.gpu_paths.runs import HEADINGS, Rig


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Shared by all workers of pytest."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "gpu-paths"
    folder.mkdir(exist_ok=True)
    return Rig(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row for each engine that ran."""
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    rows = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "gpu_path"]
    if not rows:
        return
    table = Table(*HEADINGS, title="Steered engines on the rig: vLLM's GPU code paths on a CPU")
    for line in sorted(rows):
        table.add_row(*line)
    Console(width=132).print(table)
