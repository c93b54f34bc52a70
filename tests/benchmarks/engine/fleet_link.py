"""The product's policy in lockstep with one engine: real snapshots go up, real settings come down, nobody else is there.

Runs the controller as the actor does, on the real clock, between two steps of the engine, so that deciding takes no step time. The
engine's time between two exchanges is the agent's period. Settings are handed over when their content changes and confirmed
otherwise, as in production.
"""

from __future__ import annotations

import time
from typing import Final

from nightjar.deployments.proof.lone_policy import LonePolicy
from nightjar.policy.step.drafter import UNLIMITED
from nightjar.policy.step.steering import ks_by_batch
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import EngineCommand, Settings, Table
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.fixture import COST, DTYPE, MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS
from tests.benchmarks.engine.step_record import Step

GROUP: Final = GroupKey(
    target=f"smollm2-135m-x{COST}",
    draft="smollm2-noised",
    drafter_kind="draft_model",
    accelerator="cpu",
    dtype=DTYPE,
    max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
    max_num_seqs=MAX_NUM_SEQS,
    engine_version="vllm-0.32",
)


class FleetLink:
    """One engine under the fleet planner. With `free_restarts` the engine needs no permission to restart."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.free_restarts = False
        self._engine = engine
        self._policy = LonePolicy(GROUP, seed)
        self._decided: Settings | None = None
        self._in_force: Settings | None = None
        self._since_s = 0.0

    def report(self) -> None:
        """Let the policy see what the engine counted, whoever steers it, and decide."""
        self._decided = self._policy.decide(self._engine.exchange(EngineCommand()), time.monotonic())

    def take_over(self) -> None:
        """From now on the engine runs what the policy says."""
        self.report()
        self._in_force = None
        self._hand_over()

    def after(self, step: Step) -> None:
        """Exchange if the period is over; call after each step of an engine that the policy steers."""
        if self._is_due(step):
            self.report()
            self._hand_over()

    def beside(self, step: Step) -> None:
        """Report if the period is over; call after each step of an engine that is steered otherwise.

        Every arm is then disturbed alike: deciding takes no step's time, but the core in between, and what its caches hold.
        """
        if self._is_due(step):
            self.report()

    def planned(self, batch: int) -> int:
        """K that the plan runs at a batch."""
        assert self._decided is not None
        assert isinstance(self._decided.plan, Table)
        return ks_by_batch(self._decided.plan, MAX_NUM_SEQS)[batch]

    def _is_due(self, step: Step) -> bool:
        self._since_s += step.seconds
        if self._since_s < self._policy.exchange_period_s:
            return False
        self._since_s = 0.0
        return True

    def _hand_over(self) -> None:
        assert self._decided is not None
        wanted = self._decided.without_causes()
        if self.free_restarts:
            free = wanted.restarts.model_copy(update={"micro_restart_tokens": UNLIMITED})
            wanted = wanted.model_copy(update={"restarts": free})
        if wanted == self._in_force:
            self._engine.confirm()
        else:
            self._engine.adopt(wanted)
            self._in_force = wanted
