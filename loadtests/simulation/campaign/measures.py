"""From a run's result to the measures and series of its row. Every number of a row is computed here, with its unit in its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nightjar.loadtests.load.goodput import GoodputTarget
from nightjar.loadtests.load.regimes import Regime
from nightjar.loadtests.simulation.evidence.goodput_table import KEPT_SHARE, KEPT_TOKENS, OFFERED
from nightjar.loadtests.simulation.evidence.runner import Cell, Outcome
from nightjar.loadtests.simulation.service.results import RunResult, Second
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.simulate import simulate

Measure = Callable[[Scenario, RunResult], Outcome]
"""What is kept of a run; a function of a module, so that it travels to other processes."""

WITHIN: Final = 0.98
"""Share of the oracle's goodput from which learning counts as done."""

WINDOW_S: Final = 10
"""Virtual seconds that a share is looked at over."""


@dataclass(frozen=True, slots=True)
class Simulate:
    """A cell's job: one scenario, and what is kept of its result."""

    scenario: Scenario
    measure: Measure

    def __call__(self) -> Outcome:
        """Simulate and measure."""
        return self.measure(self.scenario, simulate(self.scenario))


def counting(cell: Cell, target: GoodputTarget) -> Cell:
    """The same run with requests within a target counted."""
    assert isinstance(cell.job, Simulate)
    return replace(cell, job=replace(cell.job, scenario=replace(cell.job.scenario, goodput=target)))


def basic(scenario: Scenario, result: RunResult) -> Outcome:
    """Goodput, latency, K, restarts and the budget: what every row has."""
    totals = result.totals
    measures = {
        "tokens_per_busy_s": result.goodput,
        "tokens_per_s": result.tokens_per_s,
        "busy_share": totals.busy_s / (result.measured_s * max(len(result.replicas), 1)),
        "requests_per_s": (result.answered + result.unfinished) / result.measured_s,
        "mean_k": totals.mean_num_speculative_tokens,
        "share_off": totals.off_share,
        "restarts": float(totals.restarts),
        "catch_up_tokens": float(totals.catch_up_tokens),
        "preemptions": float(totals.preemptions),
        "answered": float(result.answered),
        "unfinished": float(result.unfinished),
        "budget_violations": float(result.budget_violations),
        "max_leases_in_flight": float(result.max_leases_in_flight),
        "refused_reports": float(result.refused_reports),
        "guard_trips": float(result.guard_trips),
    }
    for name, quantiles in (
        ("ttft", result.ttft_s),
        ("tpot", result.tpot_s),
        ("itl", result.itl_s),
        ("e2e", result.e2e_s),
    ):
        measures |= {f"{name}_{which}_s": getattr(quantiles, which) for which in ("mean", "p50", "p95", "p99")}
    if result.under_target is not None and result.under_target.share is not None:
        measures |= {KEPT_SHARE: result.under_target.share, KEPT_TOKENS: result.under_target.tokens_per_s}
    if totals.best_tokens:
        measures["lost_share"] = totals.regret_tokens / totals.best_tokens
    if scenario.planner.operator is not None and not scenario.events and scenario.network.is_perfect:
        # times that a guard held speculation off, and for how long none had to: nothing drifts in this scenario
        measures |= {"false_alarms": float(result.guard_trips), "watched_s": scenario.duration_s}
    finite = {name: value for name, value in measures.items() if math.isfinite(value)}
    return Outcome(finite, steps=result.steps_with_warm_up)


def until_the_last_answer(scenario: Scenario, result: RunResult) -> Outcome:
    """The basic measures over the time until the last request was answered. Raises ValueError where one was not."""
    if result.unfinished or not result.answered:
        raise ValueError(f"{result.unfinished} of {result.answered + result.unfinished} requests were not answered in time")
    took_s = result.last_answer_s - scenario.warm_up_s
    return basic(scenario, replace(result, measured_s=took_s))


def under_target(scenario: Scenario, result: RunResult) -> Outcome:
    """The basic measures, and at which mean rate requests were offered."""
    load = scenario.workload.load
    assert isinstance(load, Regime), "a trace has no rate"
    return basic(scenario, result).with_measures(**{OFFERED: load.phases[0].requests_per_s or 0.0})


def with_k(scenario: Scenario, result: RunResult) -> Outcome:
    """The basic measures, and K second by second."""
    mean_k = tuple(round(second.totals.mean_num_speculative_tokens, 3) for second in result.seconds)
    return basic(scenario, result).with_series(mean_k=mean_k)


def learning(scenario: Scenario, result: RunResult) -> Outcome:
    """How much a fleet loses until it is within 2 % of the oracle for good, and after how many seconds."""
    done = settled(result.seconds, WITHIN)
    lost = [second.totals.regret_tokens for second in result.seconds]
    outcome = basic(scenario, result).with_measures(
        done_s=float(done),
        lost_tokens_per_replica=math.fsum(lost[:done]) / scenario.replicas,
        lost_tokens_per_replica_in_all=math.fsum(lost) / scenario.replicas,
    )
    return outcome.with_series(lost=tuple(round(value / scenario.replicas, 2) for value in lost))


def newcomer(scenario: Scenario, result: RunResult) -> Outcome:
    """What the replica that joined last lost against the oracle's K, of what it could have given."""
    joined = result.replicas[-1].totals
    return basic(scenario, result).with_measures(lost_share=joined.regret_tokens / joined.best_tokens)


def settled(seconds: Sequence[Second], share: float) -> int:
    """The first second from which on both the next WINDOW_S and all that follows give `share` of what the best K would.

    The number of seconds where that never comes.
    """
    expected = [second.totals.expected_tokens for second in seconds]
    best = [second.totals.best_tokens for second in seconds]
    for start in range(len(seconds)):
        ahead = slice(start, start + WINDOW_S)
        if math.fsum(expected[ahead]) >= share * math.fsum(best[ahead]) and math.fsum(expected[start:]) >= share * math.fsum(
            best[start:]
        ):
            return start
    return len(seconds)
