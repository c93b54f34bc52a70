"""What the workers of both of vLLM's model runners share: their life, and a draft model's memory that they move and lend.

Bound to the life of the engine core. The scheduler orders every move, part by part with the steps before which they are to happen
(draft_work.py): weights go and come back, and pages of the KV cache with them. A mixin, before a worker of vLLM's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import structlog
from vllm.v1.kv_cache_interface import KVCacheConfig

from nightjar.deployments.engine.engine_folder import remove_with_engine
from nightjar.deployments.engine.memory.cuda import CUDADraftMemory
from nightjar.deployments.engine.memory.interface import DraftMemory, DraftMove, KVCache
from nightjar.deployments.engine.memory.offload_config import (
    DRAFT_LAYER_PREFIX,
    BlockBytes,
    OffloadConfig,
    layers_of,
    why_not_followed,
)
from nightjar.deployments.engine.process_guard import guard_vllm_process
from nightjar.deployments.engine.start.hooks import moved
from nightjar.deployments.engine.worker.draft_work import RELOAD_FAILURE_ATTRIBUTE, MemoryMove, MemoryWork
from nightjar.deployments.engine.worker.step_reports import StepReports

NEVER_LENDS: Final = "start it with draft_offload: never"

log = structlog.get_logger(__name__)


class SteeredWorkerMixin:
    """Before a worker of vLLM's."""

    vllm_config: Any
    model_runner: Any
    distributed_init_method: str
    draft_move: DraftMove | None = None
    """Under way; None where a reload broke off."""

    def init_device(self) -> None:
        """As vLLM's, after this process was bound to the engine's life, and then its file."""
        guard_vllm_process(and_parent=True)
        self.reports = StepReports(self.vllm_config.parallel_config.world_size)
        super().init_device()  # type: ignore[misc]  # the worker's
        if (store := self.distributed_init_method).startswith("file://"):
            remove_with_engine(Path(store.removeprefix("file://")))
        self.offload = OffloadConfig.of(self.vllm_config)
        self.draft_memory = None if self.offload is None else self.make_draft_memory()

    def make_draft_memory(self) -> DraftMemory:
        """The draft's memory on this worker's device."""
        return CUDADraftMemory(self.vllm_config.model_config)

    def determine_available_memory(self) -> int:
        """As vLLM's, and so many bytes more as the KV blocks plan for that the draft's memory will hold while it is offloaded."""
        available_bytes: int = super().determine_available_memory()  # type: ignore[misc]  # the worker's
        if self.offload is None:
            return available_bytes
        specs = self.get_kv_cache_spec()  # type: ignore[attr-defined]  # the worker's
        # The same answer as the scheduler's (why_kept_in_sync): it withholds lent blocks only where it keeps a ledger of them.
        if reason := why_not_followed(moved("get_kv_cache_groups")(self.vllm_config, dict(specs))):
            log.warning("draft_offload_unused", reason=reason, consequence="the draft stays")
            self.offload = self.draft_memory = None
            return available_bytes
        sizes = BlockBytes.of((name, spec.page_size_bytes) for name, spec in specs.items())
        return self.offload.planned_bytes(available_bytes, sizes)

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """As vLLM's, then give back the memory of the blocks that the draft lends only once it is offloaded."""
        memory = self.draft_memory
        if self.offload is None or memory is None:
            super().initialize_from_config(kv_cache_config)  # type: ignore[misc]  # the worker's
            return
        with memory.making_room():
            super().initialize_from_config(kv_cache_config)  # type: ignore[misc]  # the worker's
            self.bind_draft_memory(memory, self.offload, kv_cache_config)

    def bind_draft_memory(self, memory: DraftMemory, offload: OffloadConfig, kv_cache_config: KVCacheConfig) -> None:
        """Show the draft's memory the KV cache, whose lent blocks then have none."""
        context = self.vllm_config.compilation_config.static_forward_context
        views = {name: context[name].kv_cache for name, _ in layers_of(kv_cache_config)}
        draft_layers = frozenset(name for name in views if name.startswith(DRAFT_LAYER_PREFIX))
        self.all_views = list(self.model_runner.kv_caches)
        self.draft_views = [views[name] for name in draft_layers]
        self.num_blocks = kv_cache_config.num_blocks
        self.base_blocks = offload.base_blocks_of(kv_cache_config)
        memory.bind_kv_cache(
            KVCache(
                layers=views,
                draft_layers=draft_layers,
                num_blocks=self.num_blocks,
                num_base_blocks=self.base_blocks,
            )
        )
        memory.release_kv(self.base_blocks, self.num_blocks)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As vLLM's: the step's output comes from here or, where there was nothing to sample, from `execute_model`."""
        return self.reports.attached(super().sample_tokens(grammar_output))  # type: ignore[misc]  # the worker's

    def move_draft(self, work: MemoryWork | None) -> None:
        """Do the step's part of giving the draft's memory to the lent blocks, or of taking it back.

        A reload that breaks off (the checkpoint cannot be read) leaves the draft offloaded and its memory lent; where the engine
        cannot go on after it (step_reports.py) it raises. Later parts, ordered before the scheduler knew, are left.
        """
        memory = self.draft_memory
        if memory is None or work is None:
            return
        try:
            if not work.share:
                self.draft_move = self.begun_move(memory, work.move)
            if (moving := self.draft_move) is None:
                return
            moving.go_on(work.share)
        except Exception as error:
            if work.move != MemoryMove.RELOAD:
                raise
            self.draft_move = None
            self.reports.survive(error, RELOAD_FAILURE_ATTRIBUTE, what="reload", consequence="the draft stays offloaded")
            self.lend_kv(memory)
            return
        if work.share < 1.0:
            return
        self.draft_move = None
        if work.move == MemoryMove.RELOAD:
            self.model_runner.kv_caches = self.all_views
        log.info(
            "draft_memory_moved",
            move=MemoryMove(work.move).name.lower(),
            bytes=moving.moved_bytes,
            seconds=round(moving.seconds, 3),
        )

    def begun_move(self, memory: DraftMemory, move: MemoryMove) -> DraftMove:
        """Nothing is moved yet, but from now on the draft does not run and its KV belongs to no request."""
        memory.begin_move()
        base, end = self.base_blocks, self.num_blocks
        if move == MemoryMove.RELOAD:
            return DraftMove([memory.releasing_kv(base, end, "target"), memory.restoring_kv(0, base, "draft"), memory.reloading()])
        # vLLM copies moved blocks in all of these: the draft's will have no memory.
        draft_views = {view.data_ptr() for view in self.draft_views}
        self.model_runner.kv_caches = [view for view in self.all_views if view.data_ptr() not in draft_views]
        return DraftMove([memory.offloading(), memory.releasing_kv(0, base, "draft"), memory.restoring_kv(base, end, "target")])

    def lend_kv(self, memory: DraftMemory) -> None:
        """Give the memory of the draft layers' KV to the lent blocks."""
        memory.release_kv(0, self.base_blocks, "draft")
        memory.restore_kv(self.base_blocks, self.num_blocks, "target")

    def sleep(self, *arguments: Any, **options: Any) -> None:
        """As vLLM's. Raises RuntimeError where the draft lends, as the two below: vLLM would unmap, or map, the KV cache as one,
        which is mapped in parts.
        """
        self.refuse_where_lent("sleep")
        super().sleep(*arguments, **options)  # type: ignore[misc]  # the worker's

    def wake_up(self, *arguments: Any, **options: Any) -> None:
        """As vLLM's."""
        self.refuse_where_lent("wake_up")
        super().wake_up(*arguments, **options)  # type: ignore[misc]  # the worker's

    def discard(self, *arguments: Any, **options: Any) -> None:
        """As vLLM's (0.32, for EngineCore.release_kv_cache_memory)."""
        self.refuse_where_lent("release_kv_cache_memory")
        super().discard(*arguments, **options)  # type: ignore[misc]  # the worker's

    def refuse_where_lent(self, asked: str) -> None:
        """Raise RuntimeError where this worker's draft can lend its memory: the engine hands it to its caller, and serves on."""
        if self.draft_memory is not None:
            raise RuntimeError(f"{asked}: the KV cache is mapped in parts, because the draft can lend its memory; {NEVER_LENDS}")
