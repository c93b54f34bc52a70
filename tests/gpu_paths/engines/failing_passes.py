"""One engine of the rig whose optional passes raise from some step on: it must answer as before, and say what broke off.

`python -m tests.gpu_paths.engines.failing_passes COMBINATION MODELS OUTPUT`, in the rig's environment. Requests run through K at
its maximum, 0 and the maximum again, once as the engine is and once more with a pass that finds no memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nightjar.deployments.proof.outcome import end_with
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.tiny_models import ATTENTIVE, build_tiny_models
from nightjar.policy.wire.settings import EngineCommand
from tests.gpu_paths.engines.combinations import Combination, engine_arguments
from tests.gpu_paths.engines.off_process import off_stretch


def break_passes(worker: Any) -> None:
    """From now on there is no memory for a catch-up, or for a head's pass for its KV alone."""

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    head = getattr(worker, "nightjar_head", None)
    if head is None:
        worker.nightjar_drafter._read = fails
    else:
        head._write = fails


def run(combination: Combination, models: Path) -> dict[str, Any]:
    """What happened, as plain data."""
    engine = SteppedEngine(engine_arguments(combination, build_tiny_models(models.with_name("models-attentive"), ATTENTIVE)).kwargs)
    engine.record_steps()
    outcome: dict[str, Any] = {"whole": off_stretch(engine)}
    engine.steps_of_ranks()
    assert engine.engine.reset_prefix_cache()
    break_passes(engine.worker)
    outcome["broken"] = off_stretch(engine)
    snapshot = engine.exchange(EngineCommand())
    (steps,) = engine.steps_of_ranks()
    return outcome | {
        "steps": [[step.num_speculative_tokens, step.forwards, step.kv_writes, step.catches_up] for step in steps],
        "reason": snapshot.drafter.reason,
        "state": snapshot.drafter_state.value,
        "fault": snapshot.fault,
    }


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    name, models, output = arguments
    end_with(run(Combination.named(name), Path(models)), Path(output))


if __name__ == "__main__":
    main(sys.argv[1:])
