"""`nightjar demo` on the fake system: within a test, or as a process of its own that a test interrupts."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nightjar.loadtests.arms import processes, session
from nightjar.loadtests.demo import command, run, watch
from nightjar.loadtests.demo.machine import MachineFacts
from nightjar.loadtests.demo.memory import GIB

FAKE_SYSTEM = [sys.executable, "-m", "tests.loadtests.demo.fake_system"]
ENOUGH = MachineFacts(cores=2, usable=2, free_bytes=16 * GIB, architecture="x86_64", flags=frozenset({"avx2", "avx512f"}))


def use_the_fake_system(put: Callable[[object, str, object], None]) -> None:
    """Have the demo start the fake system, on a machine that has enough of everything, and wait for nothing."""
    for module in (run, processes):
        put(module, "nightjar_command", lambda *arguments: [*FAKE_SYSTEM, *arguments])
    put(command, "machine_facts", lambda: ENOUGH)
    put(session, "STEADY_S", 0.0)
    put(watch, "PERIOD_S", 0.02)


if __name__ == "__main__":
    use_the_fake_system(setattr)
    command.app(["demo", "--quick", *sys.argv[1:]])
