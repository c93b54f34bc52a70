"""Where a run keeps what it recorded: a folder named after the time, with `latest` beside it pointing to the newest."""

from __future__ import annotations

import time
from pathlib import Path


def new_run_folder(runs: Path) -> Path:
    """A new folder under `runs`, as `runs/latest` where that link can be made. Raises OSError."""
    return as_latest(unnamed_run_folder(runs))


def unnamed_run_folder(runs: Path) -> Path:
    """A new folder under `runs`, while `runs/latest` goes on to point to the one before it. Raises OSError."""
    folder = runs / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    return folder


def as_latest(folder: Path) -> Path:
    """The folder as `latest` beside it, or as itself where that link cannot be made. Raises OSError."""
    latest = folder.parent / "latest"
    if latest.is_symlink() or not latest.exists():
        latest.unlink(missing_ok=True)
        latest.symlink_to(folder.name)
    return latest if latest.is_symlink() else folder
