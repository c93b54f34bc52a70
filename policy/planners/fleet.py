"""The planner `fleet`: in each batch bucket the K with the highest predicted goodput, from what all replicas measured.

Predicted goodput is rows * E(k) / step time (facts: SmartSpec, arXiv 2406.14066, and the fleet planner's proposal), in
generated tokens a second. Fails towards off: a bucket whose K=0 was never measured gets no more than its measured
neighbours have, and nothing where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

from nightjar.policy.batch_buckets import FIRST_BATCH_SIZES, bucket_range, buckets_up_to
from nightjar.policy.planners.planner import GroupPlan, GroupView, batch_range, in_words, speculation
from nightjar.policy.records import TableRow


@dataclass(frozen=True, slots=True)
class _Choice:
    num_speculative_tokens: int
    reason: str


def plan(view: GroupView) -> GroupPlan:
    """K by batch bucket, and a reason for each."""
    buckets = buckets_up_to(view.key.max_num_seqs)
    measured = {bucket: _best(view, bucket) for bucket in buckets if view.is_measured(bucket, 0)}
    choices = [measured.get(bucket) or _inherited(bucket, measured) for bucket in buckets]
    rows = _rows([choice.num_speculative_tokens for choice in choices], view.key.max_num_seqs)
    reasons = tuple(
        f"batch {batch_range(*bucket_range(bucket, view.key.max_num_seqs))}: {choice.reason}"
        for bucket, choice in zip(buckets, choices, strict=True)
    )
    return GroupPlan(rows, in_words(rows), reasons)


def _best(view: GroupView, bucket: int) -> _Choice:
    """Argmax of predicted goodput over the measured K, with `switch_margin` of hysteresis.

    Speculation starts only where it beats off by more than the margin; once on it stays until off is predicted no worse, so
    that noise does not toggle it and a bucket is never planned below off. Between two lengths the margin holds both ways.
    """
    predicted = {
        arm: goodput
        for arm in view.arms
        if view.is_measured(bucket, arm) and (goodput := view.evidence.goodput_tokens_per_s(bucket, arm)) is not None
    }
    off, margin = predicted[0], 1.0 + view.settings.switch_margin
    best = max(predicted, key=lambda arm: (predicted[arm], -arm))
    present = view.present.num_speculative_tokens(FIRST_BATCH_SIZES[bucket]) if view.present is not None else 0
    if present not in predicted or (present > 0 and predicted[present] <= off):
        present = 0
    chosen = best if predicted[best] > predicted[present] * margin else present
    steps = view.evidence.cells[bucket, chosen].steps
    if chosen:
        words = f"K={chosen} gives {predicted[chosen]:.1f} tok/s predicted against {off:.1f} off ({steps:.0f} clean steps)"
    elif best:
        words = f"off gives {off:.1f} tok/s predicted, K={best} no more than the margin above it ({predicted[best]:.1f})"
    else:
        rival = max((arm for arm in predicted if arm), key=lambda arm: predicted[arm], default=None)
        against = f" against {predicted[rival]:.1f} with K={rival}" if rival is not None else ", nothing else measured yet"
        words = f"off gives {off:.1f} tok/s predicted{against} ({steps:.0f} clean steps)"
    return _Choice(chosen, words)


def _inherited(bucket: int, measured: dict[int, _Choice]) -> _Choice:
    """The least K of the nearest measured buckets on both sides; off where there is none.

    Speculation pays less the fuller the batch, so a bucket above the measured ones never gets more than the last of them.
    """
    below = max((other for other in measured if other < bucket), default=None)
    above = min((other for other in measured if other > bucket), default=None)
    neighbours = [measured[other].num_speculative_tokens for other in (below, above) if other is not None]
    if not neighbours:
        return _Choice(0, "off, nothing measured yet")
    length = min(neighbours)
    return _Choice(length, f"{speculation(length)} as its measured neighbours have it, not measured itself")


def _rows(lengths: list[int], max_num_seqs: int) -> tuple[TableRow, ...]:
    """One row per run of buckets with the same K."""
    rows: list[TableRow] = []
    first = 1
    for bucket, length in enumerate(lengths):
        last = bucket_range(bucket, max_num_seqs)[1]
        if bucket + 1 == len(lengths) or lengths[bucket + 1] != length:
            rows.append(TableRow(first_batch_size=first, last_batch_size=last, num_speculative_tokens=length))
            first = last + 1
    return tuple(rows)
