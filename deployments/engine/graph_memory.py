"""How much memory an engine's captured CUDA graphs took, which only its workers know and say in their log.

vLLM takes it off the KV cache, so an operator who chooses `graph_tiers` wants to see it. Each worker's process therefore keeps the
one record that says it, in a file of the engine's folder, and the replica reads them once the engine has started. Begun by an entry
point of vLLM's group `vllm.general_plugins`. Fails open: a vLLM that says it otherwise, or logs less, leaves it unknown.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE

CAPTURED: Final = "Graph capturing finished in %.0f secs, took %.2f GiB"
"""vLLM 0.29, 0.32 and 0.33, both model runners' capture_model."""
VLLM_LOGGER: Final = "vllm"
_PREFIX: Final = "graphs-"


@dataclass(frozen=True, slots=True)
class Capture:
    """What one worker captured."""

    seconds: float
    gib: float


class CaptureNotes(logging.Handler):
    """Writes the record that says it into `folder`, in a file of this process's own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.INFO)
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        """Called for each record of vLLM's; all but one pass."""
        if record.msg == CAPTURED and isinstance(record.args, tuple) and len(record.args) == 2:
            with contextlib.suppress(OSError, TypeError, ValueError):
                seconds, gib = (float(str(value)) for value in record.args)
                (self._folder / f"{_PREFIX}{os.getpid()}.json").write_text(json.dumps({"seconds": seconds, "gib": gib}))


def note_captures(environ: Mapping[str, str] = os.environ) -> None:
    """What vLLM calls in each of its processes; where no replica started it, nothing happens. Raises nothing."""
    logger = logging.getLogger(VLLM_LOGGER)
    if (folder := environ.get(ENGINE_FOLDER_VARIABLE)) and not any(isinstance(each, CaptureNotes) for each in logger.handlers):
        logger.addHandler(CaptureNotes(Path(folder)))


def captures(folder: Path) -> list[Capture]:
    """Of all workers that told; the most memory first."""
    found = []
    for file in folder.glob(f"{_PREFIX}*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(file.read_text(encoding="utf-8"))
            found.append(Capture(float(note["seconds"]), float(note["gib"])))
    return sorted(found, key=lambda capture: -capture.gib)


def in_words(found: list[Capture]) -> str:
    """For an operator; empty where no worker reported.

    >>> in_words([Capture(21.0, 1.5), Capture(20.0, 1.4)])
    'its graphs took 1.50 GiB on a GPU and 21 s to capture'
    """
    if not found:
        return ""
    return f"its graphs took {found[0].gib:.2f} GiB on a GPU and {max(capture.seconds for capture in found):.0f} s to capture"
