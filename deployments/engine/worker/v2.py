"""The worker of a steered engine on model runner V2: vLLM's own, with another hand on its drafter once that is loaded.

A separate draft model of vLLM's (0.32, StandaloneARSpeculator) drafts its maximum in every step, whatever K is. Here it does what
the step's DraftWork says (draft_work.py), as on runner V1: the scheduler owns every decision. `propose` is replaced on the
instance; what drafts is vLLM's own loop, run for K tokens. Fails open: a catch-up that raises has read nothing, the scheduler hears
of it (step_reports.py), and the step goes on without it.

An EAGLE or MTP head writes its KV alone at K = 0 (kv_only_head.py). What the configuration cannot say of one, such as how many
attention layers it has of its own, is known only once it is loaded: a head that must run as in vLLM is left alone, and the worker
notes why in the engine's folder, where the replica finds it. The CPU's worker is on the rig (rig/v2_worker.py), since no CPU engine
that serves has this runner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import structlog
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.standalone_ar import speculator as standalone_ar
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL
from nightjar.deployments.engine.engine_folder import note_head
from nightjar.deployments.engine.memory.interface import DraftMemory, OffloadUnsupportedError
from nightjar.deployments.engine.worker.base import SteeredWorkerMixin
from nightjar.deployments.engine.worker.catch_up_input import Row, batches_of, copy_to, row_of, token_inputs
from nightjar.deployments.engine.worker.draft_work import (
    DRAFTER_FAILURE_ATTRIBUTE,
    MEMORY_ATTRIBUTE,
    ROWS_ATTRIBUTE,
    SLEEP,
    WORK_ATTRIBUTE,
    DraftWork,
    Recompute,
)
from nightjar.deployments.engine.worker.kv_only_head import KVOnlyHead, QuietBlock, stand_before, why_not
from nightjar.deployments.engine.worker.step_reports import StepReports

log = structlog.get_logger(__name__)


class SteeredDraftOnV2:
    """Stands before the `propose` of a loaded StandaloneARSpeculator. `work` is set before each step."""

    def __init__(self, speculator: Any, reports: StepReports, memory: DraftMemory | None = None) -> None:
        self.reports = reports
        self._memory = memory
        self.work: DraftWork | None = None
        self.forwards = 0
        self._speculator = speculator
        self._propose = speculator.propose
        self._on_device = copy_to(speculator.device)
        speculator.propose = self.propose

    @torch.inference_mode()
    def propose(self, input_batch: Any, *arguments: Any, num_speculative_tokens: int | None = None, **options: Any) -> torch.Tensor:
        """Draft tokens, [num_reqs, max_num_speculative_tokens], of which the first K count (vLLM's signature and meaning)."""
        speculator, is_away = self._speculator, self._memory is not None and self._memory.is_offloaded
        is_step = not (options.get("dummy_run") or options.get("is_profile") or num_speculative_tokens is None)
        if not is_step and not is_away:
            drafts: torch.Tensor = self._propose(input_batch, *arguments, num_speculative_tokens=num_speculative_tokens, **options)
            return drafts
        work, num_reqs = SLEEP if is_away else self.work, input_batch.num_reqs
        if work is not None and work.recompute:
            try:
                self._recompute(work.recompute, input_batch)
            except Exception as error:  # noqa: BLE001 - drafts need it, texts do not
                self.reports.survive(error, DRAFTER_FAILURE_ATTRIBUTE, what="catch-up", consequence="the draft sleeps")
        if work is not None and not work.runs:
            nothing: torch.Tensor = speculator.draft_tokens[:num_reqs]
            return nothing.fill_(-1)
        most = speculator.num_speculative_steps
        speculator.num_speculative_steps = max(num_speculative_tokens or 0, 1)
        self.forwards += speculator.num_speculative_steps
        try:
            self._propose(input_batch, *arguments, num_speculative_tokens=num_speculative_tokens, **options)
        finally:
            speculator.num_speculative_steps = most
        drafted: torch.Tensor = speculator.draft_tokens[:num_reqs]
        return drafted

    def _recompute(self, portions: Sequence[Recompute], input_batch: Any) -> None:
        """Read what was missed, in as many forwards as the drafter's buffers need (one, unless a chunk is larger than a batch)."""
        place = {request_id: row for row, request_id in enumerate(input_batch.req_ids)}
        query_start = input_batch.query_start_loc_np.tolist()
        rows = [row_of(portion, place[portion.request_id], query_start) for portion in portions]
        try:
            for batch in batches_of(rows, self._speculator.max_num_tokens):
                self._read(batch, input_batch)
        finally:
            # The step's own rows again, for what drafts next.
            self._speculator.block_tables.gather_block_tables(
                input_batch.idx_mapping, num_reqs_padded=input_batch.num_reqs_after_padding
            )

    def _read(self, rows: Sequence[Row], input_batch: Any) -> None:
        """One forward of the draft over the rows' tokens, for its KV alone."""
        speculator, buffers = self._speculator, self._speculator.input_buffers
        lengths = [row.num_tokens for row in rows]
        num_rows, num_tokens = len(rows), sum(lengths)
        token_ids, positions, _ = token_inputs(rows, input_batch.input_ids, self._on_device)
        query_start = np.array([0, *accumulate(lengths)], dtype=np.int32)
        seq_lens = torch.tensor([row.first_token + row.num_tokens for row in rows], dtype=torch.int32)
        idx_mapping = input_batch.idx_mapping[self._on_device(torch.tensor([row.row for row in rows]))]
        speculator.expanded_input_ids[:num_tokens] = token_ids.to(speculator.expanded_input_ids.dtype)
        speculator.expanded_positions[:num_tokens] = positions
        buffers.positions[:num_tokens] = positions
        buffers.query_start_loc[: num_rows + 1] = self._on_device(torch.from_numpy(query_start))
        buffers.seq_lens[:num_rows] = self._on_device(seq_lens)
        speculator.block_tables.gather_block_tables(idx_mapping, num_reqs_padded=num_rows)
        slots = speculator.block_tables.compute_slot_mappings(
            idx_mapping,
            buffers.query_start_loc[: num_rows + 1],
            speculator.expanded_positions[:num_tokens],
            num_tokens,
            out=speculator.expanded_slot_mappings,
        )
        metadata = speculator._build_attn_metadata(
            num_reqs=num_rows,
            batch_desc=BatchExecutionDescriptor(cg_mode=CUDAGraphMode.NONE, num_tokens=num_tokens, num_reqs=num_rows),
            query_start_loc_np=query_start,
            seq_lens_cpu_upper_bound=seq_lens,
            step=0,
            slot_mappings=slots,
        )
        self.forwards += 1
        speculator._run_model(
            speculator.expanded_input_ids[:num_tokens],
            speculator.expanded_positions[:num_tokens],
            metadata,
            build_slot_mappings_by_layer(slots, speculator.kv_cache_config),
            None,
        )


def load_through(memory: DraftMemory, speculator: Any) -> None:
    """Let the speculator load its draft by the memory that can take the weights away again. The configuration is vLLM's own.

    Loading raises OffloadUnsupportedError where these weights cannot be taken away.
    """
    load_draft_model = speculator.load_draft_model

    def load(*arguments: Any, **options: Any) -> torch.nn.Module:
        get_model = standalone_ar.get_model
        standalone_ar.get_model = memory.load_model
        try:
            model: torch.nn.Module = load_draft_model(*arguments, **options)
        finally:
            standalone_ar.get_model = get_model
        if memory.why_not:
            raise OffloadUnsupportedError(f"draft_offload: {memory.why_not}; set draft_offload: never to serve without it")
        return model

    speculator.load_draft_model = load


class SteeredV2Mixin(SteeredWorkerMixin):
    """Before a worker of vLLM's."""

    nightjar_drafter: SteeredDraftOnV2 | None = None
    nightjar_head: KVOnlyHead | QuietBlock | None = None
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
            self.nightjar_head = stand_before(speculator, self.reports)

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
