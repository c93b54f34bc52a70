"""Ends a command the same way for SIGTERM as for Ctrl-C, so that what it started is stopped and what it recorded is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM)


def as_keyboard_interrupt(_number: int, _frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt."""
    raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Both signals come after the block: a process that is started in it is known before anything can be raised.

    They are raised as the handlers of before would. Another thread than the main one gets no signals, and nothing is done there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: arrived.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
    for number in arrived:
        signal.raise_signal(number)
