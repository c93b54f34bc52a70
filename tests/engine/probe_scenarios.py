"""Scenarios of a restart that fails in silence: the drafter says that it caught up, and what it drafts is nonsense.

Nothing but acceptance can tell. The damage is done on the worker, where a fault of a driver, a kernel or our own would be: the sign
of the draft's last norm turns, so that its likeliest token is the least likely one. Time is made up: each step takes STEP_SECONDS,
and waits are skipped. Run by engine_process.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.policy.step.drafter import FIRST_HOLD_S
from tests.engine.requests import greedy_batch

BATCH: Final = greedy_batch()
HELD_BATCH: Final = BATCH[:1]
STEP_SECONDS: Final = 0.1
RESTART_AFTER_STEPS: Final = 6
"""Prompts and so many tokens are what the drafter has missed by then."""


def probe(models: Path) -> dict[str, Any]:
    """A drafter that works, fails twice, waits, is mended and works again."""
    engine = ProbedEngine(models)
    result: dict[str, Any] = {"works": engine.run("pin=4")}
    engine.process.ask_workers(_turn_sign)
    result["fails"] = engine.run("off")
    result["held"] = engine.run("off", HELD_BATCH)
    engine.now_s += FIRST_HOLD_S
    result["fails again"] = engine.run("off")
    engine.now_s += FIRST_HOLD_S
    result["held for longer"] = engine.run("off", HELD_BATCH)
    engine.process.ask_workers(_turn_sign)
    engine.now_s += FIRST_HOLD_S
    result["mended"] = engine.run("off")
    return result


class ProbedEngine:
    """An engine of engine_process.py with a clock of its own."""

    def __init__(self, models: Path) -> None:
        from tests.engine.engine_process import EngineProcess

        self.process = EngineProcess(models, steered=True, max_model_len=256, kv_cache_memory_bytes=160 << 20)
        self.now_s = 0.0
        self.process.scheduler.nightjar.clock = lambda: self.now_s

    def run(self, first_mode: str, requests: Sequence[GenerationRequest] = BATCH) -> dict[str, Any]:
        """A batch that begins under `first_mode` and goes on with drafts wanted; what was seen before each step and at the end."""
        engine = self.process
        loop = engine.scheduler.nightjar
        engine.scheduler.reset_prefix_cache()
        engine.steer(first_mode)
        steps: list[tuple[str, str]] = []

        def script(step: int) -> None:
            self.now_s += STEP_SECONDS
            if step == RESTART_AFTER_STEPS:
                engine.steer("pin=4")
            snapshot = engine.exchange_plain()
            steps.append((snapshot["drafter_state"], snapshot["drafter"]["reason"]))

        outputs = engine.run(requests, script)
        return {"outputs": outputs, "steps": steps, "end": engine.exchange_plain(), "restarts": loop.drafting.life.restarts}


def _turn_sign(worker: Any) -> None:
    """Break the draft, or mend it again, bit for bit."""
    worker.nightjar_drafter.model.model.norm.weight.data.neg_()
