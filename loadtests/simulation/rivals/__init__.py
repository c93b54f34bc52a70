"""Published controllers of speculation, one a file, for comparison only: each says its source and what was assumed."""

from nightjar.loadtests.simulation.rivals.registry import (
    DRAFTS_MORE,
    ENTRIES,
    FOR_COMPARISON,
    RIVALS,
    SELECTS,
    Entry,
    Inputs,
    inputs,
    rival_plan,
)

__all__ = ["DRAFTS_MORE", "ENTRIES", "FOR_COMPARISON", "RIVALS", "SELECTS", "Entry", "Inputs", "inputs", "rival_plan"]
