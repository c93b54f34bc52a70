"""Whether an engine's drafter can be put to sleep at K = 0, as far as vLLM's configuration says.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepFacts:
    """What decides it."""

    drafter_kind: str
    drafts_in_parallel: bool = False
    draft_ends_before_target: bool = False  # its max_model_len is smaller
    has_kv_connector: bool = False
    sleep_mode: bool = False
    context_parallel: bool = False


def sleep_facts(config: VllmConfig) -> SleepFacts:
    """Of the configuration that vLLM built."""
    speculative = config.speculative_config
    if speculative is None or not kind_of(speculative.method).can_sleep:
        return SleepFacts(drafter_kind="none" if speculative is None else speculative.method)
    return SleepFacts(
        drafter_kind=speculative.method,
        drafts_in_parallel=bool(speculative.parallel_drafting),
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
        (facts.drafts_in_parallel, "the draft model drafts in parallel"),
        (facts.draft_ends_before_target, "the draft's max_model_len is below the target's"),
        (facts.has_kv_connector, "a KV connector is in use"),
        (facts.sleep_mode, "sleep mode is on"),
        (facts.context_parallel, CONTEXT_PARALLEL),
    )
    return next((reason for applies, reason in checks if applies), "")


def is_context_parallel(parallel: Any) -> bool:
    """Of vLLM's ParallelConfig (0.32)."""
    sizes = (parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size)
    return bool(max(sizes) > 1)
