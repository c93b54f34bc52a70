"""An engine of vLLM's own, whose core has a process of its own, as in a replica: it is asked, and nobody steers it."""

from __future__ import annotations

from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.deployments.proof.executed_steps import ExecutedStep
from nightjar.policy.wire.exchange import EngineCommand
from nightjar.policy.wire.report import EngineSnapshot


class PlainEngine(DrivenEngine):
    """`arguments` are those of vLLM's LLM. Needs VLLM_ENABLE_V1_MULTIPROCESSING=1."""

    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """It has no control channel."""
        raise NotImplementedError("nobody steers this engine")

    def steps_of_ranks(self) -> list[list[ExecutedStep]]:
        """Nothing is recorded."""
        return []

    def shutdown(self) -> None:
        """End the core and its workers."""
        self.engine.engine_core.shutdown()
