"""Ends a command the same way for SIGTERM as for Ctrl-C, so that what it started is stopped and what it recorded is kept."""

from __future__ import annotations

from types import FrameType


def as_keyboard_interrupt(_number: int, _frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt."""
    raise KeyboardInterrupt
