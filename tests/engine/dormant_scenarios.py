"""Scenarios of a real engine whose draft model sleeps, catches up, and lends its memory: run by engine_process.py.

After each the pools and the ledger are checked, and nothing may be left in use (INV-9).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.policy.step.drafter import FIRST_HOLD_S
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import EngineCommand, Lease, OffloadRules
from tests.engine.requests import crowded_batch, greedy_batch, mixed_batch, shared_prefix_batch
from tests.engine.step_record import StepRecorder

if TYPE_CHECKING:
    from tests.engine.engine_process import EngineProcess

CHUNK_TOKENS: Final = (3, 7, 64, None)
RULES: Final = OffloadRules(free_share_below=0.6, pressure_s=0.0, reload_free_share=0.0)
OFF_AFTER_STEPS: Final = 5
BACK_AFTER_STEPS: Final = 24
WAKE_AFTER_STEPS: Final = 44
"""By then the crowded batch has preempted requests, and most of them run again."""
MOVE_PARTS: Final = 3
"""Of a move: fewer than its bytes ask for, as the batches are short."""
OPT_OUT: Final = {"num_speculative_tokens": 0}


def drafter_forwards(worker: Any) -> int:
    """Forwards of the draft on a rank so far."""
    return int(worker.nightjar_drafter.forwards)


def lose_checkpoint(worker: Any) -> None:
    """From now on nothing can be read from where the draft's weights are."""

    def loading_again() -> None:
        raise OSError("no such file")

    worker.draft_memory._loading_again = loading_again


def break_catch_up(worker: Any) -> None:
    """From now on the draft can read nothing again: no memory is left for it."""
    import torch

    def read(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    worker.nightjar_drafter._read = read


def mend_catch_up(worker: Any) -> None:
    """It can read again."""
    del worker.nightjar_drafter._read


class LendingEngine:
    """An engine of engine_process.py, and what only these scenarios look at."""

    def __init__(self, process: EngineProcess) -> None:
        self.process = process
        self.scheduler = self.process.scheduler
        self.drafting = self.scheduler.nightjar.drafting
        self.lending = self.drafting.lending
        self.lending._num_parts = MOVE_PARTS
        self.later_s = 0.0
        self.scheduler.nightjar.clock = lambda: time.monotonic() + self.later_s

    def run(
        self,
        requests: list[GenerationRequest],
        script: Callable[[int], None],
        watch: Callable[[Any], Any] = drafter_forwards,
        **options: Any,
    ) -> dict[str, Any]:
        """Outputs of the requests under `script`, and what was seen on the way; before each step `watch` asks each rank."""
        self.process.scheduler.reset_prefix_cache()
        self.process.steer("pin=4")
        states: list[str] = []
        ranks: list[list[Any]] = []
        recomputed_before, probes_before = self.drafting.recomputed_tokens, self.drafting.life.probes
        most_borrowed_blocks = 0

        def step(number: int) -> None:
            nonlocal most_borrowed_blocks
            script(number)
            self.check()
            states.append(self.drafting.life.state.value)
            ranks.append(self.process.ask_workers(watch))
            most_borrowed_blocks = max(most_borrowed_blocks, self.lending.pool.borrowed_blocks_in_use)

        with StepRecorder(self.process) as recorder:
            outputs = self.process.run(requests, step, **options)
        self.check()
        assert self.process.blocks_in_use() == 0
        return {
            "outputs": outputs,
            "states": states,
            "ranks": ranks,
            "recomputed_tokens": self.drafting.recomputed_tokens - recomputed_before,
            "probes": self.drafting.life.probes - probes_before,
            "steps": recorder.plain(),
            "most_borrowed_blocks": most_borrowed_blocks,
            "drafter": self.process.exchange(EngineCommand()).drafter.model_dump(mode="json"),
            "fault": self.scheduler.nightjar.fault,
        }

    def check(self) -> None:
        """Blocks are conserved and the ledger holds together."""
        self.lending.pool.check_integrity()
        self.drafting.ledger.check_integrity(self.scheduler.requests)

    def lease(self, mode: str) -> None:
        """Steer with every wish granted."""
        wish = self.process.exchange(EngineCommand()).restart_wish
        leases = () if wish is None else (Lease(wish_id=wish.wish_id, time_to_live_s=600.0, reload=wish.reload),)
        self.process.steer(mode, leases=leases, offload=RULES)


def lending(models: Path) -> dict[str, Any]:
    """Every scenario, one after another."""
    from tests.engine.engine_process import EngineProcess

    engine = LendingEngine(EngineProcess(models, steered=True, lends=True))
    pool = engine.lending.pool
    result: dict[str, Any] = {
        "plan": {"base_blocks": pool.base_blocks, "blocks": len(engine.scheduler.kv_cache_manager.block_pool.blocks)}
    }
    result["mixed dormant"] = engine.run(mixed_batch(), _off_from(engine, OFF_AFTER_STEPS))
    for chunk_tokens in CHUNK_TOKENS:
        result[f"mixed catch-up {chunk_tokens}"] = engine.run(mixed_batch(), off_and_on(engine, chunk_tokens))
    result["mixed catch-up breaks off"] = engine.run(mixed_batch(), _catch_up_breaks_off(engine))
    result["prefix written while dormant"] = engine.run(shared_prefix_batch(), _off_from(engine, 0))
    result["prefix read after"] = _read_prefixes(engine)
    result["greedy abort in catch-up"] = _abort_in_catch_up(engine)
    result["crowded dormant and back"] = engine.run(crowded_batch(), _asleep_until(engine, WAKE_AFTER_STEPS))
    result["mixed opt-out"] = engine.run(mixed_batch(), off_and_on(engine, None), extra_args=OPT_OUT)
    result["greedy opt-out"] = engine.run(greedy_batch(), lambda step: None, extra_args=OPT_OUT)
    result["mixed offloaded and back"] = engine.run(mixed_batch(), offload_and_back(engine))
    engine.process.ask_workers(lose_checkpoint)
    result["mixed offloaded for good"] = engine.run(mixed_batch(), offload_and_back(engine))
    return result


def _off_from(engine: LendingEngine, first_step: int) -> Callable[[int], None]:
    def script(step: int) -> None:
        if step == first_step:
            engine.process.steer("off")

    return script


def _asleep_until(engine: LendingEngine, last_step: int) -> Callable[[int], None]:
    def script(step: int) -> None:
        if step in {0, last_step}:
            engine.process.steer("pin=4" if step else "off")

    return script


def off_and_on(engine: LendingEngine, chunk_tokens: int | None) -> Callable[[int], None]:
    """Off and on again, twice."""

    def script(step: int) -> None:
        if step in {OFF_AFTER_STEPS, BACK_AFTER_STEPS}:
            engine.process.steer("off")
        elif step in {OFF_AFTER_STEPS + 6, BACK_AFTER_STEPS + 10}:
            engine.process.steer("pin=4", catch_up_chunk_tokens=chunk_tokens)

    return script


def _catch_up_breaks_off(engine: LendingEngine) -> Callable[[int], None]:
    """Off and on again with a draft that cannot read, and once more when it can."""

    def script(step: int) -> None:
        if step == OFF_AFTER_STEPS:
            engine.process.steer("off")
        elif step == OFF_AFTER_STEPS + 6:
            engine.process.ask_workers(break_catch_up)
            engine.process.steer("pin=4")
        elif step == BACK_AFTER_STEPS:
            engine.process.ask_workers(mend_catch_up)
            engine.later_s += FIRST_HOLD_S
            engine.process.steer("pin=4")

    return script


def _read_prefixes(engine: LendingEngine) -> dict[str, Any]:
    """The same prompts again, found in the cache, where the draft had not read them."""
    lags: list[int] = []

    def script(step: int) -> None:
        lags.append(engine.drafting.lag(engine.scheduler.running)[0])

    engine.process.steer("pin=4", micro_restart_tokens=0)
    outputs = engine.process.run(shared_prefix_batch(), script)
    engine.check()
    return {"outputs": outputs, "longest_lag": max(lags), "fault": engine.scheduler.nightjar.fault}


def _abort_in_catch_up(engine: LendingEngine) -> dict[str, Any]:
    """A request is aborted while the others' draft KV is being recomputed, one token a step."""
    aborted: list[str] = []

    def script(step: int) -> None:
        if step == OFF_AFTER_STEPS:
            engine.process.steer("off")
        elif step == OFF_AFTER_STEPS + 4:
            engine.process.steer("pin=4", catch_up_chunk_tokens=3)
        elif engine.drafting.life.state is DrafterState.CATCHING_UP and not aborted:
            aborted.append("greedy-7")
            engine.process.engine.abort_request(["greedy-7"])

    return engine.run(greedy_batch(), script) | {"aborted": aborted}


def offload_and_back(engine: LendingEngine) -> Callable[[int], None]:
    """Off, offloaded as soon as requests wait for blocks, and back under a lease."""

    def script(step: int) -> None:
        if step == OFF_AFTER_STEPS:
            engine.process.steer("off", offload=RULES)
        elif step >= BACK_AFTER_STEPS and engine.drafting.life.state in {DrafterState.OFFLOADED, DrafterState.DORMANT}:
            engine.lease("pin=4")

    return script
