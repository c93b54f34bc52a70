"""What every test needs, and in which order the slow modules begin."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from hypothesis import settings

# How long an example takes says nothing about the code on a machine that also runs engines.
settings.register_profile("nightjar", deadline=None)
settings.load_profile("nightjar")

LONGEST_FIRST: Final = (
    "tests/test_readme.py",
    "tests/engine/test_dormant_engine.py",
    "tests/deployments/test_serving.py",
    "tests/gpu_paths/test_gpu_paths.py",
    "tests/gpu_paths/test_off_on_v2.py",
    "tests/deployments/test_serving_killed_engine.py",
    "tests/deployments/test_by_hand.py",
    "tests/deployments/test_serving_restarts.py",
    "tests/cluster/test_run_ray.py",
    "tests/deployments/test_serving_hung.py",
    "tests/fleet/test_learning.py",
    "tests/fleet/test_restarts.py",
    "tests/engine/test_tensor_parallel_engine.py",
)
"""Workers take whole modules (`make test`), and end together if the last ones are short."""


def pytest_configure() -> None:
    """Keep looptime from opening an event loop that nobody closes.

    It asks for the current loop before every test, synchronous ones, too; where none was ever set, asyncio makes one, and
    its ResourceWarning then fails whichever test runs when it is collected. A loop set to None is an error that it handles.
    """
    asyncio.set_event_loop(None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the order of tests within a module, and of modules that are not listed."""
    places = {module: place for place, module in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
