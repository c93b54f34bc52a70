"""Runs one real engine in this process, drives it through the scenarios of a role, and writes what happened as JSON.

`python -m tests.engine.engine_process ROLE OUTPUT`, with ROLE `reference` (plain vLLM), `steered` (Nightjar's classes), `lending`
(the same, with few KV blocks and a draft whose memory may be lent: dormant_scenarios.py), or that of another module of scenarios.
Tests start it as a process of its own, because libiomp5.so must be preloaded and an engine leaves global state behind.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes
from nightjar.deployments.models import build_models, models_folder
from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand, ExplorationSegment, IssuedSettings, Settings, SettingsVersion
from nightjar.policy.words import in_words
from tests.engine.requests import crowded_batch, greedy_batch, mixed_batch, seeded_batch, shared_prefix_batch
from tests.engine.short_models import DRAFT, TARGET, build_short_models

MAX_NUM_SPECULATIVE_TOKENS: Final = 4
MAX_NUM_SEQS: Final = 32
TOGGLED: Final = ("off", "pin=4", "pin=1", "auto", "pin=2", "off", "pin=3")
TOGGLE_EVERY_STEPS: Final = 3
LENDING_KV_BYTES: Final = 44 << 20
"""13 blocks of 128 tokens beside the draft: not enough for 24 requests at once."""
TABLE: Final = ((1, 4, 4), (5, 12, 2), (13, 24, 0))
SEGMENT_CLEAN_STEPS: Final = 2


class EngineProcess(SteppedEngine):
    """An engine stepped by hand with the usual models. `options` are vLLM's own."""

    def __init__(
        self, models: Path, *, steered: bool, lends: bool = False, target: str = TARGET, draft: str = DRAFT, **options: Any
    ) -> None:
        options = {"max_model_len": 1024, "enable_prefix_caching": steered} | options
        if lends:
            ranks = options.get("tensor_parallel_size", 1)
            draft_bytes = draft_weight_bytes(models / draft, bytes_per_value=4, tensor_parallel_size=ranks)
            options["additional_config"] = OffloadConfig(draft_bytes).to_additional_config({})
            options.setdefault("kv_cache_memory_bytes", LENDING_KV_BYTES)
        if steered:
            options |= {
                "speculative_config": {
                    "method": "draft_model",
                    "model": str(models / draft),
                    "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS,
                    "num_speculative_tokens_per_batch_size": [[1, MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS]],
                },
                "scheduler_cls": "nightjar.deployments.engine.scheduler.steered.SteeredScheduler",
                "worker_cls": "nightjar.deployments.engine.worker.cpu.SteeredCPUWorker",
            }
        super().__init__(
            {
                "model": str(models / target),
                "dtype": "float32",
                "max_num_seqs": MAX_NUM_SEQS,
                "max_num_batched_tokens": 512,
                "enforce_eager": True,
                "disable_log_stats": False,
                "max_logprobs": 20,
                **options,
            }
        )

    def exchange_plain(self) -> dict[str, Any]:
        """The engine's snapshot as plain data."""
        return self.exchange(EngineCommand()).model_dump(mode="json")

    def settings(self, mode: str, table: Sequence[tuple[int, int, int]] | None = TABLE, **options: Any) -> Settings:
        """As SteppedEngine's, with TABLE where nobody says."""
        return super().settings(mode, table, **options)

    def toggle(self, step: int) -> None:
        if step % TOGGLE_EVERY_STEPS == 0:
            self.steer(TOGGLED[step // TOGGLE_EVERY_STEPS % len(TOGGLED)])

    def blocks_in_use(self) -> int:
        """KV blocks that requests hold."""
        return sum(block.ref_cnt > 0 and not block.is_null for block in self.scheduler.kv_cache_manager.block_pool.blocks)

    def ask_workers(self, question: Callable[[Any], Any]) -> list[Any]:
        """The answer of each rank's worker."""
        answers: list[Any] = self.core.model_executor.collective_rpc(question)
        return answers


class SpecDecodingObserver:
    """Sums vLLM's own statistics of speculation and Nightjar's counts of the same steps, position by position."""

    def __init__(self, loop: Any) -> None:
        from vllm.v1.spec_decode.metrics import SpecDecodingStats

        self.vllm = [[0] * MAX_NUM_SPECULATIVE_TOKENS for _ in range(2)]
        self.nightjar = [[0] * MAX_NUM_SPECULATIVE_TOKENS for _ in range(2)]
        observe, verified = SpecDecodingStats.observe_draft, loop.verified

        def observed(stats: Any, num_draft_tokens: int, num_accepted_tokens: int) -> None:
            for sums, tokens in zip(self.vllm, (num_draft_tokens, num_accepted_tokens), strict=True):
                for position in range(tokens):
                    sums[position] += 1
            observe(stats, num_draft_tokens=num_draft_tokens, num_accepted_tokens=num_accepted_tokens)

        def counted(*arguments: Any) -> Any:
            found = verified(*arguments)
            for sums, rows in zip(self.nightjar, (found.reached, found.accepted), strict=True):
                for position, count in enumerate(rows):
                    sums[position] += count
            return found

        SpecDecodingStats.observe_draft = observed
        loop.verified = counted


def reference(models: Path) -> dict[str, Any]:
    """Plain vLLM's outputs, with the logprobs that tell near ties."""
    engine = EngineProcess(models, steered=False)
    return {
        "mixed": engine.run(mixed_batch(), logprobs=20),
        "greedy": engine.run(greedy_batch(), logprobs=20),
        "prefix": engine.run(shared_prefix_batch(), logprobs=20),
        "crowded": engine.run(crowded_batch(), logprobs=20),
        "seeded": engine.run(seeded_batch()),
        "foreign_scheduler": _exchange_with_a_foreign_scheduler(engine),
    }


def steered(models: Path) -> dict[str, Any]:
    """Every scenario of the steered engine, one after another."""
    engine = EngineProcess(models, steered=True)
    observer = SpecDecodingObserver(engine.scheduler.nightjar)
    result: dict[str, Any] = {"before_settings": engine.exchange_plain()}
    for mode in ("off", "pin=3"):
        engine.steer(mode)
        result[f"mixed {mode}"] = engine.run(mixed_batch())
        result[f"snapshot {mode}"] = engine.exchange_plain()
    result["mixed toggled"] = engine.run(mixed_batch(), engine.toggle)
    result["mixed table"] = _table_with_a_segment(engine, result)
    engine.steer("pin=4")
    result["greedy pin=4"] = engine.run(greedy_batch())
    result["greedy toggled"] = engine.run(greedy_batch(), engine.toggle)
    for name in ("prefix toggled", "prefix cached toggled"):
        result[name] = engine.run(shared_prefix_batch(), engine.toggle)
    for name, mode in (("seeded pin=4", "pin=4"), ("seeded pin=4 again", "pin=4"), ("seeded off", "off")):
        engine.steer(mode)
        result[name] = engine.run(seeded_batch())
    result["seeded toggled"] = engine.run(seeded_batch(), engine.toggle)
    result["abort"] = _abort(engine)
    result["local_mode"] = _local_mode(engine)
    result["stale"] = engine.exchange(
        EngineCommand(issued=IssuedSettings(version=SettingsVersion(incarnation=0, sequence=9), settings=engine.settings("pin=1")))
    ).model_dump(mode="json")
    result["garbage"] = EngineSnapshot.from_wire(engine.core.nightjar_exchange(b"\xc1")).model_dump(mode="json")
    result["vllm_counts"], result["nightjar_counts"] = observer.vllm, observer.nightjar
    result["end"] = engine.exchange_plain()
    return result


def _table_with_a_segment(engine: EngineProcess, result: dict[str, Any]) -> dict[str, Any]:
    """Run with the table, and with a measurement of K=3 at batches that the table would leave off; note each step's K."""
    segment = ExplorationSegment(
        segment_id=7,
        first_batch_size=13,
        last_batch_size=24,
        num_speculative_tokens=3,
        clean_steps=SEGMENT_CLEAN_STEPS,
        time_to_live_s=600,
    )
    engine.steer("auto", segments=(segment,))
    loads: list[dict[str, Any]] = []

    def note(step: int) -> None:
        loads.append(engine.exchange_plain())

    outputs = engine.run(mixed_batch(), note)
    result["table steps"] = loads[1:]
    return outputs


def _abort(engine: EngineProcess) -> dict[str, int]:
    before = engine.blocks_in_use()
    request = GenerationRequest("aborted", greedy_batch()[0].prompt, {"temperature": 0.0, "max_tokens": 500, "ignore_eos": True})
    engine.steer("pin=4")
    engine.add(request)
    for _ in range(4):
        engine.engine.step()
    during = engine.blocks_in_use()
    engine.engine.abort_request(["aborted"])
    pool = engine.scheduler.kv_cache_manager.block_pool
    return {
        "before": before,
        "during": during,
        "after": engine.blocks_in_use(),
        "free": pool.get_num_free_blocks(),
        "total": len(pool.blocks) - 1,  # vLLM keeps one block as null
    }


def _local_mode(engine: EngineProcess) -> list[str]:
    """The decision with the replica's kill switch set, kept by a later command, and taken back."""
    reasons = []
    for local_mode in ("off", "off", None):
        engine.exchange(EngineCommand(local_mode=Mode.parse(local_mode) if local_mode else None))
        engine.run(greedy_batch()[:1])
        snapshot = engine.exchange(EngineCommand(local_mode=Mode.parse(local_mode) if local_mode else None))
        reasons.append(f"K={snapshot.load.num_speculative_tokens}: {in_words(snapshot.causes)}")
    return reasons


def _exchange_with_a_foreign_scheduler(engine: EngineProcess) -> str:
    import nightjar.deployments.engine.scheduler.steered  # noqa: F401 - its import adds the method

    return engine.exchange(EngineCommand()).refused


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    role, output_file = sys.argv[1:]
    build_models(models_folder())
    build_short_models(models_folder())
    from tests.engine.dormant_scenarios import lending
    from tests.engine.length_limit_scenarios import length_limit, length_limit_reference
    from tests.engine.probe_scenarios import probe
    from tests.engine.stock_table_scenarios import with_table
    from tests.engine.tensor_parallel_scenarios import tensor_parallel

    roles = (reference, steered, lending, tensor_parallel, length_limit_reference, length_limit, probe, with_table)
    outcome = {run_role.__name__: run_role for run_role in roles}[role](models_folder())
    Path(output_file).write_text(json.dumps(outcome))
