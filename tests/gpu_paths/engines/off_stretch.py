"""How long the engines of off_process.py are off, what is compared around it, and how many random steps of which seed follow."""

from __future__ import annotations

import os
from typing import Final

STEPS_BEFORE: Final = 12
STEPS_OFF: Final = 64
STEPS_BACK: Final = 20
IS_BY_HAND: Final = "NIGHTJAR_STRESS_STEPS" in os.environ
STRESS_STEPS: Final = int(os.environ.get("NIGHTJAR_STRESS_STEPS", "100"))
STRESS_SEED: Final = int(os.environ.get("NIGHTJAR_STRESS_SEED", "24"))
"""`make stress-gpu-paths` draws another each time, and takes one to repeat: SEED=NUMBER."""
