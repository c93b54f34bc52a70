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

BEGIN_UNTIL: Final = "NIGHTJAR_BEGIN_TESTS_UNTIL"
"""A Unix time after which no test begins: `.ci/run` gives it to its longest part, which so ends on a slow machine, too."""
UNTIL: Final = pytest.StashKey[float]()

LONGEST_FIRST: Final = (
    "tests/test_readme.py",
    "tests/engine/test_dormant_engine.py",
    "tests/deployments/live/test_serving.py",
    "tests/deployments/plain_vllm/test_serving.py",
    "tests/engine/test_data_parallel_engine.py",
    "tests/gpu_paths/test_gpu_paths.py",
    "tests/gpu_paths/test_off_on_v2.py",
    "tests/deployments/live/test_serving_killed_engine.py",
    "tests/deployments/live/test_by_hand.py",
    "tests/deployments/live/test_serving_restarts.py",
    "tests/gpu_paths/test_ray_executor.py",
    "tests/cluster/local/test_run_ray.py",
    "tests/deployments/live/test_serving_hung.py",
    "tests/fleet/test_operator.py",
    "tests/engine/test_tensor_parallel_engine.py",
)
"""Workers take whole modules (`make test-slow`), and end together if the last ones are short."""

SEVERAL_ENGINES: Final = (
    "tests/test_readme.py::test_a_command_of_the_pages_does_what_it_says[make demo]",
    "tests/deployments/live/test_by_hand.py",
    "tests/deployments/live/test_serving.py",
    "tests/deployments/live/test_serving_plainly.py",
    "tests/deployments/live/test_serving_restarts.py",
    "tests/monitoring/test_running_system.py",
)
"""They take 6 to 15 GiB each. Two of them side by side can fill a machine of 24 GiB; Ray's memory monitor then kills replicas."""


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
    """Read BEGIN_UNTIL, and keep looptime from opening an event loop that nobody closes.

    It asks for the current loop before every test, synchronous ones, too; where none was ever set, asyncio makes one, and
    its ResourceWarning then fails whichever test runs when it is collected. A loop set to None is an error that it handles.
    """
    asyncio.set_event_loop(None)
    given = os.environ.get(BEGIN_UNTIL) or "inf"
    try:
        config.stash[UNTIL] = float(given)
    except ValueError:
        raise pytest.UsageError(f"{BEGIN_UNTIL} is a Unix time in seconds, such as {time.time():.0f}, not {given!r}") from None
    if hasattr(config, "workerinput"):
        # What a test starts has no such time: a command's own pytest would skip its tests, and the command would fail.
        os.environ.pop(BEGIN_UNTIL, None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the order of tests within a module, and of modules that are not listed.

    Where the time may run out all modules stay as pytest-randomly drew them, so that each is seen in some run.
    """
    places = {module: place for place, module in enumerate(LONGEST_FIRST)}
    if config.stash[UNTIL] == math.inf:
        items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what has not begun when the time is over; what has begun goes on to its end."""
    if time.time() > item.config.stash[UNTIL]:
        pytest.skip(f"not begun: the time that {BEGIN_UNTIL} gives is over")
