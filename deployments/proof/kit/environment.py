"""The environment of a process with an engine of the kit: a GPU's as a replica would have it, or a rehearsal's."""

from __future__ import annotations

from pathlib import Path

from nightjar.deployments.engine.environment import REPLICA_VARIABLE
from nightjar.deployments.engine.process_guard import own_token
from nightjar.deployments.engine.start.dormancy import CUDA_OFFLOAD_VARIABLE
from nightjar.deployments.engine.start.resolved_facts import RUNNER_VARIABLE
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import EngineSpec, rehearsal_of


def engine_environment(spec: EngineSpec | None, chosen: Chosen, folder: Path, *, in_one_process: bool = True) -> dict[str, str]:
    """Variables beside this process's own; `folder` takes a rehearsal's files. Without `spec` the process has no engine."""
    common = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_one_process else "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        REPLICA_VARIABLE: own_token(),  # whoever started it: without that process it ends, and what it started, too
    }
    if spec is None:
        return common
    if chosen.on_rig:
        return common | rehearsal_of(chosen).environment(spec, folder / "rig", in_one_process=in_one_process)
    offload = {CUDA_OFFLOAD_VARIABLE: "1" if spec.room == "lends" else "0"}
    # Stock V2 drafts its maximum for a separate draft model, whatever its table says.
    runner = {RUNNER_VARIABLE: "0"} if spec.stock and spec.table and spec.drafter == "draft" else {}
    return common | offload | runner
