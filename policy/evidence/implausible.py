"""The refusal of counters that no engine can have, and the limits that every kind of step shares (INV-10)."""

from __future__ import annotations

from typing import Final

from nightjar.policy.evidence.cells import Cell
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.report import GroupKey

SHORTEST_STEP_SECONDS: Final = 1e-5
LONGEST_STEP_SECONDS: Final = 600.0


class ImplausibleCountersError(ValueError):
    """Counters no engine can have. The message names the count, the value seen and what is allowed."""


def require(holds: bool, key: Cell, problem: str) -> None:
    """Raise ImplausibleCountersError with the problem of a cell unless it `holds`."""
    if not holds:
        kind = ", with prefill" if key.prefill else ""
        raise ImplausibleCountersError(f"cell (bucket {key.batch_bucket}, K={key.num_speculative_tokens}{kind}): {problem}")


def check_steps(key: Cell, group: GroupKey, steps: int, step_seconds: float, decode_rows: int) -> None:
    """Raise ImplausibleCountersError unless a cell of the group can have so many steps more."""
    bucket, length, _ = key
    require(length <= group.max_num_speculative_tokens, key, f"K above the group's {group.max_num_speculative_tokens}")
    require(bucket <= batch_bucket(group.max_num_seqs), key, f"a bucket above max_num_seqs {group.max_num_seqs}")
    require(steps > 0, key, f"{steps} steps more than before")
    mean_s = step_seconds / steps
    allowed = f"{SHORTEST_STEP_SECONDS:g} to {LONGEST_STEP_SECONDS:g}"
    require(SHORTEST_STEP_SECONDS <= mean_s <= LONGEST_STEP_SECONDS, key, f"{mean_s:.3g} s a step, allowed are {allowed}")
    first, last = bucket_range(bucket, group.max_num_seqs)
    require(first * steps <= decode_rows <= last * steps, key, f"{decode_rows} rows in {steps} steps of {first} to {last} rows")
