"""Where a run keeps what it recorded: a folder named after the time, with `latest` beside it pointing to the newest."""

from __future__ import annotations

import time
from pathlib import Path


def new_run_folder(runs: Path) -> Path:
    """A new folder under `runs`, as `runs/latest` where that link can be made. Raises OSError."""
    name = time.strftime("%Y%m%d-%H%M%S")
    folder, latest = runs / name, runs / "latest"
    folder.mkdir(parents=True)
    if latest.is_symlink() or not latest.exists():
        latest.unlink(missing_ok=True)
        latest.symlink_to(name)
    return latest if latest.is_symlink() else folder
