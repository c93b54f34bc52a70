"""What a careful operator tunes off line, once per profile at nominal acceptance: tables of K, and the paper's C_switch.

Pure functions of step times and of `survival`, where survival[i] is the probability that more than i draft tokens are
accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

from nightjar.loadtests.simulation.rivals.prior import StepSeconds
from nightjar.policy.wire.switch_cost import SwitchCostRow

SWITCH_COST_LAGS: Final = (32, 128, 512, 2048)
SWITCH_COST_BATCHES: Final = (1, 4, 16, 64, 256)


def best_lengths(
    step_seconds: StepSeconds, survival: Sequence[float], arms: Sequence[int], *, max_num_seqs: int, context_tokens_per_row: int
) -> list[int]:
    """The K of `arms` with the best goodput at each decode batch size from 1 to `max_num_seqs`; ties take the smaller K."""
    tokens = {arm: 1.0 + sum(survival[:arm]) for arm in arms}

    def best(rows: int) -> int:
        seconds = {arm: step_seconds(rows, rows * context_tokens_per_row, arm) for arm in arms}
        return max(arms, key=lambda arm: (tokens[arm] / seconds[arm], -arm))

    return [best(rows) for rows in range(1, max_num_seqs + 1)]


def table_rows(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Rows [first, last, K] of a list that begins at batch 1.

    >>> table_rows([3, 3, 1, 0, 0])
    ((1, 2, 3), (3, 3, 1), (4, 5, 0))
    """
    rows, first = [], 1
    for length, run in groupby(lengths):
        last = first + sum(1 for _ in run) - 1
        rows.append((first, last, length))
        first = last + 1
    return tuple(rows)


def switch_cost_table(catch_up_seconds: Callable[[int, int], float], max_num_seqs: int) -> tuple[SwitchCostRow, ...]:
    """C_switch as the paper measures it: the time that recomputing the drafter's KV adds, by longest lag and batch.

    `catch_up_seconds(decode_rows, catch_up_tokens)` is the added time of a step; each row of the batch lags by the same.
    """
    return tuple(
        (lag, batch, round(catch_up_seconds(batch, lag * batch), 7))
        for lag in SWITCH_COST_LAGS
        for batch in sorted({min(batch, max_num_seqs) for batch in SWITCH_COST_BATCHES})
    )
