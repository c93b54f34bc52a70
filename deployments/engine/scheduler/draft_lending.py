"""The draft's memory, lent to requests while it sleeps: the scheduler's side of offload, growth, contraction and reload.

Carries out what the drafter's life orders (policy.step.drafter): the worker moves weights and pages in parts, each before the
step that brings its order (draft_work.py), and the pool hands out or takes back blocks (kv_pool.py) once that is safe. Blocks are
handed out when the step of a move's last part has come back, and the draft's memory is asked back when no step can touch the lent
blocks any more. An engine without requests takes no step: a move goes on with the next ones. An error in here may leave rows that
read other requests' blocks, so none is swallowed: it ends the engine, and Serve replaces the replica.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nightjar.deployments.engine.memory.interface import parts_of
from nightjar.deployments.engine.scheduler.kv_pool import ElasticKVPool
from nightjar.deployments.engine.scheduler.lag_ledger import LagLedger
from nightjar.deployments.engine.worker.draft_work import MEMORY_ATTRIBUTE, MemoryMove, MemoryWork
from nightjar.policy.step.drafter import DrafterLife, MemoryOrder


class DraftLending:
    """One engine's lending. A move moves `moved_bytes` of each rank's memory, of which `draft_weight_bytes` are weights."""

    def __init__(
        self, life: DrafterLife, ledger: LagLedger, pool: ElasticKVPool, draft_weight_bytes: int, moved_bytes: int
    ) -> None:
        self.pool = pool
        self.offloads = 0
        self.reloads = 0
        self.moving_seconds = 0.0
        self._life = life
        self._ledger = ledger
        self._draft_weight_bytes = draft_weight_bytes
        self._num_parts = parts_of(moved_bytes)
        self._to_order: deque[MemoryWork] = deque()
        self._ordered: deque[tuple[Any, MemoryWork, float]] = deque()
        """Parts under way: the step's SchedulerOutput, what it brought and when it was scheduled."""
        self._move_seconds = self._last_part_s = 0.0
        self._left_free_share = 1.0
        self._left_waiting = 0

    @property
    def moved_bytes(self) -> int:
        """Bytes of weights moved so far, in either direction."""
        return self._draft_weight_bytes * (self.offloads + self.reloads)

    def before_schedule(
        self,
        running: Sequence[Any],
        *,
        may_move: Callable[[Any], bool],
        preempt: Callable[[Any], None],
        now_s: float,
    ) -> None:
        """Take the next step of whatever goes on, before vLLM allocates anything. Arguments as in ElasticKVPool.contract.

        Memory is as short as the last step left it: blocks that finished requests have just given back are not free while
        requests wait for them.
        """
        order = self._life.memory_step(self._left_free_share, self._left_waiting, now_s)
        if order is MemoryOrder.OFFLOAD:
            self._begin(MemoryMove.OFFLOAD, now_s)
        elif order is MemoryOrder.RELOAD:
            self._begin(MemoryMove.RELOAD, now_s)
        elif order is MemoryOrder.CONTRACT:
            self.pool.begin_contraction()
        elif order is MemoryOrder.KEEP_OFFLOADED:
            self.pool.grow()
        self.pool.contract(running, may_move=may_move, preempt=preempt)
        if self.pool.drained:
            self._life.contracted(now_s)

    def after_schedule(self, scheduler_output: Any, *, num_waiting: int, now_s: float) -> None:
        """Put what was moved, and the next part of a move, on the step that vLLM has just scheduled; note who still waits."""
        self._left_free_share, self._left_waiting = self.pool.free_share, num_waiting
        self.pool.write_moves(scheduler_output)
        if self._to_order:
            work = self._to_order.popleft()
            setattr(scheduler_output, MEMORY_ATTRIBUTE, work)
            self._ordered.append((scheduler_output, work, now_s))
            if not work.share:
                self._ledger.forget()

    def step_done(self, scheduler_output: Any, now_s: float, reload_failure: str = "") -> None:
        """The engine has this step's output; `reload_failure` says why a reload broke off in it."""
        self.pool.step_done(scheduler_output)
        if not self._ordered or self._ordered[0][0] is not scheduler_output:
            return
        _, work, scheduled_s = self._ordered.popleft()
        # Steps overlap under asynchronous scheduling, and an engine without requests takes none.
        seconds = now_s - max(scheduled_s, self._last_part_s)
        self._last_part_s = now_s
        self._move_seconds += seconds
        self.moving_seconds += seconds
        if reload_failure:
            self._to_order.clear()
            self._ordered.clear()
            self._life.reload_failed(reload_failure, now_s)
            self.pool.grow()
        elif work.share >= 1.0:
            self._end(work.move, now_s)

    def _begin(self, move: MemoryMove, now_s: float) -> None:
        self._to_order.extend(MemoryWork(move, part / self._num_parts) for part in range(self._num_parts + 1))
        self._move_seconds, self._last_part_s = 0.0, now_s

    def _end(self, move: MemoryMove, now_s: float) -> None:
        self._life.transfer_done(now_s, self._move_seconds)
        if move is MemoryMove.OFFLOAD:
            self.offloads += 1
            self.pool.grow()
        else:
            self.reloads += 1
