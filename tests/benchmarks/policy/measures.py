"""From a run's result to the measures and series of its row, for the experiments of this bench alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.measures import basic, settled
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.evidence.runner import Outcome
from nightjar.loadtests.simulation.service.results import RunResult
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range

BACK: Final = 0.95
"""Share of the oracle's goodput from which a fleet counts as recovered from drift."""


def honest(scenario: Scenario, result: RunResult) -> Outcome:
    """What the replicas but the last are expected to have given, as a share of what the best K gives."""
    expected = math.fsum(replica.totals.expected_tokens for replica in result.replicas[:-1])
    best = math.fsum(replica.totals.best_tokens for replica in result.replicas[:-1])
    return basic(scenario, result).with_measures(others_share=expected / best)


def storm(scenario: Scenario, result: RunResult) -> Outcome:
    """The service's tokens and restarting replicas, second by second from the fall of the load (the end of the warm-up) on."""
    return basic(scenario, result).with_series(
        tokens=tuple(round(second.totals.tokens, 1) for second in result.seconds),
        catching_up=tuple(float(second.restarting) for second in result.seconds),
    )


def drift(scenario: Scenario, result: RunResult) -> Outcome:
    """Seconds from the drift (the end of the warm-up) until the fleet is back at 0.95 of the oracle for good."""
    lengths = tuple(second.totals.mean_num_speculative_tokens for second in result.seconds)
    return basic(scenario, result).with_measures(recovery_s=float(settled(result.seconds, BACK))).with_series(mean_k=lengths)


def plan(scenario: Scenario, result: RunResult) -> Outcome:
    """The plan that the first replica runs at the end, K by batch bucket, and the one that it would run had nobody heard the liar;
    and what both truly give there at nominal acceptance."""
    first = result.replicas[0]
    nominal = Nominal(scenario.profile, scenario.workload.dataset, scenario.mechanics)
    ranges = (bucket_range(bucket, nominal.max_rows) for bucket in range(batch_bucket(nominal.max_rows) + 1))
    middles = [(least + most) // 2 for least, most in ranges]

    def gives(lengths: Sequence[int]) -> tuple[float, ...]:
        return tuple(nominal.goodput(rows, length) for rows, length in zip(middles, lengths, strict=False))

    runs, without = first.plan or (), first.plan_without_liar or ()
    return basic(scenario, result).with_series(
        plan=tuple(map(float, runs)),
        plan_without_liar=tuple(map(float, without)),
        true_tokens_per_s=gives(runs),
        true_tokens_per_s_without_liar=gives(without),
    )
