"""What vLLM made of the user's arguments, and why an engine of these is served plainly. Fails open.

The user's arguments are resolved by vLLM first, so that the drafter kind, the asynchronous scheduler and every default are
vLLM's own answers. An engine that Nightjar cannot steer (a drafter that makes its maximum in one go, pipeline parallelism, a
scheduler of the user's, hooks that moved) gets exactly the user's arguments, and one reason says why: the first of `why_plain`.
What is added to the arguments of any other stands in arguments.py.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightjar.deployments.drafter_kinds import STEERABLE, drafter_of, kind_of
from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.start.dormancy import NO_DRAFTER, SleepFacts, offload_of, sleep_facts, why_never_asleep
from nightjar.deployments.engine.start.graph_tiers import GATED_DELTA_NET, LARGEST_CAPTURE_SIZE
from nightjar.deployments.engine.start.hooks import MissingHooks
from nightjar.deployments.engine.start.ranks import why_plain_in
from nightjar.deployments.engine.start.vllm_versions import TESTED, V2_OBEYS_K_FROM, Version, installed_vllm, why_unread
from nightjar.policy.wire.operator import DraftOffload
from nightjar.policy.wire.record import MAX_BATCH_SIZE, MAX_NUM_SPECULATIVE_TOKENS
from nightjar.policy.wire.report import Layer

if TYPE_CHECKING:
    from vllm.config import VllmConfig

RUNNER_VARIABLE: Final = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's: 0 for model runner V1, 1 for V2; on a GPU V2 where it is not set."""

SWITCHED_OFF: Final = "the layer {} is switched off (without)"
"""A layer's reason, where LLMConfig.without names it."""

STEERED_DEVICES: Final = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What vLLM made of the user's arguments."""

    on_cpu: bool
    async_scheduling: bool
    captures_graphs: bool
    max_num_seqs: int
    drafter_kind: str = "none"
    max_num_speculative_tokens: int = 0
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    num_nodes: int = 1
    """Whose commands each start a part of the engine (vLLM's `nnodes`)."""
    why_ranks_plain: str = ""
    """Why ranks of data parallelism are not steered each by itself (ranks.py)."""
    full_graphs: bool = True
    """Where graphs are captured: whether there are full ones, for each batch and K, beside piecewise ones, which serve any K."""
    largest_capture_size: int = LARGEST_CAPTURE_SIZE
    """In tokens, as vLLM would choose it for this device: twice as much on Blackwell."""
    runner_is_v1: bool = True
    runner_is_users: bool = False  # RUNNER_VARIABLE is set
    vllm_version: Version = TESTED
    adaptive_verification: bool = False
    """Whether vLLM itself chooses how many drafts of each row are verified, up to the step's K."""
    drafts_in_parallel: bool = False
    """PARD, P-EAGLE: one pass makes all drafts (vLLM's `parallel_drafting`)."""
    several_mtp_modules: bool = False
    """Whether an MTP head drafts with one module after the other, each with KV of its own."""
    is_mamba_like: bool = False
    """Whether the target has layers for which vLLM captures full graphs of the maximum K alone (graph_tiers.py)."""
    why_never_asleep: str = ""
    """Why a draft model runs at K = 0 as well, as far as the configuration says."""
    sleep: SleepFacts = NO_DRAFTER
    """The same of a head, whose answer depends on the runner."""
    offload: OffloadConfig | None = None
    why_no_offload: str = ""
    why_not_here: str = ""
    """Why the host of this engine, or its vLLM, is one that Nightjar does not steer in."""


def resolve_facts(config: VllmConfig, *, on_cpu: bool, draft_offload: DraftOffload = "never") -> EngineFacts:
    """Read vLLM's own answers from the configuration it built of the user's arguments.

    Of a version that was not read hardly anything is looked at: what moved there must not keep its engine from starting.
    """
    if why_not_read := why_unread(installed_vllm()):
        return EngineFacts(
            on_cpu=on_cpu,
            async_scheduling=False,
            captures_graphs=False,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            vllm_version=installed_vllm(),
            why_not_here=why_not_read,
        )
    speculative = config.speculative_config
    offload, why_no_offload = (None, "") if draft_offload == "never" else offload_of(config, on_cpu=on_cpu)
    return EngineFacts(
        on_cpu=on_cpu,
        async_scheduling=bool(config.scheduler_config.async_scheduling),
        captures_graphs=not config.model_config.enforce_eager and not on_cpu,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        drafter_kind=_drafter_kind(speculative),
        max_num_speculative_tokens=0 if speculative is None else speculative.num_speculative_tokens,
        pipeline_parallel_size=config.parallel_config.pipeline_parallel_size,
        data_parallel_size=config.parallel_config.data_parallel_size,
        num_nodes=getattr(config.parallel_config, "nnodes", 1),
        why_ranks_plain=why_plain_in(config),
        full_graphs=_has_full_graphs(config),
        largest_capture_size=_largest_capture_size(config),
        runner_is_v1=not getattr(config, "use_v2_model_runner", False),
        runner_is_users=bool(os.environ.get(RUNNER_VARIABLE)),
        vllm_version=installed_vllm(),
        adaptive_verification=bool(getattr(speculative, "enable_adaptive_verification", False)),
        drafts_in_parallel=bool(getattr(speculative, "parallel_drafting", False)),
        several_mtp_modules=_has_several_mtp_modules(config),
        is_mamba_like=_is_mamba_like(config),
        why_never_asleep=why_never_asleep(sleep_facts(config)),
        sleep=sleep_facts(config),
        offload=offload,
        why_no_offload=why_no_offload,
        why_not_here=_why_not_on(_device_type(config)),
    )


def why_plain(
    user_kwargs: Mapping[str, Any], facts: EngineFacts, missing: MissingHooks, without: Collection[Layer]
) -> tuple[str, str]:
    """The argument that keeps an engine from being steered, dotted, and why; both empty where it is steered."""
    taken = [name for name in ("scheduler_cls", "worker_cls") if user_kwargs.get(name) not in (None, "auto")]
    kind, tokens = kind_of(facts.drafter_kind), facts.max_num_speculative_tokens
    checks = (
        (Layer.STEERING in without, "", SWITCHED_OFF.format(Layer.STEERING)),
        (bool(facts.why_not_here), "", facts.why_not_here),
        (bool(missing.steering), "", f"this vLLM lacks what Nightjar hooks into: {', '.join(missing.steering)}"),
        (facts.drafter_kind == "none", "", "engine_kwargs hold no speculative_config: there is nothing to steer"),
        (
            bool(kind.variant_of),
            "speculative_config.model",
            f"drafter {kind.method!r} is {kind.variant_of} with a head of its own, and no run has shown that it obeys K",
        ),
        (
            not kind.obeys_k,
            "speculative_config.method",
            f"drafter {facts.drafter_kind!r} does not obey a K chosen per step (those that do: {', '.join(STEERABLE)})",
        ),
        (bool(why := _why_not_on_v1(facts)), "speculative_config.method", why),
        (
            facts.drafts_in_parallel and not kind.drafts_a_block,
            "speculative_config.parallel_drafting",
            "parallel_drafting makes all drafts in one pass: a step of fewer would end the engine, or mix its rows' drafts",
        ),
        (
            facts.several_mtp_modules,
            "speculative_config.num_speculative_tokens",
            "the MTP head drafts with several modules in turn, always its maximum, and their KV keeps the drafts that K leaves out",
        ),
        (bool(why := _why_not_as_asked(facts, missing, without)), "speculative_config", why),
        (bool(why := _why_not_beside_adaptive(facts)), "speculative_config.enable_adaptive_verification", why),
        (
            tokens > MAX_NUM_SPECULATIVE_TOKENS,
            "speculative_config.num_speculative_tokens",
            f"num_speculative_tokens {tokens} is above {MAX_NUM_SPECULATIVE_TOKENS}",
        ),
        (facts.max_num_seqs > MAX_BATCH_SIZE, "max_num_seqs", f"max_num_seqs {facts.max_num_seqs} is above {MAX_BATCH_SIZE}"),
        (
            facts.pipeline_parallel_size > 1,
            "pipeline_parallel_size",
            f"pipeline_parallel_size {facts.pipeline_parallel_size} is not supported",
        ),
        (
            facts.num_nodes > 1,
            "nnodes",
            f"nnodes {facts.num_nodes}: other commands start what runs on the other nodes, with arguments of their own",
        ),
        (bool(facts.why_ranks_plain), "data_parallel_size", facts.why_ranks_plain),
        (
            facts.data_parallel_size > 1 and bool(missing.ranks),
            "data_parallel_size",
            f"this vLLM lacks what each rank is called by: {', '.join(missing.ranks)}",
        ),
        (bool(taken), "".join(taken[:1]), f"engine_kwargs set {' and '.join(taken)} themselves"),
    )
    return next(((blamed, reason) for applies, blamed, reason in checks if applies), ("", ""))


def why_not_on_v2(facts: EngineFacts, missing: MissingHooks, without: Collection[Layer]) -> str:
    """Why runner V2 would draft its maximum, whatever K says; empty where the drafter obeys there, by vLLM or by our worker.

    Where it does not, drafts are written past the blocks that are reserved for K.
    """
    kind, version = kind_of(facts.drafter_kind), ".".join(map(str, facts.vllm_version))
    if facts.vllm_version >= V2_OBEYS_K_FROM and kind.obeys_k_on_v2:
        return ""
    makes_obey = facts.vllm_version >= V2_OBEYS_K_FROM and kind.is_made_to_obey_on_v2
    checks = (
        (not makes_obey, f"vLLM {version} drafts its maximum for {kind.method} there, whatever K says"),
        (
            Layer.SLEEPING in without,
            f"what makes a draft model obey there is part of sleeping, and {SWITCHED_OFF.format(Layer.SLEEPING)}",
        ),
        (bool(missing.draft_on_v2), f"this vLLM lacks what makes a draft model obey there: {', '.join(missing.draft_on_v2)}"),
        (facts.sleep.is_multimodal, "nothing makes a draft model obey there beside a multimodal target"),
    )
    return next((reason for applies, reason in checks if applies), "")


def _why_not_on_v1(facts: EngineFacts) -> str:
    """Why a drafter that is steered on runner V2 alone is not in this engine; empty where it is, or V1 will do."""
    kind = kind_of(facts.drafter_kind)
    if kind.obeys_k_on_v1 or (not facts.runner_is_v1 and facts.vllm_version >= V2_OBEYS_K_FROM):
        return ""
    runner, version = "V1" if facts.runner_is_v1 else "V2", ".".join(map(str, facts.vllm_version))
    since = ".".join(map(str, V2_OBEYS_K_FROM))
    return (
        f"drafter {kind.method!r} is steered on model runner V2 of vLLM {since} and later alone, which cuts its drafts to the "
        f"step's K; this engine has runner {runner} of vLLM {version}"
    )


def _why_not_as_asked(facts: EngineFacts, missing: MissingHooks, without: Collection[Layer]) -> str:
    """Why a drafter whose user wants runner V2 does not obey K; empty where it does, or V2 is not asked for."""
    if facts.on_cpu or not facts.runner_is_users or facts.runner_is_v1:
        return ""
    reason = why_not_on_v2(facts, missing, without)
    return reason and f"{RUNNER_VARIABLE} asks for runner V2: {reason}"


def _why_not_beside_adaptive(facts: EngineFacts) -> str:
    """Why an engine with adaptive verification has no ceiling to steer; empty where it has, or verifies as any other.

    vLLM refuses the first two itself, as it does adapters and a pipeline (VllmConfig._validate_adaptive_verification, and
    _get_v1_model_runner_unsupported_features). The ceiling is obeyed where the runner cuts
    off the drafts beyond K, from 0.32 on. A draft model obeys by our worker, which leaves out what makes its confidence.
    """
    if not facts.adaptive_verification:
        return ""
    kind, version = kind_of(facts.drafter_kind), ".".join(map(str, facts.vllm_version))
    checks = (
        (facts.on_cpu or facts.runner_is_v1, "needs model runner V2 on a GPU, and this engine runs on V1"),
        (not facts.captures_graphs or not facts.full_graphs, "needs full CUDA graphs, and this engine captures none"),
        (
            facts.vllm_version < V2_OBEYS_K_FROM,
            f"has no ceiling in vLLM {version}: drafts beyond a step's K are cut off from 0.32 on",
        ),
        (not kind.obeys_k_on_v2 or kind.model == "none", f"and a ceiling cannot be had together with {kind.method}"),
    )
    reason = next((reason for applies, reason in checks if applies), "")
    return reason and f"enable_adaptive_verification {reason}"


def _drafter_kind(speculative: Any) -> str:
    """Of vLLM's SpeculativeConfig, or None. Runner V2 chooses a variant by the same architectures."""
    if speculative is None:
        return "none"
    draft = getattr(speculative, "draft_model_config", None)
    return drafter_of(str(speculative.method), getattr(draft, "architectures", None) or ())


def _why_not_on(device_type: str) -> str:
    """vLLM's word for the platform; AMD's is cuda, too. Other platforms have workers of their own, which ours are not made for."""
    return "" if device_type in STEERED_DEVICES else f"device {device_type!r}: steered are {' and '.join(STEERED_DEVICES)}"


def _device_type(config: VllmConfig) -> str:
    return str(getattr(getattr(config, "device_config", None), "device_type", "cuda"))


def _has_full_graphs(config: VllmConfig) -> bool:
    mode = getattr(getattr(config, "compilation_config", None), "cudagraph_mode", None)
    return mode is None or bool(mode.has_full_cudagraphs())


def _has_several_mtp_modules(config: VllmConfig) -> bool:
    """Whether the runner drafts with a module for each token (vLLM 0.29 to 0.33).

    Runner V2 does for every head of several modules (SpeculativeConfig.use_multi_module_mtp); V1 for Step-3.5 alone, whose proposer
    also drafts one token at K = 0, and runs the first module of any other again and again. Before 0.32 we choose V1.
    """
    speculative = config.speculative_config
    if speculative is None or kind_of(str(speculative.method)).method != "mtp":
        return False
    on_v1 = not getattr(config, "use_v2_model_runner", False)
    if (on_v1 or installed_vllm() < V2_OBEYS_K_FROM) and speculative.use_step3p5_mtp():
        return True
    return not on_v1 and bool(speculative.use_multi_module_mtp())


def _is_mamba_like(config: VllmConfig) -> bool:
    """Of the model's class and its configuration, so before it loads. Gated delta nets, which have key heads, take any tiers.

    Any other recurrent layer counts, also where vLLM would capture it: such an engine is steered all the same.
    """
    model = config.model_config
    is_recurrent = getattr(model, "is_hybrid", False) or getattr(model, "is_attention_free", False)
    return bool(is_recurrent) and getattr(model.hf_text_config, GATED_DELTA_NET, None) is None


def _largest_capture_size(config: VllmConfig) -> int:
    chosen = getattr(getattr(config, "compilation_config", None), "max_cudagraph_capture_size", None)
    return max(chosen or 0, LARGEST_CAPTURE_SIZE)
