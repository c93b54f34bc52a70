"""Which requests of a simulated engine run in a step: seats, KV blocks, prompt chunks, preemption, as vLLM's V1 scheduler does it.

Rows that decode come first; what is left of the token budget goes to prompts, those already begun before those that wait. With
`prompts_apart` a step that computes prompts has all of the budget for them, as in V0.
When blocks run out the youngest request gives up its own, goes back to the head of the queue and is recomputed later.
Exact block counts cost microseconds, so a bound from above stands in for them wherever it says that everything fits.
"""

from __future__ import annotations

from collections import deque

from nightjar.loadtests.simulation.engine.decode_rows import DecodeRows
from nightjar.loadtests.simulation.engine.kv_blocks import BlockPool
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.profiles import Limits


class SimulatedScheduler:
    """The requests of one engine: waiting, prefilling, decoding."""

    def __init__(self, limits: Limits, longest: int, rows: DecodeRows, *, prompts_apart: bool = False) -> None:
        self.rows = rows
        self._prompts_apart = prompts_apart
        self.pool = BlockPool(limits.num_blocks, limits.extra_blocks, limits.block_size)
        self.waiting: deque[SimulatedRequest] = deque()
        self.prefilling: list[SimulatedRequest] = []
        self.preemptions = 0
        self._max_num_seqs = limits.max_num_seqs
        self._max_num_batched_tokens = limits.max_num_batched_tokens
        self._most_ahead = 1 + 2 * longest
        self._prefill_blocks = 0  # held by requests that prefill
        self._chunks: list[tuple[SimulatedRequest, int]] = []
        self._admissions = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is here."""
        return bool(self.rows.count or self.waiting or self.prefilling)

    def submit(self, request: SimulatedRequest) -> None:
        """Queue a request. Raises ValueError where it can never fit into the KV cache."""
        tokens = request.prompt_tokens + request.output_tokens + self._most_ahead
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"request {request.number}: prompt and output need at least one token")
        if self.pool.blocks_for(tokens) > self.pool.num_blocks:
            raise ValueError(f"request {request.number}: {tokens} tokens never fit into {self.pool.num_blocks} blocks")
        self.waiting.append(request)

    def schedule(self, verified: int) -> int:
        """Decide what the next step runs, with `verified` drafts per decode row; prompt tokens that it computes."""
        self._make_room(verified)
        self._chunks.clear()
        if self.waiting or self.prefilling:
            return self._schedule_prefill(verified)
        return 0

    def prompts_after(self, verified: int) -> tuple[int, bool]:
        """What is known now of the step after the scheduled one: rows that join it, as their prompts end in this step and their
        answers do not, and whether it will compute prompt tokens, as this one leaves a part of a prompt, or requests wait because
        it is full."""
        ending = [request for request, chunk in self._chunks if request.computed_tokens + chunk >= request.prefill_tokens]
        joining = sum(request.generated_tokens + 1 < request.output_tokens for request in ending)
        taken = sum(chunk for _, chunk in self._chunks)
        is_full = bool(self.waiting) and taken >= self._max_num_batched_tokens - self.rows.count * (1 + verified)
        return joining, len(ending) < len(self._chunks) or is_full

    def finish_prefills(self, *, draft_runs: bool, now_s: float) -> tuple[int, list[SimulatedRequest]]:
        """After the step: first tokens that its prompts delivered, and requests that this answered in full."""
        delivered, finished = 0, []
        for request, chunk in self._chunks:
            if draft_runs and (request.draft_tokens == request.computed_tokens or request.computed_tokens == request.cached_tokens):
                request.draft_tokens = request.computed_tokens + chunk
            request.computed_tokens += chunk
            if request.computed_tokens < request.prefill_tokens:
                continue
            self.prefilling.remove(request)
            self._prefill_blocks -= request.held_blocks
            request.generated_tokens += 1
            delivered += 1
            if request.first_token_s is None:
                request.first_token_s = now_s
            if request.generated_tokens == request.output_tokens:
                self.release(request)
                finished.append(request)
            else:
                self.rows.join(request)
        return delivered, finished

    def release(self, request: SimulatedRequest) -> None:
        """Give a request's blocks back."""
        self.pool.give(request.held_blocks)
        request.held_blocks = 0

    def abort_all(self) -> list[SimulatedRequest]:
        """Drop every request that is here and give its blocks back."""
        rows = self.rows
        aborted = [*self.waiting, *self.prefilling, *(rows.remove(row) for row in reversed(range(rows.count)))]
        for request in aborted:
            self.release(request)
        self.waiting.clear()
        self.prefilling.clear()
        self._prefill_blocks = 0
        return aborted

    def book_blocks(self, tokens_ahead: int = 0) -> bool:
        """Bring the pool's count up to date with the rows and `tokens_ahead` more; False where that is more than there are."""
        grown = self.rows.try_book_blocks(tokens_ahead, self.pool.block_size, self.pool.size - self.pool.held)
        if grown is None:
            return False
        self.pool.take(grown)
        return True

    def forget_draft(self) -> None:
        """The draft's KV is gone for every request."""
        self.rows.forget_draft()
        for request in self.prefilling:
            request.draft_tokens = 0

    def generated_tokens(self) -> int:
        """Sum of what the requests that are here have generated."""
        return self.rows.generated_tokens() + sum(request.generated_tokens for request in [*self.waiting, *self.prefilling])

    def check_integrity(self) -> None:
        """Raise AssertionError where blocks are lost, handed out twice or too few (SIM-3), or rows do not add up (SIM-6)."""
        assert self.book_blocks()
        held = [request.held_blocks for request in self.prefilling]
        assert self._prefill_blocks == sum(held)
        assert self.pool.held == self.rows.held_blocks + sum(held) <= self.pool.size
        assert self.pool.held * self.pool.block_size >= self.rows.context_tokens
        assert not any(request.held_blocks for request in self.waiting)
        assert self.rows.count + len(self.prefilling) <= self._max_num_seqs
        self.rows.check_integrity()

    def _make_room(self, verified: int) -> None:
        """Preempt the youngest until each decode row has blocks for its drafts, verified and new."""
        if self._most_blocks() > self.pool.size:
            while not self.book_blocks(1 + 2 * verified):
                self._preempt_youngest()

    def _most_blocks(self) -> int:
        """Bound of the blocks that all requests hold and the decode rows need, whatever K."""
        rows = self.rows
        return (rows.context_tokens + rows.count * self._most_ahead) // self.pool.block_size + rows.count + self._prefill_blocks

    def _schedule_prefill(self, verified: int) -> int:
        beside = 0 if self._prompts_apart else self.rows.count * (1 + verified)
        budget = whole_budget = self._max_num_batched_tokens - beside
        preemptions = self.preemptions
        for request in list(self.prefilling):
            if budget > 0 and request.held_blocks:
                budget -= self._schedule_chunk(request, budget, verified)
        while self.waiting and budget > 0 and preemptions == self.preemptions:
            request = self.waiting[0]
            seats = self._max_num_seqs - self.rows.count - len(self.prefilling)
            cached = request.computed_tokens = request.cached_tokens
            chunk = min(budget, request.prefill_tokens - cached)
            if seats <= 0 or not self._fits(self.pool.blocks_for(cached + chunk), self.pool.admission_size, verified):
                break
            self.waiting.popleft()
            self._admissions += 1
            request.admission = self._admissions
            self.prefilling.append(request)
            budget -= self._take_chunk(request, chunk)
        return whole_budget - budget

    def _schedule_chunk(self, request: SimulatedRequest, budget: int, verified: int) -> int:
        """The next chunk of a prompt that was begun, at the cost of younger requests if need be."""
        chunk = min(budget, request.prefill_tokens - request.computed_tokens)
        blocks = self.pool.blocks_for(request.computed_tokens + chunk) - request.held_blocks
        while not self._fits(blocks, self.pool.size, verified):
            if self._preempt_youngest() is request:
                return 0
        return self._take_chunk(request, chunk)

    def _take_chunk(self, request: SimulatedRequest, chunk: int) -> int:
        blocks = self.pool.blocks_for(request.computed_tokens + chunk) - request.held_blocks
        self.pool.take(blocks)
        self._prefill_blocks += blocks
        request.held_blocks += blocks
        self._chunks.append((request, chunk))
        return chunk

    def _fits(self, blocks: int, size: int, verified: int) -> bool:
        if self._most_blocks() + blocks <= size:
            return True
        return self.book_blocks(1 + 2 * verified) and self.pool.held + blocks <= size

    def _preempt_youngest(self) -> SimulatedRequest:
        youngest = max([*self.rows.requests, *self.prefilling], key=lambda request: request.admission)
        if youngest in self.prefilling:
            self.prefilling.remove(youngest)
            self._prefill_blocks -= youngest.held_blocks
            self._chunks = [entry for entry in self._chunks if entry[0] is not youngest]
        else:
            self.rows.remove(self.rows.requests.index(youngest))
        self.release(youngest)
        youngest.computed_tokens = youngest.draft_tokens = 0
        self.waiting.appendleft(youngest)
        self.preemptions += 1
        return youngest
