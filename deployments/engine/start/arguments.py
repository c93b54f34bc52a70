"""Engine arguments: the user's own, plus what steering needs; whether it is to be steered at all is resolved_facts.py's answer.

A separate draft model runs on vLLM's model runner V2, where our worker makes it obey K. What nothing makes obey there (with vLLM
0.29 every drafter, a draft model without the layer `sleeping`) gets V1 on a GPU by a variable, unless the user set it: which
drafter it is, and so which runner it needs, is known only from vLLM's answer. Where the user asked for V2 it is served plainly.

An engine that captures graphs and starts in mode shadow gets the user's arguments plus the observing scheduler alone, since a
table of K changes which graphs it captures; it cannot be steered later without a new start. Any other engine is
ready to be steered at once: in shadow its K is the user's all the same. Fails open: an engine that is served plainly gets exactly
the user's arguments, and `serving_plainly` says why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.engine.memory.offload_config import with_entry
from nightjar.deployments.engine.start.dormancy import why_head_runs
from nightjar.deployments.engine.start.graph_tiers import (
    GraphPlan,
    capture_sizes,
    from_table,
    graph_tiers,
    maximum_alone,
    name_ks,
    sizes_in,
    to_table,
    with_capture_sizes,
)
from nightjar.deployments.engine.start.hooks import NOTHING_MISSING, MissingHooks
from nightjar.deployments.engine.start.resolved_facts import RUNNER_VARIABLE, SWITCHED_OFF, EngineFacts, why_not_on_v2, why_plain
from nightjar.deployments.engine.start.vllm_versions import V2_LEAVES_QUERIES_OUT_FROM
from nightjar.policy.wire.report import Layer

SCHEDULER: Final = "nightjar.deployments.engine.scheduler.steered.SteeredScheduler"
ASYNC_SCHEDULER: Final = "nightjar.deployments.engine.scheduler.steered.SteeredAsyncScheduler"
CPU_WORKER: Final = "nightjar.deployments.engine.worker.cpu.SteeredCPUWorker"
GPU_WORKER: Final = "nightjar.deployments.engine.worker.v1.SteeredGPUWorker"
V2_WORKER: Final = "nightjar.deployments.engine.worker.v2.SteeredV2Worker"
OBEDIENT_WORKERS: Final = ["nightjar."]
"""What the names of workers begin with that do what our scheduler orders; what stands in for a GPU adds its own."""
SHARES_THE_WORK: Final = (
    "vLLM's adaptive verification chooses how many drafts are verified, Nightjar the ceiling and off; it never ran on a GPU, so "
    "the mode auto of the settings means shadow here until a mode is set by hand (nightjar mode auto --application NAME)"
)


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
    """The K that vLLM drops from these arguments, which its configuration is to get back (ranks.restore_table)."""
    layers: tuple[Layer, ...] = ()  # of Nightjar, that this engine is started with
    environment: dict[str, str] = field(default_factory=dict)  # of this engine alone, beside what every engine of ours is given


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
    blamed, reason = why_plain(user_kwargs, facts, missing_hooks, without)
    only_observing = shadow and facts.captures_graphs and not reason and not facts.adaptive_verification
    steered = not reason and not only_observing
    chooses_v1 = steered and not facts.on_cpu and not facts.runner_is_users and bool(why_not_on_v2(facts, missing_hooks, without))
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
        ks = from_table(users, facts.max_num_seqs, maximum)
        if facts.captures_graphs and facts.full_graphs and not runner_is_v1 and not facts.is_mamba_like:
            ks, graph_plan = _with_tiers(kwargs, facts, ks, wanted_tiers)
            tiers = tuple(sorted(set(ks)))  # fewer than wanted where there are fewer batch sizes than tiers
        speculative["num_speculative_tokens_per_batch_size"] = to_table(ks)
        dropped = to_table(ks) if facts.data_parallel_size > 1 else []
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
    """K by batch size that name every K to capture graphs for, in place of the `users`, and those graphs.

    `kwargs` get sizes to capture, and the user's K for the scheduler, which runs those while it is not steered. Adaptive
    verification has graphs of the target for any number of drafts (varlen_decode in v1/worker/gpu/cudagraph_utils.py of 0.32):
    the drafter's alone are made for each K.
    """
    ks = name_ks(users, sorted({*graph_tiers(wanted, facts.max_num_speculative_tokens), *users}))
    if ks != users:
        kwargs["additional_config"] = with_entry(kwargs.get("additional_config"), users_table=to_table(users))
    if facts.adaptive_verification:
        return ks, None
    tiers = tuple(sorted(set(ks)))
    compilation = with_capture_sizes(
        kwargs.get("compilation_config"), capture_sizes(facts.max_num_seqs, tiers, facts.largest_capture_size)
    )
    captured = sizes_in(compilation)
    if not captured:
        return ks, None
    kwargs["compilation_config"] = compilation
    return ks, GraphPlan(captured, tiers, facts.max_num_seqs)


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
        not facts.runner_is_v1 and runner_is_v1 and f"on model runner V1; of V2: {why_not_on_v2(facts, missing, without)}",
        facts.why_no_offload and f"draft_offload is not in use: {facts.why_no_offload}",
        graph_plan is not None and graph_plan.in_words(),
        full_graphs and facts.is_mamba_like and maximum_alone(facts.max_num_speculative_tokens),
    )
    return "; ".join(part for part in parts if part)
