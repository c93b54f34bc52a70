"""What the workers of both of vLLM's model runners share: their life, and a draft model's memory that they move and lend.

Bound to the life of the engine core. The scheduler orders every move, with the step before which it is to happen (draft_work.py):
weights go and come back, and pages of the KV cache with them. A mixin, before a worker of vLLM's.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import structlog
from vllm.v1.kv_cache_interface import KVCacheConfig

from nightjar.deployments.engine.draft_work import RELOAD_FAILURE_ATTRIBUTE, MemoryMove
from nightjar.deployments.engine.engine_folder import remove_with_engine
from nightjar.deployments.engine.kv_groups import why_not_followed
from nightjar.deployments.engine.memory.cuda import CUDADraftMemory
from nightjar.deployments.engine.memory.interface import DraftMemory, KVCache
from nightjar.deployments.engine.moved_names import moved
from nightjar.deployments.engine.offload_config import DRAFT_LAYER_PREFIX, BlockBytes, OffloadConfig, layers_of
from nightjar.deployments.engine.process_guard import guard_vllm_process

log = structlog.get_logger(__name__)


class SteeredWorkerMixin:
    """Before a worker of vLLM's."""

    vllm_config: Any
    model_runner: Any
    distributed_init_method: str

    def init_device(self) -> None:
        """As vLLM's, after this process was bound to the engine's life, and then its file."""
        guard_vllm_process(and_parent=True)
        super().init_device()  # type: ignore[misc]  # the worker's
        if (store := self.distributed_init_method).startswith("file://"):
            remove_with_engine(Path(store.removeprefix("file://")))
        self.offload = OffloadConfig.of(self.vllm_config)
        self.draft_memory = None if self.offload is None else self.make_draft_memory()
        self.reload_failure = ""

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
        return self.with_reload_failure(super().sample_tokens(grammar_output))  # type: ignore[misc]  # the worker's

    def with_reload_failure(self, output: Any) -> Any:
        """The step's output (None: it is still to come) with word for the scheduler of a reload that broke off in this step."""
        if not self.reload_failure or output is None:
            return output
        output = copy.copy(output)  # vLLM's empty output is one object for all steps
        setattr(output, RELOAD_FAILURE_ATTRIBUTE, self.reload_failure)
        self.reload_failure = ""
        return output

    @property
    def may_fail_to_reload(self) -> bool:
        """Whether the scheduler hears of it in time: before it schedules another step, and of all ranks."""
        config = self.vllm_config
        return bool(config.parallel_config.world_size == 1 and not config.scheduler_config.async_scheduling)

    def move_draft(self, move: MemoryMove) -> None:
        """Take the draft's memory and give it to the lent blocks, or the other way round.

        A reload that breaks off (the checkpoint cannot be read) leaves the draft offloaded and its memory lent, if the scheduler
        can hear of it; else it raises, which ends the engine.
        """
        memory = self.draft_memory
        if memory is None or move == MemoryMove.NONE:
            return
        if move == MemoryMove.OFFLOAD:
            moved = memory.offload()
            self.lend_kv(memory)
            # vLLM copies moved blocks in all of these: the draft's have no memory now.
            draft_views = {view.data_ptr() for view in self.draft_views}
            self.model_runner.kv_caches = [view for view in self.all_views if view.data_ptr() not in draft_views]
        else:
            memory.release_kv(self.base_blocks, self.num_blocks, "target")
            memory.restore_kv(0, self.base_blocks, "draft")
            try:
                moved = memory.reload()
            except Exception as error:
                if not self.may_fail_to_reload:
                    raise
                self.lend_kv(memory)
                self.reload_failure = f"{type(error).__name__}: {error}"[:500]
                log.error("draft_reload_failed", error=self.reload_failure, consequence="the draft stays offloaded", exc_info=error)
                return
            self.model_runner.kv_caches = self.all_views
        log.info("draft_memory_moved", move=MemoryMove(move).name.lower(), bytes=moved.num_bytes, seconds=round(moved.seconds, 3))

    def lend_kv(self, memory: DraftMemory) -> None:
        """Give the memory of the draft layers' KV to the lent blocks."""
        memory.release_kv(0, self.base_blocks, "draft")
        memory.restore_kv(self.base_blocks, self.num_blocks, "target")
