"""Runs the workers, each in a copy of the tree, and keeps what they say in runs/mutants/, a file for each module.

A worker that fails costs its own module and no other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.verdict import Tried
from tests.mutants.worker import Specification

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "runs" / "mutants"
LEFT_OUT: Final = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".hypothesis", ".*_cache", "*.egg-info", "dist")
OUTCOMES: Final = {"passed": "survived", "failed": "killed"}


class WorkerError(RuntimeError):
    """A worker could not do its work."""


def run_all(
    specifications: Sequence[Specification],
    workers: int,
    heard: Callable[[Tried | int], None],
    keep: Callable[[list[Tried]], None],
) -> list[str]:
    """Run every specification, `workers` at the same time. Returns what went wrong.

    `heard` is called with the number of a module's mutants and then with each of them, `keep` with those of a whole module.
    """
    with tempfile.TemporaryDirectory(prefix="nightjar-mutants-") as scratch, ThreadPoolExecutor(workers) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(min(workers, len(specifications))):
            copies.put(_copy_of_tree(Path(scratch) / f"copy-{number}"))
        lock = threading.Lock()

        def run(specification: Specification) -> str:
            copy, tried = copies.get(), list[Tried]()
            try:
                for one in _run_worker(specification, copy):
                    if isinstance(one, Tried):
                        tried.append(one)
                    with lock:
                        heard(one)
            except WorkerError as error:
                return str(error)
            finally:
                copies.put(copy)
            with lock:
                keep(tried)
            return ""

        slow_first = sorted(specifications, key=lambda one: "torch" not in one.libraries)
        return [problem for problem in pool.map(run, slow_first) if problem]


def _run_worker(specification: Specification, copy: Path) -> Iterator[Tried | int]:
    """How many mutants one worker has, and then each as it comes. Raises WorkerError where it ended before its time."""
    command = [sys.executable, "-m", "tests.mutants.worker", specification.text()]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as complaints,
        subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, stderr=complaints, text=True) as worker,
    ):
        assert worker.stdout is not None
        for text in worker.stdout:
            row = json.loads(text)
            if row["kind"] == "tests":
                yield row["mutants"]
            else:
                outcome = OUTCOMES.get(row["outcome"], row["outcome"])
                del row["kind"]
                yield Tried(module=specification.module, **{**row, "outcome": outcome})
        if worker.wait():
            complaints.seek(0)
            raise WorkerError(f"{specification.module}: its worker ended with {worker.returncode}\n{complaints.read()[-3000:]}")


def _copy_of_tree(target: Path) -> Path:
    """Of what tests need, links as links."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=LEFT_OUT)
    return target


def updated(before: Sequence[Tried], now: Sequence[Tried]) -> list[Tried]:
    """A module's earlier run with what a later one says of the same mutants; all of the later, where there is no earlier."""
    if not before:
        return list(now)
    newer = {(one.line, one.operator, *one.key): one for one in now}
    return [newer.get((one.line, one.operator, *one.key), one) for one in before]


def write_rows(module: str, tried: Sequence[Tried]) -> None:
    """Keep a module's mutants."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [{"source": _digest(module)}, *(asdict(one) for one in tried)]
    _rows_of(module).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(module: str) -> list[Tried]:
    """What was kept last of a module, or nothing where it has changed since."""
    if not _rows_of(module).exists():
        return []
    first, *rows = [json.loads(row) for row in _rows_of(module).read_text(encoding="utf-8").splitlines()]
    return [Tried(**row) for row in rows] if first == {"source": _digest(module)} else []


def write_summary(summary: Mapping[str, object], table: str) -> None:
    """Keep the counts of a run."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "table.md").write_text(table, encoding="utf-8")
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _digest(module: str) -> str:
    return hashlib.sha256((ROOT / module).read_bytes()).hexdigest()


def _rows_of(module: str) -> Path:
    return FOLDER / f"{module.replace('/', '.')}.jsonl"
