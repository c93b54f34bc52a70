"""The worker of a steered engine on model runner V2: vLLM's own, with another hand on its drafter once that is loaded.

A separate draft model obeys the scheduler (draft_on_v2.py); an EAGLE or MTP head writes its KV alone at K = 0 (kv_only_head.py).
What the configuration cannot say of a head, such as how many attention layers it has of its own, is known only then: a head that
must run as in vLLM is left alone, and the worker notes why in the engine's folder, where the replica finds it. The CPU's worker is
on the rig (rig/v2_worker.py), since no CPU engine that serves has this runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL
from nightjar.deployments.engine.head_notes import note_head
from nightjar.deployments.engine.worker.base import SteeredWorkerMixin
from nightjar.deployments.engine.worker.draft_on_v2 import SteeredDraftOnV2, load_through
from nightjar.deployments.engine.worker.draft_work import MEMORY_ATTRIBUTE, ROWS_ATTRIBUTE, WORK_ATTRIBUTE
from nightjar.deployments.engine.worker.kv_only_head import KVOnlyHead, why_not

log = structlog.get_logger(__name__)


class SteeredV2Mixin(SteeredWorkerMixin):
    """Before a worker of vLLM's."""

    nightjar_drafter: SteeredDraftOnV2 | None = None
    nightjar_head: KVOnlyHead | None = None
    nightjar_head_runs: str = ""
    """Why a loaded head runs at K = 0 as in vLLM."""

    def load_model(self, *arguments: Any, **options: Any) -> None:
        """As vLLM's, then stand before its drafter."""
        speculator = getattr(self.model_runner, "speculator", None)
        is_draft_model = speculator is not None and speculator.method == SEPARATE_DRAFT_MODEL
        if is_draft_model and not isinstance(speculator, StandaloneARSpeculator):
            raise TypeError(f"{type(speculator).__name__} does not obey K: only a StandaloneARSpeculator is made to")
        if self.draft_memory is not None:
            load_through(self.draft_memory, speculator)
        super().load_model(*arguments, **options)  # type: ignore[misc]  # the worker's
        if is_draft_model:
            self.nightjar_drafter = SteeredDraftOnV2(speculator, self.reports, self.draft_memory)
            return
        self.nightjar_head_runs = "" if speculator is None else why_not(speculator)
        if self.nightjar_head_runs:
            log.warning("head_runs_at_zero", reason=self.nightjar_head_runs, consequence="it runs once a step, as in vLLM")
            note_head(self.nightjar_head_runs)
        elif speculator is not None:
            self.nightjar_head = KVOnlyHead(speculator, self.reports)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """As vLLM's, after what a step has for our drafter: orders for its memory and its work, and rows whose blocks moved."""
        if self.nightjar_drafter is not None:
            self.move_draft(getattr(scheduler_output, MEMORY_ATTRIBUTE, None))
            self.nightjar_drafter.work = getattr(scheduler_output, WORK_ATTRIBUTE, None)
            self._replace_rows(getattr(scheduler_output, ROWS_ATTRIBUTE, {}))
        return self.reports.attached(super().execute_model(scheduler_output))  # type: ignore[misc]  # the worker's

    def _replace_rows(self, block_ids: Mapping[str, tuple[list[int], ...]]) -> None:
        """Of requests whose KV blocks the scheduler moved: written with the step's own rows, before its copies are made."""
        runner = self.model_runner
        for request_id, of_groups in block_ids.items():
            runner.block_tables.append_block_ids(runner.req_states.req_id_to_index[request_id], of_groups, overwrite=True)


class SteeredV2Worker(SteeredV2Mixin, Worker):
    """For `worker_cls` on GPU with model runner V2. Never run on a GPU."""
