"""What every test needs, and how slow tests are dealt out to workers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings

# How long an example takes says nothing about the code on a machine that also runs engines.
settings.register_profile("nightjar", deadline=None)
settings.load_profile("nightjar")

SLOW_MARKERS = ("engine", "ray", "command", "long")


def pytest_configure() -> None:
    """Keep looptime from opening an event loop that nobody closes.

    It asks for the current loop before every test, synchronous ones, too; where none was ever set, asyncio makes one, and
    its ResourceWarning then fails whichever test runs when it is collected. A loop set to None is an error that it handles.
    """
    asyncio.set_event_loop(None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Slow tests of one module share a cluster or an engine, so they run in one worker (`--dist loadgroup`)."""
    if any(map(item.get_closest_marker, SLOW_MARKERS)) and not item.get_closest_marker("xdist_group"):
        item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
