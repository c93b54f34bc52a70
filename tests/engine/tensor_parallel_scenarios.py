"""Scenarios of an engine of two tensor-parallel ranks, whose drafts sleep, catch up and lend their memory together.

The scheduler decides and every rank obeys; a rank that read other tokens than its twin, or moved its memory in another step, would
wait for it for ever or answer nonsense. Run by engine_process.py, on a pair of tiny models, after plain vLLM on the same ranks.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from nightjar.deployments.engine.scheduler.kv_pool import ContractionLimits
from tests.engine.dormant_scenarios import LendingEngine, off_and_on, offload_and_back
from tests.engine.requests import mixed_batch
from tests.engine.short_models import TARGET as TOKENIZER
from tests.engine.tiny_models import DRAFT, TARGET, build_tiny_models

RANKS: Final = 2
CHUNK_TOKENS: Final = 64
KV_BYTES_PER_RANK: Final = 24 << 20
"""12 blocks of 128 tokens beside the draft, and some more without it: not enough for 24 requests at once."""
IMPATIENT: Final = ContractionLimits(reserve_blocks_per_request=0, patience_steps=4)
"""Blocks are moved, and requests preempted, so early that it happens within so short a batch."""


def tensor_parallel(models: Path) -> dict[str, Any]:
    """What plain vLLM answers, and what happened in the scenarios."""
    from tests.engine.engine_process import EngineProcess

    with TemporaryDirectory() as folder:
        tiny = Path(folder)
        build_tiny_models(tiny, models / TOKENIZER)
        options: dict[str, Any] = {
            "target": TARGET,
            "draft": DRAFT,
            "max_model_len": 512,
            "tensor_parallel_size": RANKS,
            "kv_cache_memory_bytes": KV_BYTES_PER_RANK,
        }
        plain = EngineProcess(tiny, steered=False, **options)
        result: dict[str, Any] = {"reference": plain.run(mixed_batch(), logprobs=20)}
        plain.shutdown()
        engine = LendingEngine(EngineProcess(tiny, steered=True, lends=True, **options))
        pool = engine.lending.pool
        result["plan"] = {
            "base_blocks": pool.base_blocks,
            "blocks": len(engine.scheduler.kv_cache_manager.block_pool.blocks),
            "base_blocks_of_ranks": engine.process.ask_workers(_base_blocks),
        }
        pool._limits = IMPATIENT
        result["catch-up"] = engine.run(mixed_batch(), off_and_on(engine, CHUNK_TOKENS))
        result["offloaded and back"] = engine.run(mixed_batch(), offload_and_back(engine), watch=_is_offloaded)
        engine.process.shutdown()
    return result


def _base_blocks(worker: Any) -> int:
    return int(worker.base_blocks)


def _is_offloaded(worker: Any) -> bool:
    return bool(worker.draft_memory.is_offloaded)
