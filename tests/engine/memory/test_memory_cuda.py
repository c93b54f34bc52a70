"""The CUDA half: its logic against a fake device, its calls against the signatures of the installed vLLM. No GPU."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm import device_allocator
from vllm.config import ModelConfig, SpeculativeConfig
from vllm.device_allocator import cumem
from vllm.v1.core.sched.scheduler import Scheduler

from nightjar.deployments.engine.memory import cuda
from nightjar.deployments.engine.memory.cuda import (
    CHUNK_BYTES,
    DRAFT_WEIGHTS_TAG,
    CUDADraftMemory,
    CuMemDevice,
    Device,
    Handle,
    cut_into_chunks,
)
from nightjar.deployments.engine.memory.interface import DraftMemory, KVCache, OffloadUnsupportedError
from nightjar.deployments.engine.memory.kv_ranges import ByteRange
from nightjar.deployments.engine.worker.v1 import SteeredGPUWorker
from tests.engine.scheduler.scheduler_harness import make_scheduler

KV_ADDRESS = 1000 * CHUNK_BYTES
NUM_BLOCKS, NUM_BASE_BLOCKS = 8, 6


@dataclass
class FakeDevice:
    """Keeps what is mapped and what it holds; refuses what CUDA refuses."""

    chunk_bytes: int = CHUNK_BYTES
    known: dict[int, Any] = field(default_factory=dict)
    content: dict[int, bytes] = field(default_factory=dict)
    mapped: dict[int, int] = field(default_factory=dict)
    handles: list[Handle] = field(default_factory=list)
    free_bytes: int = 10**12
    events: list[str] = field(default_factory=list)
    copies: list[tuple[int, ByteRange, Callable[[], object]]] = field(default_factory=list)
    """That have begun, and are made when somebody waits for them."""
    copied: list[tuple[int, ByteRange]] = field(default_factory=list)

    def allocate(self, address: int, num_bytes: int, tag: str, content: bytes = b"") -> None:
        handle = (0, num_bytes, address, 77)
        self.known[address] = device_allocator.AllocationData(handle, tag)
        self.mapped[address] = num_bytes
        self.content[address] = content

    @contextmanager
    def pool(self, tag: str) -> Iterator[None]:
        self.events.append(f"pool {tag}")
        yield
        self.events.append("pool ends")

    def allocations(self) -> Mapping[int, Any]:
        return self.known

    def map(self, handle: Handle) -> None:
        _, num_bytes, address, handle_place = handle
        assert handle_place
        if num_bytes > self.free_bytes:
            raise RuntimeError("CUDA Error: out of memory")
        assert not any(start < address + num_bytes and address < start + size for start, size in self.mapped.items())
        self.free_bytes -= num_bytes
        self.mapped[address] = num_bytes
        self.content[address] = b"garbage"
        self.handles.append(handle)

    def unmap(self, handle: Handle) -> None:
        assert self.mapped.pop(handle[2]) == handle[1], "CUDA unmaps whole mappings only"
        assert handle[2] not in {address for address, _, _ in self.copies}, "a copy is under way"
        self.free_bytes += handle[1]
        self.content.pop(handle[2])

    def pinned_buffer(self, num_bytes: int) -> Any:
        self.events.append(f"pin {num_bytes}")
        return SimpleNamespace(num_bytes=num_bytes, content=b"")

    def read(self, address: int, buffer: Any, part: ByteRange) -> None:
        assert self.mapped[address] == buffer.num_bytes
        self.copies.append((address, part, lambda: setattr(buffer, "content", self.content[address])))

    def write(self, address: int, buffer: Any, part: ByteRange) -> None:
        assert self.mapped[address] == buffer.num_bytes
        self.copies.append((address, part, lambda: self.content.__setitem__(address, buffer.content)))

    def wait_for_copies(self) -> None:
        for _, _, copy in self.copies:
            copy()
        self.copied += [(address, part) for address, part, _ in self.copies]
        self.copies = []

    def work_after_copies(self) -> None:
        self.wait_for_copies()

    def mark(self) -> Any:
        self.events.append("mark")
        return len(self.events)

    def wait(self, mark: Any) -> None:
        self.events.append(f"wait {mark}")

    def zero(self, address: int, num_bytes: int) -> None:
        assert self.mapped[address] == num_bytes
        self.content[address] = b"zeros"

    def synchronize(self) -> None:
        self.events.append("synchronize")


class _View:
    """A KV view at an address that this machine does not have: [block, byte], blocks adjacent."""

    def __init__(self, address: int, num_blocks: int, block_bytes: int) -> None:
        self.address, self.shape = address, (num_blocks, block_bytes)

    def __getitem__(self, blocks: slice) -> _View:
        return _View(self.address + blocks.start * self.shape[1], blocks.stop - blocks.start, self.shape[1])

    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    def element_size(self) -> int:
        return 1

    def data_ptr(self) -> int:
        return self.address

    def stride(self) -> tuple[int, int]:
        return (self.shape[1], 1)


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def memory(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> CUDADraftMemory:
    """With a draft of two allocations loaded, beside an allocation of the target's."""

    def get_model(*, vllm_config: Any, prefix: str, load_config: Any) -> Any:
        device.events.append("load")
        if device.events[0].startswith("pool"):
            device.allocate(CHUNK_BYTES, CHUNK_BYTES, DRAFT_WEIGHTS_TAG, b"first")
            device.allocate(4 * CHUNK_BYTES, 2 * CHUNK_BYTES, DRAFT_WEIGHTS_TAG, b"second")
        return torch.nn.Linear(4, 4, bias=False)

    monkeypatch.setattr(cuda, "get_model", get_model)
    device.allocate(100 * CHUNK_BYTES, CHUNK_BYTES, "weights", b"target")
    memory = CUDADraftMemory(_target_config(), device)
    memory.load_model(None)
    return memory


@pytest.fixture
def kv_cache(device: FakeDevice) -> KVCache:
    return _kv_cache(device, block_bytes=CHUNK_BYTES)


def test_the_draft_is_loaded_in_a_pool_of_its_own(memory: CUDADraftMemory, device: FakeDevice) -> None:
    assert device.events == [f"pool {DRAFT_WEIGHTS_TAG}", "load", "pool ends"]
    assert memory.why_not == ""
    assert memory.weight_bytes == 4 * 4 * 4


def test_offload_unmaps_the_draft_and_nothing_else(memory: CUDADraftMemory, device: FakeDevice) -> None:
    assert memory.offload() == memory.weight_bytes
    assert memory.is_offloaded
    assert device.mapped == {100 * CHUNK_BYTES: CHUNK_BYTES}
    assert {data.tag: data.is_asleep for data in device.known.values()} == {DRAFT_WEIGHTS_TAG: True, "weights": False}


def test_what_was_given_to_the_device_before_a_move_has_run_before_anything_is_unmapped(
    memory: CUDADraftMemory, device: FakeDevice, kv_cache: KVCache
) -> None:
    memory.bind_kv_cache(kv_cache)
    memory.begin_move()
    transfers = [memory.offloading(), memory.releasing_kv(0, NUM_BASE_BLOCKS, "draft")]
    marked = device.events.index("mark") + 1
    mapped = dict(device.mapped)
    for transfer in transfers:
        assert device.mapped == mapped
        device.events.clear()
        transfer.finish()
        assert device.events[0] == f"wait {marked}"
        assert device.mapped != mapped
        mapped = dict(device.mapped)


def test_a_move_of_weights_waits_for_nothing_until_its_last_part(memory: CUDADraftMemory, device: FakeDevice) -> None:
    weights = [(CHUNK_BYTES, ByteRange(0, CHUNK_BYTES)), (4 * CHUNK_BYTES, ByteRange(0, 2 * CHUNK_BYTES))]
    for transfer in (memory.offloading, memory.reloading):
        memory.begin_move()
        begun = transfer()
        moved = [next(begun.units) for _ in weights]
        assert moved == [CHUNK_BYTES, 2 * CHUNK_BYTES]
        assert sum(moved) == begun.num_bytes
        assert [(address, part) for address, part, _ in device.copies] == weights
        assert device.copied == []
        assert memory.is_offloaded
        begun.finish()
        assert device.copied == weights
        device.copied.clear()
    assert not memory.is_offloaded


def test_a_large_allocation_is_copied_and_a_large_range_of_blocks_mapped_in_units(
    memory: CUDADraftMemory, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_UNIT_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(cuda, "PART_BYTES", CHUNK_BYTES)
    memory.bind_kv_cache(_kv_cache(device, block_bytes=CHUNK_BYTES))
    assert _in_chunks(device) == {0: 6, 6: 1, 7: 1, **dict.fromkeys(range(8, 16), 1)}
    assert list(memory.offloading().units) == [CHUNK_BYTES] * 3


def test_reload_brings_back_the_same_bytes_at_the_same_addresses(memory: CUDADraftMemory, device: FakeDevice) -> None:
    before = dict(device.content)
    for _ in range(2):
        memory.offload()
        memory.reload()
        assert device.content == before
        assert not memory.is_offloaded
        assert not any(data.is_asleep for data in device.known.values())


def test_host_memory_is_pinned_once(memory: CUDADraftMemory, device: FakeDevice) -> None:
    for _ in range(3):
        memory.offload()
        memory.reload()
    assert [event for event in device.events if event.startswith("pin")] == [f"pin {CHUNK_BYTES}", f"pin {2 * CHUNK_BYTES}"]


def test_offloading_or_reloading_twice_moves_nothing(memory: CUDADraftMemory) -> None:
    assert memory.reload() == 0
    memory.offload()
    assert memory.offload() == 0


def test_a_reload_without_memory_leaves_the_draft_offloaded_and_can_be_repeated(
    memory: CUDADraftMemory, device: FakeDevice
) -> None:
    before = dict(device.content)
    memory.offload()
    device.free_bytes = CHUNK_BYTES
    with pytest.raises(RuntimeError, match="out of memory"):
        memory.reload()
    assert memory.is_offloaded
    assert device.mapped == {100 * CHUNK_BYTES: CHUNK_BYTES}
    device.free_bytes = 10 * CHUNK_BYTES
    memory.reload()
    assert device.content == before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"enable_cumem_allocator": False}, "enable_cumem_allocator is off"), ({"enable_sleep_mode": True}, "sleep mode is on")],
)
def test_without_the_allocator_to_itself_the_draft_is_loaded_plainly(
    memory: CUDADraftMemory, device: FakeDevice, settings: dict[str, bool], reason: str
) -> None:
    device.events.clear()
    plain = CUDADraftMemory(_target_config(**settings), device)
    assert isinstance(plain.load_model(None), torch.nn.Linear)
    assert device.events == ["load"]
    assert reason in plain.why_not
    with pytest.raises(OffloadUnsupportedError, match=reason):
        plain.offload()


def test_a_worker_asks_the_targets_configuration_for_the_allocator_since_vllms_draft_configuration_never_names_it(
    memory: CUDADraftMemory, device: FakeDevice, tmp_path: Path
) -> None:
    config = make_scheduler(Scheduler, tmp_path).vllm_config
    config.model_config.enable_cumem_allocator = True
    speculative = SpeculativeConfig(
        method="draft_model",
        model=str(tmp_path),
        num_speculative_tokens=2,
        target_model_config=config.model_config,
        target_parallel_config=config.parallel_config,
    )
    assert not speculative.draft_model_config.enable_cumem_allocator
    worker = SimpleNamespace(vllm_config=config)
    of_worker: Any = SteeredGPUWorker.make_draft_memory(worker)  # type: ignore[arg-type]  # all that it looks at
    of_worker._device = device
    of_worker.load_model(SimpleNamespace(model_config=speculative.draft_model_config))
    assert of_worker.why_not == ""


@pytest.mark.skipif(cumem.cumem_available, reason="this vLLM has the allocator")
def test_on_a_build_without_cumem_the_draft_is_loaded_plainly(memory: CUDADraftMemory, device: FakeDevice) -> None:
    device.events.clear()
    plain = CUDADraftMemory(_target_config())
    plain.load_model(None)
    assert plain.why_not == "this vLLM has no cumem allocator"


def test_the_kv_cache_is_mapped_in_chunks_cut_where_it_may_be_released(
    memory: CUDADraftMemory, device: FakeDevice, kv_cache: KVCache
) -> None:
    memory.bind_kv_cache(kv_cache)
    assert _in_chunks(device) == {0: 6, 6: 2, 8: 6, 14: 2}
    assert {device.content[a] for a in device.mapped if a >= KV_ADDRESS} == {b"zeros"}


def test_the_first_chunk_keeps_its_handle_where_the_allocator_looks_for_it() -> None:
    first, second = cut_into_chunks(
        (3, 4 * CHUNK_BYTES, KV_ADDRESS, 77), [ByteRange(KV_ADDRESS + CHUNK_BYTES, KV_ADDRESS + 4 * CHUNK_BYTES)]
    )
    assert first.handle == (3, CHUNK_BYTES, KV_ADDRESS, 77)
    assert second.handle_cell is not None
    assert second.handle == (3, 3 * CHUNK_BYTES, KV_ADDRESS + CHUNK_BYTES, ctypes.addressof(second.handle_cell))


def test_the_tail_of_every_layer_goes_and_comes_back_as_zeros(
    memory: CUDADraftMemory, device: FakeDevice, kv_cache: KVCache
) -> None:
    memory.bind_kv_cache(kv_cache)
    free_bytes = device.free_bytes
    assert memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS) == 4 * CHUNK_BYTES
    assert device.free_bytes == free_bytes + 4 * CHUNK_BYTES
    assert memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS) == 0
    assert memory.restore_kv(NUM_BASE_BLOCKS, NUM_BLOCKS) == 4 * CHUNK_BYTES
    assert memory.restore_kv(NUM_BASE_BLOCKS, NUM_BLOCKS) == 0
    assert device.free_bytes == free_bytes
    assert {device.content[a] for a in device.mapped if a >= KV_ADDRESS} == {b"zeros"}


def test_the_drafts_share_goes_without_the_targets(memory: CUDADraftMemory, device: FakeDevice, kv_cache: KVCache) -> None:
    memory.bind_kv_cache(kv_cache)
    assert memory.release_kv(0, NUM_BLOCKS, "draft") == 8 * CHUNK_BYTES
    assert _in_chunks(device) == {0: 6, 6: 2}
    assert memory.restore_kv(0, NUM_BLOCKS, "draft") == 8 * CHUNK_BYTES


@pytest.mark.parametrize(
    ("block_bytes", "lent", "borrowed"), [(CHUNK_BYTES, 6, 2), (CHUNK_BYTES * 3 // 4, 4, 1), (CHUNK_BYTES * 5 // 4, 7, 2)]
)
def test_the_drafts_share_of_the_base_is_lent_for_the_targets_tail_alone(
    memory: CUDADraftMemory, device: FakeDevice, block_bytes: int, lent: int, borrowed: int
) -> None:
    memory.bind_kv_cache(_kv_cache(device, block_bytes=block_bytes))
    memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS)
    active = _in_chunks(device)
    assert memory.release_kv(0, NUM_BASE_BLOCKS, "draft") == lent * CHUNK_BYTES
    assert memory.restore_kv(NUM_BASE_BLOCKS, NUM_BLOCKS, "target") == borrowed * CHUNK_BYTES
    assert memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS, "target") == borrowed * CHUNK_BYTES
    assert memory.restore_kv(0, NUM_BASE_BLOCKS, "draft") == lent * CHUNK_BYTES
    assert _in_chunks(device) == active


def test_a_restore_without_memory_keeps_what_it_got_and_goes_on_later(
    memory: CUDADraftMemory, device: FakeDevice, kv_cache: KVCache
) -> None:
    memory.bind_kv_cache(kv_cache)
    memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS)
    device.free_bytes = 2 * CHUNK_BYTES
    with pytest.raises(RuntimeError, match="out of memory"):
        memory.restore_kv(NUM_BASE_BLOCKS, NUM_BLOCKS)
    device.free_bytes = 2 * CHUNK_BYTES
    assert memory.restore_kv(NUM_BASE_BLOCKS, NUM_BLOCKS) == 2 * CHUNK_BYTES


def test_blocks_that_requests_may_own_are_not_released(memory: CUDADraftMemory, kv_cache: KVCache) -> None:
    memory.bind_kv_cache(kv_cache)
    with pytest.raises(ValueError, match="outside 6 to 8"):
        memory.release_kv(NUM_BASE_BLOCKS - 1, NUM_BLOCKS)


def test_a_kv_cache_that_the_allocator_did_not_map_is_refused_and_left_alone(
    memory: CUDADraftMemory, device: FakeDevice, kv_cache: KVCache
) -> None:
    del device.known[KV_ADDRESS]
    mapped = dict(device.mapped)
    with pytest.raises(OffloadUnsupportedError, match="not one allocation"):
        memory.bind_kv_cache(kv_cache)
    assert device.mapped == mapped


def test_a_mapping_in_rocms_chunks_is_refused(memory: CUDADraftMemory, device: FakeDevice, kv_cache: KVCache) -> None:
    device.known[KV_ADDRESS].handle = (*device.known[KV_ADDRESS].handle[:3], [1, 2])
    with pytest.raises(OffloadUnsupportedError, match="ROCm"):
        memory.bind_kv_cache(kv_cache)


def test_both_implementations_are_draft_memories_and_devices(device: FakeDevice) -> None:
    memory: DraftMemory = CUDADraftMemory(_target_config(), device)
    assert not memory.is_offloaded
    assert CuMemDevice.chunk_bytes == CHUNK_BYTES
    for method in (name for name in vars(Device) if not name.startswith("_") and name != "chunk_bytes"):
        assert inspect.signature(getattr(CuMemDevice, method)) == inspect.signature(getattr(Device, method))


def test_vllms_allocator_takes_what_we_pass() -> None:
    assert _parameters(cumem.create_and_map) == ["allocation_handle"]
    assert _parameters(cumem.unmap_and_release) == ["allocation_handle"]
    assert "tag" in _parameters(cumem.CuMemAllocator.use_memory_pool)
    assert _parameters(cumem.CuMemAllocator.get_instance) == []
    assert "pointer_to_data" in inspect.getsource(cumem.CuMemAllocator.__init__)
    assert "AllocationData(" in inspect.getsource(cumem.CuMemAllocator._python_malloc_callback)
    assert {"handle", "tag", "is_asleep"} <= set(device_allocator.AllocationData.__dataclass_fields__)
    assert {"cumem_available"} <= set(vars(cumem))


def test_mapped_memory_is_shown_to_torch_as_that_many_bytes_at_that_address(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(torch, "as_tensor", lambda data, device: shown.append((data.__cuda_array_interface__, device)))
    cuda.on_device(4096, 100)
    assert shown == [({"shape": (100,), "typestr": "|u1", "data": (4096, False), "version": 3}, "cuda")]


def test_vllms_model_configuration_says_whether_the_allocator_is_used() -> None:
    assert {"enable_cumem_allocator", "enable_sleep_mode"} <= set(ModelConfig.__dataclass_fields__)


def test_a_wake_that_names_the_weights_would_wake_the_draft_so_sleep_mode_is_refused() -> None:
    assert DRAFT_WEIGHTS_TAG not in device_allocator.DEFERRABLE_TAGS


def _kv_cache(device: FakeDevice, *, block_bytes: int) -> KVCache:
    """One layer of the target, then one of the draft."""
    layer_bytes = NUM_BLOCKS * block_bytes
    device.allocate(KV_ADDRESS, 2 * layer_bytes, "kv_cache", b"zeros")
    views = {
        "target": _View(KV_ADDRESS, NUM_BLOCKS, block_bytes),
        "draft": _View(KV_ADDRESS + layer_bytes, NUM_BLOCKS, block_bytes),
    }
    return KVCache(views, frozenset({"draft"}), NUM_BLOCKS, NUM_BASE_BLOCKS)


def _in_chunks(device: FakeDevice) -> dict[int, int]:
    """Mappings of the KV cache: length by beginning, both in chunks."""
    return {(a - KV_ADDRESS) // CHUNK_BYTES: n // CHUNK_BYTES for a, n in device.mapped.items() if a >= KV_ADDRESS}


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def _target_config(**settings: bool) -> Any:
    return SimpleNamespace(**{"enable_cumem_allocator": True, "enable_sleep_mode": False} | settings)
