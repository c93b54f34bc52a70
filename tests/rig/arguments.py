"""A GPU's arguments for an engine on the rig, whose platform changes the worker (platform.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.proof.lending import LENDING_KV_BYTES
from tests.rig.environment import Runner

MAPPED_MEMORY_WORKERS: Final = {
    1: "tests.rig.worker.MappedMemoryWorker",
    2: "tests.rig.v2_worker.MappedMemoryV2Worker",
}


def on_the_rig(arguments: EngineArguments, *, runner: Runner, lending_draft: Path | None = None) -> EngineArguments:
    """With the folder of a draft that lends its memory: few KV blocks, on pages of the process."""
    kwargs = dict(arguments.kwargs)
    if lending_draft is not None:
        draft_bytes = draft_weight_bytes(lending_draft, bytes_per_value=4, tensor_parallel_size=1)
        del kwargs["num_gpu_blocks_override"]
        kwargs |= {
            "worker_cls": MAPPED_MEMORY_WORKERS[runner],
            "additional_config": OffloadConfig(draft_bytes).to_additional_config(None),
            "kv_cache_memory_bytes": LENDING_KV_BYTES,
        }
    return replace(arguments, kwargs=kwargs)
