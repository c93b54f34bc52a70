"""Which target runs each test, and which tests a change took away: `make test-ids`.

`.ci/run` and `make test-all` call pytest several times, each with markers and folders of its own. A test that none of these calls
selects never runs, and nothing says so. This asks `make` for the calls, collects each of them, and fails if a test is in none. With
`--before COMMIT` it also collects that commit's tests and names those that are gone. Fails with pytest's own words where a
collection fails.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).parents[1]
CHECK: Final = ROOT / ".ci/run"
BY_HAND: Final = "test-all"
ITS_TESTS: Final = ("test-gpu-paths", "test-serve-llm-gpus", "test-long")
"""What `make test-all` runs beside what `.ci/run` does and the same tests on other Pythons."""
COLLECT_ONLY: Final = ("--collect-only", "-q", "-n", "0", "-p", "no:randomly")
NO_TESTS_COLLECTED: Final = 5


def pytest_calls(shown: str) -> list[list[str]]:
    """Arguments of each pytest call among the commands that `make --dry-run` shows.

    >>> pytest_calls("mkdir x\\nA=1 .venv/bin/pytest -n 2 -m 'engine or ray' --durations=15\\n")
    [['-n', '2', '-m', 'engine or ray', '--durations=15']]
    """
    calls = []
    for line in shown.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        places = [place for place, word in enumerate(words) if word.endswith("/pytest")]
        calls += [words[place + 1 :] for place in places]
    return calls


def targets_of_check(script: str) -> list[str]:
    """The make targets that `.ci/run` calls.

    >>> targets_of_check("set -e\\nmake lint\\nmake test\\n")
    ['lint', 'test']
    """
    return re.findall(r"^make ([\w-]+)", script, re.MULTILINE)


def calls_of(targets: Iterable[str]) -> list[list[str]]:
    """Arguments of every pytest call of these targets, each once."""
    calls: list[list[str]] = []
    for target in targets:
        shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        calls += [call for call in pytest_calls(shown) if call not in calls]
    return calls


def collect(arguments: Sequence[str], folder: Path = ROOT) -> set[str]:
    """Ids of the tests that these arguments of pytest select in a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", *arguments, *COLLECT_ONLY]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in {0, NO_TESTS_COLLECTED}:
        sys.exit(f"{shlex.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {line for line in done.stdout.splitlines() if "::" in line}


def collect_commit(commit: str) -> set[str]:
    """Ids of all tests of a commit, in a worktree that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkout"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit], cwd=ROOT, check=True)
        try:
            return collect((), folder)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def nowhere(all_ids: set[str], run_by: Mapping[str, set[str]]) -> list[str]:
    """Tests that nothing runs.

    >>> nowhere({"a::1", "b::2"}, {".ci/run": {"a::1"}, "make test-all": set()})
    ['b::2']
    """
    return sorted(all_ids.difference(*run_by.values()))


def main(
    before: Annotated[str | None, typer.Option(help="Name the tests of this commit that are gone.")] = None,
) -> None:
    """Say which tests `.ci/run` and `make test-all` run. Exit code 1 if a test is in neither."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    of_check, of_hand = calls_of(targets_of_check(CHECK.read_text(encoding="utf-8"))), calls_of(ITS_TESTS)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        all_ids, *found = pool.map(collect, [[], *of_check, *of_hand])
    in_check = set[str]().union(*found[: len(of_check)])
    by_hand = set[str]().union(*found[len(of_check) :]) - in_check
    orphans = nowhere(all_ids, {".ci/run": in_check, f"make {BY_HAND}": by_hand})
    table = Table("tests", "number")
    table.add_row("collected", str(len(all_ids)))
    table.add_row("run by .ci/run", str(len(in_check)))
    table.add_row(f"run by make {BY_HAND} alone", str(len(by_hand)))
    table.add_row("run by neither", str(len(orphans)))
    console.print(table)
    _print(console, f"run by make {BY_HAND} alone", sorted(by_hand))
    _print(console, "run by neither", orphans)
    if before is not None:
        earlier = collect_commit(before)
        console.print(
            f"{before}: {len(earlier)} tests, of which {len(earlier - all_ids)} are gone; {len(all_ids - earlier)} are new"
        )
        _print(console, "gone", sorted(earlier - all_ids))
    raise typer.Exit(1 if orphans else 0)


def _print(console: Console, title: str, ids: Sequence[str]) -> None:
    if ids:
        console.print(f"{title}:")
    for one in ids:
        console.print(f"  {one}")


if __name__ == "__main__":
    typer.run(main)
