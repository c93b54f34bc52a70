"""What the planner `fleet` still has to measure in a batch bucket, the most promising K first.

A measurement costs output where its K is a bad one, so a K that could not win even if acceptance were at the upper end of
what the evidence allows, and its step no longer than that of the next shorter K measured, is never tried.
"""

from __future__ import annotations

from nightjar.policy.acceptance import tokens_per_row
from nightjar.policy.planners.planner import GroupView


def missing_measurements(view: GroupView, bucket: int) -> tuple[int, ...]:
    """The K to measure in `bucket`, best first: off alone until it is known, then by predicted goodput.

    Empty once every K is measured or cannot win: a calibration ends.
    """
    if not view.is_measured(bucket, 0):
        return (0,)
    missing = [arm for arm in view.arms if not view.is_measured(bucket, arm) and _could_win(view, bucket, arm)]
    return tuple(sorted(missing, key=lambda arm: (-_promise(view, bucket, arm), arm)))


def _could_win(view: GroupView, bucket: int, arm: int) -> bool:
    """Whether the optimistic goodput beats the best measured one by the margin that a plan asks for."""
    rows, least_s = view.evidence.decode_rows(bucket), view.evidence.least_step_seconds(bucket, arm)
    best = max(view.evidence.goodput_tokens_per_s(bucket, other) or 0.0 for other in view.arms if view.is_measured(bucket, other))
    if rows is None or least_s is None:
        return True
    optimistic = rows * tokens_per_row(view.evidence.acceptance.optimistic_acceptance(arm), arm) / least_s
    return optimistic > best * (1.0 + view.settings.switch_margin)


def _promise(view: GroupView, bucket: int, arm: int) -> float:
    """Expected tokens of a row per second at the guessed step time; only the order matters."""
    guessed_s = view.evidence.guessed_step_seconds(bucket, arm)
    return view.evidence.tokens_per_row(arm) / guessed_s if guessed_s is not None else 0.0
