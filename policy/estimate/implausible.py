"""The refusal of counters that no engine can have, and the limits that every kind of step shares (INV-10)."""

from __future__ import annotations

from typing import Final

from nightjar.policy.estimate.evidence import Cell

SHORTEST_STEP_SECONDS: Final = 1e-5
LONGEST_STEP_SECONDS: Final = 600.0


class ImplausibleCountersError(ValueError):
    """Counters no engine can have. The message names the count, the value seen and what is allowed."""


def require(holds: bool, key: Cell, problem: str) -> None:
    """Raise ImplausibleCountersError with the problem of a cell (batch bucket and K) unless it `holds`."""
    if not holds:
        raise ImplausibleCountersError(f"cell (bucket {key[0]}, K={key[1]}): {problem}")
