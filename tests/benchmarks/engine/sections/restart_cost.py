"""What the policy expects a restart to cost, held against what it did cost.

A cost is a small difference of step times, and a machine that others use keeps no pace: so everything is taken at one pace. Bursts
of others are left out by leaving out the cheapest and the dearest restarts. That is a choice by the very quantity that is
predicted, so the error of all restarts is told beside it. Where the pace changes within a restart only more restarts help.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from nightjar.policy.evidence.catch_up import CatchUpCost, CatchUpEvidence
from nightjar.policy.restarts.price import Engine as PricedEngine
from tests.benchmarks.engine.sections.restart_record import Restart
from tests.benchmarks.measuring.statistics import halves, relative_error


def fitted(restarts: Sequence[Restart], off_seconds: float) -> CatchUpCost:
    """The policy's own line through the steps of these restarts."""
    evidence = CatchUpEvidence()
    for restart in restarts:
        for step in restart.catching_up:
            tokens, longer = step.recomputed_tokens, step.seconds - restart.near_off_seconds
            evidence = evidence.sum(CatchUpEvidence(1.0, tokens, tokens * tokens, longer, tokens * longer))
    return evidence.cost(off_seconds, "cpu")


def predicted_seconds(restart: Restart, cost: CatchUpCost) -> float:
    """What the policy expects of it, from its lag, batch and chunk alone."""
    assert restart.chunk_tokens is not None
    off_seconds = restart.near_off_seconds
    priced = PricedEngine(off_seconds, restart.batch / off_seconds, restart.batch, cost, restart.chunk_tokens)
    return priced.lost_seconds(restart.lag_tokens)


def cost_errors(restarts: Sequence[Restart], *, trimmed: bool) -> dict[tuple[int, int], float]:
    """Relative error of the predicted cost by (batch, steps off).

    The line fitted to half of each cell's restarts predicts the other half. All of it at the pace that the machine usually has: a
    restart's times are taken over the OFF steps around it. `trimmed`: of each half of a cell only its middle half counts, since
    somebody else's burst in the middle of a restart may double its cost.
    """
    kept = _middle if trimmed else list[Restart]
    paces = {
        batch: median(one.near_off_seconds for one in restarts if one.batch == batch) for batch in {one.batch for one in restarts}
    }
    cells: dict[tuple[int, int], list[Restart]] = {}
    for restart in restarts:
        at_pace = restart.times(paces[restart.batch] / restart.near_off_seconds)
        cells.setdefault((restart.batch, restart.off_steps), []).append(at_pace)
    taught = [restart for own in cells.values() for restart in kept(halves(own)[0])]
    cost = fitted(taught, median(restart.near_off_seconds for restart in taught))
    errors = {}
    for cell, own in cells.items():
        held_back = kept(halves(own)[1])
        predicted = fmean(predicted_seconds(restart, cost) for restart in held_back)
        errors[cell] = relative_error(predicted, fmean(restart.cost_seconds for restart in held_back))
    return errors


def _middle(restarts: Sequence[Restart]) -> list[Restart]:
    """Without the cheapest quarter and the dearest."""
    ranked = sorted(restarts, key=lambda restart: restart.cost_seconds)
    cut = len(ranked) // 4
    return ranked[cut : len(ranked) - cut]
