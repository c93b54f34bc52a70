"""Regimes: rate, order, determinism, and messages for text that is none."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.loadtests.load.regimes import NAMED_REGIMES, Phase, Regime, RegimeError, arrival_times, parse_regime, repeated

rates = st.floats(0.0, 30.0).map(lambda rate: round(rate, 3))
durations = st.floats(0.5, 20.0).map(lambda duration: round(duration, 2))


@st.composite
def any_regime(draw: st.DrawFn) -> Regime:
    phases = []
    for place in range(draw(st.integers(1, 4))):
        duration_s = draw(durations)
        if draw(st.booleans()):
            evenly, ramps = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
            end = draw(rates) if ramps else None
            phases.append(Phase(f"p{place}", duration_s, requests_per_s=draw(rates), evenly=evenly, end_requests_per_s=end))
        else:
            phases.append(Phase(f"p{place}", duration_s, users=draw(st.integers(1, 20))))
    return Regime(tuple(phases))


@settings(max_examples=50, deadline=None)
@given(any_regime(), st.integers(0, 2**31))
def test_arrivals_ascend_lie_in_their_phase_and_count_up(regime: Regime, seed: int) -> None:
    bounds = {phase.name: (start_s, end_s) for start_s, end_s, phase in regime.schedule()}
    arrivals = list(arrival_times(regime, seed))
    assert [arrival.number for arrival in arrivals] == list(range(len(arrivals)))
    assert all(earlier.time_s <= later.time_s for earlier, later in itertools.pairwise(arrivals))
    assert all(bounds[arrival.phase.name][0] <= arrival.time_s < bounds[arrival.phase.name][1] for arrival in arrivals)
    assert all(arrival.phase.users is None for arrival in arrivals)


@settings(max_examples=50, deadline=None)
@given(any_regime(), st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_arrivals(regime: Regime, seed: int) -> None:
    assert list(arrival_times(regime, seed)) == list(arrival_times(regime, seed))


@settings(max_examples=50, deadline=None)
@given(any_regime())
def test_the_text_form_of_a_regime_parses_to_the_same_regime(regime: Regime) -> None:
    assert parse_regime(str(regime)) == regime


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(5.0, 50.0))
def test_poisson_arrivals_come_at_the_phase_rate(seed: int, rate: float) -> None:
    duration_s = 2000 / rate
    count = len(list(arrival_times(Regime((Phase("p", duration_s, requests_per_s=rate),)), seed)))
    assert abs(count - 2000) < 6.5 * math.sqrt(2000)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_each_phase_has_its_own_rate_and_splitting_one_keeps_the_total(seed: int) -> None:
    whole = Regime((Phase("low", 200, requests_per_s=2), Phase("high", 200, requests_per_s=10)))
    split = Regime(
        (*(Phase(f"low{i}", 100, requests_per_s=2) for i in (1, 2)), *(Phase(f"high{i}", 100, requests_per_s=10) for i in (1, 2)))
    )
    for regime in (whole, split):
        counts = {"low": 0, "high": 0}
        for arrival in arrival_times(regime, seed):
            counts[arrival.phase.name.rstrip("12")] += 1
        assert abs(counts["low"] - 400) < 6.5 * math.sqrt(400)
        assert abs(counts["high"] - 2000) < 6.5 * math.sqrt(2000)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 20.0), st.floats(0.0, 20.0))
def test_a_ramp_brings_the_arrivals_of_its_rates_in_each_of_its_halves(seed: int, first: float, last: float) -> None:
    duration_s = 400.0
    ramp = Regime((Phase("ramp", duration_s, requests_per_s=first, end_requests_per_s=last),))
    times = [arrival.time_s for arrival in arrival_times(ramp, seed)]
    middle = (first + last) / 2
    for rate, from_s in (((first + middle) / 2, 0.0), ((middle + last) / 2, duration_s / 2)):
        expected = rate * duration_s / 2
        seen = sum(from_s <= time_s < from_s + duration_s / 2 for time_s in times)
        assert abs(seen - expected) <= 6.5 * math.sqrt(expected) + 1


def test_a_repeated_regime_keeps_its_phases() -> None:
    regime = parse_regime("a:10@1..3,b:20@2u,c:5@=4")
    assert repeated(regime, 3).duration_s == 3 * regime.duration_s
    assert repeated(regime, 1) == regime


def test_a_changed_phase_leaves_the_arrivals_of_the_others_alone() -> None:
    def last_phase(text: str) -> list[float]:
        return [arrival.time_s for arrival in arrival_times(parse_regime(text), 7) if arrival.phase.name == "c"]

    assert last_phase("a:10@1,b:10@2,c:10@3") == last_phase("a:10@9,b:10@=4,c:10@3")


def test_evenly_spaced_arrivals_stand_at_equal_distances_from_the_phase_start() -> None:
    assert [arrival.time_s for arrival in arrival_times(parse_regime("idle:1@0,even:2@=2"), 0)] == [1.0, 1.5, 2.0, 2.5]


@pytest.mark.parametrize("name", sorted(NAMED_REGIMES))
def test_named_regimes_parse(name: str) -> None:
    assert parse_regime(name).duration_s > 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "neither a named regime"),
        ("quiett", "quiet-surge-quiet"),
        ("a:10", "NAME:SECONDS@LOAD"),
        ("a:ten@1", "seconds 'ten' is not a number"),
        ("a:10@fast", "load 'fast' is not a number"),
        ("a:nan@1", "seconds 'nan' is not a number"),
        ("a:0@1", "0 seconds, allowed are more than 0"),
        ("a:10@-1", "-1 requests/s, allowed are 0"),
        ("a:10@2.5u", "whole number"),
        ("a:10@0u", "0 users, allowed are 1"),
        ("a:10@=2u", "without '='"),
        ("a:10@1..2u", "without '=' or '..'"),
        ("a:10@=1..2", "only Poisson arrivals can ramp"),
        ("a:10@1..-2", "-2 requests/s, allowed are 0"),
        ("a:10@1..", "load '' is not a number"),
        ("a b:10@1", "phase name 'a b'"),
        ("a:1@1,,b:1@1", "neither a named regime"),
    ],
)
def test_text_that_is_no_regime_is_refused_with_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(RegimeError) as caught:
        parse_regime(text)
    assert told in str(caught.value)


def test_a_phase_is_open_or_closed_never_both_and_names_differ() -> None:
    with pytest.raises(RegimeError, match="one of them"):
        Phase("a", 1, requests_per_s=1, users=1)
    with pytest.raises(RegimeError, match="more than once"):
        Regime((Phase("a", 1, users=1), Phase("a", 1, users=1)))
