"""Ratios of what two load generators measured on the same requests, over rounds that both played.

A round has one run of each, so what the machine did meanwhile it did to both. Of each run the median over its requests is taken:
one request that the machine held up says nothing of who measured it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final, Literal

from nightjar.loadtests.arms.statistics import Ratio, of_times, paired_ratio
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.load.commands import Times

Measure = Literal["ttft", "tpot"]
MEASURES: Final[tuple[Measure, ...]] = ("ttft", "tpot")
WIDEST_SIDE: Final = 0.10


@dataclass(frozen=True, slots=True)
class Round:
    """What both measured in one round, one after the other."""

    number: int
    first: str
    ours: Times
    theirs: Times

    def plain(self) -> dict[str, object]:
        """For the raw rows: milliseconds."""
        told = {
            f"{who}_{measure}_ms_{name}": round(1e3 * middle(times.of(measure)), 3)
            for who, times in (("ours", self.ours), ("theirs", self.theirs))
            for measure in MEASURES
            for name, middle in (("median", median), ("mean", fmean))
        }
        return {"round": self.number + 1, "first": self.first, **told}


def bars(rounds: Sequence[Round], seed: int) -> list[Bar]:
    """Of each measure: whether the interval of the ratio holds 1, and how far its farther end is from the ratio."""
    found = []
    for measure in MEASURES:
        ratio = ratio_of(rounds, measure, median, seed)
        value, interval, at = ratio.value, ratio.interval, f"ratio {ratio}, {ratio.rounds} rounds"
        outside = max(interval.low - 1.0, 1.0 - interval.high, 0.0)
        side = max(interval.high - value, value - interval.low)
        name = measure.upper()
        found += [
            Bar(
                name=f"{measure}_ratio_from_1",
                meaning=f"median {name} by our load generator over that by vllm bench serve on the same requests: how far 1 lies "
                "outside of the ratio's interval",
                direction="at most", limit=0.0, value=outside, interval=interval, at=at, cells=len(rounds),
            ),
            Bar(
                name=f"{measure}_ratio_side",
                meaning=f"the same ratio of {name}: the longer side of its interval",
                direction="at most", limit=WIDEST_SIDE, value=side, interval=interval, at=at, cells=len(rounds),
            ),
        ]  # fmt: skip
    return found


def ratio_of(rounds: Sequence[Round], measure: Measure, middle: Callable[[Sequence[float]], float], seed: int) -> Ratio:
    """Ours over theirs."""
    ours, theirs = [middle(one.ours.of(measure)) for one in rounds], [middle(one.theirs.of(measure)) for one in rounds]
    return paired_ratio(of_times(ours, theirs), seed, "rounds, each with both tools")


def table(rounds: Sequence[Round], seed: int) -> Grid:
    """The ratios for people."""
    lines = []
    for measure in MEASURES:
        for name, middle in (("median", median), ("mean", fmean)):
            ours, theirs = (
                1e3 * fmean(middle(times.of(measure)) for times in both)
                for both in ([one.ours for one in rounds], [one.theirs for one in rounds])
            )
            ratio = ratio_of(rounds, measure, middle, seed)
            lines.append([f"{measure.upper()}, {name}", f"{ours:.1f}", f"{theirs:.1f}", f"{ratio.value:.3f}", str(ratio.interval)])
    return Grid("The same requests by both, mean of the rounds", ("", "ours ms", "vllm bench serve ms", "ratio", "95 %"), lines)
