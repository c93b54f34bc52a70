"""The worker on model runner V1: vLLM's own, with a draft model that obeys the scheduler.

The drafter is replaced before its weights load. vLLM's own runs the draft once in every step, whatever K is, and knows no lag. Ours
does what the step's DraftWork says (draft_work.py): it sleeps, reads again what it missed, or drafts as vLLM does, which is all
that it does without one. The scheduler owns every decision, so that all tensor-parallel ranks read the same tokens in the same
step. vLLM drafts nothing at all, and hands zeros out as drafts, in every step where one row is near the length limit; the scheduler
trims such a row's drafts by itself, so ours drafts for the others. Fails open: a catch-up that raises has read nothing, the
scheduler hears of it (step_reports.py), and the step goes on without it.

The CPU's is in cpu.py. Nothing that a GPU's worker imports may import vLLM's CPU worker: that replaces torch.cuda's events
and streams for the whole process, after which a GPU engine does not start, or its copies race.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from vllm.compilation.backends import set_model_tag
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.spec_decode.draft_model import DraftModelProposer
from vllm.v1.worker.gpu_worker import Worker

from nightjar.deployments.engine.memory.interface import DraftMemory, OffloadUnsupportedError
from nightjar.deployments.engine.worker.base import SteeredWorkerMixin
from nightjar.deployments.engine.worker.catch_up_input import Row, batches_of, copy_to, row_of, token_inputs
from nightjar.deployments.engine.worker.draft_work import (
    DRAFTER_FAILURE_ATTRIBUTE,
    MEMORY_ATTRIBUTE,
    SLEEP,
    WORK_ATTRIBUTE,
    DraftWork,
    Recompute,
)
from nightjar.deployments.engine.worker.step_reports import StepReports


class SteeredDraftModelProposer(DraftModelProposer):
    """For `model_runner.drafter`. `work` is set before each step."""

    def __init__(
        self, vllm_config: Any, device: torch.device, runner: Any, reports: StepReports, memory: DraftMemory | None = None
    ) -> None:
        super().__init__(vllm_config, device, runner)
        self.runner = runner
        self.reports = reports
        self.memory = memory
        self.work: DraftWork | None = None
        self.forwards = 0

    def propose(
        self,
        num_speculative_tokens: int,
        target_token_ids: torch.Tensor,
        target_positions: torch.Tensor,
        target_hidden_states: torch.Tensor,
        next_token_ids: torch.Tensor,
        token_indices_to_sample: torch.Tensor | None,
        common_attn_metadata: CommonAttentionMetadata,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As vLLM's (0.32, SpecDecodeBaseProposer.propose): token ids of shape [batch, K]; a sleeping drafter gives [batch, 0]."""
        work = SLEEP if self.memory is not None and self.memory.is_offloaded else self.work
        if work is not None and work.recompute:
            try:
                self._recompute(work.recompute, target_token_ids, common_attn_metadata)
            except Exception as error:  # noqa: BLE001 - drafts need it, texts do not
                self.reports.survive(error, DRAFTER_FAILURE_ATTRIBUTE, what="catch-up", consequence="the draft sleeps")
        if work is not None and not work.runs:
            self._last_draft_probs = None
            return torch.empty(common_attn_metadata.batch_size(), 0, device=self.device, dtype=torch.int64)
        self.forwards += max(num_speculative_tokens, 1)
        return super().propose(
            num_speculative_tokens,
            target_token_ids,
            target_positions,
            target_hidden_states,
            next_token_ids,
            token_indices_to_sample,
            common_attn_metadata,
            *args,
            **kwargs,
        )

    def _get_model(self) -> torch.nn.Module:
        """As vLLM's, through the memory that can take the weights away again where there is one."""
        if self.memory is None:
            return super()._get_model()
        with set_model_tag("draft_model"):
            model: torch.nn.Module = self.memory.load_model(self._create_draft_vllm_config(), prefix="draft_model")
        if self.memory.why_not:
            raise OffloadUnsupportedError(f"draft_offload: {self.memory.why_not}; set draft_offload: never to serve without it")
        return model

    def _recompute(self, portions: Sequence[Recompute], target_token_ids: torch.Tensor, metadata: CommonAttentionMetadata) -> None:
        """Read what was missed, in as many forwards as the drafter's buffers need (one, unless a chunk is larger than a batch)."""
        query_start = metadata.query_start_loc_cpu.tolist()
        rows = [row_of(portion, self.runner.input_batch.req_id_to_index[portion.request_id], query_start) for portion in portions]
        for batch in batches_of(rows, self.max_num_tokens):
            self._read(batch, target_token_ids, metadata)

    def _read(self, rows: Sequence[Row], target_token_ids: torch.Tensor, metadata: CommonAttentionMetadata) -> None:
        """One forward of the draft over the rows' tokens, for its KV alone."""
        lengths = [row.num_tokens for row in rows]
        num_tokens = sum(lengths)
        token_ids, positions, batch_rows = token_inputs(rows, target_token_ids, self._on_device)
        block_table = metadata.block_table_tensor[self._on_device(torch.tensor([row.row for row in rows]))].contiguous()
        slots = metadata.block_table_tensor[batch_rows, positions // self.block_size].to(torch.int64) * self.block_size
        slots += positions % self.block_size
        query_start_cpu = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        seq_lens_cpu = torch.tensor([row.first_token + row.num_tokens for row in rows], dtype=torch.int32)
        catch_up_metadata = with_rows(
            metadata,
            query_start_loc=self._on_device(query_start_cpu),
            query_start_loc_cpu=query_start_cpu,
            seq_lens=self._on_device(seq_lens_cpu),
            seq_lens_cpu_upper_bound=seq_lens_cpu,
            num_reqs=len(rows),
            num_actual_tokens=num_tokens,
            max_query_len=max(lengths),
            max_seq_len=int(seq_lens_cpu.max()),
            block_table_tensor=block_table,
            slot_mapping=slots,
            is_prefilling=None,
            positions=None,
        )
        if self.vocab_mapping is not None:
            token_ids = self.vocab_mapping.map_target_to_draft_ids(token_ids)
        _, per_layer_metadata = self.build_per_group_and_layer_attn_metadata(catch_up_metadata)
        self.input_ids[:num_tokens] = token_ids.to(self.input_ids.dtype)
        self.positions[:num_tokens] = self._rope_positions(rows, positions)
        model_inputs, _ = self.build_model_inputs_first_pass(num_tokens, num_tokens, None)
        self.forwards += 1
        with set_forward_context(
            per_layer_metadata,
            self.vllm_config,
            num_tokens=num_tokens,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            slot_mapping=self._get_slot_mapping(num_tokens, slots),
        ):
            self.model(**model_inputs)

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return copy_to(self.device)(tensor)

    def _rope_positions(self, rows: Sequence[Row], positions: torch.Tensor) -> torch.Tensor:
        """Where the draft's rotary embedding has the rows' tokens, shape [tokens]; `positions` count tokens.

        They differ where the target uses M-RoPE: vLLM gives a text draft the first of its dimensions (0.32,
        SpecDecodeBaseProposer._set_positions), in which an image takes fewer positions than it has tokens.
        """
        if not self.vllm_config.model_config.uses_mrope:
            return positions
        requests = [self.runner.requests[self.runner.input_batch.req_ids[row.row]] for row in rows]
        of_rows = [
            first_mrope_dimension(request, row.first_token, row.num_tokens) for request, row in zip(requests, rows, strict=True)
        ]
        return torch.cat(of_rows).to(positions.device)


def with_rows(metadata: CommonAttentionMetadata, **fields: Any) -> Any:
    """The metadata of a step for other rows. What vLLM worked out for the whole batch is left out, and worked out again.

    Such fields begin with an underscore: two in 0.32 and 0.33, and in 0.29 lengths on the host as well, which FlashInfer reads.
    """
    kept = {field.name: None for field in dataclasses.fields(metadata) if field.name.startswith("_")}
    return metadata.replace(**kept, **fields)


def first_mrope_dimension(request: Any, first_token: int, num_tokens: int) -> torch.Tensor:
    """M-RoPE's first dimension for some tokens of a request, shape [num_tokens]: its prompt's own, then a constant shift.

    `request` is vLLM's CachedRequestState (0.32, gpu_model_runner._calc_mrope_positions).
    """
    prompt = request.mrope_positions[0]
    of_prompt = prompt[first_token : first_token + num_tokens]
    generated = torch.arange(first_token + len(of_prompt), first_token + num_tokens, dtype=of_prompt.dtype)
    return torch.cat([of_prompt, generated + request.mrope_position_delta])


class SteeredGPUWorker(SteeredWorkerMixin, Worker):
    """For `worker_cls` on GPU with model runner V1. Never run on a GPU."""

    def init_device(self) -> None:
        """As the mixin's, then put our drafter in place of a draft model's."""
        super().init_device()
        self.nightjar_drafter = install_drafter(self.model_runner, self.reports, self.draft_memory)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """As vLLM's, after carrying out the step's orders for the drafter's memory and handing it those for its work."""
        if self.nightjar_drafter is not None:
            self.move_draft(getattr(scheduler_output, MEMORY_ATTRIBUTE, None))
            self.nightjar_drafter.work = getattr(scheduler_output, WORK_ATTRIBUTE, None)
        return self.reports.attached(super().execute_model(scheduler_output))


def install_drafter(runner: Any, reports: StepReports, memory: DraftMemory | None) -> SteeredDraftModelProposer | None:
    """Replace the runner's separate draft model, before it loads; None where there is none that can sleep."""
    speculative = runner.speculative_config
    if speculative is None or not speculative.uses_draft_model():
        return None
    drafter = runner.drafter = SteeredDraftModelProposer(runner.vllm_config, runner.device, runner, reports, memory)
    if runner.effective_drafter_max_model_len >= runner.max_model_len:
        runner._input_fits_in_drafter = lambda common_attn_metadata: common_attn_metadata is not None
    return drafter
