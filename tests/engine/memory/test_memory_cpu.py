"""The CPU half: a small random Llama that is offloaded and comes back bit for bit, and KV pages that the kernel takes back."""

from __future__ import annotations

import ctypes
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from safetensors.torch import load_file, save_file
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.kv_cache_layout import KVCacheLayout

from nightjar.deployments.engine.memory import cpu
from nightjar.deployments.engine.memory.cpu import PAGE_BYTES, CPUDraftMemory
from nightjar.deployments.engine.memory.interface import DraftMemory, KVCache, Layers, OffloadUnsupportedError
from nightjar.deployments.engine.memory.kv_ranges import block_bytes, num_bytes, whole_pages
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes

pytestmark = pytest.mark.heavy

HIDDEN, INTERMEDIATE, NUM_LAYERS, NUM_HEADS, VOCABULARY = 512, 1024, 2, 8, 8192
NUM_BLOCKS, NUM_BASE_BLOCKS = 6, 4


class Draft:
    """A loaded draft and what it computes."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.memory = CPUDraftMemory()
        self.model = self.memory.load_model(config)

    @torch.inference_mode()
    def logits(self, model: Any = None) -> Any:
        from vllm.forward_context import set_forward_context

        model = model or self.model
        token_ids = torch.arange(16) * 37 % VOCABULARY
        with set_forward_context(None, self.config):
            return model.compute_logits(model(token_ids, torch.arange(16))).clone()


@pytest.fixture(scope="module")
def _vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process as its own tensor-parallel group, and attention that needs no KV cache."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

    def attend(_self: Any, _layer: Any, query: Any, _key: Any, value: Any, *rest: Any, output: Any = None, **_: Any) -> Any:
        return output.copy_((query + value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)).view_as(output))

    rendezvous = tmp_path_factory.mktemp("rendezvous") / "file"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(CPUAttentionBackendImpl, "forward", attend)
        for name in ("empty_cache", "synchronize"):
            patch.setattr(torch.accelerator, name, lambda *_: None)  # as vLLM's CPU runner does for good
        with set_current_vllm_config(VllmConfig()):
            init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
        yield
        destroy_model_parallel()
        destroy_distributed_environment()


@pytest.fixture(scope="module", params=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_random_llama(tmp_path_factory.mktemp(request.param), tied=request.param == "tied")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def draft(request: pytest.FixtureRequest, checkpoint: Path, _vllm: None) -> Draft:
    return _load(checkpoint, request.param)


@pytest.fixture
def float32_draft(tmp_path: Path, _vllm: None) -> Draft:
    return _load(_save_random_llama(tmp_path, tied=True), torch.float32)


def test_what_was_freed_between_what_is_used_goes_back_to_the_kernel() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc's allocator")
    blocks = [bytearray(1 << 16) for _ in range(1600)]
    del blocks[::2]
    before = _anonymous_bytes()
    cpu.trim_heap()
    assert before - _anonymous_bytes() > 600 << 16
    assert len(blocks) == 800


def test_a_reloaded_draft_computes_the_same_bits(draft: Draft) -> None:
    before = draft.logits()
    assert before.isfinite().all()
    for _ in range(2):
        draft.memory.offload()
        draft.memory.reload()
        assert torch.equal(draft.logits(), before)


def test_a_loaded_draft_computes_what_vllms_own_load_computes(draft: Draft) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model

    ours = draft.logits()
    draft.config.compilation_config.static_forward_context.clear()  # one model per configuration: names must be new
    with set_current_vllm_config(draft.config):
        theirs = draft.logits(get_model(vllm_config=draft.config))
    assert torch.equal(theirs, ours)


def test_the_weights_are_as_many_bytes_as_the_headers_say(draft: Draft, checkpoint: Path) -> None:
    expected = draft_weight_bytes(checkpoint, bytes_per_value=draft.config.model_config.dtype.itemsize)
    assert draft.memory.weight_bytes == expected
    assert draft.memory.offload() == expected
    assert draft.memory.reload() == expected


def test_an_offloaded_draft_takes_no_memory_and_a_reloaded_one_no_more_than_at_first(draft: Draft) -> None:
    draft.logits()
    loaded = _anonymous_bytes()
    draft.memory.offload()
    offloaded = _anonymous_bytes()
    draft.memory.reload()
    tolerance = draft.memory.weight_bytes // 5
    assert loaded - offloaded > draft.memory.weight_bytes - tolerance
    assert _anonymous_bytes() - loaded < tolerance


def test_a_draft_leaves_and_comes_back_in_units_between_which_the_process_is_as_before(
    draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_UNIT_BYTES", 1 << 20)
    before, dtype = draft.logits(), torch.get_default_dtype()
    largest = max(template.num_bytes for template in draft.memory._templates)
    with torch.inference_mode():
        for begin in (draft.memory.offloading, draft.memory.reloading):
            transfer = begin()
            units = []
            for unit_bytes in transfer.units:
                units.append(unit_bytes)
                assert draft.memory.is_offloaded
                assert torch.get_default_dtype() is dtype
                assert torch.is_inference_mode_enabled()
                assert "load_weights" not in vars(draft.model)
                assert "named_modules" not in vars(draft.model)
            assert len(units) > 5
            assert max(units) < largest + (1 << 20)
            assert sum(units) == pytest.approx(transfer.num_bytes, rel=0.02)
    assert not draft.memory.is_offloaded
    assert torch.equal(draft.logits(), before)


def test_a_reload_given_up_between_two_units_leaves_the_draft_away_and_can_be_begun_again(float32_draft: Draft) -> None:
    before = float32_draft.logits()
    float32_draft.memory.offload()
    offloaded = _anonymous_bytes()
    units: Any = float32_draft.memory.reloading().units
    next(units)
    next(units)
    units.close()
    assert float32_draft.memory.is_offloaded
    assert _anonymous_bytes() - offloaded < float32_draft.memory.weight_bytes // 5
    float32_draft.memory.reload()
    assert torch.equal(float32_draft.logits(), before)


def test_a_checkpoint_that_has_lost_a_tensor_does_not_come_back(float32_draft: Draft, tmp_path: Path) -> None:
    float32_draft.memory.offload()
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no longer has: model\.layers\.1\.input_layernorm\.weight \(1 in all\)"):
        float32_draft.memory.reload()
    assert float32_draft.memory.is_offloaded


def test_an_offloaded_draft_that_is_run_fails_loudly(float32_draft: Draft) -> None:
    float32_draft.memory.offload()
    with pytest.raises(RuntimeError):
        float32_draft.logits()
    layer = next(module for module in float32_draft.model.modules() if hasattr(module, "cpu_linear"))
    with pytest.raises(RuntimeError, match="run while it is offloaded"):
        layer.cpu_linear(None, None, None)


def test_offloading_or_reloading_twice_moves_nothing(float32_draft: Draft) -> None:
    assert float32_draft.memory.reload() == 0
    float32_draft.memory.offload()
    assert float32_draft.memory.offload() == 0
    assert float32_draft.memory.is_offloaded


def test_a_reload_inside_a_step_leaves_a_draft_that_can_be_reloaded_outside(float32_draft: Draft) -> None:
    before = float32_draft.logits()
    with torch.inference_mode():
        float32_draft.memory.offload()
        float32_draft.memory.reload()
    float32_draft.memory.offload()
    float32_draft.memory.reload()
    assert torch.equal(float32_draft.logits(), before)


def test_a_reload_without_its_checkpoint_leaves_the_draft_offloaded_until_it_is_back(float32_draft: Draft, tmp_path: Path) -> None:
    before, weights = float32_draft.logits(), tmp_path / "model.safetensors"
    float32_draft.memory.offload()
    offloaded = _anonymous_bytes()
    shutil.move(weights, tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match="Cannot find any model weights"):
        float32_draft.memory.reload()
    assert float32_draft.memory.is_offloaded
    assert _anonymous_bytes() - offloaded < float32_draft.memory.weight_bytes // 5
    shutil.move(tmp_path / "elsewhere", weights)
    float32_draft.memory.reload()
    assert torch.equal(float32_draft.logits(), before)


@pytest.mark.usefixtures("_vllm")
def test_a_quantised_draft_is_loaded_but_not_offloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_PACKS_TWICE", (UnquantizedEmbeddingMethod,))
    draft = _load(_save_random_llama(tmp_path, tied=True), torch.float32)
    assert draft.memory.why_not == "layer model.layers.0.self_attn.qkv_proj is quantised (UnquantizedLinearMethod)"
    with pytest.raises(OffloadUnsupportedError, match="is quantised"):
        draft.memory.offload()
    assert draft.logits().isfinite().all()


@pytest.mark.usefixtures("_vllm")
def test_a_loader_that_goes_its_own_way_is_obeyed_and_nothing_is_offloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnLoader:
        load_weights = None

        def load_model(self, **_: Any) -> Any:
            return torch.nn.Linear(2, 2)

    monkeypatch.setattr(cpu, "get_model_loader", lambda _config: OwnLoader())
    draft = _load(_save_random_llama(tmp_path, tied=True), torch.float32)
    assert isinstance(draft.model, torch.nn.Linear)
    assert draft.memory.why_not == "OwnLoader does not load weights the way that a reload repeats"


def test_it_is_a_draft_memory() -> None:
    memory: DraftMemory = CPUDraftMemory()
    with pytest.raises(OffloadUnsupportedError, match="no draft is loaded"):
        memory.offloading()
    with pytest.raises(OffloadUnsupportedError, match="no KV cache is bound"):
        memory.release_kv(0, 0)


LAYERS = ("target.0", "target.1", "draft.0", "draft.1")


def test_released_blocks_read_as_zeros_and_no_other_byte_changes() -> None:
    for layout in KVCacheLayout:
        buffer, kv_cache = _kv_cache(layout)
        buffer.fill_(7)
        expected = buffer.clone()
        pages = whole_pages(block_bytes(kv_cache, NUM_BASE_BLOCKS, NUM_BLOCKS, "all"), PAGE_BYTES)
        for start, end in pages:
            expected[start - buffer.data_ptr() : end - buffer.data_ptr()] = 0
        assert _bound(kv_cache).release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS) == num_bytes(pages)
        assert torch.equal(buffer, expected), layout
        for view in kv_cache.layers.values():
            assert (view[:NUM_BASE_BLOCKS] == 7).all(), layout


def test_the_kernel_takes_back_exactly_the_pages_released() -> None:
    buffer, kv_cache = _kv_cache(KVCacheLayout.LBHNC)
    buffer.fill_(7)
    resident = _resident_pages(buffer)
    released = _bound(kv_cache).release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS)
    assert released > 0.9 * buffer.numel() * (NUM_BLOCKS - NUM_BASE_BLOCKS) / NUM_BLOCKS
    assert resident - _resident_pages(buffer) == released // PAGE_BYTES


def test_released_memory_leaves_the_process_and_restored_blocks_can_be_written() -> None:
    buffer, kv_cache = _kv_cache(KVCacheLayout.LBHNC, tokens_per_block=2048)
    buffer.fill_(7)
    memory, before = _bound(kv_cache), _anonymous_bytes()
    released = memory.release_kv(NUM_BASE_BLOCKS, NUM_BLOCKS)
    assert released > 30e6
    assert before - _anonymous_bytes() == pytest.approx(released, rel=0.05)
    assert memory.restore_kv(NUM_BASE_BLOCKS, NUM_BLOCKS) == 0
    for view in kv_cache.layers.values():
        view[NUM_BASE_BLOCKS:] = 3
        assert (view[NUM_BASE_BLOCKS:] == 3).all()


@pytest.mark.parametrize("layout", [KVCacheLayout.LBHNC, KVCacheLayout.LBNHC, KVCacheLayout.LHBNC])
def test_the_drafts_share_goes_and_the_targets_stays(layout: KVCacheLayout) -> None:
    buffer, kv_cache = _kv_cache(layout)
    buffer.fill_(7)
    released = _bound(kv_cache).release_kv(0, NUM_BLOCKS, "draft")
    assert released >= buffer.numel() // 2 - 2 * PAGE_BYTES
    for name, view in kv_cache.layers.items():
        assert (view == 7).all() == (name not in kv_cache.draft_layers)


def test_every_layout_gives_the_blocks_exact_bytes() -> None:
    for layout in KVCacheLayout:
        for layers in ("all", "target", "draft"):
            buffer, kv_cache = _kv_cache(layout, tokens_per_block=4)
            _assert_exact(buffer, kv_cache, layers)


def test_a_layer_outermost_tail_is_one_range_per_layer_and_a_block_outermost_one_range() -> None:
    counts = {
        layout: len(block_bytes(_kv_cache(layout)[1], NUM_BASE_BLOCKS, NUM_BLOCKS, "all"))
        for layout in (KVCacheLayout.LBHNC, KVCacheLayout.LBNHC, KVCacheLayout.BLHNC, KVCacheLayout.BHLNC)
    }
    assert list(counts.values()) == [len(LAYERS), len(LAYERS), 1, 1]


def test_views_of_the_same_bytes_count_once() -> None:
    _, kv_cache = _kv_cache(KVCacheLayout.LBHNC)
    shared = KVCache({**kv_cache.layers, "target.2": kv_cache.layers["target.0"]}, frozenset(), NUM_BLOCKS, NUM_BASE_BLOCKS)
    assert block_bytes(shared, 4, 6, "all") == block_bytes(kv_cache, 4, 6, "all")


def test_blocks_that_vllm_splits_into_kernel_blocks_are_the_same_bytes() -> None:
    _, kv_cache = _kv_cache(KVCacheLayout.LBNHC)
    halves = {
        name: view.transpose(1, 2).reshape(2 * NUM_BLOCKS, view.shape[2] // 2, view.shape[1], view.shape[3]).transpose(1, 2)
        for name, view in kv_cache.layers.items()
    }
    assert {name: view.data_ptr() for name, view in halves.items()} == {
        name: view.data_ptr() for name, view in kv_cache.layers.items()
    }
    split = KVCache(halves, kv_cache.draft_layers, NUM_BLOCKS, NUM_BASE_BLOCKS)
    assert block_bytes(split, 4, 5, "all") == block_bytes(kv_cache, 4, 5, "all")


def test_a_draft_that_shares_kv_memory_with_the_target_is_refused() -> None:
    _, kv_cache = _kv_cache(KVCacheLayout.LBHNC)
    overlaid = KVCache(
        {**kv_cache.layers, "draft.0": kv_cache.layers["target.0"]}, kv_cache.draft_layers, NUM_BLOCKS, NUM_BASE_BLOCKS
    )
    with pytest.raises(OffloadUnsupportedError, match="share their KV memory"):
        block_bytes(overlaid, 0, NUM_BLOCKS, "draft")


def test_a_view_whose_rows_are_no_blocks_is_refused() -> None:
    kv_cache = KVCache({"state": torch.zeros(NUM_BLOCKS + 1, 4)}, frozenset(), NUM_BLOCKS, NUM_BASE_BLOCKS)
    with pytest.raises(OffloadUnsupportedError, match="no multiple of 6 blocks"):
        block_bytes(kv_cache, 4, 5, "all")


@pytest.mark.parametrize("layers", ["all", "target"])
@pytest.mark.parametrize(("first", "last"), [(3, 6), (4, 7), (5, 4), (-1, 2)])
def test_blocks_that_requests_may_own_are_not_released(first: int, last: int, layers: Layers) -> None:
    _, kv_cache = _kv_cache(KVCacheLayout.LBHNC)
    with pytest.raises(ValueError, match="outside 4 to 6"):
        _bound(kv_cache).release_kv(first, last, layers)


def test_an_empty_range_releases_nothing() -> None:
    _, kv_cache = _kv_cache(KVCacheLayout.LBHNC)
    assert _bound(kv_cache).release_kv(5, 5) == 0


def _assert_exact(buffer: Any, kv_cache: KVCache, layers: Layers) -> None:
    """Mark the blocks through the views, and compare the marked bytes with the computed ones."""
    first = NUM_BASE_BLOCKS
    for name, view in kv_cache.layers.items():
        if layers == "all" or (name in kv_cache.draft_layers) == (layers == "draft"):
            view[first:] = 1
    marked = torch.zeros_like(buffer)
    for start, end in block_bytes(kv_cache, first, NUM_BLOCKS, layers):
        marked[start - buffer.data_ptr() : end - buffer.data_ptr()] = 1
    assert torch.equal(buffer, marked)


def _kv_cache(layout: KVCacheLayout, *, tokens_per_block: int = 40, num_heads: int = 4, content: int = 513) -> tuple[Any, KVCache]:
    """As vLLM allocates it: one buffer, and a view [block, head, token, content] per layer. Nothing falls on page boundaries."""
    logical = (len(LAYERS), NUM_BLOCKS, num_heads, tokens_per_block, content)
    buffer = torch.zeros(torch.Size(logical).numel(), dtype=torch.int8)
    physical = buffer.view([logical[dim] for dim in layout.stride_order])
    by_layer = physical.permute([layout.stride_order.index(dim) for dim in range(len(logical))])
    views: dict[str, Any] = {name: by_layer[index] for index, name in enumerate(LAYERS)}
    return buffer, KVCache(views, frozenset({"draft.0", "draft.1"}), NUM_BLOCKS, NUM_BASE_BLOCKS)


def _bound(kv_cache: KVCache) -> CPUDraftMemory:
    memory = CPUDraftMemory()
    memory.bind_kv_cache(kv_cache)
    return memory


def _resident_pages(buffer: Any) -> int:
    """Pages of the buffer that are in memory, those at its ends left out."""
    first = -(-buffer.data_ptr() // PAGE_BYTES) * PAGE_BYTES
    num_pages = (buffer.data_ptr() + buffer.numel() - first) // PAGE_BYTES
    states = (ctypes.c_ubyte * num_pages)()
    libc: Callable[..., int] = ctypes.CDLL(None).mincore
    assert libc(ctypes.c_void_p(first), ctypes.c_size_t(num_pages * PAGE_BYTES), states) == 0
    return sum(state & 1 for state in states)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _load(checkpoint: Path, dtype: Any) -> Draft:
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = EngineArgs(
            model=str(checkpoint), skip_tokenizer_init=True, dtype=dtype, enforce_eager=True, max_model_len=64
        ).create_engine_config()
        with set_current_vllm_config(config):
            return Draft(config)


def _save_random_llama(folder: Path, *, tied: bool) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS // 2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder
