"""A draft's memory through `memory/cuda.py` on real pages: what was released faults, and what comes back is right to the bit."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")
import torch

from nightjar.deployments.engine.memory import cuda
from nightjar.deployments.engine.memory.cuda import CHUNK_BYTES, DRAFT_WEIGHTS_TAG, CUDADraftMemory
from nightjar.deployments.engine.memory.interface import KVCache, OffloadUnsupportedError
from tests.rig.mapped_device import GARBAGE, MappedDevice

NUM_BLOCKS, NUM_BASE_BLOCKS = 8, 6
TOTAL_CHUNKS = 64


class TargetConfig:
    enable_cumem_allocator = True
    enable_sleep_mode = False


class Engine:
    """A draft of two tensors and a KV cache of two layers, one of which is the draft's, on one device."""

    def __init__(self, device: MappedDevice, *, block_bytes: int = CHUNK_BYTES) -> None:
        self.device = device
        self.memory = CUDADraftMemory(TargetConfig, device)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "get_model", self._load)
            self.memory.load_model(None)
        size = NUM_BLOCKS * block_bytes
        with device.pool("kv_cache"):
            whole = torch.zeros(2 * size, dtype=torch.uint8)
        self.layers = {name: whole[index * size :][:size].view(NUM_BLOCKS, block_bytes) for index, name in enumerate(("t", "d"))}
        self.kv_cache = KVCache(self.layers, frozenset({"d"}), NUM_BLOCKS, NUM_BASE_BLOCKS)

    def _load(self, **_: Any) -> Any:
        self.weights = [torch.empty(size, dtype=torch.uint8) for size in (CHUNK_BYTES, 3 * CHUNK_BYTES // 2)]
        for index, weight in enumerate(self.weights):
            weight.copy_(torch.arange(len(weight)) * (index + 3) % 251)
        model = torch.nn.Module()
        for index, weight in enumerate(self.weights):
            model.register_parameter(f"w{index}", torch.nn.Parameter(weight, requires_grad=False))
        return model


def device() -> MappedDevice:
    return MappedDevice(TOTAL_CHUNKS * CHUNK_BYTES, 2 * TOTAL_CHUNKS * CHUNK_BYTES)


def test_the_weights_leave_and_come_back_bit_for_bit_at_the_addresses_where_they_were() -> None:
    engine = Engine(device())
    assert [each.tag for each in engine.device.allocations().values()] == [DRAFT_WEIGHTS_TAG, DRAFT_WEIGHTS_TAG, "kv_cache"]
    before = [weight.clone() for weight in engine.weights]
    free_bytes = engine.device.free_bytes
    for _ in range(2):
        assert engine.memory.offload() == engine.memory.weight_bytes
        assert engine.device.free_bytes == free_bytes + 3 * CHUNK_BYTES
        engine.memory.reload()
        assert all(torch.equal(weight, old) for weight, old in zip(engine.weights, before, strict=True))
    assert engine.device.free_bytes == free_bytes


def test_lent_blocks_are_zeros_whenever_they_come_and_what_requests_own_keeps_its_bytes() -> None:
    engine = Engine(device())
    memory = engine.memory
    memory.bind_kv_cache(engine.kv_cache)
    memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS)
    engine.layers["t"][:NUM_BASE_BLOCKS] = 7
    for _ in range(2):
        memory.offload()
        assert memory.release_kv(0, NUM_BASE_BLOCKS, "draft") == NUM_BASE_BLOCKS * CHUNK_BYTES
        assert memory.restore_kv(NUM_BASE_BLOCKS, NUM_BLOCKS, "target") == 2 * CHUNK_BYTES
        assert not engine.layers["t"][NUM_BASE_BLOCKS:].any()
        engine.layers["t"][NUM_BASE_BLOCKS:] = 9
        memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS, "target")
        memory.restore_kv(0, NUM_BASE_BLOCKS, "draft")
        memory.reload()
        assert not engine.layers["d"][:NUM_BASE_BLOCKS].any()
        engine.layers["d"][:NUM_BASE_BLOCKS] = 5
        assert bool((engine.layers["t"][:NUM_BASE_BLOCKS] == 7).all())


def test_only_what_is_made_inside_a_pool_lies_on_the_device() -> None:
    fresh = device()
    outside = torch.zeros(8)
    with fresh.pool("x"):
        inside = [torch.zeros(2, 3), torch.zeros((4,), dtype=torch.int64), torch.empty(0)]
    assert [tensor.shape for tensor in inside] == [(2, 3), (4,), (0,)]
    assert not inside[0].any()
    assert [tensor.data_ptr() in fresh.allocations() for tensor in (*inside, outside)] == [True, True, False, False]


def status_of(work: Callable[[], object]) -> int:
    """Of a process that does this and ends: 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # pytest's, which would print this process's stack
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


Step = Callable[[Engine], object]


@pytest.mark.parametrize(
    ("before", "touched", "faults"),
    [
        ([], lambda engine: engine.weights[0][5].item(), False),
        ([lambda engine: engine.memory.offload()], lambda engine: engine.weights[0][5].item(), True),
        (
            [lambda engine: engine.memory.offload(), lambda engine: engine.memory.reload()],
            lambda engine: engine.weights[1][-1].item(),
            False,
        ),
        ([lambda engine: engine.memory.release_kv(6, 8)], lambda engine: engine.layers["t"][6, 0].item(), True),
        ([lambda engine: engine.memory.release_kv(6, 8)], lambda engine: engine.layers["t"][5, -1].item(), False),
        (
            [lambda engine: engine.memory.release_kv(6, 8), lambda engine: engine.memory.restore_kv(6, 8)],
            lambda engine: engine.layers["t"][6, 0].item(),
            False,
        ),
        ([lambda engine: engine.memory.release_kv(0, 6, "draft")], lambda engine: engine.layers["d"][0, 0].item(), True),
        ([lambda engine: engine.memory.release_kv(0, 6, "draft")], lambda engine: engine.layers["t"][0, 0].item(), False),
    ],
)
def test_what_was_released_ends_the_process_that_touches_it_and_nothing_else_does(
    before: list[Step], touched: Step, faults: bool
) -> None:
    engine = Engine(device())
    engine.memory.bind_kv_cache(engine.kv_cache)
    for step in before:
        step(engine)
    assert status_of(lambda: touched(engine)) == (-signal.SIGSEGV if faults else 0)


def test_a_device_without_room_refuses_as_cuda_does_and_the_draft_stays_away_until_there_is_some() -> None:
    engine = Engine(device())
    engine.memory.offload()
    hog = engine.device.allocate(engine.device.free_bytes - CHUNK_BYTES)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.memory.reload()
    assert engine.memory.is_offloaded
    engine.device.unmap(engine.device.allocations()[hog].handle)
    engine.memory.reload()
    assert not engine.memory.is_offloaded


def test_fresh_memory_holds_anything_and_a_part_of_a_mapping_cannot_go() -> None:
    fresh = device()
    tensor = fresh.tensor(3 * CHUNK_BYTES)
    address = tensor.data_ptr()
    assert tensor[-4:].tolist() == [GARBAGE] * 4
    with pytest.raises(RuntimeError, match="not one mapping"):
        fresh.unmap((0, CHUNK_BYTES, address, address))
    with pytest.raises(RuntimeError, match="something is mapped"):
        fresh.map((0, CHUNK_BYTES, address + CHUNK_BYTES, address))


@pytest.mark.parametrize("block_bytes", [1024, CHUNK_BYTES // 8])
def test_a_cache_whose_blocks_hold_no_whole_page_is_refused_when_it_is_bound(block_bytes: int) -> None:
    engine = Engine(device(), block_bytes=block_bytes)
    with pytest.raises(OffloadUnsupportedError, match="would give back no memory"):
        engine.memory.bind_kv_cache(engine.kv_cache)


def test_base_and_lent_blocks_are_mapped_together_while_the_draft_makes_room_for_them() -> None:
    engine = Engine(device())
    seen = [(engine.memory.is_offloaded, engine.device.free_bytes)]
    with engine.memory.making_room():
        seen.append((engine.memory.is_offloaded, engine.device.free_bytes))
    seen.append((engine.memory.is_offloaded, engine.device.free_bytes))
    assert seen == [(False, seen[0][1]), (True, seen[0][1] + 3 * CHUNK_BYTES), (False, seen[0][1])]
