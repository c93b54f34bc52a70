"""What speculation costs in steps that also compute prompt tokens: the part that clean steps cannot show.

In a pure decode step verifying drafts is nearly free while the step is bound by memory. A step that also prefills is bound by
compute, so there every verified token costs what a prompt token costs, and the drafter reads the prompt as well. Near the
crossover that decides: a K that wins clean steps by some percent may lose overall. Learned from sums of such steps by
batch bucket and K; without any, speculation is charged nothing. Fails towards the plan that clean steps alone would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.estimate.evidence import Evidence
from nightjar.policy.estimate.step_time import StepTimes, non_negative_least_squares

Floats = npt.NDArray[np.float64]

SHARE_HALF_LIFE_S: Final = 60.0
"""How long the mix of prompts and answers is remembered: longer than a burst, shorter than a change of regime."""
TRUST_STEPS: Final = 10.0
"""Mixed steps of a cell at which its mean weighs half: prompts differ, so few of them say little."""
_RIDGE: Final = np.array([0.05, 0.01, 0.02, 0.05])
"""Pull of each part towards nothing, against a cell that weighs 1. Least for the tokens, which every such step has."""


class MixedShare(NamedTuple):
    """How much of one replica's work comes with prefill: decayed sums of its steps with prefill and of its generated tokens."""

    steps: float = 0.0
    tokens: float = 0.0

    def after(self, steps: float, tokens: float, elapsed_s: float) -> MixedShare:
        """The sums `elapsed_s` later (infinite for an engine's first report, which forgets the ones before it).

        >>> MixedShare(8.0, 400.0).after(2.0, 300.0, SHARE_HALF_LIFE_S)
        MixedShare(steps=6.0, tokens=500.0)
        """
        left = 0.5 ** (elapsed_s / SHARE_HALF_LIFE_S)
        return MixedShare(self.steps * left + steps, self.tokens * left + tokens)


def steps_per_token(shares: Iterable[MixedShare]) -> float:
    """Steps with prefill for each generated token: the median replica's, so that no liar moves it (INV-10); 0 without any."""
    told = [share.steps / share.tokens for share in shares if share.tokens > 0.0]
    return median(told) if told else 0.0


def charge(evidence: Evidence, times: StepTimes, arms: Sequence[int]) -> Floats:
    """(buckets, arms): seconds per generated token that an arm loses to K=0 in steps with prefill, beyond clean steps.

    What is charged is by how much K prolongs a mixed step beyond what K prolongs a clean step.
    """
    mixed = mixed_seconds(evidence, times, arms)
    if mixed is None or evidence.mixed_steps_per_token <= 0.0:
        return np.zeros(times.log_seconds.shape)
    clean = np.exp(times.log_seconds)
    longer = (mixed - mixed[:, :1]) - (clean - clean[:, :1])
    charged: Floats = evidence.mixed_steps_per_token * np.maximum(longer, 0.0)
    return charged


def mixed_seconds(evidence: Evidence, times: StepTimes, arms: Sequence[int]) -> Floats | None:
    """(buckets, arms): seconds of a step with the usual prefill; None before there was any.

    A constant, every token that the target computes, each draft token, and each prompt token that the drafter reads, all
    non-negative.
    """
    shape, cells = times.log_seconds.shape, evidence.mixed_cells
    if not cells:
        return None
    keys = np.array(list(cells), dtype=float)
    sums = np.array([(cell.steps, cell.seconds, cell.rows, cell.prefill_tokens) for cell in cells.values()])
    means = sums[:, 1:] / sums[:, :1]
    seconds, prefill = means[:, 0], float(sums[:, 3].sum() / sums[:, 0].sum())
    trust = sums[:, 0] / (sums[:, 0] + TRUST_STEPS)
    scale = _scale(means[:, 1], keys[:, 1], means[:, 2])
    relative = _parts(means[:, 1], keys[:, 1], means[:, 2]) / scale / seconds[:, None]
    gram = (relative * trust[:, None]).T @ relative + np.diag(_RIDGE**2)
    weights = non_negative_least_squares(gram, trust @ relative) / scale
    lengths = np.tile(np.array(arms, dtype=float), shape[0])
    rows = np.repeat(times.rows, shape[1])
    seconds_of_mixed: Floats = (_parts(rows, lengths, np.full(len(rows), prefill)) @ weights).reshape(shape)
    return seconds_of_mixed


def _parts(rows: Floats, lengths: Floats, prefill: Floats) -> Floats:
    return np.stack([np.ones_like(rows), rows * (1.0 + lengths) + prefill, lengths, prefill * (lengths > 0)], axis=1)


def _scale(rows: Floats, lengths: Floats, prefill: Floats) -> Floats:
    """Size of each part over the measured cells, so that one ridge suits all; 1 for a part that none has."""
    size = np.abs(_parts(rows, lengths, prefill)).mean(axis=0)
    return np.where(size > 0.0, size, 1.0)
