"""Which target runs each test, and which tests a change took away: `make test-ids`.

`.ci/run` and `make test-all` call pytest several times, each with markers and folders of its own. A test that none of these calls
selects never runs, and nothing says so. This asks `make` for the calls, collects all tests once, and fails if a test is in no call.
With `--before COMMIT` it also collects that commit's tests and names those that are gone. Fails with pytest's own words where a
collection fails, and with the option's name where a call selects by what is not known here.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import pytest
import typer
from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).parents[1]
CHECK: Final = ROOT / ".ci/run"
BY_HAND: Final = "test-all"
ITS_TESTS: Final = ("test-gpu-paths", "test-serve-llm-gpus", "test-long")
"""What `make test-all` runs beside what `.ci/run` does and the same tests on other Pythons."""
COLLECT_ONLY: Final = ("--collect-only", "-q", "-n", "0", "-p", "no:randomly")


@dataclass(frozen=True, slots=True)
class Test:
    """A test: its id, the file it is in, and the names of its markers."""

    __test__ = False

    id: str
    path: str
    markers: frozenset[str] = frozenset()


@dataclass(slots=True)
class Seen:
    """A plugin of pytest that keeps what was collected."""

    tests: list[Test] = field(default_factory=list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called by pytest once all markers are there."""
        self.tests = [
            Test(item.nodeid, item.nodeid.partition("::")[0], frozenset(mark.name for mark in item.iter_markers()))
            for item in session.items
        ]


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

    >>> targets_of_check("set -e\\nmake lint\\n150 make page\\n  UNTIL=$until make test\\n")
    ['lint', 'page', 'test']
    """
    return re.findall(r"^ *(?:\w+=\S+ |\d+ )*make ([\w-]+)", script, re.MULTILINE)


def calls_of(targets: Iterable[str]) -> list[list[str]]:
    """Arguments of every pytest call of these targets, each once."""
    calls: list[list[str]] = []
    for target in targets:
        shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        calls += [call for call in pytest_calls(shown) if call not in calls]
    return calls


def collected() -> list[Test]:
    """All tests of this checkout."""
    seen, shown = Seen(), io.StringIO()
    with redirect_stdout(shown):
        code = pytest.main([f"--rootdir={ROOT}", *COLLECT_ONLY, str(ROOT / "tests")], plugins=[seen])
    if code != pytest.ExitCode.OK:
        sys.exit(shown.getvalue()[-4000:])
    return seen.tests


def selected(call: Sequence[str], tests: Iterable[Test]) -> set[str]:
    """Ids of the tests that a call of pytest runs. Exits for an option that is not known here.

    >>> tests = [Test("a/b.py::1", "a/b.py", frozenset({"ray"})), Test("a/c.py::2", "a/c.py"), Test("d.py::3", "d.py")]
    >>> sorted(selected(["-n", "2", "-m", "not ray", "a"], tests)), sorted(selected(["--ignore=a/c.py"], tests))
    (['a/c.py::2'], ['a/b.py::1', 'd.py::3'])
    """
    options = argparse.ArgumentParser(prog="pytest", allow_abbrev=False)
    for how_it_runs in ("-n", "-p", "--dist", "--maxschedchunk", "--durations"):
        options.add_argument(how_it_runs)
    options.add_argument("--no-loadscope-reorder", action="store_true")
    options.add_argument("-m", default="")
    options.add_argument("--ignore", action="append", default=[])
    options.add_argument("paths", nargs="*")
    asked = options.parse_args(call)
    return {
        test.id
        for test in tests
        if (not asked.paths or is_below(test.path, asked.paths))
        and not is_below(test.path, asked.ignore)
        and (not asked.m or holds(asked.m, test.markers))
    }


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a file is one of these, or in one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def holds(expression: str, markers: Collection[str]) -> bool:
    """Whether an expression of `pytest -m` holds for a test with these markers.

    >>> holds("(engine or ray) and not long", {"ray"}), holds("(engine or ray) and not long", {"ray", "long"})
    (True, False)
    """

    def value(node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name in markers
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return not value(inner)
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(map(value, parts))
            case ast.BoolOp(op=ast.Or(), values=parts):
                return any(map(value, parts))
        sys.exit(f"pytest -m {expression!r}: markers with `and`, `or` and `not` are known here, not {ast.unparse(node)}")

    return value(ast.parse(expression, mode="eval").body)


def collect_commit(commit: str) -> set[str]:
    """Ids of all tests of a commit, in a worktree that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkout"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit], cwd=ROOT, check=True)
        try:
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            command = [sys.executable, "-m", "pytest", *COLLECT_ONLY]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != pytest.ExitCode.OK:
                sys.exit(f"{shlex.join(command)} at {commit}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            return {line for line in done.stdout.splitlines() if "::" in line}
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
    tests = collected()
    all_ids = {test.id for test in tests}
    in_check = set[str]().union(*(selected(call, tests) for call in of_check))
    by_hand = set[str]().union(*(selected(call, tests) for call in of_hand)) - in_check
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
