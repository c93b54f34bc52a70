"""An EAGLE or MTP head that at K = 0 writes its KV and does nothing else, on vLLM's model runner V2.

vLLM runs the whole head once a step at K = 0, so that its KV stays complete: attention, MLP, and up to 0.32 the vocabulary's logits
and a sample that is not read (0.33 leaves these out, but in a full graph, which holds them). In a head of ONE attention layer the
KV of a position depends on that position's own inputs alone: its token, the target's hidden state and the position. And vLLM writes
KV by an op of its own, before it calls the attention backend. So at K = 0 the stock model runs with the step's slots and no
attention metadata, and stops where attention would begin. Drafts made afterwards are those that vLLM would have made, whatever was
rejected, preempted, aborted or found in the prefix cache meanwhile: the writes are vLLM's own, in the same step and to the same
slots. A head whose layers all read the target's KV has none to write, and runs nothing. Under vLLM's adaptive verification the
confidences of earlier steps stay, as where 0.33 skips its own sample: no draft is ranked by them, but the budget of the first step
that verifies again, which reads old ones anyhow.

DFlash and DSpark draft with one forward over a block of queries. What they keep of a step is projected from the target's hidden
states before that, whatever the number of their layers, and 0.33 does only this at K = 0. In 0.32 the queries run, and ours leaves
them out (QuietBlock).

`propose` of the runner's speculator is replaced on the instance; every other call, captured graph and buffer stays vLLM's. Fails
open: a head for which this does not hold (`why_not`) runs as in vLLM, and so does one whose pass raised, from that step on
(step_reports.py). Read in vLLM 0.32 and 0.33, v1/worker/gpu/spec_decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import TargetDependentARSpeculator, prepare_prefill_inputs

from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.engine.worker.draft_work import DRAFTER_FAILURE_ATTRIBUTE
from nightjar.deployments.engine.worker.step_reports import StepReports


class _KVWrittenError(Exception):
    """The head's KV is in the cache: the rest of its forward is not wanted."""


class KVOnlyHead:
    """Stands before one speculator's `propose`, for which `why_not` is empty."""

    def __init__(self, speculator: Any, reports: StepReports) -> None:
        self.reports = reports
        self.runs_as_in_vllm = False
        self._speculator = speculator
        self._propose = speculator.propose
        self._layer = next(iter(own_attention_layers(speculator)), "")
        if self._layer:
            self._attention = speculator.vllm_config.compilation_config.static_forward_context[self._layer]
        speculator.propose = self.propose

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,
        *arguments: Any,
        num_speculative_tokens: int | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Draft tokens, [num_reqs, max_num_speculative_tokens]: vLLM's at K > 0, and -1 at K = 0 (vLLM's signature and meaning)."""
        is_step = not (options.get("dummy_run") or options.get("is_profile"))
        if is_step and num_speculative_tokens == 0 and slot_mappings is not None and not self.runs_as_in_vllm:
            try:
                if self._layer:
                    sampled = (num_sampled, num_rejected, last_sampled, next_prefill_tokens)
                    self._write_step(input_batch, slot_mappings, last_hidden_states, aux_hidden_states, sampled)
                nothing: torch.Tensor = self._speculator.draft_tokens[: input_batch.num_reqs].fill_(-1)
            except Exception as error:  # noqa: BLE001 - drafts need it, texts do not
                self._run_from_now_on(error)
            else:
                return nothing
        drafts: torch.Tensor = self._propose(
            input_batch,
            attn_metadata,
            slot_mappings,
            last_hidden_states,
            aux_hidden_states,
            num_sampled,
            num_rejected,
            last_sampled,
            next_prefill_tokens,
            *arguments,
            num_speculative_tokens=num_speculative_tokens,
            **options,
        )
        return drafts

    def _write_step(
        self,
        input_batch: Any,
        slot_mappings: Any,
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        sampled: tuple[torch.Tensor, ...],
    ) -> None:
        """Make this step's writes. `sampled` are the arguments of `propose` that say what was sampled."""
        speculator, num_tokens = self._speculator, input_batch.num_tokens
        prepare_prefill_inputs(
            speculator.last_token_indices,
            speculator.current_draft_step,
            speculator.input_buffers,
            input_batch,
            *sampled,
            speculator.max_num_reqs,
        )
        hidden_states = last_hidden_states[:num_tokens]
        if aux_hidden_states:
            hidden_states = torch.cat([states[:num_tokens] for states in aux_hidden_states], dim=-1)
            hidden_states = speculator.model.combine_hidden_states(hidden_states)
        self._write(hidden_states, slot_mappings[self._layer][:num_tokens])

    def _run_from_now_on(self, error: Exception) -> None:
        """A pass broke off: the head runs at K = 0 as in vLLM."""
        self.reports.survive(
            error, DRAFTER_FAILURE_ATTRIBUTE, what="KV-only pass", consequence="the head runs once a step, as in vLLM"
        )
        self.runs_as_in_vllm = True

    def _write(self, hidden_states: torch.Tensor, slots: torch.Tensor) -> None:
        """The head as far as its KV, over the first entries of its input buffers."""
        speculator, num_tokens = self._speculator, slots.shape[0]
        speculator.hidden_states[:num_tokens].copy_(hidden_states)
        with self._stopping_at_attention():
            speculator._run_model(num_tokens, None, {self._layer: slots}, None)

    @contextmanager
    def _stopping_at_attention(self) -> Iterator[None]:
        """The layer calls the backend's `forward` after it wrote its KV (vLLM 0.32, model_executor/layers/attention)."""
        implementation = self._attention.impl

        def stop(*_: object, **__: object) -> None:
            raise _KVWrittenError

        implementation.forward = stop
        try:
            yield
        except _KVWrittenError:
            pass
        finally:
            del implementation.forward


class QuietBlock:
    """Stands before the `propose` of a DFlash or DSpark drafter, for which `why_not` is empty: no queries at K = 0.

    Such a step runs without a graph, because a captured one holds the queries, too.
    """

    def __init__(self, speculator: Any, reports: StepReports) -> None:
        self.reports = reports
        self.runs_as_in_vllm = False
        self._speculator = speculator
        self._propose = speculator.propose
        speculator.propose = self.propose

    @torch.inference_mode()
    def propose(self, *arguments: Any, num_speculative_tokens: int | None = None, **options: Any) -> torch.Tensor:
        """Draft tokens, [num_reqs, max_num_speculative_tokens], of which the first K count (vLLM's signature and meaning)."""
        is_step = not (options.get("dummy_run") or options.get("is_profile"))
        if is_step and num_speculative_tokens == 0 and not self.runs_as_in_vllm:
            try:
                with self._without_queries():
                    kept: torch.Tensor = self._propose(*arguments, num_speculative_tokens=0, **{**options, "is_profile": True})
            except Exception as error:  # noqa: BLE001 - drafts need it, texts do not
                self.reports.survive(
                    error, DRAFTER_FAILURE_ATTRIBUTE, what="context-only pass", consequence="its queries run at K = 0, as in vLLM"
                )
                self.runs_as_in_vllm = True
            else:
                return kept.fill_(-1)
        drafts: torch.Tensor = self._propose(*arguments, num_speculative_tokens=num_speculative_tokens, **options)
        return drafts

    @contextmanager
    def _without_queries(self) -> Iterator[None]:
        """Everything of a step but `_generate_draft`, which runs the queries and samples from them."""
        self._speculator._generate_draft = lambda *_, **__: None
        try:
            yield
        finally:
            del self._speculator._generate_draft


def stand_before(speculator: Any, reports: StepReports) -> KVOnlyHead | QuietBlock:
    """Of a loaded head for which `why_not` is empty."""
    return (QuietBlock if _drafts_a_block(speculator) else KVOnlyHead)(speculator, reports)


def _drafts_a_block(speculator: Any) -> bool:
    return kind_of(str(getattr(speculator, "method", ""))).drafts_a_block


def own_attention_layers(speculator: Any) -> list[str]:
    """Names of the drafter's attention layers that have KV of their own."""
    layers = get_layers_from_vllm_config(speculator.vllm_config, AttentionLayerBase)
    names = sorted(speculator.draft_attn_layer_names)
    return [name for name in names if getattr(layers[name], "kv_sharing_target_layer_name", None) is None]


def why_not(speculator: Any) -> str:
    """Why this drafter, once loaded, must run at K = 0 as in vLLM; empty where it may write its KV alone."""
    is_block = _drafts_a_block(speculator)
    if not isinstance(speculator, TargetDependentARSpeculator) and not is_block:
        return f"{type(speculator).__name__} is another kind of drafter"
    config = speculator.vllm_config
    layers = get_layers_from_vllm_config(config, AttentionLayerBase)
    own, parallel = own_attention_layers(speculator), config.parallel_config
    checks = (
        (
            len(own) > 1 and not is_block,
            f"the head has {len(own)} attention layers of its own, and KV is known without attention for one alone",
        ),
        (
            not is_block and any(layers[name].get_attn_backend().forward_includes_kv_cache_update for name in own),
            "its attention backend writes KV within attention",
        ),
        (parallel.data_parallel_size > 1, "data parallelism: ranks must agree on forwards"),
        (bool(getattr(parallel, "enable_eplb", False)), "expert load balancing counts its forwards"),
        (max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1, "context parallelism"),
        (bool(speculator.supports_mm_inputs), "multimodal inputs"),
        (bool(getattr(speculator, "share_mtp_topk_indices", False)), "it has a sparse-attention indexer of its own"),
        (config.kv_transfer_config is not None, "a KV connector reads its KV"),
    )
    return next((reason for applies, reason in checks if applies), "")
