"""An engine whose core and ranks have processes of their own, as in a replica: what a step is told must reach every rank alike.

Nobody outside knows before which step settings arrive, only that they arrive between two. What the ranks did is recorded by the
ranks themselves (recording_worker.py). Needs VLLM_ENABLE_V1_MULTIPROCESSING=1. Fails with vLLM's own errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nightjar.deployments.engine.control import CONTROL_METHOD
from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.deployments.proof.executed_steps import ExecutedStep
from nightjar.policy.wire.exchange import EngineCommand
from nightjar.policy.wire.report import EngineSnapshot

RECORDING_WORKER: Final = "nightjar.deployments.proof.recording_worker.RecordingWorker"


class SpreadEngine(DrivenEngine):
    """`arguments` are those of vLLM's LLM; their `worker_extension_cls` is ours."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__({**arguments, "worker_extension_cls": RECORDING_WORKER})
        self._core = self.engine.engine_core
        self._core.collective_rpc("record_steps")

    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Send a command through the control channel."""
        return EngineSnapshot.from_wire(self._core.call_utility(CONTROL_METHOD, command.to_wire()))

    def steps_of_ranks(self) -> list[list[ExecutedStep]]:
        """What each rank did since the last call."""
        return [[ExecutedStep(**step) for step in steps] for steps in self._core.collective_rpc("take_steps")]

    def shutdown(self) -> None:
        """End the core and its workers."""
        self._core.shutdown()
