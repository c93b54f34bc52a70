"""What a careful operator measures off line, once per profile at nominal acceptance: speeds for a table, and the paper's C_switch.

Pure functions of step times and of `survival`, where survival[i] is the probability that more than i draft tokens are
accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from nightjar.loadtests.simulation.rivals.prior import StepSeconds
from nightjar.policy.wire.switch_cost import SwitchCostRow

SWITCH_COST_LAGS: Final = (32, 128, 512, 2048)
SWITCH_COST_BATCHES: Final = (1, 4, 16, 64, 256)


def nominal_speeds(
    step_seconds: StepSeconds, survival: Sequence[float], arms: Sequence[int], *, max_num_seqs: int, context_tokens_per_row: int
) -> dict[int, dict[int, float]]:
    """Tokens per second of a row, by decode batch size from 1 to `max_num_seqs` and K of `arms`."""
    tokens = {arm: 1.0 + sum(survival[:arm]) for arm in arms}
    return {
        rows: {arm: tokens[arm] / step_seconds(rows, rows * context_tokens_per_row, arm) for arm in arms}
        for rows in range(1, max_num_seqs + 1)
    }


def switch_cost_table(catch_up_seconds: Callable[[int, int], float], max_num_seqs: int) -> tuple[SwitchCostRow, ...]:
    """C_switch as the paper measures it: the time that recomputing the drafter's KV adds, by longest lag and batch.

    `catch_up_seconds(decode_rows, catch_up_tokens)` is the added time of a step; each row of the batch lags by the same.
    """
    return tuple(
        (lag, batch, round(catch_up_seconds(batch, lag * batch), 7))
        for lag in SWITCH_COST_LAGS
        for batch in sorted({min(batch, max_num_seqs) for batch in SWITCH_COST_BATCHES})
    )
