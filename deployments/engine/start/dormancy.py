"""What an engine's drafter does at K = 0, as far as vLLM's configuration says: sleep, write a head's KV alone, or run as in vLLM.

Asked before the engine starts (what to tell the operator), by the scheduler (whether to keep a ledger of what the drafter missed)
and, without vLLM, by `nightjar check`. Fails open: what is not known to work is kept in sync, as vLLM does it, at a forward a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightjar.deployments.drafter_kinds import kind_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NO_SEPARATE_DRAFT: Final = "only a separate draft model can be dormant"
CONTEXT_PARALLEL: Final = "context parallelism spreads a request's KV cache over ranks"
"""A rank knows only its own share of the slots that a catch-up would write."""
HEAD_ON_V1: Final = "on model runner V1 vLLM runs a head once a step at K = 0, to keep it in step"


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepFacts:
    """What decides it."""

    drafter_kind: str
    draft_ends_before_target: bool = False  # its max_model_len is smaller
    has_kv_connector: bool = False
    sleep_mode: bool = False
    context_parallel: bool = False
    head_layers: int = 1  # attention layers of an EAGLE or MTP head
    is_multimodal: bool = False
    spreads_experts: bool = False  # data parallelism, or experts that are moved between ranks


NO_DRAFTER: Final = SleepFacts(drafter_kind="none")


def sleep_facts(config: VllmConfig) -> SleepFacts:
    """Of the configuration that vLLM built."""
    speculative = config.speculative_config
    kind = kind_of("none" if speculative is None else speculative.method)
    if speculative is None or not (kind.can_sleep or kind.is_head):
        return SleepFacts(drafter_kind=kind.method)
    return SleepFacts(
        drafter_kind=speculative.method,
        head_layers=_head_layers(speculative),
        is_multimodal=bool(getattr(config.model_config, "is_multimodal_model", False)),
        spreads_experts=_spreads_experts(config.parallel_config),
        draft_ends_before_target=speculative.draft_model_config.max_model_len < config.model_config.max_model_len,
        has_kv_connector=config.kv_transfer_config is not None,
        sleep_mode=bool(config.model_config.enable_sleep_mode),
        context_parallel=is_context_parallel(config.parallel_config),
    )


def why_never_asleep(facts: SleepFacts) -> str:
    """Why the drafter runs in every step, also at K = 0; empty where it can sleep.

    >>> why_never_asleep(SleepFacts(drafter_kind="eagle"))
    'only a separate draft model can be dormant'
    """
    checks = (
        (not kind_of(facts.drafter_kind).can_sleep, NO_SEPARATE_DRAFT),
        (facts.draft_ends_before_target, "the draft's max_model_len is below the target's"),
        (facts.has_kv_connector, "a KV connector is in use"),
        (facts.sleep_mode, "sleep mode is on"),
        (facts.context_parallel, CONTEXT_PARALLEL),
    )
    return next((reason for applies, reason in checks if applies), "")


def why_head_runs(facts: SleepFacts, *, runner_is_v1: bool) -> str:
    """Why an EAGLE or MTP head runs at K = 0 as in vLLM, a forward a step; empty where it only writes its KV (kv_only_head.py).

    >>> why_head_runs(SleepFacts(drafter_kind="eagle", head_layers=2), runner_is_v1=False)
    'the head has 2 attention layers: the KV of all but the first depends on attention'
    """
    checks = (
        (runner_is_v1, HEAD_ON_V1),
        (
            facts.head_layers > 1,
            f"the head has {facts.head_layers} attention layers: the KV of all but the first depends on attention",
        ),
        (facts.has_kv_connector, "a KV connector is in use"),
        (facts.context_parallel, CONTEXT_PARALLEL),
        (facts.is_multimodal, "the target is multimodal"),
        (facts.spreads_experts, "data parallelism or expert load balancing counts the head's forwards"),
    )
    return next((reason for applies, reason in checks if applies), "")


def _spreads_experts(parallel: Any) -> bool:
    return getattr(parallel, "data_parallel_size", 1) > 1 or bool(getattr(parallel, "enable_eplb", False))


def _head_layers(speculative: Any) -> int:
    """Of vLLM's SpeculativeConfig (0.32); a head that does not say has one."""
    hf_config = getattr(speculative.draft_model_config, "hf_config", None)
    name = "n_predict" if kind_of(speculative.method).method == "mtp" else "num_hidden_layers"
    return int(getattr(hf_config, name, None) or 1)


def is_context_parallel(parallel: Any) -> bool:
    """Of vLLM's ParallelConfig (0.32)."""
    sizes = (parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size)
    return bool(max(sizes) > 1)
