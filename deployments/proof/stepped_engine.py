"""An engine stepped by hand, with its scheduler and only worker in this process: settings arrive before a step that is known.

Needs VLLM_ENABLE_V1_MULTIPROCESSING=0. Fails with vLLM's own errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightjar.deployments.proof.drafted_slots import DraftedSlots
from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.deployments.proof.executed_steps import ExecutedStep, ExecutedSteps
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand


class SteppedEngine(DrivenEngine):
    """`arguments` are those of vLLM's LLM."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self._recorded: ExecutedSteps | None = None

    @property
    def worker(self) -> Any:
        """The only one."""
        return self.core.model_executor.driver_worker.worker

    @property
    def runner(self) -> Any:
        """The only worker's model runner."""
        return self.worker.model_runner

    def record_steps(self) -> None:
        """From now on; the engine's scheduler must be ours."""
        drafting = self.scheduler.nightjar.drafting
        self._recorded = ExecutedSteps(
            self.runner, lambda: "" if drafting is None else str(drafting.life.state.value), DraftedSlots.of(self.runner)
        )

    def pin(self, num_speculative_tokens: int) -> None:
        """Order this K from the next step on."""
        super().pin(num_speculative_tokens)
        if self._recorded is not None:
            self._recorded.pinned = num_speculative_tokens

    def steps_of_ranks(self) -> list[list[ExecutedStep]]:
        """What the only worker did since the last call."""
        assert self._recorded is not None
        taken, self._recorded.steps = self._recorded.steps, []
        return [taken]

    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Send a command through the control channel."""
        return EngineSnapshot.from_wire(self.core.nightjar_exchange(command.to_wire()))

    def is_idle(self) -> bool:
        """As in any engine, after the steps that are in flight: beside a KV connector they hold the blocks of requests that ended.

        (vLLM 0.32, Scheduler.deferred_frees)
        """
        while self.core.batch_queue:
            self.engine.step()
        return super().is_idle()

    def shutdown(self) -> None:
        """End workers in processes of their own."""
        self.engine.engine_core.shutdown()
