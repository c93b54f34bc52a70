"""What users wait for: bursts of long prompts with short answers, from the first request to the last answer.

Prompts come so thick that hardly a step is without prefill: what speculation saves there is seen in the time of requests and not
in tokens per busy second of a window that cuts requests off. So arrivals stop, the engine goes on until the last answer, and all
requests count: first token, later tokens, end to end, and request-seconds, the area under their number in the system. Loads are
shares of what off carries of such requests, measured in a saturated engine. All static pairs of K are searched, on seeds of their
own; planners that learn start warm, and once more cold. A request is in time where it keeps ten times what off takes for one
that has the engine to itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nightjar.loadtests.load.goodput import GoodputTarget
from nightjar.loadtests.load.regimes import Phase, Regime, repeated
from nightjar.loadtests.simulation.campaign.contestants import Contestant, learns
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment, dataset_of
from nightjar.loadtests.simulation.campaign.measures import Simulate, basic, counting, until_the_last_answer
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, closed_scene, nominal_of, open_scene
from nightjar.loadtests.simulation.evidence.prefill_bars import oracle_name, pair_name
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell, Outcome
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE
from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal, Mixture, Traffic
from nightjar.loadtests.simulation.service.results import RunResult
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.policy.wire.operator import Objective
from tests.benchmarks.latency.bars import (
    E2E,
    LATENCY,
    LATENCY_COLD,
    LATENCY_FIRST,
    LATENCY_PICK,
    REQUEST_SECONDS,
    TOKENS_FIRST,
    TOOK,
    TPOT,
    TTFT,
    best_pairs,
    dominant_pair,
    picked_oracle,
)
from tests.benchmarks.latency.in_time import most_in_time

LOAD_PERCENT: Final = (50, 80, 90, 110)
"""Of what off carries of the same requests."""
OVERLOAD_PERCENT: Final = 200
"""Half of the requests wait when the last one arrives: long prompts alone."""
TRICKLE_PERCENT: Final = 20
CACHED_SHARE: Final = 0.8

BURST: Final = 12
"""Requests of a burst on average, or as many as fit into an engine where that is more. It fills the first quarter of its time, the
rest is quiet."""
BURST_SHARE: Final = 0.25
BURSTS: Final = 12
"""What is measured."""

SATURATED_REQUESTS: Final = 200
"""Answers in which what off carries is measured."""
LONE_REQUESTS: Final = 20
"""Answers in which what off takes for a lone request is measured."""
IN_TIME: Final = 10.0
"""Times that, to the first token and for each later one, in which a request is in time."""
LONGEST: Final = 20.0
"""How many times the time of the arrivals the last answer may take."""


@dataclass(frozen=True)
class Waits:
    """A scene of whole bursts: how long one lasts with its quiet, and how many come before what is measured begins."""

    scene: Scene
    burst_s: float
    before: int
    target: GoodputTarget

    @property
    def warm_up_s(self) -> float:
        """Of planners that learn."""
        return self.before * self.burst_s

    @property
    def measured_s(self) -> float:
        """From the first request that counts to the end of the arrivals."""
        return BURSTS * self.burst_s


def scenes(choice: Choice, *, warm: bool = True) -> list[Waits]:
    """Every chosen profile under every such load; with `warm` there are bursts before those that are measured."""
    return [
        _waits(choice, nominal, percent, carried, target, warm=warm)
        for profile in choice.profiles
        for nominal, percents in _loads(profile)
        for carried, target in ((carried_by_off(nominal), in_time(nominal)),)
        for percent in percents
    ]


def carried_by_off(nominal: Nominal) -> float:
    """Requests a second that off answers when there are always more than it can take up."""
    users = 2 * nominal.max_rows
    warm_up_s = users / nominal.capacity
    duration_s = warm_up_s + SATURATED_REQUESTS / nominal.capacity
    scene = closed_scene(nominal, users, 1, duration_s)
    run = cell(LATENCY, scene, Contestant(OFF), 0, basic, duration_s=duration_s, warm_up_s=warm_up_s)
    assert isinstance(run.job, Simulate)
    return run.job().measures["requests_per_s"]


def in_time(nominal: Nominal) -> GoodputTarget:
    """IN_TIME times what off takes for a request that has the engine to itself, on average."""
    lone_s = nominal.prefill_seconds + nominal.dataset.mean_output_tokens * nominal.step_seconds(1, 0)
    duration_s = (LONE_REQUESTS + 1) * lone_s
    run = cell(LATENCY, closed_scene(nominal, 1, 1, duration_s), Contestant(OFF), 0, basic, duration_s=duration_s, warm_up_s=lone_s)
    assert isinstance(run.job, Simulate)
    measures = run.job().measures
    return GoodputTarget(ttft_ms=IN_TIME * 1e3 * measures[TTFT], tpot_ms=IN_TIME * 1e3 * measures[TPOT])


def waiting(scenario: Scenario, result: RunResult) -> Outcome:
    """What users waited, until the last request was answered, and how long that took from the end of the warm-up on."""
    outcome = until_the_last_answer(scenario, result)
    extra = {REQUEST_SECONDS: result.request_seconds, TOOK: result.last_answer_s - scenario.warm_up_s}
    return Outcome({**outcome.measures, **extra}, outcome.series, outcome.steps)


def long_prompts(num_tokens: int, cached_share: float = 0.0) -> Dataset:
    """Long prompts, short answers: 2,000 to 8,000 tokens (in the middle an eighth of the KV cache at most), answers of 10 to 60
    (assumed). `cached_share` of a prompt is in the prefix cache."""
    median = min(4000, num_tokens // 8)
    prompt, output = Lognormal(median, 0.4, median // 2, 2 * median), Lognormal(25, 0.5, 10, 60)
    name = f"long-prompts-{cached_share:.0%}-cached" if cached_share else "long-prompts"
    return Dataset(name, prompt, output, cached_share, max_model_len=2 * median + 60)


def _loads(profile: Profile) -> list[tuple[Nominal, tuple[int, ...]]]:
    num_tokens = profile.limits.num_tokens
    traffic: tuple[tuple[Traffic, tuple[int, ...]], ...] = (
        (long_prompts(num_tokens), (*LOAD_PERCENT, OVERLOAD_PERCENT)),
        (long_prompts(num_tokens, CACHED_SHARE), LOAD_PERCENT),
        (Mixture("half-long-prompts", (dataset_of(profile), long_prompts(num_tokens))), LOAD_PERCENT),
        (replace(long_prompts(num_tokens), name="two-tokens", output=Lognormal(2, 0.0, 2, 2)), (TRICKLE_PERCENT,)),
    )
    return [(nominal_of(profile, kind), percents) for kind, percents in traffic]


def _waits(choice: Choice, nominal: Nominal, percent: int, carried: float, target: GoodputTarget, *, warm: bool) -> Waits:
    rate = percent / 100 * carried
    burst_s = max(BURST, nominal.max_rows) / rate
    before = math.ceil(choice.effort.warm_up_s / burst_s) if warm else 0
    if percent == TRICKLE_PERCENT:
        phases: tuple[Phase, ...] = (Phase("trickle", burst_s, requests_per_s=rate),)
    else:
        phases = (
            Phase("burst", BURST_SHARE * burst_s, requests_per_s=rate / BURST_SHARE),
            Phase("quiet", (1 - BURST_SHARE) * burst_s, requests_per_s=0.0),
        )
    regime = repeated(Regime(phases), before + BURSTS)
    return Waits(open_scene(nominal, f"{nominal.dataset.name} {percent}%", regime, 1), burst_s, before, target)


def runs(
    kind: str, choice: Choice, waits: Waits, planners: Iterable[str], seeds: Sequence[int], objective: Objective = LATENCY_FIRST
) -> list[Cell]:
    """Each planner on each seed, the fleet with an objective. Who learns nothing meets one burst before those that are measured."""
    cells = []
    for planner in dict.fromkeys(planners):
        if not choice.wants(planner):
            continue
        asked_from_s = 0.0 if learns(planner) else max(waits.before - 1, 0) * waits.burst_s
        span: dict[str, Any] = {
            "duration_s": waits.warm_up_s + LONGEST * waits.measured_s,
            "warm_up_s": waits.warm_up_s,
            "asked_from_s": asked_from_s,
            "starts_empty": True,
            "until_answered": True,
        }
        asked_s = waits.warm_up_s + waits.measured_s - asked_from_s
        for seed in seeds:
            settings = {"objective": objective} if planner == FLEET else None
            variant = "" if objective == LATENCY_FIRST else objective
            run = cell(kind, waits.scene, Contestant(planner), seed, waiting, variant=variant, settings=settings, **span)
            run = counting(run, waits.target)
            cells.append(replace(run, expected_s=run.expected_s * asked_s / (span["duration_s"] - asked_from_s)))
    return cells


def _searched(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """All pairs and oracles, and the fleet, on the seeds that pick; the fleet, off and the oracle on those of the bars."""
    cells = []
    for waits in scenes(choice):
        arms = waits.scene.nominal.profile.drafter.arms
        pairs = [pair_name(pure_k, mixed_k) for pure_k in arms for mixed_k in arms]
        cells += runs(LATENCY_PICK, choice, waits, (FLEET, *pairs, *map(oracle_name, arms)), choice.effort.picks)
        cells += runs(LATENCY, choice, waits, (FLEET, ORACLE, OFF), choice.effort.bars)
        cells += runs(LATENCY, choice, waits, (FLEET,), choice.effort.others, TOKENS_FIRST)
    return cells


def _picked(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    """The best pairs by measure, the one nearest to dominate, and the best oracle with one K in steps with prefill."""
    cells = []
    for waits in scenes(choice):
        place = waits.scene.place
        best = {*best_pairs(rows, place).values(), most_in_time(rows, place)}
        picked = {*best, dominant_pair(rows, place), picked_oracle(rows, place)} - {""}
        cells += runs(LATENCY, choice, waits, sorted(picked), choice.effort.bars)
    return cells


def _cold(choice: Choice, rows: Sequence[RunRow]) -> list[Cell]:
    """From a cold start: the fleet, off and the pair that was best end to end, on fewer seeds, for nothing is judged."""
    cells = []
    for waits in scenes(choice, warm=False):
        best = best_pairs(rows, waits.scene.place).get(E2E)
        cells += runs(LATENCY_COLD, choice, waits, (FLEET, OFF, *([best] if best else [])), choice.effort.others)
    return cells


BURSTS_OF_PROMPTS: Final = Experiment(
    "bursts",
    "bursts of long prompts, to the last answer: what users wait for, against the best static pair",
    (_searched, _picked, _cold),
    bars=("e2e_over_static_min", "request_seconds_over_static_min", "took_over_static_min", "dominated"),
)
