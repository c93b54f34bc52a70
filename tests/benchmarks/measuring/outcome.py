"""What a section hands back: bars with their intervals, raw rows, facts, and tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid

Tell = Callable[[str], None]
"""Says how far a section is."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves for one chart: y by name over shared x."""

    title: str
    x_unit: str
    curves: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(slots=True)
class Outcome:
    """One section's findings. `rows` become a JSON-lines file each, `tables` are printed."""

    bars: list[Bar] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tables: list[Grid] = field(default_factory=list)
    charts: list[Lines] = field(default_factory=list)
