"""Everything that a comparison found, computed from its folder: figures by phase, arm and round, and the verdicts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from nightjar.loadtests.arms.measures import WHOLE, Figures, figures_by_phase, read_result
from nightjar.loadtests.arms.verdict import Comparison, compared, summed
from nightjar.loadtests.compare.run_files import Facts, PlayedTurn, RunFiles
from nightjar.loadtests.rows import read_rows


@dataclass(frozen=True, slots=True)
class Findings:
    """Of all turns that came to their end. `figures` are by phase and arm, of one round each; lessons are not among them."""

    facts: Facts
    turns: tuple[PlayedTurn, ...]
    figures: dict[tuple[str, str], dict[int, Figures]]

    @property
    def phases(self) -> list[str]:
        """In the order in which they came."""
        return list(dict.fromkeys(phase for phase, _ in self.figures))

    @property
    def arms(self) -> list[str]:
        """In the order in which they were asked for."""
        return [arm.name for arm in self.facts.plan.arms]

    @property
    def comparisons(self) -> list[Comparison]:
        """Every other arm beside the first, phase by phase."""
        first, *others = self.arms
        return [
            compared(
                phase, first, arm, self.figures.get((phase, first), {}), self.figures.get((phase, arm), {}), self.facts.plan.seed
            )
            for phase in self.phases
            for arm in others
        ]

    def together(self, phase: str, arm: str) -> Figures | None:
        """An arm's rounds as one, those that every arm played: others had another machine and other requests. None without one."""
        shared = set.intersection(*(set(self.figures.get((phase, other), {})) for other in self.arms))
        return summed([self.figures[phase, arm][number] for number in sorted(shared)]) if shared else None

    def scored(self, arm: str) -> list[PlayedTurn]:
        """The turns of an arm that count."""
        return [turn for turn in self.turns if turn.arm == arm and not turn.is_lesson]

    def mean_length(self, arm: str) -> float | None:
        """Mean K over the engine steps of an arm's turns that count; None where nobody said."""
        return _weighted([(turn.mean_num_speculative_tokens, turn.steps) for turn in self.scored(arm)])

    def share_off(self, arm: str) -> float | None:
        """Share of those steps at K = 0."""
        return _weighted([(turn.share_of_steps_off, turn.steps) for turn in self.scored(arm)])

    @property
    def mean_turn_s(self) -> float:
        """How long a turn took."""
        return fmean(turn.ended_s - turn.began_s for turn in self.turns) if self.turns else 0.0


def findings(files: RunFiles) -> Findings:
    """Of a folder. Raises RunFilesError, RowsError, ResultError or OSError."""
    facts, turns = files.facts(), files.played()
    figures: dict[tuple[str, str], dict[int, Figures]] = {}
    for turn in sorted((turn for turn in turns if not turn.is_lesson), key=lambda turn: turn.round):
        path = files.folder / turn.file
        if facts.plan.load.command:
            found = {WHOLE: read_result(path).figures()}
        else:
            found = figures_by_phase(read_rows(path), facts.plan.load.warm_up_s)
        for phase, one in found.items():
            figures.setdefault((phase, turn.arm), {})[turn.round] = one
    return Findings(facts, turns, figures)


def _weighted(values: Sequence[tuple[float | None, int | None]]) -> float | None:
    known = [(value, steps) for value, steps in values if value is not None and steps]
    total = sum(steps for _, steps in known)
    return sum(value * steps for value, steps in known) / total if total else None
