"""The paper's C_switch: what it costs to bring a drafter back that missed tokens, as a table.

Rows are (longest lag in tokens, decode batch size, seconds), where the longest lag is the paper's L_max, the most tokens that
one row's draft KV misses. The paper measures the table off line; here it is an operator's setting, or filled from what restarts
cost (restarts.leases.switch_costs). It travels in a plan's options as text, `128x32=0.01787,...`.
Fails closed: rows or text that are not such a table raise ValueError and are not used.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from math import log
from typing import Final

from nightjar.policy.wire.record import LONGEST_STEP_SECONDS

SwitchCostRow = tuple[int, int, float]
"""Longest lag in tokens, decode batch size, seconds."""

MAX_SWITCH_COST_ROWS: Final = 256

PAPER_SWITCH_COST: Final[tuple[SwitchCostRow, ...]] = ((128, 32, 0.01787), (512, 64, 0.10203))
"""The two points that the paper prints (arXiv 2512.22420, RTX 4090, 7B with a 0.5B drafter); its full table is not public."""

SWITCH_COST_LAGS: Final = (32, 128, 512, 2048)
SWITCH_COST_BATCHES: Final = (1, 4, 16, 64, 256)
"""Longest lags, in tokens, and batches of a table that is filled from what restarts cost."""
KEPT_WITHIN: Final = 1.25
"""A table stays while each row of the next is within this factor: every restart moves them a little, and a new one is news to
every replica."""

_ROW: Final = re.compile(r"(\d{1,9})x(\d{1,5})=(\d[\d.eE+-]*)")


class SwitchCost:
    """Looks C_switch up. Raises ValueError for rows that are no table.

    The batch is the nearest of the table's, the smaller of two equally near (the authors' code looks up the nearest, too).
    Along the lag it is linear between that batch's points, from 0 s at lag 0, and proportional to the lag above the last:
    a catch-up recomputes each missed token once.

    >>> cost = SwitchCost([(100, 8, 0.01), (300, 8, 0.05), (100, 32, 0.04)])
    >>> [round(cost.seconds(lag, 10), 4) for lag in (0, 50, 200, 600)], cost.seconds(100, 4096)
    ([0.0, 0.005, 0.03, 0.1], 0.04)
    """

    def __init__(self, rows: Sequence[SwitchCostRow]) -> None:
        check_rows(rows)
        by_batch: dict[int, dict[int, float]] = {}
        for lag_tokens, batch, seconds in rows:
            by_batch.setdefault(batch, {})[lag_tokens] = seconds
        self._batches = sorted(by_batch)
        self._points = {batch: sorted({0: 0.0, **points}.items()) for batch, points in by_batch.items()}

    def seconds(self, longest_lag_tokens: int, decode_batch_size: int) -> float:
        """C_switch in seconds; 0 without a lag or without a table."""
        if longest_lag_tokens <= 0 or not self._batches:
            return 0.0
        points = self._points[min(self._batches, key=lambda batch: abs(batch - decode_batch_size))]
        above = bisect_left(points, (longest_lag_tokens, 0.0))
        if above == len(points):
            last_lag, last_s = points[-1]
            return last_s * longest_lag_tokens / last_lag
        (low_lag, low_s), (high_lag, high_s) = points[above - 1], points[above]
        return low_s + (high_s - low_s) * (longest_lag_tokens - low_lag) / (high_lag - low_lag)


def check_rows(rows: Sequence[SwitchCostRow]) -> None:
    """Raise ValueError, naming the row, for rows that are not a table of C_switch."""
    if len(rows) > MAX_SWITCH_COST_ROWS:
        raise ValueError(f"{len(rows)} rows of switch cost, allowed are at most {MAX_SWITCH_COST_ROWS}")
    seen = set()
    for lag_tokens, batch, seconds in rows:
        if not (1 <= lag_tokens < 10**9 and 1 <= batch < 10**5 and 0.0 <= seconds <= LONGEST_STEP_SECONDS):
            raise ValueError(
                f"switch cost [{lag_tokens}, {batch}, {seconds}]: a row is [longest lag in tokens >= 1 and below 10^9, decode "
                f"batch size >= 1 and below 10^5, seconds from 0 to {LONGEST_STEP_SECONDS:g}]"
            )
        if (lag_tokens, batch) in seen:
            raise ValueError(f"switch cost: lag {lag_tokens} at batch {batch} is given twice")
        seen.add((lag_tokens, batch))


def as_good_as(rows: Sequence[SwitchCostRow], others: Sequence[SwitchCostRow]) -> bool:
    """Whether two tables have the same lags and batches, and about the same seconds.

    >>> as_good_as([(100, 8, 0.010)], [(100, 8, 0.012)]), as_good_as([(100, 8, 0.010)], [(100, 8, 0.013)])
    (True, False)
    """
    same = [row[:2] for row in rows] == [row[:2] for row in others]
    return same and all(
        abs(log(max(one[2], 1e-9) / max(other[2], 1e-9))) <= log(KEPT_WITHIN) for one, other in zip(rows, others, strict=True)
    )


def format_rows(rows: Sequence[SwitchCostRow]) -> str:
    """Rows as an option's text.

    >>> format_rows(PAPER_SWITCH_COST)
    '128x32=0.01787,512x64=0.10203'
    """
    return ",".join(f"{lag_tokens}x{batch}={seconds!r}" for lag_tokens, batch, seconds in rows)


def parse_rows(text: str) -> tuple[SwitchCostRow, ...]:
    """Rows from an option's text; empty text is an empty table.

    >>> parse_rows("128x32=0.01787, 512x64=0.10203") == PAPER_SWITCH_COST, parse_rows("")
    (True, ())
    """
    rows = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        matched = _ROW.fullmatch(part)
        try:
            if matched is None:
                raise ValueError
            rows.append((int(matched[1]), int(matched[2]), float(matched[3])))
        except ValueError:
            raise ValueError(f"switch cost {part[:40]!r} is no row; the form is LAG_TOKENSxBATCH=SECONDS, as 9x32=0.01") from None
    check_rows(rows)
    return tuple(rows)
