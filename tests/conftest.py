"""What every test needs."""

from __future__ import annotations

import asyncio

from hypothesis import settings

# How long an example takes says nothing about the code on a machine that also runs engines.
settings.register_profile("nightjar", deadline=None)
settings.load_profile("nightjar")


def pytest_configure() -> None:
    """Keep looptime from opening an event loop that nobody closes.

    It asks for the current loop before every test, synchronous ones, too; where none was ever set, asyncio makes one, and
    its ResourceWarning then fails whichever test runs when it is collected. A loop set to None is an error that it handles.
    """
    asyncio.set_event_loop(None)
