"""A group whose replicas measured one cell, as the policy pools it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.contributions import Contributions, NewEvidence
from nightjar.policy.evidence.pooling import Slopes, pooled, with_effects, without

CELL = Cell(0, 3)
FOREVER = 1e12
"""A half-life that lets nothing fade."""


def measured(
    step_seconds: float, steps: float = 10.0, accepted: float = 0.5, rows: float = 100.0, cell: Cell = CELL, scatter: float = 0.0
) -> NewEvidence:
    """What a replica brings that measured a cell, and how its drafts were accepted."""
    log_seconds = math.log(step_seconds)
    told = CellEvidence(steps, steps * log_seconds, steps, 0.0, steps * (log_seconds**2 + scatter**2) if scatter else 0.0)
    return NewEvidence({cell: told}, AcceptanceEvidence((rows,), (rows * accepted,)))


@dataclass
class Group:
    """Replicas that report, tick after tick."""

    replicas: int
    evidence: Evidence = field(default_factory=Evidence)
    contributions: Contributions = field(default_factory=Contributions)
    half_life_steps: float = FOREVER

    def hears(self, new: Mapping[str, NewEvidence], now_s: float = 0.0, forgotten: tuple[Cell, ...] = ()) -> Evidence:
        """The evidence after one tick in which replicas brought something."""
        self.contributions, cells = self.contributions.plus(new, self.evidence, forgotten, self.half_life_steps, now_s)
        self.contributions, self.evidence = pooled(self.contributions, self.evidence, cells, self.replicas, now_s)
        self.contributions = with_effects(self.contributions, self.evidence, Slopes(), now_s)
        return self.evidence

    def leaves(self, *gone: str, now_s: float = 0.0) -> None:
        """Replicas that are none of the group any more."""
        live = [name for name in self.contributions.rows if name not in gone]
        self.contributions = without(self.contributions, live, self.replicas, now_s)

    def distrusted(self) -> list[str]:
        """Replicas of which nothing counts."""
        return list(self.contributions.distrusted)

    def effect(self, replica_id: str) -> float:
        """Log seconds by which one's steps are longer than the group's."""
        effects = self.contributions.effects
        return effects[self.contributions.rows[replica_id]] if effects else 0.0

    def step_seconds(self, cell: Cell = CELL) -> float:
        """What the group believes a step takes."""
        return self.evidence.cells[cell].step_seconds
