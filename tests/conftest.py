"""What every test needs, in which order the slow modules begin, and which of them never run side by side."""

from __future__ import annotations

import asyncio
import math
import os
import time
from typing import Final

import pytest
import structlog
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling, LoadScopeScheduling

# How long an example takes says nothing about the code on a machine that also runs engines.
settings.register_profile("nightjar", deadline=None)
settings.load_profile("nightjar")

# An error that a test provokes is printed as Python prints it: rich's panel with every local variable takes a tenth of a second.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

END_UNTIL: Final = "NIGHTJAR_TESTS_END_UNTIL"
"""A Unix time when all tests should have ended: `.ci/run` gives it to the slow ones. What would not end by then does not begin."""
UNTIL: Final = pytest.StashKey[float]()
BEGUN: Final = pytest.StashKey[dict[str, bool]]()
"""By part: whether it was begun. A part that was begun goes on to its end."""

SECONDS: Final = {
    "tests/deployments/live/test_by_hand.py": 670.0,
    "tests/engine/test_dormant_engine.py": 560.0,
    "tests/gpu_paths/test_off_on_v2.py": 480.0,
    "tests/test_readme.py": 460.0,
    "tests/deployments/live/test_serving_hung.py": 380.0,
    "tests/deployments/live/test_serving_killed_engine.py": 360.0,
    "tests/deployments/live/test_serving_restarts.py": 360.0,
    "tests/gpu_paths/test_gpu_paths.py": 360.0,
    "tests/test_readme.py::test_a_command_of_the_pages_does_what_it_says[make demo]": 310.0,
    "tests/deployments/plain_vllm/test_serving.py": 310.0,
    "tests/engine/test_data_parallel_engine.py": 280.0,
    "tests/deployments/live/test_serving.py": 240.0,
    "tests/gpu_paths/test_ray_executor.py": 210.0,
    "tests/deployments/live/test_serving_plainly.py": 180.0,
    "tests/cluster/local/test_run_ray.py": 180.0,
    "tests/fleet/test_operator.py": 180.0,
    "tests/engine/test_tensor_parallel_engine.py": 180.0,
}
"""Seconds of a module of `make test-slow`, or of one test of it, on two slow cores beside another: those above OTHERS_S."""
OTHERS_S: Final = 120.0

SEVERAL_ENGINES: Final = (
    "tests/test_readme.py::test_a_command_of_the_pages_does_what_it_says[make demo]",
    "tests/deployments/live/test_by_hand.py",
    "tests/deployments/live/test_serving.py",
    "tests/deployments/live/test_serving_plainly.py",
    "tests/deployments/live/test_serving_restarts.py",
    "tests/monitoring/test_running_system.py",
)
"""They take 6 to 15 GiB each. Two of them side by side can fill a machine of 24 GiB; Ray's memory monitor then kills replicas."""


def part_of(nodeid: str) -> str:
    """What is begun with this test or left out with it: the test where SECONDS names it alone, otherwise its module."""
    return nodeid if nodeid in SECONDS else nodeid.partition("::")[0]


def seconds_of(part: str) -> float:
    """How long a part takes on two slow cores."""
    return SECONDS.get(part, OTHERS_S)


def taken_together(nodeid: str) -> str:
    """What one worker takes with this test: its file, or all of SEVERAL_ENGINES."""
    return "several engines" if nodeid.startswith(SEVERAL_ENGINES) else nodeid.partition("::")[0]


class ByFileAndMemory(LoadFileScheduling):
    """xdist's scheduler of whole files, with taken_together in the place of a file."""

    def _split_scope(self, nodeid: str) -> str:
        return taken_together(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    """Take the place of xdist's own --dist loadfile."""
    return ByFileAndMemory(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """Read END_UNTIL, and keep looptime from opening an event loop that nobody closes.

    It asks for the current loop before every test, synchronous ones, too; where none was ever set, asyncio makes one, and
    its ResourceWarning then fails whichever test runs when it is collected. A loop set to None is an error that it handles.
    """
    asyncio.set_event_loop(None)
    config.stash[BEGUN] = {}
    given = os.environ.get(END_UNTIL) or "inf"
    try:
        config.stash[UNTIL] = float(given)
    except ValueError:
        raise pytest.UsageError(f"{END_UNTIL} is a Unix time in seconds, such as {time.time():.0f}, not {given!r}") from None
    if hasattr(config, "workerinput"):
        # What a test starts has no such time: a command's own pytest would skip its tests, and the command would fail.
        os.environ.pop(END_UNTIL, None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the order of tests within a module, and begins with the longest modules, so that workers end together.

    Where the time may run out all modules stay as pytest-randomly drew them, so that each is seen in some run.
    """
    if config.stash[UNTIL] == math.inf:
        items.sort(key=lambda item: -seconds_of(part_of(item.nodeid)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what belongs to a part that would not end in time."""
    begun, part = item.config.stash[BEGUN], part_of(item.nodeid)
    if not begun.setdefault(part, time.time() + seconds_of(part) <= item.config.stash[UNTIL]):
        pytest.skip(f"left out: {part} takes {seconds_of(part):.0f} s, more than {END_UNTIL} leaves")
