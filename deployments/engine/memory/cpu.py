"""A draft's memory on CPU: weights return from their own checkpoint, KV pages from the operating system.

vLLM packs each linear weight into a oneDNN handler behind the closure `layer.cpu_linear` and empties `layer.weight`, so nothing
of the original is left in the process. Any copy kept aside would be paid for while the draft runs: anonymous memory openly, a
file on tmpfs (which /tmp often is in a container) just the same, a file on disk by a second set of cached pages beside the
checkpoint's own, and it is no faster to read. So none is kept. A reload fills parameters as the load filled them, with the same
loader, and packs them again with vLLM's `process_weights_after_loading`: as exact as a load. Both are cut where the engine's steps
go on in between: some of the checkpoint's tensors, then one layer to pack after another. A matrix is read or packed in one piece.
Its price: the checkpoint must still be there and unchanged, and where memory was short the kernel may have dropped its pages, so
that they come from disk.

Only drafts whose every layer is unquantised are offloaded, since for others vLLM does not promise that packing works twice.
What is freed is more than `weight_bytes`: oneDNN's packed copy goes, and the embedding beside it. `malloc_trim` hands freed memory
on to the kernel; under another allocator than glibc's (tcmalloc preloaded) that is up to its own settings.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NoReturn

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from nightjar.deployments.engine.memory.interface import (
    NO_TRANSFER,
    PART_BYTES,
    DraftMemory,
    KVCache,
    Layers,
    OffloadUnsupportedError,
    Transfer,
)
from nightjar.deployments.engine.memory.kv_ranges import ByteRange, block_bytes, cut, num_bytes, whole_pages

PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")
_MADV_DONTNEED: Final = 4
_UNIT_BYTES: Final = PART_BYTES // 4
_PACKS_TWICE: Final = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


@dataclass(frozen=True, slots=True)
class _Template:
    """A parameter without its data. Kept parameters would keep their data alive while vLLM packs it: twice the memory."""

    parameter_class: type
    attributes: dict[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    places: tuple[tuple[Any, str], ...]
    """Modules and names; more than one for tied weights."""

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * int(self.dtype.itemsize)

    def put_in_place(self) -> None:
        """Make the parameter anew, its data uninitialised, as vLLM's own reload does (model_loader/reload/meta.py)."""
        parameter: Any = torch.empty(self.shape, dtype=self.dtype)
        parameter.__class__ = self.parameter_class
        parameter.__dict__.update(self.attributes)
        for module, name in self.places:
            module.register_parameter(name, parameter)


class CPUDraftMemory(DraftMemory):
    """`DraftMemory` on CPU."""

    def __init__(self) -> None:
        self.is_offloaded = False
        self.why_not = "no draft is loaded"
        self.weight_bytes = 0
        self._model: Any = None
        self._vllm_config: Any = None
        self._load_config: Any = None
        self._templates: tuple[_Template, ...] = ()
        self._kv_cache: KVCache | None = None

    def load_model(self, vllm_config: Any, *, prefix: str = "", load_config: Any = None) -> Any:
        """As `DraftMemory`."""
        self._vllm_config = vllm_config
        self._load_config = load_config or vllm_config.load_config
        loader = get_model_loader(self._load_config)
        load_weights = loader.load_weights

        def load_weights_and_note_parameters(model: Any, model_config: Any) -> None:
            load_weights(model, model_config)
            self._templates = _templates(model)

        # On this one loader: after load_weights and before packing is the only moment at which every parameter is there.
        loader.load_weights = load_weights_and_note_parameters
        self._model = loader.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config, prefix=prefix)
        self.weight_bytes = sum(template.num_bytes for template in self._templates)
        self.why_not = _why_not(self._model, self._templates, type(loader).__name__)
        trim_heap()
        return self._model

    def making_room(self) -> AbstractContextManager[None]:
        """As `DraftMemory`. Nothing to do: pages take memory when they are first written."""
        return nullcontext()

    def bind_kv_cache(self, kv_cache: KVCache) -> None:
        """As `DraftMemory`."""
        self._kv_cache = kv_cache

    def begin_move(self) -> None:
        """As `DraftMemory`. Nothing runs beside the caller."""

    def offloading(self) -> Transfer:
        """As `DraftMemory`."""
        if self.why_not:
            raise OffloadUnsupportedError(self.why_not)
        if self.is_offloaded:
            return NO_TRANSFER
        self.is_offloaded = True
        return Transfer(self.weight_bytes, self._dropping())

    def reloading(self) -> Transfer:
        """As `DraftMemory`. What is packed counts twice: it is read, and then packed; a tied weight for each of its layers."""
        if not self.is_offloaded:
            return NO_TRANSFER
        packed_bytes = sum(template.num_bytes for template in self._templates for module, _ in template.places if _packs(module))
        return Transfer(self.weight_bytes + packed_bytes, self._loading_again())

    def releasing_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> Transfer:
        """As `DraftMemory`; the pages read as zeros, and take memory again as soon as they are written."""
        if self._kv_cache is None:
            raise OffloadUnsupportedError("no KV cache is bound")
        pages = whole_pages(block_bytes(self._kv_cache, first_block, last_block_exclusive, layers), PAGE_BYTES)
        return Transfer(num_bytes(pages), (_return_pages(page_range) for page_range in cut(pages, _UNIT_BYTES)))

    def restoring_kv(self, first_block: int, last_block_exclusive: int, layers: Layers = "all") -> Transfer:  # noqa: ARG002 - as the protocol
        """As `DraftMemory`. Nothing to do: the kernel hands out zeroed pages on the first write."""
        return NO_TRANSFER

    def _dropping(self) -> Iterator[int]:
        untrimmed_bytes = 0
        for module in self._model.modules():
            if hasattr(module, "cpu_linear"):
                module.cpu_linear = _run_while_offloaded
            module_bytes = sum(template.num_bytes for template in self._templates if template.places[0][0] is module)
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.empty(0, dtype=parameter.dtype)
            untrimmed_bytes += module_bytes
            if untrimmed_bytes >= PART_BYTES:
                trim_heap()
                untrimmed_bytes = 0
            if module_bytes:
                yield module_bytes
        trim_heap()

    def _loading_again(self) -> Iterator[int]:
        try:
            yield from self._filling()
            yield from self._packing()
            trim_heap()
        except BaseException:
            for _ in self._dropping():
                pass
            raise
        self.is_offloaded = False

    def _filling(self) -> Iterator[int]:
        """Read the checkpoint into the parameters, a few tensors at a time (vLLM 0.32: every loader calls `model.load_weights`)."""
        model, config = self._model, self._vllm_config.model_config
        stock = model.load_weights
        loaded: set[str] = set()
        taken: list[Iterator[tuple[str, torch.Tensor]]] = []
        is_tracked = True
        with _as_at_load(self._vllm_config):
            for template in self._templates:
                template.put_in_place()
            model.load_weights = taken.append
            try:
                get_model_loader(self._load_config).load_weights(model, config)
            finally:
                del model.load_weights
        for weights in taken:
            while batch := self._next_of(weights):
                with _as_at_load(self._vllm_config):
                    names = stock(batch)
                is_tracked = is_tracked and names is not None
                loaded |= names or set()
                yield sum(map(self._loaded_bytes, batch))
                del batch
        missing = {name for name, _ in model.named_parameters()} - loaded if is_tracked else set()
        if missing:
            raise ValueError(f"weights that the checkpoint no longer has: {', '.join(sorted(missing)[:3])} ({len(missing)} in all)")

    def _next_of(self, weights: Iterator[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
        """Tensors of about _UNIT_BYTES together; none at the end."""
        batch: list[tuple[str, torch.Tensor]] = []
        batch_bytes = 0
        with _as_at_load(self._vllm_config):
            while batch_bytes < _UNIT_BYTES and (weight := next(weights, None)) is not None:
                batch.append(weight)
                batch_bytes += self._loaded_bytes(weight)
        return batch

    def _loaded_bytes(self, weight: tuple[str, torch.Tensor]) -> int:
        """Of a tensor of the checkpoint, whose own type may be shorter or longer."""
        num_bytes: int = weight[1].numel() * self._vllm_config.model_config.dtype.itemsize
        return num_bytes

    def _packing(self) -> Iterator[int]:
        """vLLM's own packing, called once for each layer that packs something and once for all others."""
        model, config = self._model, self._vllm_config.model_config
        modules = list(model.named_modules())
        packs = [(name, module) for name, module in modules if _packs(module)]
        packing = {id(module) for _, module in packs}
        others = [(name, module) for name, module in modules if id(module) not in packing]
        looks_at_all = hasattr(model, "process_weights_after_loading") or getattr(
            config, "word_embeddings_untied_by_checkpoint", False
        )
        for group in [modules] if looks_at_all else [*([each] for each in packs), others]:
            packed_bytes = sum(
                weight.numel() * weight.element_size() for _, module in group for weight in module.parameters(recurse=False)
            )
            model.named_modules = lambda *_, group=group, **__: iter(group)
            try:
                with _as_at_load(self._vllm_config):
                    process_weights_after_loading(model, config, torch.device("cpu"))
            finally:
                del model.named_modules
            yield packed_bytes


def _packs(module: Any) -> bool:
    return isinstance(getattr(module, "quant_method", None), QuantizeMethodBase)


def _templates(model: Any) -> tuple[_Template, ...]:
    places: dict[Any, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(parameter, []).append((module, name))
    return tuple(
        _Template(type(parameter), dict(parameter.__dict__), tuple(parameter.shape), parameter.dtype, tuple(where))
        for parameter, where in places.items()
    )


def _why_not(model: Any, templates: tuple[_Template, ...], loader: str) -> str:
    if not templates:
        return f"{loader} does not load weights the way that a reload repeats"
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, QuantizeMethodBase) and type(method) not in _PACKS_TWICE:
            return f"layer {name} is quantised ({type(method).__name__})"
    return ""


@contextmanager
def _as_at_load(config: Any) -> Iterator[None]:
    """The surroundings of vLLM's `load_model`, also where the call comes from inside a step."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        set_current_vllm_config(config),
        set_default_torch_dtype(config.model_config.dtype),
    ):
        yield


def _run_while_offloaded(*_: object) -> NoReturn:
    raise RuntimeError("the draft was run while it is offloaded")


def _return_pages(pages: ByteRange) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(pages.start), ctypes.c_size_t(pages.end - pages.start), _MADV_DONTNEED):
        error = ctypes.get_errno()
        raise OSError(error, f"madvise: {os.strerror(error)}")
    return pages.end - pages.start


def trim_heap() -> None:
    """Give what is freed back to the kernel; nothing under another allocator than glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
