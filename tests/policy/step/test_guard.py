"""The guard in the step loop: a real loss trips, honest noise and a wrong expectation do not, and a hold ends by itself."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.policy.step.drafter import FIRST_HOLD_S
from nightjar.policy.step.guard import CHECK_STEPS, LONGEST_HOLD_S, OffGuard
from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.settings import OffStep, Table, TableRow
from nightjar.policy.words import in_words
from tests.policy.step.steering_settings import MAX_NUM_SEQS, segment
from tests.policy.step.steering_settings import settings as given_settings

ROWS, K, OFF_S = 8, 3, 0.01
ACCEPTANCE = (0.7, 0.4, 0.2)
TOKENS = 1 + sum(ACCEPTANCE)


class Engine:
    """Eight rows at K=3, gaining `gain` (a share of OFF's goodput; negative: losing), 3 % of noise, and bursts of neighbours."""

    def __init__(self, gain: float, *, expected_s: float = OFF_S, seed: int = 1, bursts: bool = False) -> None:
        self.gain = gain
        self.guard = OffGuard(64)
        self.guard.adopt([K] * 65, [OffStep(decode_rows=ROWS, step_seconds=expected_s)])
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.steps = self.off_steps = 0
        self.bursts = bursts
        self.slow_until_s = 0.0

    def step(self) -> None:
        if self.bursts and self.rng.random() < 2e-4:
            self.slow_until_s = self.now_s + 1.0
        noise = self.rng.gauss(1.0, 0.03) * (1.3 if self.now_s < self.slow_until_s else 1.0)
        self.steps += 1
        if self.guard.holding and self.guard.holds(ROWS, self.now_s):
            self.off_steps += 1
            self._count(0, ROWS, OFF_S * noise)
        else:
            luck = [self.rng.random() for _ in range(ROWS)]
            tokens = ROWS + sum(value < share for value in luck for share in ACCEPTANCE)
            self._count(K, tokens, OFF_S * TOKENS / (1.0 + self.gain) * noise)

    def _count(self, k: int, tokens: int, seconds: float) -> None:
        self.now_s += seconds
        self.guard.count(ROWS, k, tokens, seconds, self.now_s)

    def run_until_trip(self, longest_s: float) -> float:
        while not self.guard.trips and self.now_s < longest_s:
            self.step()
        return self.now_s


@pytest.mark.parametrize("seed", range(4))
def test_a_loss_of_a_tenth_trips_within_a_minute(seed: int) -> None:
    assert Engine(-0.1, seed=seed).run_until_trip(61.0) < 60.0


@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_honest_noise_and_bursts_of_neighbours_do_not_trip(gain: float) -> None:
    engine = Engine(gain, bursts=True)
    for _ in range(40_000):
        engine.step()
    assert engine.guard.trips == 0
    assert engine.off_steps < 0.01 * engine.steps


@pytest.mark.parametrize("wrong", [0.7, 1.5])
def test_a_wrong_expectation_costs_a_few_off_steps_and_no_trip(wrong: float) -> None:
    engine = Engine(0.1, expected_s=wrong * OFF_S)
    for _ in range(15_000):
        engine.step()
    assert engine.guard.trips == 0
    assert engine.off_steps <= 6 * CHECK_STEPS


def test_an_expectation_that_is_far_too_long_hides_a_loss() -> None:
    assert Engine(-0.1, expected_s=1.5 * OFF_S).run_until_trip(60.0) >= 60.0


def test_each_trip_in_a_row_holds_twice_as_long_and_then_speculation_is_tried_again() -> None:
    engine = Engine(-0.2)
    for number in range(3):
        tripped_s = engine.run_until_trip(1e5)
        engine.guard.trips = 0
        assert engine.guard.held_buckets(tripped_s) == (5,)
        while engine.guard.holding:
            engine.step()
        assert engine.now_s - tripped_s == pytest.approx(FIRST_HOLD_S * 2**number, abs=0.1)
    assert engine.guard.held_buckets(engine.now_s) == ()


def test_however_many_trips_come_in_a_row_the_hold_is_the_longest_one() -> None:
    guard, now_s, off_s = OffGuard(64), 0.0, 0.1
    guard.adopt([K] * 65, [OffStep(decode_rows=ROWS, step_seconds=off_s)])
    for number in range(1, 1101):
        while guard.trips < number and now_s < number * 2 * LONGEST_HOLD_S:
            k, seconds = (0, off_s) if guard.holds(ROWS, now_s) else (K, 2 * off_s)
            now_s += seconds
            guard.count(ROWS, k, ROWS, seconds, now_s)
        assert guard.trips == number
        now_s += LONGEST_HOLD_S
        assert not guard.holds(ROWS, now_s)


def test_a_check_whose_load_leaves_ends_by_itself() -> None:
    engine = Engine(-0.3)
    while not engine.guard.holding:
        engine.step()
    assert engine.guard.held_buckets(engine.now_s) == (), "a check is no trip"
    assert engine.guard.holds(ROWS, engine.now_s + FIRST_HOLD_S - 0.1)
    assert not engine.guard.holds(ROWS, engine.now_s + FIRST_HOLD_S)
    assert engine.guard.trips == 0


def test_other_k_other_batches_and_plans_without_expectation_are_not_judged() -> None:
    guard = OffGuard(64)
    for ks, off_steps in (([K] * 65, ()), ([1] * 65, (OffStep(decode_rows=ROWS, step_seconds=OFF_S),))):
        guard.adopt(ks, off_steps)
        for number in range(2000):
            guard.count(ROWS, K, ROWS, 5.0, float(number))
            guard.count(32, 1, 32, 5.0, float(number))
    assert guard.holding == 0


def test_steering_holds_a_tripped_batch_off_says_why_and_still_lets_the_policy_measure_there() -> None:
    steering = Steering(max_num_speculative_tokens=5, max_num_seqs=MAX_NUM_SEQS)
    row = TableRow(first_batch_size=1, last_batch_size=16, num_speculative_tokens=3)
    off_steps = (OffStep(decode_rows=4, step_seconds=OFF_S),)
    steering.adopt(given_settings(Table(rows=(row,), off_steps=off_steps)), 0.0)
    now_s = 0.0
    while not steering.guard_trips:
        chosen = steering.choose(4, False, now_s)
        assert chosen is not None
        seconds = OFF_S if chosen == 0 else 5 * OFF_S
        now_s += seconds
        steering.count_clean_step(4, chosen, 4 if chosen == 0 else 8, seconds, now_s)
    assert steering.choose(4, False, now_s) == 0
    assert in_words(steering.causes) == "the guard holds this batch off: speculation measured worse than off"
    assert steering.held_buckets(now_s) == (3,)
    assert steering.choose(12, False, now_s) == 3
    measured = Table(rows=(row,), segments=(segment(1, 5),), off_steps=off_steps)
    steering.adopt(given_settings(measured, sequence=2), now_s)
    assert steering.choose(4, False, now_s) == 5


steps = st.lists(st.tuples(st.sampled_from([1, 8, 64]), st.integers(0, K), st.floats(0.0, 1.0), st.floats(1e-4, 1e3)), max_size=400)


@settings(deadline=None)
@given(steps)
def test_whatever_steps_come_what_is_held_is_counted_and_a_hold_ends(taken: list[tuple[int, int, float, float]]) -> None:
    guard = OffGuard(64)
    guard.adopt([K] * 65, [OffStep(decode_rows=ROWS, step_seconds=OFF_S)])
    now_s = 0.0
    for rows, wanted, share, seconds in taken:
        now_s += seconds
        k = 0 if guard.holds(rows, now_s) else wanted
        trips = guard.trips
        guard.count(rows, k, rows + round(share * rows * k), seconds, now_s)
        assert trips <= guard.trips <= trips + 1
        assert 0 <= guard.holding <= len(guard.held_buckets(now_s)) + 1
    assert not any(guard.holds(rows, now_s + 2 * LONGEST_HOLD_S) for rows in range(1, 65))
    assert guard.holding == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.2, 1.0), st.floats(1.01, 4.0)), max_size=400))
def test_a_bucket_in_which_every_step_beats_off_is_never_held(taken: list[tuple[float, float]]) -> None:
    guard = OffGuard(64)
    guard.adopt([K] * 65, [OffStep(decode_rows=ROWS, step_seconds=OFF_S)])
    now_s = 0.0
    for cost, gain in taken:
        now_s += cost * OFF_S
        guard.count(ROWS, K, math.ceil(ROWS * gain), cost * OFF_S, now_s)
        assert not guard.holds(ROWS, now_s)
