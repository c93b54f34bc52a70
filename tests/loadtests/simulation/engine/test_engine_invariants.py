"""The simulator's numbered invariants (simulated_engine.py), under random loads, plans, mechanics and small KV caches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nightjar.loadtests.simulation.engine.draft_memory import HostLink
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.profiles import Limits, Mechanics
from nightjar.policy.wire.settings import Local, OffloadRules, Plan
from tests.loadtests.simulation.engine.engines import PAIR, engine, held, settings, table

TIGHT = PAIR.model_copy(
    update={"limits": Limits(max_num_seqs=12, max_num_batched_tokens=256, block_size=16, num_blocks=64, extra_blocks=16)}
)
"""The 7B pair with a KV cache that a few requests fill: preemption, waiting and chunks all happen."""
EAGER_OFFLOAD = OffloadRules(free_share_below=0.5, pressure_s=0.1, reload_free_share=0.1)

plans = st.sampled_from(
    [held(0), held(2), held(5), table((1, 3), (4, 1), (7, 0)), Local(planner="nightjar"), Local(planner="oracle")]
)


@dataclass(frozen=True, slots=True)
class Load:
    """A random load: requests that come in waves, and a new plan every now and then."""

    seed: int
    plans: tuple[Plan, ...]
    mechanics: Mechanics
    offloads: bool
    aborts: bool
    steps: str


loads = st.builds(
    Load,
    seed=st.integers(0, 1 << 20),
    plans=st.lists(plans, min_size=1, max_size=4).map(tuple),
    mechanics=st.sampled_from(Mechanics),
    offloads=st.booleans(),
    aborts=st.booleans(),
    steps=st.sampled_from(["v1", "v0"]),
)


class Run:
    """An engine under a load; every step is checked by what the test passes to `steps`."""

    def __init__(self, load: Load) -> None:
        self._rng = random.Random(load.seed)
        self._load = load
        link = HostLink(1e10) if load.offloads else None
        self.engine: SimulatedEngine = engine(
            TIGHT.model_copy(update={"steps": load.steps}), seed=load.seed, mechanics=load.mechanics, host_link=link
        )
        self.asked: list[SimulatedRequest] = []
        self.answered: list[SimulatedRequest] = []
        self.aborted: list[SimulatedRequest] = []

    def step(self, number: int) -> None:
        """Perhaps a new plan, perhaps new requests, one engine step, and perhaps everybody hangs up."""
        if number % 40 == 0:
            plan = self._load.plans[number // 40 % len(self._load.plans)]
            offload = EAGER_OFFLOAD if self._load.offloads else None
            assert self.engine.adopt(settings(plan, sequence=1 + number, offload=offload)) == ""
        if self._rng.random() < 0.3 and len(self.asked) - len(self.answered) - len(self.aborted) < 20:
            request = SimulatedRequest(
                len(self.asked),
                self.engine.now_s + (0.0 if self.engine.has_work else self._rng.random()),
                self._rng.randint(1, 500),
                self._rng.randint(1, 100),
                self._rng.randrange(4),
            )
            self.asked.append(request)
            self.engine.submit(request)
        self.answered.extend(self.engine.step())
        if number % 50 == 49 and self._load.aborts:
            self.aborted.extend(self.engine.begin_anew())
            assert not self.engine.has_work

    def finish(self) -> None:
        """Let the engine answer what it has."""
        while self.engine.has_work:
            self.answered.extend(self.engine.step())


@examples(max_examples=30)
@given(load=loads)
def test_sim_1_every_request_is_answered_once_with_all_its_tokens_or_was_aborted(load: Load) -> None:
    run = Run(load)
    for number in range(120):
        run.step(number)
    run.finish()
    assert sorted(request.number for request in run.answered + run.aborted) == [request.number for request in run.asked]
    for request in run.answered:
        assert request.generated_tokens == request.output_tokens
        assert request.first_token_s is not None
        assert request.finish_s is not None
        assert request.arrival_s < request.first_token_s <= request.finish_s


@examples(max_examples=30)
@given(load=loads)
def test_sim_2_tokens_counted_are_tokens_delivered(load: Load) -> None:
    run = Run(load)
    for number in range(120):
        run.step(number)
        ended = sum(request.output_tokens for request in run.answered)
        ended += sum(request.generated_tokens for request in run.aborted)
        assert run.engine.totals.tokens == ended + run.engine.tokens_in_progress
    counters = run.engine.report().snapshot.counters
    assert sum(totals.generated_tokens for totals in counters.totals) == run.engine.totals.tokens
    assert counters.step_count == run.engine.totals.steps


@examples(max_examples=30)
@given(load=loads)
def test_sim_3_and_6_blocks_and_lag_are_those_of_the_requests_that_run(load: Load) -> None:
    run = Run(load)
    for number in range(120):
        run.step(number)
        run.engine.check_integrity()
    run.finish()
    assert run.engine.load().kv_cache_usage == 0.0


@examples(max_examples=30)
@given(load=loads)
def test_sim_4_time_never_goes_back_and_busy_time_is_the_sum_of_the_steps(load: Load) -> None:
    run, busy_s = Run(load), 0.0
    for number in range(120):
        before_s, was_idle = run.engine.now_s, not run.engine.has_work
        run.step(number)
        assert run.engine.now_s >= before_s
        if not was_idle:
            busy_s += run.engine.now_s - before_s
            assert run.engine.totals.busy_s >= busy_s - 1e-9
    assert run.engine.totals.busy_s <= run.engine.now_s


@examples(max_examples=30)
@given(load=loads)
def test_sim_5_same_seed_same_bytes(load: Load) -> None:
    reports = []
    for _ in range(2):
        run = Run(load)
        for number in range(80):
            run.step(number)
        reports.append(run.engine.report().to_wire())
    assert reports[0] == reports[1]


def test_noise_depends_on_the_seed_and_the_step_alone() -> None:
    times = []
    for plan in (held(0), held(0), held(3)):
        timed = engine(plan=plan, seed=5)
        timed.submit(SimulatedRequest(1, 0.0, 100, 50, 0))
        timed.step()
        times.append(timed.now_s)
    assert times[0] == times[1]
    assert times[2] == pytest.approx(times[0], rel=0.2)


def test_engines_that_begin_anew_meet_the_same_noise_whatever_they_did_before() -> None:
    longer, shorter = engine(plan=held(0), seed=5), engine(plan=held(0), seed=5)
    took_s = []
    for timed, steps in ((longer, 40), (shorter, 3)):
        timed.submit(SimulatedRequest(1, 0.0, 100, 50, 0))
        for _ in range(steps):
            timed.step()
        timed.begin_anew()
        timed.submit(SimulatedRequest(2, timed.now_s, 100, 50, 0))
        began_s = timed.now_s
        for _ in range(20):
            timed.step()
        took_s.append(timed.now_s - began_s)
    assert took_s[0] == pytest.approx(took_s[1], rel=1e-12)
