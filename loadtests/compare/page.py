"""What a comparison found, computed from its folder, and what people read of it: a table in markdown and one page of HTML.

The page says first what may be said, then shows each ratio with its interval, then every number. It is computed from the findings
alone: figures by phase, arm and round, and the verdicts of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from nightjar.loadtests.arms.measures import MEASURES, WHOLE, Figures, figures_by_phase, read_result
from nightjar.loadtests.arms.statistics import Ratio
from nightjar.loadtests.arms.verdict import LEAST_ROUNDS, MOST_FAILED, Comparison, compared, summed
from nightjar.loadtests.compare.run import Facts, PlayedTurn, RunFiles
from nightjar.loadtests.load.rows import read_rows
from nightjar.loadtests.report.charts import Estimate, forest
from nightjar.loadtests.report.page import cell, markdown_table, render

HEADS: Final = ("phase", "arm", "verdict", "rounds", *(f"{measure.title}, 95 %" for measure in MEASURES.values()))
FIGURE_HEADS: Final = (
    "phase", "arm", "requests", "failed", "answer tokens/s", "TPOT ms", "TTFT ms", "tokens/s", "turn's mean K", "its steps off",
)  # fmt: skip


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

    def mean_k(self, arm: str) -> float | None:
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


def title(found: Findings) -> str:
    """`fleet, nightjar against off`."""
    first, *others = found.arms
    return f"{', '.join(others)} against {first}"


def sentences(found: Findings) -> list[str]:
    """What may be said, a sentence an arm and phase."""
    return [_said(one) for one in found.comparisons] or ["Nothing was measured."]


def table(found: Findings) -> str:
    """The ratios and the figures in markdown."""
    lines = markdown_table(HEADS, [_ratio_cells(one) for one in found.comparisons])
    return "\n".join([*lines, "", *markdown_table(FIGURE_HEADS, _figure_rows(found)), ""])


def page(found: Findings) -> str:
    """The page."""
    plan = found.facts.plan
    return render(
        "compare.html",
        heading=title(found),
        subtitle=f"{_system(found)}, under {plan.load}. {_learned(found)}",
        sentences=sentences(found),
        forests=list(_forests(found)),
        heads=HEADS,
        ratios=[_ratio_cells(one) for one in found.comparisons],
        how=how_sure(),
        figure_heads=FIGURE_HEADS,
        figures=_figure_rows(found),
        meanings=meanings(),
        facts=facts(found),
    )


def how_sure() -> str:
    """What the intervals and verdicts are."""
    return (
        "Each ratio is the arm's speed over that of the first arm: above 1 is faster. A round has every arm once, in an order "
        "drawn anew, on the same requests. The interval is from resampling whole rounds, widened for their small number "
        "(Hesterberg 2015, section 4.2). The verdict is of the answer speed. It is given from "
        f"{LEAST_ROUNDS} rounds on, where the interval does not hold 1, nearly all rounds agree, and at most {MOST_FAILED:.0%} of "
        "requests failed; equals get one less than one time in twenty."
    )


def meanings() -> str:
    """What the measures are."""
    measures = "; ".join(f"{one.title}: {one.meaning}" for one in MEASURES.values())
    return f"What is compared, more is better: {measures}. K and steps are of whole turns, all phases together."


def facts(found: Findings) -> list[str]:
    """Where the numbers come from."""
    facts, plan = found.facts, found.facts.plan
    counted = len({turn.round for turn in found.turns if not turn.is_lesson})
    lessons = f"; {plan.lessons} before them for learning, not counted" if plan.lessons else ""
    warm_up = f"; the first {plan.load.warm_up_s:g} s of each turn are not counted" if plan.load.warm_up_s else ""
    turn = f"a turn took {found.mean_turn_s:.0f} s"
    lines = [
        f"Command: {facts.command}",
        f"Began {facts.began}; {counted} of {plan.rounds} rounds were played{lessons}; {turn}{warm_up}",
        "Arms: " + "; ".join(f"{arm.name} is {arm.meaning}" for arm in plan.arms),
        _learned(found),
    ]
    if facts.machine:
        commit = f"; commit {facts.commit}" if facts.commit else ""
        machine = ", ".join(f"{name} {value}" for name, value in facts.machine.items())
        lines.append(f"This program ran on: {machine}{commit}; load of the machine at the beginning: {facts.load_at_begin}")
    if facts.mode_before:
        lines.append(f"What ran before, and was put back at the end: {facts.mode_before}")
    return lines


def _said(one: Comparison) -> str:
    return str(one).removeprefix(f"{WHOLE}: ")


def _system(found: Findings) -> str:
    facts = found.facts
    replicas = f"{facts.replicas} replicas at {facts.plan.url}" if facts.replicas else "Servers by their addresses"
    return replicas + (f", model {facts.model}" if facts.model else "")


def _learned(found: Findings) -> str:
    plan = found.facts.plan
    learning = [arm.name for arm in plan.arms if arm.learns]
    if not learning:
        return "No arm learns."
    names = ", ".join(learning)
    if plan.learned == "reset":
        return f"{names}: what was learned was reset before each turn, and what the fleet knew before was given back at the end."
    return f"{names}: what was learned was kept from turn to turn; the fleet's policy learns in the turns of the other arms, too."


def _ratio_cells(one: Comparison) -> tuple[str, ...]:
    return (one.phase, one.arm, one.verdict, str(one.rounds), *(_ratio(one.ratios.get(name)) for name in MEASURES))


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return str(ratio) if ratio.rounds > 1 else f"{ratio.value:.3f}"


def _figure_rows(found: Findings) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for phase in found.phases:
        for arm in found.arms:
            figures = found.together(phase, arm)
            if figures is None:
                continue
            cells = (
                _quotient(figures.tokens, figures.answer_seconds, 1.0, 1),
                _quotient(figures.decode_seconds, figures.decode_tokens, 1e3, 1),
                _quotient(figures.ttft_seconds, figures.whole, 1e3, 0),
                _quotient(figures.tokens, figures.seconds, 1.0, 1),
            )
            engine = (cell(found.mean_k(arm), ".2f"), cell(found.share_off(arm), ".0%"))
            rows.append((phase, arm, str(figures.requests), str(figures.failed), *cells, *engine))
    return rows


def _quotient(above: float, below: float, factor: float, digits: int) -> str:
    return f"{factor * above / below:.{digits}f}" if below > 0 else "-"


def _forests(found: Findings) -> Iterator[tuple[str, str]]:
    """Of each phase that has ratios: its name, empty for the whole run, and its ratios with intervals, drawn."""
    for phase in found.phases:
        comparisons = [one for one in found.comparisons if one.phase == phase]
        drawn = [
            Estimate(one.arm, ratio.value, ratio.interval.low, ratio.interval.high, f"{ratio.value:.2f} times", one.verdict)
            for one in comparisons
            if (ratio := one.main) is not None
        ]
        if drawn:
            reference = comparisons[0].baseline
            yield "" if phase == WHOLE else phase, forest([("", drawn)], reference, f"Answer speed over that of {reference}")
