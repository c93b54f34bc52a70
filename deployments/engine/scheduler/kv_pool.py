"""vLLM's pool of KV blocks with a tail that can be withheld: the room that an offloaded draft model lends to the target.

The engine starts with base + borrowable blocks, allocated virtually (offload_config.py says how many). The last ids have memory
only while the draft has none. Until then they are withheld: out of the free queue, unhashed, in no request's table and not
counted, so that vLLM allocates, reports and resets only what has memory. Growing hands them out at once. Contracting takes
steps: what is free is withheld, what is in use moves to base blocks by vLLM's own channel for block copies, and where nothing
can move for long, the youngest request that holds such blocks is preempted.

Pages released under a block that a step still reads would be silent corruption, so `drained` waits for the output of the step
that was scheduled when the last block left use. Fails towards the status quo: a contraction that finds no room only takes
longer, `grow` cancels it at any time, and a cache with several KV groups is refused when the pool is made. A request that was
moved and whose new row never reached the worker would read other requests' blocks: an error between `contract` and `write_moves`
must end the engine, not be swallowed. `check_integrity` proves that no block was lost or handed out twice (INV-9).

vLLM's names are imported where they are used: the scheduler's module needs this one, and shall not fail by a name that moved and
that only lending needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightjar.deployments.engine.worker.draft_work import ROWS_ATTRIBUTE

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import KVCacheBlock, KVCacheBlockCopy
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


@dataclass(frozen=True, slots=True)
class ContractionLimits:
    """What a contraction may cost the requests that run meanwhile."""

    reserve_blocks_per_request: int = 1
    """Base blocks left free for each running request: moving shall not take what the next tokens need, and so preempt."""
    max_moved_blocks_per_step: int = 32
    """The worker gathers what it copies in a temporary of so many blocks, and the step waits for it."""
    patience_steps: int = 16
    """Steps without a block withheld or moved before a request is preempted."""


class ElasticKVPool:
    """The tail of one engine's block pool. The scheduler calls, in each step and in this order:

        pool.contract(self.running, may_move=..., preempt=...)  # top of schedule(): vLLM has allocated nothing yet
        output = super().schedule()
        pool.write_moves(output)                                # always: a move that no worker hears of corrupts
        super().update_from_output(output, ...)
        pool.step_done(output)                                  # outputs arrive in the order of their steps

    `grow` and `begin_contraction` belong between two steps. `on_move(src_block_id, dst_block_id)` lets a ledger copy what it
    knows of a block. Blocks that no running request holds (freed late, or a streaming session's that waits for input) are left
    alone until they come free.
    """

    def __init__(
        self,
        kv_cache_manager: KVCacheManager,
        borrowable_blocks: int,
        *,
        on_move: Callable[[int, int], None],
        limits: ContractionLimits = ContractionLimits(),
        runner_is_v2: bool = False,
    ) -> None:
        managers = kv_cache_manager.coordinator.single_type_managers
        if len(managers) != 1:
            raise ValueError(f"an elastic KV pool needs exactly one KV cache group, this engine has {len(managers)}")
        self._kv_cache_manager = kv_cache_manager
        self._pool = kv_cache_manager.block_pool
        self._tables: dict[str, list[KVCacheBlock]] = managers[0].req_to_blocks
        self._on_move = on_move
        self._limits = limits
        self._runner_is_v2 = runner_is_v2
        self.base_blocks: int = len(self._pool.blocks) - borrowable_blocks
        smallest = 1 + -(-kv_cache_manager.max_model_len // managers[0].block_size)
        if borrowable_blocks < 1 or self.base_blocks < smallest:
            raise ValueError(
                f"{borrowable_blocks} of {len(self._pool.blocks)} KV blocks cannot be withheld: "
                f"one request and the null block need {smallest}"
            )
        self._lent: dict[int, KVCacheBlock] = {block.block_id: block for block in self._pool.blocks[self.base_blocks :]}
        if self.borrowed_blocks_in_use:
            raise ValueError(f"{self.borrowed_blocks_in_use} of the KV blocks to withhold are in use already")
        self._withheld: dict[int, KVCacheBlock] = {}
        self._copies: dict[int, KVCacheBlockCopy] = {}
        self._moved: dict[str, Request] = {}
        self._is_contracting = False
        self._stalled_steps = 0
        self._awaited_output: SchedulerOutput | None = None
        self.relocated_blocks = 0
        self.preempted_requests = 0
        self._withhold_free()
        self._awaits_next_output = False

    @property
    def drained(self) -> bool:
        """Whether no step, scheduled or running, reads or writes the tail any more: its pages may be released."""
        return not self._lent and not self._awaits_next_output and self._awaited_output is None

    @property
    def free_share(self) -> float:
        """Share of the blocks without the tail that would be free if the tail were taken back now, 0..1."""
        free: int = self._pool.get_num_free_blocks() - len(self._lent)
        without_tail: int = self._pool.num_gpu_blocks - len(self._lent)
        return max(free, 0) / without_tail

    @property
    def borrowed_blocks_in_use(self) -> int:
        """Blocks of the tail that requests hold: what a contraction has to wait for or move."""
        return sum(block.ref_cnt > 0 for block in self._lent.values())

    def grow(self) -> int:
        """Hand out what is withheld, last in allocation order, and return how many; cancels a contraction.

        The pages must be there already. Steps in flight may still copy out of these blocks: workers run steps in order.
        """
        if self._copies:
            raise RuntimeError("grow() between contract() and write_moves(): blocks would be handed out before they were copied")
        self._is_contracting = False
        blocks = [self._withheld[block_id] for block_id in sorted(self._withheld)]
        self._withheld.clear()
        self._lent.update((block.block_id, block) for block in blocks)
        self._pool.free_block_queue.append_n(blocks)
        self._pool.num_gpu_blocks += len(blocks)
        return len(blocks)

    def begin_contraction(self) -> None:
        """Take the tail back, from the next `contract` on. Does nothing where all of it is withheld."""
        self._is_contracting = bool(self._lent)
        self._stalled_steps = 0

    def borrowers_to_move(self, running: Sequence[Request]) -> list[Request]:
        """Those whose borrowed blocks the next step of a contraction could move, if their rows could be rewritten."""
        chosen: list[Request] = []
        if not self._is_contracting:
            return chosen
        left = self._movable_blocks(running)
        for request in running:
            if left <= 0:
                break
            if borrowed := self._borrowed_by(request):
                chosen.append(request)
                left -= len(borrowed)
        return chosen

    def contract(
        self, running: Sequence[Request], *, may_move: Callable[[Request], bool], preempt: Callable[[Request], None]
    ) -> None:
        """Take one step of a contraction, if there is one.

        `running` is in order of admission, or of urgency. `may_move` tells whether a request's row can be rewritten in this step
        (under async scheduling: no output in flight). `preempt` takes a request out of `running` and frees its blocks.
        """
        if not self._is_contracting:
            return
        if self._withhold_free() + self._relocate(running, may_move):
            self._stalled_steps = 0
        else:
            self._stalled_steps += 1
        if self._lent and self._stalled_steps >= self._limits.patience_steps:
            self._stalled_steps = 0
            self._preempt_youngest(running, preempt)
            self._withhold_free()
            self._relocate(running, may_move)
        self._is_contracting = bool(self._lent)

    def write_moves(self, output: SchedulerOutput) -> list[str]:
        """Put copies and the rows of moved requests into a step's output; returns whose rows were rewritten.

        A resumed request that is still in the batch is what vLLM's runner V1 knows from forced preemption: it replaces the row. To
        runner V2 a resumed request is a new one, so there our worker replaces the row (ROWS_ATTRIBUTE, worker/v2.py). A
        moved request that this step leaves out keeps its place until a step takes it up, or it ends or is preempted: then vLLM
        sends its blocks itself, if ever. Its copies are sent all the same, into blocks that are written before they are read.
        """
        if self._copies:
            output.kv_cache_block_copies = [*(output.kv_cache_block_copies or ()), *self._copies.values()]
            self._copies.clear()
        if self._awaits_next_output:
            self._awaited_output, self._awaits_next_output = output, False
        if not self._moved:
            return []
        from vllm.v1.request import RequestStatus

        rows = output.scheduled_cached_reqs
        written_by_vllm = rows.resumed_req_ids | {row.req_id for row in output.scheduled_new_reqs}
        self._moved = {
            request_id: request
            for request_id, request in self._moved.items()
            if request.status == RequestStatus.RUNNING and request_id not in written_by_vllm
        }
        rewritten = {}
        for row, request_id in enumerate(rows.req_ids):
            request = self._moved.pop(request_id, None)
            if request is None:
                continue
            block_ids = rewritten[request_id] = self._kv_cache_manager.get_block_ids(request_id)
            if self._runner_is_v2:
                rows.new_block_ids[row] = None
            else:
                rows.resumed_req_ids.add(request_id)
                rows.new_block_ids[row] = block_ids
                rows.all_token_ids[request_id] = request.all_token_ids.copy()
        if rewritten and self._runner_is_v2:
            setattr(output, ROWS_ATTRIBUTE, rewritten)
        return list(rewritten)

    def step_done(self, output: SchedulerOutput) -> None:
        """The engine has this step's output, and with it the end of every earlier step."""
        if output is self._awaited_output:
            self._awaited_output = None

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is in exactly one place and all counts agree (INV-9)."""
        blocks, null_id = self._pool.blocks, self._pool.null_block.block_id
        free = self._free_ids()
        used = {block.block_id for block in blocks if block.ref_cnt > 0 and block.block_id != null_id}
        holders = Counter(block.block_id for table in self._tables.values() for block in table if not block.is_null)
        withheld = set(self._withheld)
        _demand("blocks are neither free, used nor withheld", {*range(len(blocks))} - free - used - withheld - {null_id})
        _demand("blocks are free and used", free & used)
        _demand("withheld blocks are free", withheld & free)
        _demand("withheld blocks are used", withheld & (used | set(holders)))
        _demand("withheld blocks are in the prefix cache", {i for i in withheld if blocks[i].block_hash is not None})
        _demand("blocks have more holders than references", {i for i, count in holders.items() if count > blocks[i].ref_cnt})
        _demand("tail blocks are neither lent nor withheld", {*range(self.base_blocks, len(blocks))} ^ withheld ^ set(self._lent))
        if self._pool.num_gpu_blocks != len(blocks) - len(withheld):
            raise AssertionError(
                f"vLLM counts {self._pool.num_gpu_blocks} blocks, {len(blocks)} less {len(withheld)} withheld remain"
            )

    def _withhold_free(self) -> int:
        free = [block for block in self._lent.values() if block.ref_cnt == 0]
        for block in free:
            self._pool.free_block_queue.remove(block)
            self._withhold(block)
        return len(free)

    def _withhold(self, block: KVCacheBlock) -> None:
        self._pool._maybe_evict_cached_block(block)
        self._pool.num_gpu_blocks -= 1
        self._withheld[block.block_id] = self._lent.pop(block.block_id)
        self._awaits_next_output = True

    def _relocate(self, running: Sequence[Request], may_move: Callable[[Request], bool]) -> int:
        """Move lent blocks, the oldest request's first, and return how many.

        A block moves only when every reference to it is a place that can be rewritten, so shared blocks move with all their holders
        or wait. Free lent blocks were withheld before, so what the pool hands out here is a base block.
        """
        budget = self._movable_blocks(running)
        if budget <= 0 or not self._lent:
            return 0
        places: dict[int, list[tuple[Request, int]]] = {}
        for request in filter(may_move, running):
            for index, block in self._borrowed_by(request):
                places.setdefault(block.block_id, []).append((request, index))
        movable = [block_id for block_id, held in places.items() if len(held) == self._lent[block_id].ref_cnt][:budget]
        for block_id in movable:
            self._move(self._lent[block_id], places[block_id])
        return len(movable)

    def _movable_blocks(self, running: Sequence[Request]) -> int:
        reserve = self._limits.reserve_blocks_per_request * len(running)
        free: int = self._pool.get_num_free_blocks()
        return min(free - reserve, self._limits.max_moved_blocks_per_step)

    def _move(self, source: KVCacheBlock, places: Sequence[tuple[Request, int]]) -> None:
        from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy

        (target,) = self._pool.get_new_blocks(1)
        assert target.block_id < self.base_blocks, f"block {target.block_id} of the tail was free during a contraction"
        self._pool.move_block_hashes(source, target)
        for request, index in places:
            self._tables[request.request_id][index] = target
            self._moved[request.request_id] = request
        source.ref_cnt, target.ref_cnt = 0, source.ref_cnt
        self._withhold(source)
        self._copies[target.block_id] = KVCacheBlockCopy(source.block_id, target.block_id)
        self.relocated_blocks += 1
        self._on_move(source.block_id, target.block_id)

    def _preempt_youngest(self, running: Sequence[Request], preempt: Callable[[Request], None]) -> None:
        """Preempt the last borrower. Its blocks leave the prefix cache first, or it would come back to those it shares.

        Nobody is preempted while somebody who does not run holds borrowed blocks as well: it would be in vain.
        """
        held = Counter(block.block_id for request in running for _, block in self._borrowed_by(request))
        if any(block.ref_cnt > held[block_id] for block_id, block in self._lent.items()):
            return
        for request in reversed(running):
            if borrowed := self._borrowed_by(request):
                for _, block in borrowed:
                    self._pool._maybe_evict_cached_block(block)
                preempt(request)
                self.preempted_requests += 1
                return

    def _borrowed_by(self, request: Request) -> list[tuple[int, KVCacheBlock]]:
        base = self.base_blocks
        table = self._tables.get(request.request_id, ())
        return [(index, block) for index, block in enumerate(table) if block.block_id >= base]

    def _free_ids(self) -> set[int]:
        ids: set[int] = set()
        queue = self._pool.free_block_queue
        block = queue.fake_free_list_head.next_free_block
        while block is not queue.fake_free_list_tail:
            _demand("blocks are twice in the free queue", {block.block_id} & ids)
            ids.add(block.block_id)
            block = block.next_free_block
        if len(ids) != queue.num_free_blocks:
            raise AssertionError(f"the free queue holds {len(ids)} blocks and counts {queue.num_free_blocks}")
        return ids


def _demand(fault: str, block_ids: set[int]) -> None:
    if block_ids:
        raise AssertionError(f"{fault}: {sorted(block_ids)}")
