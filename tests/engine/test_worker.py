"""The CPU worker's sampler repair, against its definition; the draft's memory in a worker, where a reload breaks off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.engine import worker as worker_module
from nightjar.deployments.engine.draft_work import RELOAD_FAILURE_ATTRIBUTE, MemoryMove
from nightjar.deployments.engine.offload_config import OffloadConfig
from nightjar.deployments.engine.worker import SteeredGPUWorker, expand_batch_to_tokens

ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.integers(0, 5)), min_size=1, max_size=8)


@settings(deadline=None)  # the first tensors of a process take longer than any deadline
@given(ROWS, st.sampled_from([0, 1]), st.sampled_from([0, 1]))
def test_each_requests_value_is_repeated_for_each_of_its_tokens(
    rows: list[tuple[float, int]], replace_from: int, replace_to: int
) -> None:
    values = [value for value, _ in rows]
    totals = torch.tensor([count for _, count in rows], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    expanded = expand_batch_to_tokens(torch.tensor(values), totals, int(totals[-1]), replace_from, replace_to)
    expected = [value for value, count in rows for _ in range(count)]
    assert expanded.tolist() == pytest.approx([replace_to if value == replace_from else value for value in expected])
    assert expanded.dtype == torch.float32


def test_top_k_stays_an_integer() -> None:
    expanded = expand_batch_to_tokens(torch.tensor([3, 5], dtype=torch.int32), torch.tensor([1, 3], dtype=torch.int32), 3)
    assert expanded.tolist() == [3, 5, 5]
    assert expanded.dtype == torch.int32


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
    monkeypatch.setattr(worker_module, "get_kv_cache_groups", lambda config, specs: [KVCacheGroupSpec(list(specs), spec)])
    assert (worker.determine_available_memory() > 1 << 20) is lends
    assert (worker.draft_memory is not None) is lends
