"""The loads of the open-loop experiments, in shares of what an engine carries of its profile's texts: every profile meets the same
shapes.

Each load repeats one pattern, so that what is measured after the warm-up was seen before. Quiet stretches leave engines idle at
times: only there is time to be won by speculation while requests arrive no faster than they are answered. Rates of
oscillation and restarts are set round the batch at which speculation stops paying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from nightjar.loadtests.load.regimes import Phase, Regime, repeated
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.evidence.bar_list import OTHER_TEXTS

QUIET: Final = 0.4
"""Of the requests that an engine answers one after the other: what arrives in a quiet stretch."""

REST: Final = 0.15
"""Share of a pattern at whose end little arrives, so that nobody takes a backlog into what is measured."""

Shape = Callable[[Nominal, float], list[Phase]]
"""Phases of one pattern, for one engine, from what it carries and the pattern's length in seconds."""


def open_load(name: str, nominal: Nominal, replicas: int, pattern_s: float, duration_s: float) -> Regime:
    """A named load for a fleet: its pattern until `duration_s` is full. Raises KeyError for a name that is none of LOADS."""
    pattern = Regime(tuple(_for_fleet(phase, replicas) for phase in LOADS[name](nominal, pattern_s)))
    return repeated(pattern, math.ceil(duration_s / pattern_s))


def _for_fleet(phase: Phase, replicas: int) -> Phase:
    def times(rate: float | None) -> float | None:
        return None if rate is None else rate * replicas

    return Phase(
        phase.name, phase.duration_s, requests_per_s=times(phase.requests_per_s), end_requests_per_s=times(phase.end_requests_per_s)
    )


def _quiet(nominal: Nominal) -> float:
    """Arrivals at which an engine is idle for more than half of the time, with the profile's texts."""
    return QUIET * nominal.requests_per_s(1)


def _poisson_quiet(nominal: Nominal, pattern_s: float) -> list[Phase]:
    return [Phase("poisson", pattern_s, requests_per_s=_quiet(nominal))]


def _poisson(share: float) -> Shape:
    return lambda nominal, pattern_s: [Phase("poisson", pattern_s, requests_per_s=share * nominal.capacity)]


def _ramp(nominal: Nominal, pattern_s: float) -> list[Phase]:
    low, high = _quiet(nominal), 1.2 * nominal.capacity
    return [
        Phase("up", 0.4 * pattern_s, requests_per_s=low, end_requests_per_s=high),
        Phase("down", 0.4 * pattern_s, requests_per_s=high, end_requests_per_s=low),
        Phase("quiet", 0.2 * pattern_s, requests_per_s=low),
    ]


def _surge(nominal: Nominal, pattern_s: float) -> list[Phase]:
    return [
        Phase("quiet", 0.4 * pattern_s, requests_per_s=_quiet(nominal)),
        Phase("surge", 0.25 * pattern_s, requests_per_s=1.3 * nominal.capacity),
        Phase("drain", 0.35 * pattern_s, requests_per_s=_quiet(nominal)),
    ]


def _oscillation(nominal: Nominal, pattern_s: float) -> list[Phase]:
    """Back and forth across the crossover, 15 s each, and a rest."""
    low, high = nominal.requests_per_s(_rows(nominal, 0.5)), nominal.requests_per_s(_rows(nominal, 1.7))
    swings = max(round((1 - REST) * pattern_s / 30.0), 1)
    stretch_s = (1 - REST) * pattern_s / swings / 2
    phases = [
        phase
        for swing in range(1, swings + 1)
        for phase in (Phase(f"low-{swing}", stretch_s, requests_per_s=low), Phase(f"high-{swing}", stretch_s, requests_per_s=high))
    ]
    return [*phases, _rest(nominal, pattern_s)]


def _restarts(nominal: Nominal, pattern_s: float) -> list[Phase]:
    """Long full stretches and short gaps: each gap invites a restart that the next wave makes worthless; and a rest."""
    low, high = nominal.requests_per_s(_rows(nominal, 0.3)), nominal.requests_per_s(_rows(nominal, 2.0))
    waves = max(round((1 - REST) * pattern_s / 16.0), 1)
    wave_s = (1 - REST) * pattern_s / waves
    phases = [
        phase
        for wave in range(1, waves + 1)
        for phase in (
            Phase(f"wave-{wave}", 0.7 * wave_s, requests_per_s=high),
            Phase(f"gap-{wave}", 0.3 * wave_s, requests_per_s=low),
        )
    ]
    return [*phases, _rest(nominal, pattern_s)]


def _rest(nominal: Nominal, pattern_s: float) -> Phase:
    return Phase("rest", REST * pattern_s, requests_per_s=_quiet(nominal))


def _diurnal(nominal: Nominal, pattern_s: float) -> list[Phase]:
    """A day in one pattern: morning, noon, lunch, afternoon, evening, night."""
    quiet, half, much, peak = _quiet(nominal), *(share * nominal.capacity for share in (0.5, 0.8, 1.1))
    rates = ((0.2, quiet, much), (0.15, much, much), (0.1, much, half), (0.1, half, peak), (0.2, peak, quiet), (0.25, quiet, quiet))
    names = ("morning", "noon", "lunch", "afternoon", "evening", "night")
    return [
        Phase(name, share * pattern_s, requests_per_s=first, end_requests_per_s=last)
        for name, (share, first, last) in zip(names, rates, strict=True)
    ]


def _rows(nominal: Nominal, share: float) -> int:
    return min(max(round(share * nominal.crossover_rows), 1), nominal.max_rows)


LOADS: Final[Mapping[str, Shape]] = {
    "poisson-quiet": _poisson_quiet,
    "poisson-20%": _poisson(0.2),
    "poisson-60%": _poisson(0.6),
    "poisson-110%": _poisson(1.1),
    "ramp": _ramp,
    "surge": _surge,
    "oscillation": _oscillation,
    "restarts": _restarts,
    "diurnal": _diurnal,
    OTHER_TEXTS: _surge,
}
"""By name; a share in a name is of the requests a second that one full engine answers."""

ACCEPTANCE: Final[Mapping[str, float]] = {OTHER_TEXTS: 0.5}
"""Loads whose texts are harder to draft for than the profile's, and the factor of every conditional acceptance: the first draft is
kept half as often, the third an eighth."""
