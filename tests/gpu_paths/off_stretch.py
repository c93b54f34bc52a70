"""How long the engines of off_process.py are off, and what is compared around it."""

from __future__ import annotations

from typing import Final

STEPS_BEFORE: Final = 12
STEPS_OFF: Final = 64
STEPS_BACK: Final = 20
LOG_STEPS: Final = 16
"""Of K = 0 that a head's log holds."""
