"""The draft's memory in a worker, where a reload breaks off; and what a GPU's worker must not import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.engine.memory.interface import DraftMemory, Transfer
from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.worker import base as steered_worker
from nightjar.deployments.engine.worker.draft_work import RELOAD_FAILURE_ATTRIBUTE, MemoryMove, MemoryWork
from nightjar.deployments.engine.worker.step_reports import StepReports
from nightjar.deployments.engine.worker.v1 import SteeredGPUWorker


class Memory(DraftMemory):
    """A draft's memory, whose every transfer has two units; notes what it is asked and does."""

    why_not = ""
    weight_bytes = 200

    def __init__(self, failure: str = "") -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.is_offloaded = False
        self._failure = failure

    def begin_move(self) -> None:
        self.asked.append(("begin",))

    def offloading(self) -> Transfer:
        self.is_offloaded = True
        return self._transfer("offload")

    def reloading(self) -> Transfer:
        return self._transfer("reload")

    def releasing_kv(self, *blocks: Any) -> Transfer:
        return self._transfer("release", *blocks)

    def restoring_kv(self, *blocks: Any) -> Transfer:
        return self._transfer("restore", *blocks)

    def load_model(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def making_room(self) -> Any:
        raise NotImplementedError

    def bind_kv_cache(self, kv_cache: Any) -> None:
        raise NotImplementedError

    def _transfer(self, *what: Any) -> Transfer:
        def units() -> Iterator[int]:
            for _ in range(2):
                if what[0] == "reload" and self._failure:
                    raise OSError(self._failure)
                self.asked.append(what)
                yield 100

        return Transfer(200, units())

    def taken(self) -> list[tuple[Any, ...]]:
        """What was asked since the last call."""
        asked, self.asked = self.asked, []
        return asked


def worker_of(memory: Memory, *, ranks: int = 1) -> Any:
    """A worker whose draft is away; of 16 blocks it lends the last 6."""
    worker: Any = object.__new__(SteeredGPUWorker)
    worker.draft_memory = memory
    worker.base_blocks, worker.num_blocks = 10, 16
    worker.all_views = [torch.zeros(1), torch.zeros(1)]
    worker.draft_views = worker.all_views[1:]
    worker.model_runner = SimpleNamespace(kv_caches=worker.all_views[:1])
    worker.reports = StepReports(ranks)
    return worker


def test_a_move_is_made_in_the_parts_that_the_scheduler_orders() -> None:
    memory = Memory()
    worker = worker_of(memory)
    worker.model_runner.kv_caches = worker.all_views
    worker.move_draft(MemoryWork(MemoryMove.OFFLOAD, 0.0))
    assert memory.taken() == [("begin",)]
    assert memory.is_offloaded, "from now on no step runs it"
    assert worker.model_runner.kv_caches == [worker.all_views[0]], "vLLM copies blocks where there is memory"
    worker.move_draft(MemoryWork(MemoryMove.OFFLOAD, 0.5))
    assert memory.taken() == [("offload",), ("offload",), ("release", 0, 10, "draft")]
    worker.move_draft(MemoryWork(MemoryMove.OFFLOAD, 1.0))
    assert memory.taken() == [("release", 0, 10, "draft"), *[("restore", 10, 16, "target")] * 2]
    for share in (0.0, 0.4, 0.9):
        worker.move_draft(MemoryWork(MemoryMove.RELOAD, share))
    assert worker.model_runner.kv_caches == [worker.all_views[0]]
    worker.move_draft(MemoryWork(MemoryMove.RELOAD, 1.0))
    assert worker.model_runner.kv_caches == worker.all_views
    assert memory.taken() == [
        ("begin",),
        *[("release", 10, 16, "target")] * 2,
        *[("restore", 0, 10, "draft")] * 2,
        *[("reload",)] * 2,
    ]


def test_steps_without_a_part_move_nothing() -> None:
    memory = Memory()
    worker_of(memory).move_draft(None)
    assert memory.asked == []


def test_a_reload_that_breaks_off_lends_the_memory_again_and_tells_the_scheduler_with_the_steps_output() -> None:
    memory = Memory("no such file")
    worker = worker_of(memory)
    for share in (0.0, 0.5):
        worker.move_draft(MemoryWork(MemoryMove.RELOAD, share))
    memory.taken()
    worker.move_draft(MemoryWork(MemoryMove.RELOAD, 0.75))
    lent = [("begin",), *[("release", 0, 10, "draft")] * 2, ("begin",), *[("restore", 10, 16, "target")] * 2]
    assert memory.taken()[-6:] == lent
    worker.move_draft(MemoryWork(MemoryMove.RELOAD, 1.0))
    assert memory.taken() == [], "ordered before the scheduler knew"
    assert worker.model_runner.kv_caches == [worker.all_views[0]]
    assert worker.reports.attached(None) is None
    output = worker.reports.attached(EMPTY_MODEL_RUNNER_OUTPUT)
    assert getattr(output, RELOAD_FAILURE_ATTRIBUTE) == "OSError: no such file"
    assert worker.reports.attached(EMPTY_MODEL_RUNNER_OUTPUT) is EMPTY_MODEL_RUNNER_OUTPUT
    assert not hasattr(EMPTY_MODEL_RUNNER_OUTPUT, RELOAD_FAILURE_ATTRIBUTE)


def test_it_ends_the_engine_where_other_ranks_may_have_brought_theirs_back() -> None:
    worker = worker_of(Memory("no such file"), ranks=2)
    worker.move_draft(MemoryWork(MemoryMove.RELOAD, 0.0))
    with pytest.raises(OSError, match="no such file"):
        worker.move_draft(MemoryWork(MemoryMove.RELOAD, 1.0))


@pytest.mark.parametrize(
    ("kind", "options", "lends"), [(FullAttentionSpec, {}, True), (SlidingWindowSpec, {"sliding_window": 64}, False)]
)
def test_a_worker_plans_lent_blocks_only_where_the_scheduler_keeps_a_ledger_of_them(
    kind: Any, options: dict[str, Any], lends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = kind(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float32, **options)
    specs = {"model.layer": spec, "draft_model.layer": spec}
    worker: Any = object.__new__(SteeredGPUWorker)
    worker.offload, worker.draft_memory, worker.vllm_config = OffloadConfig(draft_weight_bytes=1 << 20), Memory(), None
    monkeypatch.setattr(Worker, "determine_available_memory", lambda self: 1 << 20)
    monkeypatch.setattr(Worker, "get_kv_cache_spec", lambda self: specs)
    monkeypatch.setattr(steered_worker, "moved", lambda name: lambda config, specs: [KVCacheGroupSpec(list(specs), spec)])
    assert (worker.determine_available_memory() > 1 << 20) is lends
    assert (worker.draft_memory is not None) is lends


@pytest.mark.parametrize(
    ("method", "arguments", "asked"),
    [("sleep", (1,), "sleep"), ("wake_up", (None,), "wake_up"), ("discard", (("kv_cache",),), "release_kv_cache_memory")],
)
def test_vllm_cannot_unmap_or_map_memory_that_a_draft_can_lend(
    method: str, arguments: tuple[Any, ...], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Worker, method, lambda self, *arguments: calls.append(method))
    lends, keeps = worker_of(Memory()), worker_of(Memory())
    keeps.draft_memory = None
    with pytest.raises(RuntimeError, match=f"^{asked}: .*; start it with draft_offload: never$"):
        getattr(lends, method)(*arguments)
    assert calls == []
    getattr(keeps, method)(*arguments)
    assert calls == [method]


LOADED_ON_A_GPU = (
    "scheduler.steered",
    "start.hooks",
    "worker.v1",
    "worker.v2",
    "memory.cuda",
    "start.arguments",
    "start.openai_server",
)
NOT_PATCHED = """
import importlib, sys, torch
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched import async_scheduler
copies = kv_cache_utils.__dict__.pop("KVCacheBlockCopy")
importlib.import_module("nightjar.deployments.engine.scheduler.steered")  # needs no name that only lending needs
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
