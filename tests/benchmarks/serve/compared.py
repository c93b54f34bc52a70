"""What three measurements of `nightjar serve` beside `vllm serve` come to: bars and tables. Pure.

Starts, requests at K = 0 and a load that crosses; of requests the median of each turn, since one that the machine held up says
nothing of the server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median
from typing import Any, Final

from nightjar.loadtests.arms.statistics import of_times, paired_ratio
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.measuring.outcome import Outcome

MOST_READY_RATIO: Final = 1.1


@dataclass(frozen=True, slots=True)
class Start:
    """One start of each, in a drawn order: seconds until ready, and MiB of the process that answers requests."""

    ours_s: float
    theirs_s: float
    ours_mib: float
    theirs_mib: float


@dataclass(frozen=True, slots=True)
class Turn:
    """The same requests to all, one server after the other: medians in seconds. `again_` is a second server like theirs."""

    ours_ttft_s: float
    theirs_ttft_s: float
    again_ttft_s: float
    ours_tpot_s: float
    theirs_tpot_s: float
    again_tpot_s: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the crossing load: `clients` ask one request after the other. Steps of the engine by K meanwhile."""

    clients: int
    steps_by_k: Mapping[int, int]
    answered: int
    failed: int

    @property
    def mean_k(self) -> float:
        """Over its steps; 0 where it had none."""
        return sum(k * steps for k, steps in self.steps_by_k.items()) / max(sum(self.steps_by_k.values()), 1)


def of_starts(starts: Sequence[Start], seed: int) -> Outcome:
    """Time to ready, and what our process takes beyond theirs."""
    ready = paired_ratio(
        of_times([one.ours_s for one in starts], [one.theirs_s for one in starts]), seed, "rounds, each with a start of both"
    )
    more_mib = fmean(one.ours_mib - one.theirs_mib for one in starts)
    bars = [
        Bar(
            name="ready_over_vllm",
            meaning="seconds until `nightjar serve` is ready over those of `vllm serve` with the same arguments",
            direction="at most", limit=MOST_READY_RATIO, value=ready.value, interval=ready.interval, judged="interval",
            at=f"{len(starts)} rounds", cells=len(starts),
        ),
        Bar(
            name="own_memory_added_mib",
            meaning="MiB that the process which answers requests has beyond that of `vllm serve` once it is ready (PSS)",
            direction="stated", value=more_mib, at=f"{len(starts)} rounds", cells=len(starts),
        ),
    ]  # fmt: skip
    seconds = [f"{fmean(took):.1f}" for took in ([one.ours_s for one in starts], [one.theirs_s for one in starts])]
    mib = [f"{fmean(held):.0f}" for held in ([one.ours_mib for one in starts], [one.theirs_mib for one in starts])]
    lines = [["seconds until ready", *seconds, str(ready)], ["MiB of the process that answers", *mib, f"{more_mib:+.0f}"]]
    table = Grid(f"{len(starts)} starts of each, in turns", ("", "nightjar serve", "vllm serve", "ours over theirs"), lines)
    return Outcome(bars=bars, tables=[table], rows={"starts": [_plain(one) for one in starts]})


def of_turns(turns: Sequence[Turn], cpu_s: Mapping[str, float], wall_s: float, seed: int) -> Outcome:
    """TTFT and TPOT at K = 0 over two plain servers, how far these two lie apart, and processor time beyond theirs.

    Two processes of one program differ, and an interval over turns of the same processes does not cover that: what stands between
    the two plain ones is the measure's own doubt.
    """
    what = "turns, each with the same requests to all"
    bars, lines = [], []
    for name in ("ttft", "tpot"):
        ours, theirs, again = ([getattr(turn, f"{who}_{name}_s") for turn in turns] for who in ("ours", "theirs", "again"))
        plain = [sqrt(one * other) for one, other in zip(theirs, again, strict=True)]
        ratio, between = paired_ratio(of_times(ours, plain), seed, what), paired_ratio(of_times(again, theirs), seed, what)
        bars += [
            Bar(
                name=f"{name}_off_over_plain",
                meaning=f"{name.upper()} of `nightjar serve` at K = 0, its draft loaded, over that of two `vllm serve` without one",
                direction="stated", value=ratio.value, interval=ratio.interval, at=f"{len(turns)} turns", cells=len(turns),
            ),
            Bar(
                name=f"{name}_plain_over_plain",
                meaning=f"{name.upper()} of the second of these two over the first: what two processes of one program differ by",
                direction="stated", value=between.value, interval=between.interval, at=f"{len(turns)} turns", cells=len(turns),
            ),
        ]  # fmt: skip
        means = [f"{1e3 * fmean(values):.1f}" for values in (ours, theirs, again)]
        lines.append([f"{name.upper()}, ms", *means, str(ratio), str(between)])
    bars.append(
        Bar(
            name="own_cpu_added_share",
            meaning="share of a core that the process which answers requests takes beyond that of `vllm serve`, same requests",
            direction="stated", value=(cpu_s["ours"] - cpu_s["theirs"]) / wall_s, at=f"over {wall_s:.0f} s", cells=1,
        )
    )  # fmt: skip
    table = Grid(
        f"The same requests to all at K = 0, {len(turns)} turns",
        ("", "nightjar serve", "vllm serve, no draft", "the same again", "ours over both", "again over the first"),
        lines,
    )
    return Outcome(bars=bars, tables=[table], rows={"turns": [_plain(turn) for turn in turns]}, facts={"own_cpu_s": dict(cpu_s)})


def of_phases(phases: Sequence[Phase]) -> Outcome:
    """K under a load that crosses: quiet, full, quiet."""
    bars = [
        Bar(
            name="crossing_failed",
            meaning="requests that failed while the load crossed",
            direction="at most", limit=0.0, value=float(sum(phase.failed for phase in phases)),
            at=f"{sum(phase.answered for phase in phases)} answered", cells=len(phases),
        ),
        Bar(
            name="crossing_k_quiet_minus_full",
            meaning="mean K of the engine's steps in the last quiet phase less that in the full one: above 0, K followed the load",
            direction="stated", value=phases[-1].mean_k - max(phases, key=lambda phase: phase.clients).mean_k,
            at=", ".join(f"{phase.clients} clients: {phase.mean_k:.2f}" for phase in phases), cells=len(phases),
        ),
    ]  # fmt: skip
    ks = sorted(set().union(*(phase.steps_by_k for phase in phases)))
    lines = [
        [f"{phase.clients} clients", str(phase.answered), f"{phase.mean_k:.2f}", *(str(phase.steps_by_k.get(k, 0)) for k in ks)]
        for phase in phases
    ]
    table = Grid("Under auto, from cold", ("phase", "answered", "mean K", *(f"steps at K={k}" for k in ks)), lines)
    return Outcome(bars=bars, tables=[table], rows={"phases": [_plain(phase) | {"mean_k": phase.mean_k} for phase in phases]})


def median_of(values: Sequence[float | None]) -> float:
    """Of those that are known. Raises ValueError where none is: then no request had a time."""
    known = [value for value in values if value is not None]
    if not known:
        raise ValueError("no request of a turn had a time: 1 at least must be answered with 2 tokens")
    return median(known)


def steps_since(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    """Steps by K between two looks.

    >>> steps_since({0: 7, 5: 2}, {0: 3})
    {0: 4, 5: 2}
    """
    return dict(sorted((Counter(now) - Counter(before)).items()))


def _plain(one: Start | Turn | Phase) -> dict[str, Any]:
    told: dict[str, Any] = {name: getattr(one, name) for name in one.__slots__}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in told.items()}
