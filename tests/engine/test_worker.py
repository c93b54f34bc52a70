"""The draft's memory in a worker, where a reload breaks off; and what a GPU's worker must not import."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.engine import steered_worker
from nightjar.deployments.engine.draft_work import RELOAD_FAILURE_ATTRIBUTE, MemoryMove
from nightjar.deployments.engine.offload_config import OffloadConfig
from nightjar.deployments.engine.worker import SteeredGPUWorker


class BrokenMemory:
    """A draft's memory that cannot be brought back; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def release_kv(self, *blocks: Any) -> None:
        self.asked.append(("release", *blocks))

    def restore_kv(self, *blocks: Any) -> None:
        self.asked.append(("restore", *blocks))

    def reload(self) -> None:
        raise OSError("no such file")


def worker_of(memory: BrokenMemory, *, ranks: int = 1, async_scheduling: bool = False) -> Any:
    """A worker whose draft is away; of 16 blocks it lends the last 6."""
    worker: Any = object.__new__(SteeredGPUWorker)
    worker.draft_memory = memory
    worker.base_blocks, worker.num_blocks = 10, 16
    worker.all_views, worker.model_runner = ["target", "draft"], SimpleNamespace(kv_caches=["target"])
    worker.reload_failure = ""
    worker.vllm_config = SimpleNamespace(
        parallel_config=SimpleNamespace(world_size=ranks), scheduler_config=SimpleNamespace(async_scheduling=async_scheduling)
    )
    return worker


def test_a_reload_that_breaks_off_lends_the_memory_again_and_tells_the_scheduler_with_the_steps_output() -> None:
    memory = BrokenMemory()
    worker = worker_of(memory)
    worker.move_draft(MemoryMove.RELOAD)
    assert memory.asked == [
        ("release", 10, 16, "target"),
        ("restore", 0, 10, "draft"),
        ("release", 0, 10, "draft"),
        ("restore", 10, 16, "target"),
    ]
    assert worker.model_runner.kv_caches == ["target"]
    assert worker.with_reload_failure(None) is None
    output = worker.with_reload_failure(EMPTY_MODEL_RUNNER_OUTPUT)
    assert getattr(output, RELOAD_FAILURE_ATTRIBUTE) == "OSError: no such file"
    assert worker.with_reload_failure(EMPTY_MODEL_RUNNER_OUTPUT) is EMPTY_MODEL_RUNNER_OUTPUT
    assert not hasattr(EMPTY_MODEL_RUNNER_OUTPUT, RELOAD_FAILURE_ATTRIBUTE)


@pytest.mark.parametrize("engine", [{"ranks": 2}, {"async_scheduling": True}])
def test_it_ends_the_engine_where_the_scheduler_would_hear_of_it_too_late(engine: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="no such file"):
        worker_of(BrokenMemory(), **engine).move_draft(MemoryMove.RELOAD)


@pytest.mark.parametrize(
    ("kind", "options", "lends"), [(FullAttentionSpec, {}, True), (SlidingWindowSpec, {"sliding_window": 64}, False)]
)
def test_a_worker_plans_lent_blocks_only_where_the_scheduler_keeps_a_ledger_of_them(
    kind: Any, options: dict[str, Any], lends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = kind(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float32, **options)
    specs = {"model.layer": spec, "draft_model.layer": spec}
    worker: Any = object.__new__(SteeredGPUWorker)
    worker.offload, worker.draft_memory, worker.vllm_config = OffloadConfig(draft_weight_bytes=1 << 20), BrokenMemory(), None
    monkeypatch.setattr(Worker, "determine_available_memory", lambda self: 1 << 20)
    monkeypatch.setattr(Worker, "get_kv_cache_spec", lambda self: specs)
    monkeypatch.setattr(steered_worker, "moved", lambda name: lambda config, specs: [KVCacheGroupSpec(list(specs), spec)])
    assert (worker.determine_available_memory() > 1 << 20) is lends
    assert (worker.draft_memory is not None) is lends


LOADED_ON_A_GPU = ("scheduler", "control", "hooks", "worker", "v2_worker", "drafter", "memory.cuda", "arguments", "openai_server")
NOT_PATCHED = """
import importlib, sys, torch
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched import async_scheduler
copies = kv_cache_utils.__dict__.pop("KVCacheBlockCopy")
importlib.import_module("nightjar.deployments.engine.scheduler")  # needs no name that only lending needs
kv_cache_utils.KVCacheBlockCopy = copies
before = torch.cuda.Event, torch.cuda.Stream, torch.cuda.current_stream, torch.Tensor.pin_memory
for name in {modules}:
    importlib.import_module(f"nightjar.deployments.engine.{{name}}")
assert "vllm.v1.worker.cpu.shm" not in sys.modules, "vLLM's CPU worker was imported"
assert before == (torch.cuda.Event, torch.cuda.Stream, torch.cuda.current_stream, torch.Tensor.pin_memory), "torch.cuda was patched"
"""


@pytest.mark.engine
def test_nothing_that_a_gpu_engine_loads_replaces_torch_cuda() -> None:
    program = NOT_PATCHED.format(modules=LOADED_ON_A_GPU)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
