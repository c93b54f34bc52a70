"""A device for `memory/cuda.py` made of this process's own address space: what is not mapped faults, as on CUDA.

Addresses are reserved once and never change. Mapping makes their pages readable and writable, filled with garbage, since CUDA's
fresh memory holds anything; unmapping gives the pages back to the kernel and forbids them, so that whatever touches them ends the
process with SIGSEGV where CUDA ends it with an illegal access. As on CUDA an unmap takes whole mappings alone, and a map where
something is mapped already, or beyond the device's memory, is refused with RuntimeError.

Copies of weights are made as late as may be: when somebody waits for them, or orders work after them. So who unmaps, or uses,
what a copy has not reached yet, faults or reads garbage.

What it cannot show: kernels that still run when a move begins, and the driver's own errors.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from nightjar.deployments.engine.memory.cuda import CHUNK_BYTES, Handle
from nightjar.deployments.engine.memory.kv_ranges import ByteRange

GARBAGE: Final = 0xA5
_PROT_NONE: Final = 0
_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_NORESERVE: Final = 0x4000
_DONTNEED: Final = 4


@dataclass(slots=True)
class MappedAllocation:
    """As vLLM's `AllocationData`, as far as it is used."""

    handle: Handle
    tag: str
    is_asleep: bool = False


class MappedDevice:
    """`Device` of memory/cuda.py. `total_bytes` are what can be mapped at once, `address_bytes` what can be reserved in all.

    `chunk_bytes` is a multiple of the kernel's page size.
    """

    def __init__(self, total_bytes: int, address_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.chunk_bytes = chunk_bytes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        size = address_bytes + chunk_bytes
        start: int | None = self._libc.mmap(None, size, _PROT_NONE, flags, -1, 0)
        if start is None or start == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"mmap of {size} bytes")
        self._next: int = -(-start // chunk_bytes) * chunk_bytes
        self._end = self._next + address_bytes
        self._mapped: dict[int, int] = {}
        self._allocations: dict[int, MappedAllocation] = {}
        self._tag = ""
        self.free_bytes = total_bytes
        self.synchronized = 0
        self._copies: list[Callable[[], object]] = []

    def allocate(self, num_bytes: int, tag: str = "") -> int:
        """Reserve and map so many bytes, rounded up to whole chunks, as torch does inside a pool. Returns the address."""
        size = -(-max(num_bytes, 1) // self.chunk_bytes) * self.chunk_bytes
        if self._next + size > self._end:
            raise RuntimeError(f"{size} bytes of addresses are not left")
        address, self._next = self._next, self._next + size
        handle = (0, size, address, address)  # a place that is never 0, as the driver's handles
        self.map(handle)
        self._allocations[address] = MappedAllocation(handle, tag or self._tag)
        return address

    @contextmanager
    def pool(self, tag: str) -> Iterator[None]:
        """As `Device`: tensors made inside by torch.empty and torch.zeros lie on it, and have this tag."""
        before, self._tag = self._tag, tag
        try:
            with _OnDevice(self):
                yield
        finally:
            self._tag = before

    def tensor(self, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """A tensor of fresh memory, which holds anything."""
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        buffer = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(self.allocate(count * dtype.itemsize))
        return torch.frombuffer(buffer, dtype=dtype).view(shape)

    def allocations(self) -> Mapping[int, MappedAllocation]:
        """As `Device`."""
        return self._allocations

    def map(self, handle: Handle) -> None:
        """As `Device`."""
        _, size, address, _ = handle
        if size > self.free_bytes:
            raise RuntimeError(f"out of memory: {size} bytes are wanted, {self.free_bytes} are free")
        if any(start < address + size and address < start + length for start, length in self._mapped.items()):
            raise RuntimeError(f"something is mapped within {size} bytes from {address:#x}")
        self._call("mprotect", address, size, _READ_WRITE)
        ctypes.memset(address, GARBAGE, size)
        self._mapped[address] = size
        self.free_bytes -= size

    def unmap(self, handle: Handle) -> None:
        """As `Device`."""
        _, size, address, _ = handle
        if self._mapped.get(address) != size:
            raise RuntimeError(f"{size} bytes from {address:#x} are not one mapping")
        self._call("madvise", address, size, _DONTNEED)
        self._call("mprotect", address, size, _PROT_NONE)
        del self._mapped[address]
        self.free_bytes += size

    def pinned_buffer(self, num_bytes: int) -> Any:
        """As `Device`: any host memory will do."""
        return ctypes.create_string_buffer(num_bytes)

    def read(self, address: int, buffer: Any, part: ByteRange) -> None:
        """As `Device`."""
        place, size = ctypes.addressof(buffer) + part.start, part.end - part.start
        self._copies.append(lambda: ctypes.memmove(place, address + part.start, size))

    def write(self, address: int, buffer: Any, part: ByteRange) -> None:
        """As `Device`."""
        place, size = ctypes.addressof(buffer) + part.start, part.end - part.start
        self._copies.append(lambda: ctypes.memmove(address + part.start, place, size))

    def wait_for_copies(self) -> None:
        """As `Device`."""
        copies, self._copies = self._copies, []
        for copy in copies:
            copy()

    def work_after_copies(self) -> None:
        """As `Device`."""
        self.wait_for_copies()

    def mark(self) -> Any:
        """As `Device`: nothing runs beside."""
        return len(self._mapped)

    def wait(self, mark: Any) -> None:
        """As `Device`."""
        if mark is None:
            raise RuntimeError("a move that never began: what runs on the device is not known")

    def zero(self, address: int, num_bytes: int) -> None:
        """As `Device`."""
        ctypes.memset(address, 0, num_bytes)

    def synchronize(self) -> None:
        """As `Device`: nothing runs beside."""
        self.synchronized += 1

    def _call(self, name: str, address: int, size: int, argument: int) -> None:
        if getattr(self._libc, name)(address, size, argument):
            error = ctypes.get_errno()
            raise OSError(error, f"{name} of {size} bytes at {address:#x}: {os.strerror(error)}")


class _OnDevice(TorchFunctionMode):
    """Puts what torch.empty and torch.zeros make on the device, whatever device they name; other functions run as they are."""

    def __init__(self, device: MappedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function not in {torch.empty, torch.zeros}:
            return function(*arguments, **options)
        sizes = options.get("size", arguments)
        shape = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        made = self._device.tensor(*shape, dtype=options.get("dtype") or torch.get_default_dtype())
        return made.zero_() if function is torch.zeros and made.numel() else made
