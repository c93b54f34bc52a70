"""Published controllers of speculation, one a file, for comparison only: each says its source and what was assumed."""

from nightjar.loadtests.simulation.rivals.registry import (
    DRAFTS_MAX,
    ENTRIES,
    FOR_COMPARISON,
    RIVALS,
    Entry,
    Inputs,
    inputs,
    rival_plan,
)

__all__ = ["DRAFTS_MAX", "ENTRIES", "FOR_COMPARISON", "RIVALS", "Entry", "Inputs", "inputs", "rival_plan"]
