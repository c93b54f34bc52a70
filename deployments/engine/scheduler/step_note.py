"""What one engine step is, read from vLLM's records when it was scheduled. Pure; knows their shapes and imports none of vLLM.

What was seen travels as a note on the step's SchedulerOutput, because with async scheduling several steps are in flight. Raises
whatever a record of another shape makes it raise (AttributeError, KeyError); the step loop turns that into failing open.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

from nightjar.policy.engine.drafter import Order

NOTE_ATTRIBUTE: Final = "nightjar_note"
_IS_PREFILL_CHUNK: Final = attrgetter("is_prefill_chunk")
_NUM_COMPUTED_TOKENS: Final = attrgetter("num_computed_tokens")


class StepNote(NamedTuple):
    """What was known of a step when it was scheduled. A tuple, because making one is cheap."""

    num_speculative_tokens: int
    decode_rows: int
    context_tokens: int
    prefill_tokens: int
    uniform: bool
    """Pure decode, and every row verifies exactly K drafts."""
    comparable: bool
    """Pure decode, and every row verifies K drafts or the fewer its end or its grammar allows."""
    settled: bool
    """K, and under async scheduling the absence of prefill, was held for long enough that the step's time belongs to K."""
    requests_mark: tuple[int, str]
    order: Order
    """What the drafter does in the step, where it can be dormant; else K alone."""
    recomputed_tokens: int

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Arrive as None in a worker process, which has no use for it and need not import this module."""
        return type(None), ()


def classify(scheduled: Mapping[str, int], requests: dict[str, Any], entering: bool) -> tuple[int, int, int]:
    """Decode rows, their tokens in the KV cache and prefill tokens, found by looking at every scheduled request.

    A row decodes when all of its context but the newest token is in the KV cache. vLLM's own mark says so for rows that ran
    before; those that enter or come back with this step carry none yet.
    """
    rows = list(map(requests.__getitem__, scheduled))
    if not entering and True not in map(_IS_PREFILL_CHUNK, rows):
        return len(rows), sum(map(_NUM_COMPUTED_TOKENS, rows)), 0
    decode_rows = context_tokens = prefill_tokens = 0
    for request, num_scheduled_tokens in zip(rows, scheduled.values(), strict=True):
        computed = request.num_computed_tokens
        if computed >= request.num_tokens - 1:
            decode_rows += 1
            context_tokens += computed
        else:
            prefill_tokens += num_scheduled_tokens
    return decode_rows, context_tokens, prefill_tokens


def has_unfinished_prompts(scheduled: Mapping[str, int], requests: Mapping[str, Any]) -> bool:
    """Whether a step leaves a part of a prompt to the step after it. Requests are as before the step."""
    return any(
        requests[request_id].num_computed_tokens + num_scheduled_tokens < requests[request_id].num_tokens
        for request_id, num_scheduled_tokens in scheduled.items()
    )


def verifies_exactly(scheduler_output: Any, decode_rows: int, num_speculative_tokens: int) -> bool:
    """Whether every row of a step that only decodes verifies K drafts. None may have more: then their sum says it."""
    return bool(
        scheduler_output.total_num_scheduled_tokens == decode_rows * (num_speculative_tokens + 1)
        and len(scheduler_output.scheduled_spec_decode_tokens) == (decode_rows if num_speculative_tokens else 0)
    )


def verifies_fully(
    scheduler_output: Any, requests: dict[str, Any], num_speculative_tokens: int, *, max_model_len: int, drafts_every_row: bool
) -> bool:
    """Whether every row of a step that only decodes verifies K drafts, or the fewer that its grammar or its end allows."""
    drafts = scheduler_output.scheduled_spec_decode_tokens
    longest = max(map(len, drafts.values()), default=0)
    if not drafts_every_row or not longest:
        return longest <= num_speculative_tokens and (not drafts_every_row or num_speculative_tokens == 0)
    return all(
        len(drafts.get(request_id, ())) == num_speculative_tokens
        or requests[request_id].use_structured_output
        or requests[request_id].num_computed_tokens + num_scheduled_tokens + 1 >= max_model_len
        for request_id, num_scheduled_tokens in scheduler_output.num_scheduled_tokens.items()
    )


def requests_mark(requests: dict[str, Any]) -> tuple[int, str]:
    """Equal marks mean that no request left in between: their number, and the newest one (dicts keep their order)."""
    return len(requests), next(reversed(requests), "")
