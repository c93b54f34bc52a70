"""A separate draft model on vLLM's model runner V2 that obeys K, sleeps at K = 0 and reads again what it missed.

vLLM's own (0.32, StandaloneARSpeculator) drafts its maximum in every step, whatever K is. This one does what the step's DraftWork
says (draft_work.py), as drafter.py does on runner V1: the scheduler owns every decision. `propose` is replaced on the instance;
what drafts is vLLM's own loop, run for K tokens. Fails open: a catch-up that raises has read nothing, the scheduler hears of it
(step_reports.py), and the step goes on without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.standalone_ar import speculator as standalone_ar

from nightjar.deployments.engine.memory.interface import DraftMemory, OffloadUnsupportedError
from nightjar.deployments.engine.worker.catch_up_input import Row, batches_of, copy_to, row_of, token_inputs
from nightjar.deployments.engine.worker.draft_work import DRAFTER_FAILURE_ATTRIBUTE, SLEEP, DraftWork, Recompute
from nightjar.deployments.engine.worker.step_reports import StepReports


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
