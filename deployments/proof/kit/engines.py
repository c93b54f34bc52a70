"""An engine of the proof kit, and the arguments that production would start it with.

The arguments come from arguments.py, as a replica's do, with vLLM's own answers about the machine; a variable that they need
is set in this process before the engine is made. In a rehearsal two things differ: the worker is a CPU's, and no graphs are
captured. Fails with vLLM's own errors.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.engine.start.arguments import EngineArguments, steered_engine_kwargs
from nightjar.deployments.engine.start.resolved_facts import resolve_facts
from nightjar.deployments.proof.kit.chosen import BUILT_IN, Chosen, Drafter
from nightjar.deployments.proof.lending import LENDING_KV_BYTES
from nightjar.deployments.proof.scenarios import ADAPTER_OPTIONS, ENGINE_OPTIONS, MAX_NUM_SPECULATIVE_TOKENS, REFERENCE_LOGPROBS
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.policy.wire.operator import DraftOffload

Runner = Literal[1, 2]
"""vLLM's model runner, V1 or V2."""
Room = Literal["scenarios", "roomy", "long", "short", "lends"]
"""How large the engine is: the few KV blocks that the scenarios need; what vLLM would take; the same for as many rows and as long
a context as off is measured at, or a shorter one where that does not fit; few blocks and a draft that lends its memory."""
LENDING_BLOCKS: Final = 64
"""On a GPU: less than the crowd needs, and several of the driver's chunks in each layer."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine."""

    drafter: Drafter = "none"
    scheduling: Literal["async", "sync"] = "async"
    graphs: bool = True
    room: Room = "scenarios"
    stock: bool = False
    """vLLM's own: its scheduler, worker and default runner."""
    table: tuple[tuple[int, int, int], ...] = ()
    """Of a stock engine: vLLM's `num_speculative_tokens_per_batch_size`."""
    extra: Mapping[str, Any] | None = None
    """More of `speculative_config`."""

    @property
    def name(self) -> str:
        """For example `draft-sync`, `head-eager`, `none`."""
        parts = [f"stock-{self.drafter}" if self.stock and self.drafter != "none" else self.drafter]
        return "-".join(parts + ["sync"] * (self.scheduling == "sync") + ["eager"] * (not self.graphs))

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> EngineSpec:
        """The inverse of `to_plain`."""
        return cls(**{**plain, "table": tuple(tuple(row) for row in plain["table"])})

    def runner(self) -> Runner:
        """On the rig, which has no default: what production would choose on a GPU."""
        return 1 if self.stock and self.drafter == "draft" else 2


class Rehearsal(Protocol):
    """What stands in for a GPU where there is none: the repository's tests/rig/rehearsal.py. The package has no such module."""

    def environment(self, spec: EngineSpec, folder: Path, *, in_one_process: bool) -> dict[str, str]:
        """Variables of an engine's process; `folder` takes files that they name."""

    def arguments(self, arguments: EngineArguments, spec: EngineSpec, chosen: Chosen) -> EngineArguments:
        """A GPU's arguments for a steered engine there."""


def rehearsal_of(chosen: Chosen) -> Rehearsal:
    """Of a run on the rig. Raises ImportError outside the repository."""
    return cast("Rehearsal", importlib.import_module(chosen.rehearsal))


def engine_arguments(spec: EngineSpec, chosen: Chosen) -> EngineArguments:
    """What production would start this engine with; of a stock engine the user's own. Sets the variables that it needs."""
    from vllm import EngineArgs

    from nightjar.deployments.engine.start.hooks import missing_hooks

    user = user_arguments(spec, chosen)
    config = EngineArgs(**user).create_engine_config()
    offload: DraftOffload = "under_memory_pressure" if spec.room == "lends" and not chosen.on_rig else "never"
    facts = resolve_facts(config, on_cpu=False, draft_offload=offload)
    if chosen.on_rig:
        facts = replace(facts, captures_graphs=False)
    if spec.stock:
        return EngineArguments(user, facts.drafter_kind, facts.max_num_speculative_tokens, runner_is_v1=facts.runner_is_v1)
    arguments = steered_engine_kwargs(user, facts, missing_hooks=missing_hooks())
    os.environ.update(arguments.environment)
    return rehearsal_of(chosen).arguments(arguments, spec, chosen) if chosen.on_rig else arguments


def user_arguments(spec: EngineSpec, chosen: Chosen) -> dict[str, Any]:
    """What a user would write for this engine."""
    arguments: dict[str, Any] = {
        "model": chosen.target,
        "dtype": chosen.dtype,
        "enforce_eager": chosen.on_rig or not spec.graphs,
        "async_scheduling": spec.scheduling == "async",
        "disable_log_stats": False,
        "seed": chosen.seed,
        **_room(spec, chosen),
    }
    if spec.drafter != "none":
        arguments["speculative_config"] = _speculative(spec, chosen)
    return arguments


def _room(spec: EngineSpec, chosen: Chosen) -> dict[str, Any]:
    if spec.room in {"scenarios", "lends"}:
        options = {**ENGINE_OPTIONS, **(ADAPTER_OPTIONS if chosen.adapter else {})}
        if spec.room == "lends" and not chosen.on_rig:
            del options["num_gpu_blocks_override"]
            options |= {"enable_cumem_allocator": True, "kv_cache_memory_bytes": _lending_bytes(spec, chosen)}
        return options
    sizes = chosen.sizes
    if spec.room in {"long", "short"}:
        longest = chosen.longest_tokens if spec.room == "long" else chosen.shorter_tokens
        return {"max_model_len": longest, "max_num_seqs": max(sizes.off_rows)}
    return {"max_model_len": sizes.max_model_len, "max_num_seqs": sizes.max_num_seqs, "max_logprobs": REFERENCE_LOGPROBS}


def _speculative(spec: EngineSpec, chosen: Chosen) -> dict[str, Any]:
    method = chosen.method(spec.drafter)
    model = chosen.draft if spec.drafter == "draft" else chosen.head
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS}
    if model != BUILT_IN:
        config["model"] = model
    if spec.table:
        config["num_speculative_tokens_per_batch_size"] = [list(row) for row in spec.table]
    return config | dict(spec.extra or {})


def _lending_bytes(spec: EngineSpec, chosen: Chosen) -> int:
    """KV bytes of LENDING_BLOCKS, of target and draft together, by vLLM's own view of both."""
    from vllm import EngineArgs

    options = {**ENGINE_OPTIONS, "model": chosen.target, "dtype": chosen.dtype, "speculative_config": _speculative(spec, chosen)}
    config = EngineArgs(**options).create_engine_config()
    assert config.speculative_config is not None
    per_token = 0
    for model in (config.model_config, config.speculative_config.draft_model_config):
        parallel = config.parallel_config
        heads, layers = model.get_num_kv_heads(parallel), model.get_num_layers(parallel)
        per_token += 2 * layers * heads * model.get_head_size() * model.dtype.itemsize
    return max(LENDING_KV_BYTES, LENDING_BLOCKS * int(ENGINE_OPTIONS["block_size"]) * per_token)


@dataclass(frozen=True, slots=True)
class AtZero:
    """What a drafter of this kind does in a step of K = 0 (verdict.Judged)."""

    method: str
    runs: str = ""
    """Why a head runs as in vLLM; empty where it writes its KV alone."""
    lends: bool = False

    @property
    def writes_kv_alone(self) -> bool:
        """Once a step."""
        kind = kind_of(self.method)
        return kind.is_head and not kind.drafts_a_block and not self.runs

    @property
    def forwards_at_zero(self) -> int | None:
        """Of the drafter's model, whole; None where it has none."""
        kind = kind_of(self.method)
        return None if kind.model == "none" else int(kind.is_head and bool(self.runs))

    def forwards(self, num_speculative_tokens: int) -> int | None:
        """In a step of this K."""
        most = 1 if kind_of(self.method).drafts_a_block else num_speculative_tokens
        at_zero = self.forwards_at_zero
        return at_zero if at_zero is None else min(num_speculative_tokens, most) or at_zero


def why_head_runs(arguments: EngineArguments, engine: SteppedEngine) -> str:
    """As configuration and worker say; empty for a drafter that is no head."""
    kind = kind_of(arguments.drafter_kind)
    is_vllms = kind.drafts_a_block and "worker_cls" not in arguments.kwargs  # which leaves the queries out by itself
    if not kind.is_head or (is_vllms and not arguments.why_never_asleep):
        return ""
    return arguments.why_never_asleep or str(getattr(engine.worker, "nightjar_head_runs", "its worker is vLLM's own"))
