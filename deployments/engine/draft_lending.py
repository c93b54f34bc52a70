"""The draft's memory, lent to requests while it sleeps: the scheduler's side of offload, growth, contraction and reload.

Carries out what the drafter's life orders (policy.engine.drafter): the worker moves weights and pages before the step that brings
the order (draft_work.py), and the pool hands out or takes back blocks (kv_pool.py) once that is safe. Blocks are handed out when
the step that released the draft's memory has come back, and the draft's memory is asked back when no step can touch the lent
blocks any more. An error in here may leave rows that read strangers' blocks, so none is swallowed: it ends the engine, and Serve
replaces the replica.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nightjar.deployments.engine.draft_work import MEMORY_ATTRIBUTE, MemoryMove
from nightjar.deployments.engine.kv_pool import ElasticKVPool
from nightjar.deployments.engine.lag_ledger import LagLedger
from nightjar.policy.engine.drafter import DrafterLife, MemoryOrder


class DraftLending:
    """One engine's lending. `draft_weight_bytes` is what one move of the weights moves."""

    def __init__(self, life: DrafterLife, ledger: LagLedger, pool: ElasticKVPool, draft_weight_bytes: int) -> None:
        self.pool = pool
        self.offloads = 0
        self.reloads = 0
        self.moving_seconds = 0.0
        self._life = life
        self._ledger = ledger
        self._draft_weight_bytes = draft_weight_bytes
        self._move = MemoryMove.NONE
        self._moving: tuple[Any, MemoryMove, float] | None = None
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
            self._move = MemoryMove.OFFLOAD
        elif order is MemoryOrder.RELOAD:
            self._move = MemoryMove.RELOAD
        elif order is MemoryOrder.CONTRACT:
            self.pool.begin_contraction()
        elif order is MemoryOrder.KEEP_OFFLOADED:
            self.pool.grow()
        self.pool.contract(running, may_move=may_move, preempt=preempt)
        if self.pool.drained:
            self._life.contracted(now_s)

    def after_schedule(self, scheduler_output: Any, *, num_waiting: int, now_s: float) -> None:
        """Put what was moved, and the order to move weights, on the step that vLLM has just scheduled; note who still waits."""
        self._left_free_share, self._left_waiting = self.pool.free_share, num_waiting
        self.pool.write_moves(scheduler_output)
        if self._move is not MemoryMove.NONE:
            setattr(scheduler_output, MEMORY_ATTRIBUTE, self._move)
            self._moving = scheduler_output, self._move, now_s
            self._move = MemoryMove.NONE
            self._ledger.forget()

    def step_done(self, scheduler_output: Any, now_s: float, reload_failure: str = "") -> None:
        """The engine has this step's output; `reload_failure` says why a reload that came with it broke off."""
        self.pool.step_done(scheduler_output)
        if self._moving is None or self._moving[0] is not scheduler_output:
            return
        _, move, began_s = self._moving
        self._moving = None
        self.moving_seconds += now_s - began_s
        if reload_failure:
            self._life.reload_failed(reload_failure, now_s)
            self.pool.grow()
            return
        self._life.transfer_done(now_s)
        if move is MemoryMove.OFFLOAD:
            self.offloads += 1
            self.pool.grow()
        else:
            self.reloads += 1
