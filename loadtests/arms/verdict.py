"""What may be said of an arm beside the first one: ratios over rounds, their intervals, and a verdict or none.

A round compares both arms on the same requests, minutes apart. A verdict needs LEAST_ROUNDS rounds, an interval of the ratio that
does not hold 1, rounds that agree, and hardly a failed request. Few rounds agree by chance: three do for one of four pairs of
equals, six for one of thirty-two. And an interval of so few is a little too narrow even when widened: alone it would be wrong one
time in fourteen. With both, equals get a verdict less than one time in twenty; who looks at many finds one by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from nightjar.loadtests.arms.measures import MEASURES, Figures
from nightjar.loadtests.arms.statistics import Ratio, matched, paired_ratio

LEAST_ROUNDS: Final = 6
MOST_SIGN_PROBABILITY: Final = 0.07
"""Of the sign test: all of 6 or 7 rounds lie on one side, all but one of 8 to 11, and so on."""
MOST_FAILED: Final = 0.01
"""Share of requests: an arm that drops the slow ones is not faster."""

Verdict = Literal["faster", "slower", "no difference shown", "too few rounds", "requests failed", "nothing measured"]
_MAIN: Final = next(iter(MEASURES))

ByRound = Mapping[int, Figures]
"""Of one arm in one phase."""


class Comparison(NamedTuple):
    """One arm beside the first in one phase. `ratios` are by measure, without those that nobody measured."""

    arm: str
    baseline: str
    phase: str
    rounds: int
    ratios: Mapping[str, Ratio]
    verdict: Verdict
    failed: int
    requests: int

    @property
    def main(self) -> Ratio | None:
        """The one that the verdict is of."""
        return self.ratios.get(_MAIN)

    def __str__(self) -> str:
        return f"{self.phase}: {self._words()}"

    def _words(self) -> str:
        ratio, of = self.main, f"{self.arm} against {self.baseline}"
        if ratio is None or self.verdict == "nothing measured":
            return f"{of}: nothing was measured."
        measured = f"answers at {ratio.value:.2f} times its speed"
        if ratio.rounds > 1:
            measured += f" (95 %: {ratio.interval.low:.2f} to {ratio.interval.high:.2f})"
        change = f"{abs(ratio.value - 1.0):.0%}"
        match self.verdict:
            case "faster" | "slower":
                return f"{self.arm} is {change} {self.verdict} than {self.baseline}: {measured}, {self.rounds} rounds."
            case "too few rounds":
                return f"{of}: no verdict from {self.rounds} of at least {LEAST_ROUNDS} rounds; {measured}."
            case "requests failed":
                return f"{of}: no verdict, {self.failed} of {self.requests} requests failed; {measured}."
        disagree = "" if ratio.interval.side == "holds" else ", for the rounds do not agree"
        return f"{of}: no difference shown{disagree}; {measured}, {self.rounds} rounds."


def compared(phase: str, baseline: str, arm: str, reference: ByRound, other: ByRound, seed: int) -> Comparison:
    """One arm's rounds beside the first arm's, those that both played."""
    shared = sorted(reference.keys() & other.keys())
    ratios: dict[str, Ratio] = {}
    agree = False
    for name, measure in MEASURES.items():
        ours, theirs = ({number: measure.speed(rounds[number]) for number in shared} for rounds in (other, reference))
        pairs = matched(ours, theirs)
        if pairs:
            ratios[name] = paired_ratio(pairs, seed)
            agree = agree or (
                name == _MAIN and rounds_agree([one.tokens / one.seconds > two.tokens / two.seconds for one, two in pairs])
            )
    figures = [rounds[number] for number in shared for rounds in (reference, other)]
    failed, requests = sum(one.failed for one in figures), sum(one.requests for one in figures)
    is_spoilt = any(
        sum(rounds[number].failed for number in shared) > MOST_FAILED * sum(rounds[number].requests for number in shared)
        for rounds in (reference, other)
    )
    return Comparison(arm, baseline, phase, len(shared), ratios, _verdict(ratios.get(_MAIN), is_spoilt, agree), failed, requests)


def rounds_agree(sides: Sequence[bool]) -> bool:
    """Whether so many rounds lie on one side of 1 that equals would hardly do so (MOST_SIGN_PROBABILITY).

    >>> [rounds_agree([True] * most + [False] * others) for most, others in ((6, 0), (6, 1), (7, 1), (8, 2))]
    [True, False, False, False]
    """
    count = len(sides)
    fewer = min(sum(sides), count - sum(sides))
    by_chance = 2.0 * sum(math.comb(count, number) for number in range(fewer + 1)) / 2.0**count
    return by_chance < MOST_SIGN_PROBABILITY


def _verdict(ratio: Ratio | None, is_spoilt: bool, agree: bool) -> Verdict:
    if ratio is None:
        return "nothing measured"
    if is_spoilt:
        return "requests failed"
    if ratio.rounds < LEAST_ROUNDS:
        return "too few rounds"
    if ratio.interval.side == "holds" or not agree:
        return "no difference shown"
    return "faster" if ratio.value > 1.0 else "slower"


def summed(rounds: Sequence[Figures]) -> Figures:
    """Of several rounds together."""
    return Figures(*(sum(values) for values in zip(*rounds, strict=True)))
