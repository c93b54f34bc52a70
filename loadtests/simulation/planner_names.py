"""The planners' names that experiments, bars and tables compare by: one spelling for who runs them and who reads their rows.

A rival's name stands with it (rivals/registry.py); those of a fixed K and of pairs are read by campaign/contestants.py.
"""

from __future__ import annotations

from typing import Final

FLEET: Final = "fleet"
NIGHTJAR: Final = "nightjar"
OFF: Final = "off"
TETRIS: Final = "tetris"
ORACLE: Final = "oracle"
"""Not one of the product's: the simulator's own, which knows the truth (engine/truth.py)."""
ORACLE_BY_BATCH: Final = "oracle-by-batch"
"""The same without the context of the present rows: it takes what rows held on average at such a batch so far."""
