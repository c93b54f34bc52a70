"""Makes a worker in a process of its own record what it did.

As vLLM's `worker_extension_cls`: the methods join the worker's class.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nightjar.deployments.proof.drafted_slots import DraftedSlots
from nightjar.deployments.proof.executed_steps import ExecutedSteps


class RecordingWorker:
    """Called by name, on every rank (vLLM's `collective_rpc`)."""

    model_runner: Any
    nightjar_steps: ExecutedSteps

    def record_steps(self) -> None:
        """From now on."""
        self.nightjar_steps = ExecutedSteps(self.model_runner, slots=DraftedSlots.of(self.model_runner))

    def take_steps(self) -> list[dict[str, Any]]:
        """What was recorded since the last call."""
        taken = [asdict(step) for step in self.nightjar_steps.steps]
        self.nightjar_steps.steps.clear()
        return taken
