"""One pytest run in a fork of this process, within limits of processor time, clock and memory.

A fork has the libraries that its parent imported, so that a run costs a fraction of what `pytest` does. This process must never
import what is mutated, and must have no thread that may hold a lock: in a fork nobody would ever give that lock back, and the run
would wait for it until its limit. A run that exceeds a limit is killed with everything that it started.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import pytest

MOST_NEW_BYTES: Final = 4 << 30
"""Address space that a run may add to its parent's."""
OPTIONS: Final = (
    *("-x", "-q", "--tb=line", "--no-header"),
    *("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # the parent has imported plugins already
)


class Outcome(StrEnum):
    """What became of a run."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: `words` is the end of what it printed."""

    outcome: Outcome
    clock_s: float
    processor_s: float
    words: str


@dataclass(frozen=True, slots=True)
class Limits:
    """For one run."""

    processor_s: float
    clock_s: float


def run_tests(tests: tuple[str, ...], scratch: Path, limits: Limits, *, keeps_bytecode: bool) -> Run:
    """Run these test files. `scratch` is an empty folder, for what they print and write."""
    printed = scratch / "printed"
    began_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that this process has threads: no fork of ours waits for one
        pid = os.fork()
    if pid == 0:
        _become_run(tests, scratch, printed, limits, keeps_bytecode=keeps_bytecode)
    status = _wait(pid, limits.clock_s)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = printed.read_text(encoding="utf-8", errors="replace")[-2000:] if printed.exists() else ""
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(_outcome(status), time.monotonic() - began_s, processor_s, words)


def _outcome(status: int) -> Outcome:
    if os.WIFSIGNALED(status):
        return Outcome.TIMEOUT if os.WTERMSIG(status) in {signal.SIGKILL, signal.SIGXCPU} else Outcome.FAILED
    return Outcome.FAILED if os.WEXITSTATUS(status) else Outcome.PASSED


def _wait(pid: int, clock_s: float) -> int:
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(clock_s * 1e3)
    finally:
        os.close(descriptor)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # it leads a group of its own; if it has ended, the group is what it left behind
    return os.waitpid(pid, 0)[1]


def _become_run(tests: tuple[str, ...], scratch: Path, printed: Path, limits: Limits, *, keeps_bytecode: bool) -> None:
    code = 70
    try:
        os.setsid()
        descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        seconds = max(int(limits.processor_s), 1)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MOST_NEW_BYTES, held + MOST_NEW_BYTES))
        sys.dont_write_bytecode = not keeps_bytecode
        gc.freeze()
        code = int(pytest.main([*OPTIONS, f"--basetemp={scratch / 'files'}", *tests]))
    except BaseException:  # noqa: BLE001 - nothing may escape into what the parent would have done next
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
