"""What one engine step is, read from vLLM's records: what was known when it was scheduled, and what its output says of its drafts.

Pure; knows their shapes and imports none of vLLM. What was seen of a scheduled step travels as a note on its SchedulerOutput,
because with async scheduling several steps are in flight; an output is read before vLLM takes it in, because a stop trims sampled
tokens in place. Raises whatever a record of another shape makes it raise (AttributeError, KeyError); the step loop turns that into
failing open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, NamedTuple

from nightjar.policy.step.drafter import Order
from nightjar.policy.wire.report import MAX_ADAPTERS, AdapterCounters

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


def decoding_next(running: Iterable[Any]) -> int:
    """Running requests that decode in the step about to be scheduled: all but those with a part of a prompt to read, and those
    whose answer is one token, of which vLLM's asynchronous scheduler keeps some until their output arrives."""
    return sum(not request.is_prefill_chunk and request.max_tokens != 1 for request in running)


def prompts_after(scheduled: Mapping[str, int], requests: Mapping[str, Any]) -> tuple[int, bool]:
    """Rows that join the next step, as their prompts end in this one and their answers do not, and whether this one leaves a part
    of a prompt to it. Requests are as before the step."""
    joining, leaves_some = 0, False
    for request_id, num_scheduled_tokens in scheduled.items():
        request = requests[request_id]
        missing = request.num_tokens - request.num_computed_tokens
        leaves_some |= num_scheduled_tokens < missing
        if 1 < missing <= num_scheduled_tokens:
            joining += request.max_tokens is None or request.num_output_tokens + 1 < request.max_tokens
    return joining, leaves_some


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
    max_num_speculative_tokens: int,
    output_s: float,
) -> Verified:
    """The step's drafts by position: how many rows verified so many, and how many were accepted."""
    sampled, invalid = model_runner_output.sampled_token_ids, scheduler_output.num_invalid_spec_tokens
    if note is not None and note.uniform and not invalid and note.requests_mark == requests_mark(requests):
        # Every row verified K drafts, as in nearly every step: which row is whose does not matter for the sums.
        lengths = bytes(map(len, sampled))
        if 0 not in lengths:
            k, remaining, accepted = note.num_speculative_tokens, note.decode_rows, [0] * max_num_speculative_tokens
            reached = [remaining] * k + [0] * (max_num_speculative_tokens - k)
            for position in range(k):
                remaining -= lengths.count(position + 1)
                accepted[position] = remaining
            return Verified(reached, accepted, output_s)
    drafts = scheduler_output.scheduled_spec_decode_tokens
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


class AdapterCounts:
    """Acceptance by LoRA adapter: sums over the verified rows of each.

    A draft model knows no adapters, so an adapter that changes the target's text loses its drafts: an operator sees here which one
    does. Kept for the adapters that were seen first, as many as a report holds; engines without adapters pay nothing for it.
    """

    def __init__(self) -> None:
        self.adapter_of: dict[str, str] = {}
        self._sums: dict[str, list[int]] = {}

    def add_request(self, request: Any) -> None:
        """Note a request's adapter (vLLM's `lora_request`), if it has one."""
        lora = getattr(request, "lora_request", None)
        if lora is not None:
            self.adapter_of[request.request_id] = str(lora.lora_name)[:256]

    def leave(self, request: Any) -> None:
        """Forget a request that has finished; one that is preempted comes again."""
        if self.adapter_of and request.is_finished():
            self.adapter_of.pop(request.request_id, None)

    def count(
        self, drafts: Mapping[str, Sequence[int]], sampled: Sequence[Sequence[int]], row_of: Mapping[str, int], requests: Any
    ) -> None:
        """Count the rows of a step's output that verified `drafts` and belong to an adapter."""
        if not self.adapter_of:
            return
        for request_id, adapter in self.adapter_of.items():
            num_drafts = len(drafts.get(request_id, ())) if request_id in requests else 0
            num_sampled = len(sampled[row_of[request_id]]) if num_drafts else 0
            if not num_sampled or (adapter not in self._sums and len(self._sums) == MAX_ADAPTERS):
                continue
            sums = self._sums.setdefault(adapter, [0, 0, 0])
            sums[0] += 1
            sums[1] += num_drafts
            sums[2] += num_sampled - 1

    def snapshot(self) -> tuple[AdapterCounters, ...]:
        """What was counted so far, by adapter."""
        return tuple(
            AdapterCounters(adapter=adapter, rows=rows, draft_tokens=drafts, accepted_tokens=accepted)
            for adapter, (rows, drafts, accepted) in sorted(self._sums.items())
        )
