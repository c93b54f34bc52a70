"""What a process with an engine was started for, handed over as a file of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn


def end_with(outcome: Mapping[str, Any], file: Path) -> NoReturn:
    """Write the outcome and end this process, whose engine's threads may outlive it. A file that is there is whole.

    Raises TypeError for what JSON cannot hold, and OSError.
    """
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(outcome), encoding="utf-8")
    unfinished.replace(file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
