"""Why a loaded head runs at K = 0 after all: from its worker to the replica, by a file in the engine's folder.

Fails open: where no file can be written or read, nobody is told.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE

_PREFIX: Final = "head-"


def note_head(reason: str, environ: Mapping[str, str] = os.environ) -> None:
    """Leave word, if the process belongs to a replica's engine. Raises nothing."""
    if folder := environ.get(ENGINE_FOLDER_VARIABLE):
        with contextlib.suppress(OSError):
            (Path(folder) / f"{_PREFIX}{os.getpid()}.txt").write_text(reason, encoding="utf-8")


def noted_head(folder: Path) -> str:
    """The reason, which is the same on every rank; empty where the head writes its KV alone, or nobody told."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for file in sorted(folder.glob(f"{_PREFIX}*.txt")):
            return file.read_text(encoding="utf-8")
    return ""
