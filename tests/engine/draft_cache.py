"""A worker that is only the KV caches of target and draft: it obeys a step's orders and knows which tokens it really holds.

A slot holds the digest of the tokens up to it, and only if every slot before it did when it was written: exactly what makes a
token's KV right. Blocks are handed out and back as the real scheduler does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from nightjar.deployments.engine.worker.draft_work import (
    DRAFTER_FAILURE_ATTRIBUTE,
    MEMORY_ATTRIBUTE,
    RELOAD_FAILURE_ATTRIBUTE,
    WORK_ATTRIBUTE,
    DraftWork,
    MemoryMove,
    MemoryWork,
)
from tests.engine.scheduler.scheduler_harness import BLOCK_TOKENS, TOKEN

VOCABULARY = 50


class Scheduled(NamedTuple):
    """A step on its way to the worker, with what the worker would have received."""

    output: Any
    tables: dict[str, list[int]]
    samples: frozenset[str]
    without_drafts: frozenset[str]
    number: int


class DraftCache:
    """Runs an engine of `scheduler` with the draft's cache made explicit, `in_flight` steps scheduled before one is answered."""

    def __init__(self, scheduler: Any, in_flight: int = 1) -> None:
        self.scheduler = scheduler
        self.in_flight = in_flight
        self._queue: list[Scheduled] = []
        self.slots: dict[int, list[int]] = {}
        self.target: dict[int, list[int]] = {}
        self.rows: dict[str, list[int]] = {}
        self.prompts: dict[str, Sequence[int]] = {}
        self.computed: dict[str, int] = {}
        self.draft_is_loaded = True
        self._moved: MemoryWork | None = None
        """The last part of a move; None between moves, and after a reload that broke off."""
        self.reload_failure = ""
        self.pass_failure = ""
        """Why steps that recompute break off from now on."""
        self._scheduled_steps = 0
        self._last_step_that_did_not_know = 0
        self._digests: dict[str, list[int]] = {}
        self.drafted_rows = 0
        self.recomputed_tokens = 0
        self.skipped_rows = 0

    def add(self, request: Any) -> None:
        self.prompts[request.request_id] = tuple(request.prompt_token_ids)
        self.scheduler.add_request(request)

    def token(self, request_id: str, position: int) -> int:
        prompt = self.prompts[request_id]
        return prompt[position] if position < len(prompt) else hash((request_id, position)) % VOCABULARY

    def steps(self, count: int, accepted: int = 2) -> list[Any]:
        """Outputs of so many steps, all of them answered."""
        begun = [self.step(accepted) for _ in range(count)]
        while self._queue:
            self.run(self._queue.pop(0), accepted)
        return begun

    def step(self, accepted: int) -> Any:
        """Schedule a step; one is answered once as many as may be are in flight."""
        self._queue.append(scheduled := self.schedule())
        if len(self._queue) == self.in_flight:
            self.run(self._queue.pop(0), accepted)
        return scheduled.output

    def schedule(self) -> Scheduled:
        scheduler = self.scheduler
        output = scheduler.schedule()
        assert scheduler.nightjar.fault == ""
        tables = {name: list(scheduler.kv_cache_manager.get_block_ids(name)[0]) for name in output.num_scheduled_tokens}
        samples = frozenset(name for name in output.num_scheduled_tokens if not scheduler.requests[name].is_prefill_chunk)
        behind = frozenset(scheduler.nightjar.drafting.rows_without_drafts(scheduler.requests))
        self._scheduled_steps += 1
        return Scheduled(output, tables, samples, behind, self._scheduled_steps)

    def run(self, step: Scheduled, accepted: int) -> None:
        """Execute the step and give its output to the scheduler; up to `accepted` drafts of each row are accepted."""
        output, scheduler = step.output, self.scheduler
        work: DraftWork = getattr(output, WORK_ATTRIBUTE, DraftWork(runs=bool(output.num_scheduled_tokens)))
        reload_failure = self._move_memory(output)
        self._update_rows(output)
        for name, table in step.tables.items():
            assert self.rows[name] == table, f"{name}: the worker's row is not the scheduler's"
        assert self.draft_is_loaded or not (work.runs or work.recompute), "the draft is asked to run while its weights are gone"
        failure = self._catch_up(step, work)
        sampled = []
        for name, num_tokens in output.num_scheduled_tokens.items():
            start, drafts = self.computed[name], len(output.scheduled_spec_decode_tokens.get(name, ()))
            kept = min(accepted, drafts)
            read = num_tokens - drafts + kept
            if work.runs:
                if name in step.samples and name not in step.without_drafts:
                    is_known = step.number > self._last_step_that_did_not_know
                    holds = self.valid_tokens(name, step.tables[name], start) == start
                    assert holds or not is_known, f"{name} drafts on missing KV"
                    self.drafted_rows += 1
                self.skipped_rows += name in step.samples and name in step.without_drafts
                self._write(name, step.tables[name], start, start + read)
            for position in range(start, start + read):
                block = self.target.setdefault(step.tables[name][position // BLOCK_TOKENS], [])
                block[:] = [*block, *[0] * BLOCK_TOKENS][:BLOCK_TOKENS]
                block[position % BLOCK_TOKENS] = self._digest(name, position)
            self.computed[name] = start + read
            sampled.append([self.token(name, start + read - kept + i) for i in range(kept + 1)] if name in step.samples else [])
        for name in output.num_scheduled_tokens:
            self._check_target(name, step.tables[name])
        names = list(output.num_scheduled_tokens)
        scheduler.update_from_output(output, self._answer(output, sampled, failure, reload_failure))
        if self.in_flight == 1 and names:
            drafts_of_step = [[TOKEN] * output.num_spec_tokens_to_schedule for _ in names]
            scheduler.update_draft_token_ids(DraftTokenIds(names, drafts_of_step))
        assert scheduler.nightjar.fault == ""
        scheduler.nightjar.drafting.ledger.check_integrity(scheduler.requests)
        if (lending := scheduler.nightjar.drafting.lending) is not None:
            lending.pool.check_integrity()

    def valid_tokens(self, name: str, table: Sequence[int], num_tokens: int) -> int:
        """How many of the request's first `num_tokens` tokens the draft really holds, in a row from the beginning."""
        for position in range(num_tokens):
            if self._block(table[position // BLOCK_TOKENS])[position % BLOCK_TOKENS] != self._digest(name, position):
                return position
        return num_tokens

    def _catch_up(self, step: Scheduled, work: DraftWork) -> str:
        """Read again what the step orders, or say why nothing was read: steps that are scheduled by then do not know it."""
        if self.pass_failure and work.recompute:
            self._last_step_that_did_not_know = self._scheduled_steps
            return self.pass_failure
        for portion in work.recompute:
            self._recompute(step, portion)
        return ""

    def _answer(self, output: Any, sampled: list[list[int]], failure: str, reload_failure: str) -> ModelRunnerOutput:
        names = list(output.num_scheduled_tokens)
        rows = {name: row for row, name in enumerate(names)}
        answer = ModelRunnerOutput(req_ids=names, req_id_to_index=rows, sampled_token_ids=sampled)
        if reload_failure:
            setattr(answer, RELOAD_FAILURE_ATTRIBUTE, reload_failure)
        if failure:
            setattr(answer, DRAFTER_FAILURE_ATTRIBUTE, failure)
        return answer

    def _update_rows(self, output: Any) -> None:
        """As vLLM's runner V1 does in _update_states, with the counts that are only known once a step has run."""
        for new in output.scheduled_new_reqs:
            self.computed[new.req_id] = new.num_computed_tokens
            self.rows[new.req_id] = list(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        for name, num_computed_tokens, block_ids in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            if name in cached.resumed_req_ids:
                self.computed[name] = num_computed_tokens
                self.rows[name] = list(block_ids[0])
            elif block_ids is not None:
                self.rows[name] += block_ids[0]

    def _check_target(self, name: str, table: Sequence[int]) -> None:
        for position in range(self.computed[name]):
            block = self.target.get(table[position // BLOCK_TOKENS], ())
            assert block, f"{name} reads block {table[position // BLOCK_TOKENS]}, whose memory is gone"
            assert block[position % BLOCK_TOKENS] == self._digest(name, position), f"{name} reads a stranger's token {position}"

    def _move_memory(self, output: Any) -> str:
        """Do the step's part of a move; why a reload broke off in it, in its second half if it has several."""
        work: MemoryWork | None = getattr(output, MEMORY_ATTRIBUTE, None)
        failure = ""
        if work is not None:
            self._begin_move(work)
            if self._moved is not None:
                assert work.move is self._moved.move
                assert work.share > self._moved.share or not work.share
                self._moved = work
            if self._moved is not None and work.move == MemoryMove.RELOAD and work.share > 0.5 and self.reload_failure:
                failure, self._moved = self.reload_failure, None
            elif self._moved is not None and work.share == 1.0:
                self.draft_is_loaded, self._moved = work.move == MemoryMove.RELOAD, None
        for copy in output.kv_cache_block_copies or ():
            self.slots[copy.dst_block_id] = list(self._block(copy.src_block_id))
            self.target[copy.dst_block_id] = list(self.target.get(copy.src_block_id, ()))
        return failure

    def _begin_move(self, work: MemoryWork) -> None:
        if work.share:
            return
        assert self._moved is None, "a move begins before the last one has ended"
        assert self.draft_is_loaded is (work.move == MemoryMove.OFFLOAD)
        self._moved, self.draft_is_loaded = work, False
        self.slots.clear()
        if work.move == MemoryMove.RELOAD:
            base_blocks = self.scheduler.nightjar.drafting.lending.pool.base_blocks
            self.target = {block_id: block for block_id, block in self.target.items() if block_id < base_blocks}

    def _recompute(self, step: Scheduled, portion: Any) -> None:
        name, first = portion.request_id, portion.first_token
        last = first + len(portion.token_ids)
        assert list(portion.token_ids) == [self.token(name, position) for position in range(first, last)]
        self.recomputed_tokens += len(portion.token_ids)
        if portion.own_tokens:
            assert last == self.computed[name], f"{name}: its own tokens do not follow what is read again"
            last += step.output.num_scheduled_tokens[name]
        self._write(name, step.tables[name], first, last)

    def _write(self, name: str, table: Sequence[int], first: int, last: int) -> None:
        holds = self.valid_tokens(name, table, first) == first
        for position in range(first, last):
            content = self._digest(name, position) if holds else -1
            self._block(table[position // BLOCK_TOKENS])[position % BLOCK_TOKENS] = content

    def _digest(self, name: str, position: int) -> int:
        digests = self._digests.setdefault(name, [])
        while len(digests) <= position:
            digests.append(hash((digests[-1] if digests else 0, self.token(name, len(digests)))))
        return digests[position]

    def _block(self, block_id: int) -> list[int]:
        return self.slots.setdefault(block_id, [0] * BLOCK_TOKENS)
