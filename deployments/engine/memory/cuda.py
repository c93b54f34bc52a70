"""A draft's memory on CUDA, by vLLM's own virtual-memory allocator. NEVER RUN ON A GPU: written from the sources, tested on fakes.

Use it only where an operator opted in. Needs `enable_cumem_allocator=True` without sleep mode: vLLM's sleep would discard the
KV cache as one mapping, and any wake restores every tag but "weights" and "kv_cache". Addresses never change, only what is mapped
behind them, so captured CUDA graphs stay valid. What touches a released address ends the process with an illegal access: vLLM's
block copies (`copy_kv_cache_blocks_inplace`) run over the draft's layers, too, and must not meet their released blocks.

CUDA cannot unmap a part of a mapping, and the allocator maps the KV cache as one. So it is unmapped whole once, before
use, and mapped again in chunks that can go one by one: their edges are those of the ranges that may ever be released.

Weights are copied on a stream of their own, to and from pinned host memory, while the engine's steps run; nothing here waits for
the engine's stream but an unmapping, for what was given to it before the move began. Zeros are written on the engine's own stream.

Fails open: without the allocator the draft is loaded as ever, and `why_not` says so. A reload that finds no memory raises and
leaves no weight mapped; a restore of KV blocks raises and keeps what it had mapped. Either can be called again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import torch
from vllm.model_executor.model_loader import get_model

from nightjar.deployments.engine.memory.interface import (
    NO_TRANSFER,
    PART_BYTES,
    DraftMemory,
    KVCache,
    Layers,
    OffloadUnsupportedError,
    Transfer,
)
from nightjar.deployments.engine.memory.kv_ranges import ByteRange, block_bytes, cut, num_bytes, overlap, whole_pages

DRAFT_WEIGHTS_TAG: Final = "nightjar_draft_weights"
CHUNK_BYTES: Final = 2 * 1024 * 1024
"""CUDA's mapping granularity on every GPU that vLLM supports."""
_UNIT_BYTES: Final = PART_BYTES // 4

Handle = tuple[int, int, int, int]
"""As vLLM passes it to its C functions: device, bytes, address, and where the driver's own handle is kept (8 bytes)."""


class Allocation(Protocol):
    """What we use of vLLM's `AllocationData`."""

    handle: Any
    tag: str
    is_asleep: bool


class Device(Protocol):
    """What moves memory: vLLM's allocator, its C functions and CUDA's runtime."""

    @property
    def chunk_bytes(self) -> int:
        """Memory is mapped in multiples of this, at addresses that are multiples of it."""
        ...

    def pool(self, tag: str) -> AbstractContextManager[object]:
        """Everything that torch allocates inside is mapped by the allocator, under this tag."""
        ...

    def allocations(self) -> Mapping[int, Allocation]:
        """All of the allocator's, by address."""
        ...

    def map(self, handle: Handle) -> None:
        """Put fresh memory behind the addresses; raises where there is none."""
        ...

    def unmap(self, handle: Handle) -> None:
        """Take the memory from behind the addresses, which must be one mapping."""
        ...

    def pinned_buffer(self, num_bytes: int) -> Any:
        """Host memory that the GPU can reach."""
        ...

    def read(self, address: int, buffer: Any, part: ByteRange) -> None:
        """Begin to copy a part of what is mapped at `address` to the same place of the buffer, beside the engine's work."""
        ...

    def write(self, address: int, buffer: Any, part: ByteRange) -> None:
        """Begin to copy a part of the buffer to the same place of what is mapped at `address`, beside the engine's work."""
        ...

    def wait_for_copies(self) -> None:
        """Return once every copy is made."""
        ...

    def work_after_copies(self) -> None:
        """Whatever the engine is given from now on runs after the copies that have begun. Returns at once."""
        ...

    def mark(self) -> Any:
        """What the engine was given so far, for `wait`."""
        ...

    def wait(self, mark: Any) -> None:
        """Return once that has run."""
        ...

    def zero(self, address: int, num_bytes: int) -> None:
        """Fill GPU memory with zeros, before whatever the engine is given from now on."""
        ...

    def synchronize(self) -> None:
        """Return once nothing runs on the GPU any more."""
        ...


class CuMemDevice:
    """`Device` by vLLM's cumem module, which is imported here and not before: it exists on GPU builds only."""

    chunk_bytes = CHUNK_BYTES

    def __init__(self) -> None:
        from vllm.device_allocator import cumem

        if not cumem.cumem_available:
            raise OffloadUnsupportedError("this vLLM has no cumem allocator")
        self._cumem = cumem
        self._allocator = cumem.CuMemAllocator.get_instance()
        self._copies: Any = None

    def pool(self, tag: str) -> AbstractContextManager[object]:
        """As `Device`."""
        pool: AbstractContextManager[object] = self._allocator.use_memory_pool(tag=tag)
        return pool

    def allocations(self) -> Mapping[int, Allocation]:
        """As `Device`."""
        allocations: Mapping[int, Allocation] = self._allocator.pointer_to_data
        return allocations

    def map(self, handle: Handle) -> None:
        """As `Device`."""
        self._cumem.create_and_map(handle)

    def unmap(self, handle: Handle) -> None:
        """As `Device`."""
        self._cumem.unmap_and_release(handle)

    def pinned_buffer(self, num_bytes: int) -> Any:
        """As `Device`."""
        return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def read(self, address: int, buffer: Any, part: ByteRange) -> None:
        """As `Device`."""
        with torch.cuda.stream(self._copy_stream):
            buffer[part.start : part.end].copy_(on_device(address + part.start, part.end - part.start), non_blocking=True)

    def write(self, address: int, buffer: Any, part: ByteRange) -> None:
        """As `Device`."""
        with torch.cuda.stream(self._copy_stream):
            on_device(address + part.start, part.end - part.start).copy_(buffer[part.start : part.end], non_blocking=True)

    def wait_for_copies(self) -> None:
        """As `Device`."""
        self._copy_stream.synchronize()

    def work_after_copies(self) -> None:
        """As `Device`."""
        torch.cuda.current_stream().wait_stream(self._copy_stream)

    def mark(self) -> Any:
        """As `Device`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream())
        return event

    def wait(self, mark: Any) -> None:
        """As `Device`."""
        mark.synchronize()

    def zero(self, address: int, num_bytes: int) -> None:
        """As `Device`."""
        on_device(address, num_bytes).zero_()

    def synchronize(self) -> None:
        """As `Device`."""
        torch.cuda.synchronize()

    @property
    def _copy_stream(self) -> Any:
        if self._copies is None:
            self._copies = torch.cuda.Stream()
        return self._copies


@dataclass(frozen=True, slots=True)
class _DeviceBytes:
    """Mapped addresses, in the words by which libraries hand GPU arrays to each other."""

    __cuda_array_interface__: Mapping[str, Any]


def on_device(address: int, num_bytes: int) -> torch.Tensor:
    """Mapped memory as a tensor of bytes, which owns none of it (torch: `as_tensor` of what has `__cuda_array_interface__`)."""
    return torch.as_tensor(
        _DeviceBytes({"shape": (num_bytes,), "typestr": "|u1", "data": (address, False), "version": 3}), device="cuda"
    )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of the KV cache that is mapped by itself."""

    handle: Handle
    handle_cell: ctypes.c_uint64 | None
    """Keeps alive where the handle is kept; the first chunk uses the allocator's own place, so that its free finds one."""

    @property
    def range(self) -> ByteRange:
        _, size, address, _ = self.handle
        return ByteRange(address, address + size)


class CUDADraftMemory(DraftMemory):
    """`DraftMemory` on CUDA. Constructing it is the opt-in; tests pass a device.

    `target_config` is the target's ModelConfig: vLLM does not hand `enable_cumem_allocator` on to the draft's.
    """

    def __init__(self, target_config: Any, device: Device | None = None) -> None:
        self._target_config = target_config
        self.is_offloaded = False
        self.why_not = "no draft is loaded"
        self.weight_bytes = 0
        self._device = device
        self._buffers: dict[int, Any] = {}
        self._kv_cache: KVCache | None = None
        self._chunks: tuple[_Chunk, ...] = ()
        self._unmapped: set[int] = set()
        self._mark: Any = None

    def load_model(self, vllm_config: Any, *, prefix: str = "", load_config: Any = None) -> Any:
        """As `DraftMemory`."""
        self.why_not = self._find_device()
        pool = nullcontext() if self._device is None or self.why_not else self._device.pool(DRAFT_WEIGHTS_TAG)
        with pool:
            model = get_model(vllm_config=vllm_config, prefix=prefix, load_config=load_config)
        self.weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        if not self.why_not and not self._weights():
            self.why_not = "the draft's weights are not in the allocator's pool"
        return model

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """As `DraftMemory`: vLLM maps base and lent blocks together; beside the weights there may be room for the base alone."""
        self.offload()
        yield
        self.reload()

    def bind_kv_cache(self, kv_cache: KVCache) -> None:
        """As `DraftMemory`. Raises `OffloadUnsupportedError`, with nothing changed, where the cache cannot be mapped in chunks, or
        where its layout interleaves blocks or layers so finely that lending would give nothing back.
        """
        device = self._usable_device()
        whole = _allocation_around(device, kv_cache)
        lent = whole_pages(block_bytes(kv_cache, kv_cache.num_base_blocks, kv_cache.num_blocks, "all"), device.chunk_bytes)
        of_draft = whole_pages(block_bytes(kv_cache, 0, kv_cache.num_base_blocks, "draft"), device.chunk_bytes)
        if not lent or not of_draft:
            raise OffloadUnsupportedError(
                f"the KV cache's layout would give back no memory: of its lent blocks {num_bytes(lent)} bytes, and of the draft's "
                f"share {num_bytes(of_draft)}, lie in whole pages of {device.chunk_bytes} bytes"
            )
        self._chunks = cut_into_chunks(whole, [*cut(lent, PART_BYTES), *cut(of_draft, PART_BYTES)])
        self._kv_cache = kv_cache
        device.synchronize()
        device.unmap(whole)
        for chunk in self._chunks:
            _map_zeroed(device, chunk)
        device.synchronize()

    def begin_move(self) -> None:
        """As `DraftMemory`."""
        if self._device is not None and not self.why_not:
            self._mark = self._device.mark()

    def offloading(self) -> Transfer:
        """As `DraftMemory`. Host memory is pinned by the first call and kept, since pinning costs more than copying."""
        device = self._usable_device()
        if self.is_offloaded:
            return NO_TRANSFER
        weights = self._weights()
        for address, allocation in weights.items():
            if address not in self._buffers:
                self._buffers[address] = device.pinned_buffer(allocation.handle[1])
        self.is_offloaded = True
        return Transfer(sum(allocation.handle[1] for allocation in weights.values()), self._reading(device, weights))

    def reloading(self) -> Transfer:
        """As `DraftMemory`."""
        device = self._usable_device()
        if not self.is_offloaded:
            return NO_TRANSFER
        weights = self._weights()
        return Transfer(sum(allocation.handle[1] for allocation in weights.values()), self._writing(device, weights))

    def releasing_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> Transfer:
        """As `DraftMemory`; touching the blocks before they are restored ends the process."""
        device = self._usable_device()
        ranges = self._ranges(first_block, last_block_exclusive, layers)
        going = [chunk for chunk in self._chunks if chunk.range.start not in self._unmapped and _is_inside(chunk.range, ranges)]
        return Transfer(num_bytes(chunk.range for chunk in going), self._unmapping(device, going))

    def restoring_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> Transfer:
        """As `DraftMemory`; every chunk that holds any byte of the blocks comes back."""
        device = self._usable_device()
        ranges = self._ranges(first_block, last_block_exclusive, layers)
        coming = [chunk for chunk in self._chunks if chunk.range.start in self._unmapped and overlap([chunk.range], ranges)]
        return Transfer(num_bytes(chunk.range for chunk in coming), self._mapping(device, coming))

    def _reading(self, device: Device, weights: Mapping[int, Allocation]) -> Iterator[int]:
        for address, allocation in weights.items():
            for part in cut([ByteRange(0, allocation.handle[1])], _UNIT_BYTES):
                device.read(address, self._buffers[address], part)
                yield part.end - part.start
        device.wait_for_copies()
        device.wait(self._mark)
        for allocation in weights.values():
            allocation.is_asleep = True  # the allocator neither trims nor unmaps it then
            device.unmap(allocation.handle)

    def _writing(self, device: Device, weights: Mapping[int, Allocation]) -> Iterator[int]:
        mapped: list[Allocation] = []
        try:
            for address, allocation in weights.items():
                device.map(allocation.handle)
                mapped.append(allocation)
                for part in cut([ByteRange(0, allocation.handle[1])], _UNIT_BYTES):
                    device.write(address, self._buffers[address], part)
                    yield part.end - part.start
        except BaseException:
            device.wait_for_copies()
            for allocation in mapped:
                device.unmap(allocation.handle)
            raise
        device.work_after_copies()
        for allocation in mapped:
            allocation.is_asleep = False
        self.is_offloaded = False

    def _unmapping(self, device: Device, chunks: Sequence[_Chunk]) -> Iterator[int]:
        for chunk in chunks:
            device.wait(self._mark)
            device.unmap(chunk.handle)
            self._unmapped.add(chunk.range.start)
            yield chunk.range.end - chunk.range.start

    def _mapping(self, device: Device, chunks: Sequence[_Chunk]) -> Iterator[int]:
        for chunk in chunks:
            _map_zeroed(device, chunk)
            self._unmapped.discard(chunk.range.start)
            yield chunk.range.end - chunk.range.start

    def _find_device(self) -> str:
        if not self._target_config.enable_cumem_allocator:
            return "enable_cumem_allocator is off"
        if self._target_config.enable_sleep_mode:
            return "sleep mode is on: it unmaps what Nightjar mapped in chunks"
        try:
            self._device = self._device or CuMemDevice()
        except (ImportError, AttributeError, OffloadUnsupportedError) as error:
            return str(error)
        return ""

    def _usable_device(self) -> Device:
        if self.why_not or self._device is None:
            raise OffloadUnsupportedError(self.why_not)
        return self._device

    def _weights(self) -> dict[int, Allocation]:
        allocations = self._device.allocations() if self._device else {}
        return {address: allocation for address, allocation in allocations.items() if allocation.tag == DRAFT_WEIGHTS_TAG}

    def _ranges(self, first_block: int, last_block_exclusive: int, layers: Layers) -> list[ByteRange]:
        if self._kv_cache is None:
            raise OffloadUnsupportedError("no KV cache is bound")
        return block_bytes(self._kv_cache, first_block, last_block_exclusive, layers)


def cut_into_chunks(whole: Handle, releasable: Sequence[ByteRange]) -> tuple[_Chunk, ...]:
    """Handles that map the allocation in parts, cut at the edges of what may be released."""
    device, size, address, handle_place = whole
    edges = sorted({address, address + size, *(edge for pages in releasable for edge in pages)})
    chunks = []
    for start, end in pairwise(edges):
        cell = None if start == address else ctypes.c_uint64()
        place = handle_place if cell is None else ctypes.addressof(cell)
        chunks.append(_Chunk((device, end - start, start, place), cell))
    return tuple(chunks)


def _map_zeroed(device: Device, chunk: _Chunk) -> None:
    device.map(chunk.handle)
    device.zero(chunk.range.start, chunk.range.end - chunk.range.start)


def _is_inside(chunk: ByteRange, ranges: Sequence[ByteRange]) -> bool:
    return any(start <= chunk.start and chunk.end <= end for start, end in ranges)


def _allocation_around(device: Device, kv_cache: KVCache) -> Handle:
    every_byte = block_bytes(KVCache(kv_cache.layers, frozenset(), kv_cache.num_blocks, 0), 0, kv_cache.num_blocks, "all")
    for allocation in device.allocations().values():
        handle = allocation.handle
        if _is_inside(ByteRange(every_byte[0].start, every_byte[-1].end), [ByteRange(handle[2], handle[2] + handle[1])]):
            if not isinstance(handle[3], int):
                raise OffloadUnsupportedError("the KV cache is mapped in ROCm's own chunks")
            if handle[2] % device.chunk_bytes or handle[1] % device.chunk_bytes:
                raise OffloadUnsupportedError(f"the KV cache's mapping is not aligned to {device.chunk_bytes} bytes")
            return (handle[0], handle[1], handle[2], handle[3])
    raise OffloadUnsupportedError("the KV cache is not one allocation of vLLM's cumem allocator")
