"""What the output of one engine step says of its drafts: how many rows verified so many, and how many were accepted.

Read from vLLM's records before vLLM takes them in, because a stop trims sampled tokens in place. Pure; knows their shapes and
imports none of vLLM. Raises whatever a record of another shape makes it raise; the step loop turns that into failing open.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from nightjar.deployments.engine.scheduler.step_note import StepNote, requests_mark


class Verified(NamedTuple):
    """A step's output: reached[i] and accepted[i] as in StepCount, and when it arrived."""

    reached: Sequence[int]
    accepted: Sequence[int]
    output_s: float


def count_verified(
    note: StepNote | None,
    scheduler_output: Any,
    model_runner_output: Any,
    requests: dict[str, Any],
    *,
    max_num_speculative_tokens: int,
    output_s: float,
) -> Verified:
    """The step's drafts, by position."""
    drafts = scheduler_output.scheduled_spec_decode_tokens
    sampled = model_runner_output.sampled_token_ids
    invalid = scheduler_output.num_invalid_spec_tokens
    if note is not None and note.uniform and not invalid and note.requests_mark == requests_mark(requests):
        # Every row verified K drafts, as in nearly every step: which row is whose does not matter for the sums.
        lengths = bytes(map(len, sampled))
        if 0 not in lengths:
            length, remaining, accepted = note.num_speculative_tokens, note.decode_rows, [0] * max_num_speculative_tokens
            for position in range(length):
                remaining -= lengths.count(position + 1)
                accepted[position] = remaining
            return Verified([note.decode_rows] * length + [0] * (max_num_speculative_tokens - length), accepted, output_s)
    widths, hits = [0] * (max_num_speculative_tokens + 1), [0] * (max_num_speculative_tokens + 1)
    row_of = model_runner_output.req_id_to_index
    for request_id, draft_token_ids in drafts.items():
        num_sampled = len(sampled[row_of[request_id]]) if request_id in requests else 0
        if num_sampled:
            widths[len(draft_token_ids) - (invalid.get(request_id, 0) if invalid else 0)] += 1
            hits[num_sampled - 1] += 1
    return Verified(_more_than(widths), _more_than(hits), output_s)


def _more_than(rows_by_length: Sequence[int]) -> list[int]:
    """Rows of more than i tokens, for each position i, from the rows of exactly i.

    >>> _more_than([4, 1, 2])
    [3, 2]
    """
    return list(accumulate(reversed(rows_by_length[1:])))[::-1]
