"""Runs a program that starts an engine and writes what happened, once a session, whichever worker of pytest needs it first."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock


def ran_once(
    program: Sequence[str], output: Path, environment: Callable[[], Mapping[str, str]], timeout_s: float
) -> dict[str, Any]:
    """What `python -m PROGRAM OUTPUT` wrote, in an environment that is made where it has to run. Fails with what it printed."""
    with FileLock(f"{output}.lock"):
        if not output.exists():
            command = [sys.executable, "-m", *program, str(output)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False)
            assert done.returncode == 0, f"{' '.join(program)}:\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    outcome: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return outcome
