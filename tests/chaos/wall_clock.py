"""The wall clock of a process, as a test steps it.

A machine's clock cannot be set from a test. In the processes of the chaos application, and nowhere else, `time.time` is the true
one plus the step that a file holds; monotonic clocks stay as they are, as they do when a machine's clock is set.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

FILE_NAME: Final = "clock-step"


def step_clock(folder: Path, seconds: float) -> None:
    """From now on the clocks of all processes of the application are off by so much."""
    fresh = folder / f"{FILE_NAME}.new"
    fresh.write_text(str(seconds), encoding="ascii")
    fresh.replace(folder / FILE_NAME)


def follow_steps(folder: Path) -> None:
    """Make this process's `time.time` follow the file."""
    true_time, file = time.time, folder / FILE_NAME

    def stepped_time() -> float:
        try:
            return true_time() + float(file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return true_time()

    time.time = stepped_time
