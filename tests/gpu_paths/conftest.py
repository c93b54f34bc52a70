"""The engines of the rig, and the table of what they did."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from rich.table import Table

from nightjar.loadtests.report.machine import commit, machine
from nightjar.loadtests.report.page import markdown_table
from tests.gpu_paths.engines.combinations import Combination
from tests.gpu_paths.engines.off_stretch import STRESS_SEED, STRESS_STEPS
from tests.gpu_paths.overlay import OVERLAY_VARIABLE, name_under_test
from tests.gpu_paths.runs import HEADINGS, Rig

KEPT: Final = Path("runs/gpu-paths")


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Shared by all workers of pytest."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "gpu-paths"
    folder.mkdir(exist_ok=True)
    return Rig(folder)


def pytest_report_header() -> str:
    """How to repeat the random steps."""
    return f"off stress: {STRESS_STEPS} random steps of each drafter, seed {STRESS_SEED} (make stress-gpu-paths SEED={STRESS_SEED})"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of each engine before the second of any: else one worker waits for the engine that another runs."""
    here = [index for index, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    tests_of: Counter[tuple[str, object]] = Counter()
    turns = []
    for index in here:
        parameters = getattr(getattr(items[index], "callspec", None), "params", {})
        combination = next((value for value in parameters.values() if isinstance(value, Combination)), None)
        engine = items[index].path.name, combination
        turns.append((tests_of[engine], index))
        tests_of[engine] += 1
    ordered = [items[index] for _, index in sorted(turns)]
    for index, item in zip(here, ordered, strict=True):
        items[index] = item


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row for each engine that ran, and write the rows as a page."""
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    rows = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "gpu_path"]
    if not rows:
        return
    table = Table(*HEADINGS, title="Steered engines on the rig: vLLM's GPU code paths on a CPU")
    for line in sorted(rows):
        table.add_row(*line)
    Console(width=160).print(table)
    if not any(argument.endswith("gpu_paths") for argument in terminalreporter.config.args):
        return
    counts = {how: len(terminalreporter.stats.get(how, ())) for how in ("passed", "failed", "error", "skipped")}
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"gpu-paths-{name_under_test()}.md"
    path.write_text(page(sorted(rows), counts), encoding="utf-8")
    terminalreporter.write_line(f"the table, to keep below docs/results: {path}")


def page(rows: Sequence[Sequence[str]], counts: Mapping[str, int]) -> str:
    """The table as a page of docs/results, with what made it."""
    told = ", ".join(f"{number} {how}" for how, number in counts.items() if number)
    facts = machine()
    command = f"make test-vllm VERSION={name_under_test()}" if OVERLAY_VARIABLE in os.environ else "make test-gpu-paths"
    made_by = f"Written by `{command}`: {told} ({facts['processor']}, {facts['cores']} cores, commit {commit() or 'unknown'})."
    head = [f"# vLLM {name_under_test()} on the rig", "", f"{made_by} What the columns mean: [gpu.md](../gpu.md).", ""]
    return "\n".join([*head, *markdown_table(HEADINGS, rows), ""])
