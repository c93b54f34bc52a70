"""Load regimes: how much work arrives, when. Data and arithmetic only; Locust and the simulator read the same.

A regime is a list of phases. In an open-loop phase requests arrive whether or not earlier ones were answered, as they do from many
independent people; in a closed-loop phase a fixed number of users each wait for their answer before they ask again. Open
loops show overload honestly, closed loops hold a concurrency. Arrivals are a function of the regime and a seed, so that
two systems, or one system in two modes, face the very same load.
Fails closed: text that is not a regime raises `RegimeError`, which names the part, what was wrong and the form.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

MAX_DURATION_S: Final = 7 * 86_400.0
MAX_REQUESTS_PER_S: Final = 100_000.0
MAX_USERS: Final = 100_000

TEXT_FORM: Final = (
    "NAME:SECONDS@LOAD[,NAME:SECONDS@LOAD...] with LOAD one of R (requests per second, Poisson), =R (requests per second, "
    "evenly spaced), R1..R2 (Poisson, the rate moves linearly from R1 to R2) or Nu (N closed-loop users), "
    "for example quiet:60@0.2,climb:60@0.2..2.5,surge:90@2.5,steady:30@=1,closed:60@8u"
)

NAMED_REGIMES: Final = {
    "quiet": "quiet:120@0.2",
    "surge": "surge:120@4",
    "quiet-surge-quiet": "quiet:60@0.2,surge:90@4,quiet:60@0.2",
    "steps": "step1:60@0.5,step2:60@1,step3:60@2,step4:60@4,step5:60@2,step6:60@1,step7:60@0.5",
    "constant": "constant:120@=1",
    "poisson": "poisson:120@1",
    "closed": "closed:120@8u",
    "ramp": "up:150@0.2..4,down:150@4..0.2",
    "oscillation": ",".join("low:20@0.5,high:20@3.5" for _ in range(6)),
    "restarts": "full:30@4," + ",".join("gap:4@0.2,back:12@4" for _ in range(8)),
    "diurnal": "night:60@0.2,morning:90@0.2..3,noon:60@3,lunch:30@3..2,afternoon:60@2..4,evening:90@4..0.2",
}
"""Regimes with a name, in the text form. Rates suit two small CPU replicas; scale them (`scaled`) for anything larger.

`oscillation` goes back and forth across the load where speculation stops to pay; `restarts` offers short gaps, each of which
invites a restart that the next wave makes worthless; `diurnal` is a day in six and a half minutes.
"""


class RegimeError(ValueError):
    """Text or numbers that are not a regime."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of load: either open loop (`requests_per_s`) or closed loop (`users`), never both.

    `evenly` spaces open-loop arrivals 1 / requests_per_s apart; otherwise they are a Poisson process, whose rate moves linearly
    from `requests_per_s` to `end_requests_per_s` where that is given.
    """

    name: str
    duration_s: float
    requests_per_s: float | None = None
    users: int | None = None
    evenly: bool = False
    end_requests_per_s: float | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", self.name):
            raise RegimeError(f"phase name {self.name!r}: allowed are 1 to 40 letters, digits, '_', '.' and '-'")
        if not 0 < self.duration_s <= MAX_DURATION_S:
            raise RegimeError(f"phase {self.name}: {self.duration_s:g} seconds, allowed are more than 0 up to {MAX_DURATION_S:g}")
        if (self.requests_per_s is None) == (self.users is None):
            raise RegimeError(f"phase {self.name}: give requests_per_s (open loop) or users (closed loop), one of them")
        for rate in (self.requests_per_s, self.end_requests_per_s):
            if rate is not None and not 0 <= rate <= MAX_REQUESTS_PER_S:
                raise RegimeError(f"phase {self.name}: {rate:g} requests/s, allowed are 0 to {MAX_REQUESTS_PER_S:g}")
        if self.end_requests_per_s is not None and (self.requests_per_s is None or self.evenly):
            raise RegimeError(f"phase {self.name}: only Poisson arrivals can ramp, neither users nor evenly spaced ones")
        if self.users is not None and not 1 <= self.users <= MAX_USERS:
            raise RegimeError(f"phase {self.name}: {self.users} users, allowed are 1 to {MAX_USERS}")

    def __str__(self) -> str:
        if self.users is not None:
            return f"{self.name}:{self.duration_s:g}@{self.users}u"
        ramp = "" if self.end_requests_per_s is None else f"..{self.end_requests_per_s:g}"
        return f"{self.name}:{self.duration_s:g}@{'=' if self.evenly else ''}{self.requests_per_s:g}{ramp}"

    @property
    def highest_requests_per_s(self) -> float | None:
        """The rate at its highest; None for a closed loop."""
        if self.requests_per_s is None or self.end_requests_per_s is None:
            return self.requests_per_s
        return max(self.requests_per_s, self.end_requests_per_s)


class ScheduledPhase(NamedTuple):
    """A phase and when it runs, in seconds from the regime's start."""

    start_s: float
    end_s: float
    phase: Phase


class Arrival(NamedTuple):
    """One open-loop request: its place in the whole regime (from 0), when it is due, and in which phase."""

    number: int
    time_s: float
    phase: Phase


@dataclass(frozen=True, slots=True)
class Regime:
    """Phases, one after the other. Names are unique, so that a table can have a row per phase."""

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if not self.phases:
            raise RegimeError(f"a regime needs at least one phase: {TEXT_FORM}")
        names = [phase.name for phase in self.phases]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise RegimeError(f"phase names must differ, {', '.join(repeated)} is there more than once")

    @property
    def duration_s(self) -> float:
        """Seconds from the first phase's start to the last one's end."""
        return math.fsum(phase.duration_s for phase in self.phases)

    def schedule(self) -> tuple[ScheduledPhase, ...]:
        """Every phase with its start and end, in order and without gaps."""
        start_s, scheduled = 0.0, []
        for phase in self.phases:
            scheduled.append(ScheduledPhase(start_s, start_s + phase.duration_s, phase))
            start_s += phase.duration_s
        return tuple(scheduled)

    def __str__(self) -> str:
        return ",".join(str(phase) for phase in self.phases)


def parse_regime(text: str) -> Regime:
    """A regime from its name (NAMED_REGIMES) or its text form. A repeated phase name gets a number.

    Raises RegimeError.

    >>> str(parse_regime("quiet:60@0.2,surge:90@2.5,quiet:60@0.2"))
    'quiet:60@0.2,surge:90@2.5,quiet-2:60@0.2'
    >>> parse_regime("closed:10@8u").phases[0].users
    8
    """
    text = NAMED_REGIMES.get(text.strip(), text)
    phases: list[Phase] = []
    seen: dict[str, int] = {}
    for part in text.split(","):
        phase = _parse_phase(part.strip())
        seen[phase.name] = seen.get(phase.name, 0) + 1
        phases.append(phase if seen[phase.name] == 1 else replace(phase, name=f"{phase.name}-{seen[phase.name]}"))
    return Regime(tuple(phases))


def repeated(regime: Regime, times: int) -> Regime:
    """The same phases, `times` over; the second round's names get the suffix -r2, and so on. Raises RegimeError.

    >>> str(repeated(parse_regime("low:10@1,high:10@9"), 2))
    'low:10@1,high:10@9,low-r2:10@1,high-r2:10@9'
    """
    rounds = (
        phase if turn == 1 else replace(phase, name=f"{phase.name}-r{turn}")
        for turn in range(1, times + 1)
        for phase in regime.phases
    )
    return Regime(tuple(rounds))


def arrival_times(regime: Regime, seed: int) -> Iterator[Arrival]:
    """Every open-loop arrival of `regime`, in time order; the same for the same seed. Closed-loop phases yield none.

    Each phase draws from its own stream, so a change of one phase leaves the arrivals of the others where they were
    (relative to their phase's start).
    """
    number = 0
    for place, (start_s, end_s, phase) in enumerate(regime.schedule()):
        for time_s in _phase_arrivals(phase, start_s, random.Random(f"{seed}:{place}")):  # noqa: S311
            if time_s < end_s:
                yield Arrival(number, time_s, phase)
                number += 1


def _phase_arrivals(phase: Phase, start_s: float, rng: random.Random) -> Iterator[float]:
    """Times in [start_s, start_s + duration_s) of one phase's arrivals."""
    if not phase.highest_requests_per_s or phase.requests_per_s is None:
        return
    if phase.evenly:
        count = math.ceil(phase.duration_s * phase.requests_per_s - 1e-9)
        yield from (start_s + place / phase.requests_per_s for place in range(count))
        return
    if phase.end_requests_per_s is not None:
        offsets_s = _ramp_offsets(phase.requests_per_s, phase.end_requests_per_s, phase.duration_s, rng)
        yield from (start_s + offset_s for offset_s in offsets_s)
        return
    offset_s = rng.expovariate(phase.requests_per_s)
    while offset_s < phase.duration_s:
        yield start_s + offset_s
        offset_s += rng.expovariate(phase.requests_per_s)


def _ramp_offsets(first_rate: float, last_rate: float, duration_s: float, rng: random.Random) -> Iterator[float]:
    """Arrivals of a Poisson process whose rate moves linearly: those of rate 1, moved to where as many are expected."""
    growth = (last_rate - first_rate) / duration_s  # expected arrivals up to t: first_rate t + growth t^2 / 2
    passed = rng.expovariate(1.0)
    while passed < (first_rate + last_rate) / 2 * duration_s:
        yield 2 * passed / (first_rate + math.sqrt(max(first_rate * first_rate + 2 * growth * passed, 0.0)))
        passed += rng.expovariate(1.0)


def _parse_phase(part: str) -> Phase:
    matched = re.fullmatch(r"(?P<name>[^:@]*):(?P<seconds>[^:@]*)@(?P<evenly>=?)(?P<load>[^:@]*?)(?P<users>u?)", part)
    if not matched:
        names = ", ".join(sorted(NAMED_REGIMES))
        raise RegimeError(f"regime part {part[:80]!r} is neither a named regime ({names}) nor a phase: {TEXT_FORM}")
    name, users, evenly = matched["name"].strip(), bool(matched["users"]), bool(matched["evenly"])
    duration_s = _number(part, "seconds", matched["seconds"])
    first, ramps, last = matched["load"].partition("..")
    load = _number(part, "load", first)
    if not users:
        end = _number(part, "load", last) if ramps else None
        return Phase(name, duration_s, requests_per_s=load, evenly=evenly, end_requests_per_s=end)
    if evenly or ramps or load != int(load):
        raise RegimeError(f"regime part {part[:80]!r}: users are a whole number without '=' or '..', for example 8u")
    return Phase(name, duration_s, users=int(load))


def _number(part: str, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RegimeError(f"regime part {part[:80]!r}: {what} {text!r} is not a number; the form is {TEXT_FORM}")
    return value
