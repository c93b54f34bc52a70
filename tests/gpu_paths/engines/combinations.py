"""Which engines there are to prove: model runner x scheduling x drafter, eager or compiled, as a GPU would start each of them.

An engine gets its arguments from the same code as in production (arguments.py), with facts as a GPU has them. Two things are
the rig's: the worker is the CPU's, and no graphs are captured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from nightjar.deployments.drafter_kinds import KINDS, SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine.start.arguments import EngineArguments, steered_engine_kwargs
from nightjar.deployments.engine.start.resolved_facts import resolve_facts
from nightjar.deployments.proof.model_names import DRAFT, MIMO, SLIDING, TARGET
from nightjar.deployments.proof.scenarios import ADAPTER_OPTIONS, ENGINE_OPTIONS, MAX_NUM_SPECULATIVE_TOKENS
from tests.rig.arguments import on_the_rig
from tests.rig.environment import Runner

PLAIN: Final = "none"
Scheduling = Literal["sync", "async"]
Executor = Literal["", "ray"]
Compiled = Literal["", "piecewise", "whole"]
Beside = Literal["", "sliding-window", "kv-connector", "shorter-draft", "parallel-drafting"]
STORING_CONNECTOR: Final = ("tests.rig.storing_connector", "StoringConnector")
SLIDING_BLOCKS: Final = 44
"""For several groups of KV caches: enough for the longest request, too few for the crowd's."""
DRAFT_ENDS_AT: Final = 192
"""Tokens; the longest prompts of the scenarios have more."""
SPECULATIVE_BESIDE: Final[Mapping[str, Mapping[str, Any]]] = {
    "shorter-draft": {"max_model_len": DRAFT_ENDS_AT},
    "parallel-drafting": {"parallel_drafting": True},
}
DYNAMO_TRACE_ONCE: Final = 2
"""vLLM's CompilationMode that its CPU platform puts in place of piecewise compilation (0.32, platforms/cpu.py)."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One engine. `drafter` is vLLM's `speculative_config.method`, or PLAIN."""

    runner: Runner
    scheduling: Scheduling
    drafter: str
    ranks: int = 1
    """Tensor-parallel size; with more than one, the core and every rank have processes of their own."""
    executor: Executor = ""
    """vLLM's `distributed_executor_backend`; empty for its own choice. Ray's workers are children of no process of the engine."""
    lends: bool = False
    """Whether the draft lends its memory, by CUDA's code over pages of the process; nothing else is then looked at."""
    compiled: Compiled = ""
    """How target and drafter are compiled: in pieces between their attention layers, as on a GPU, or whole, as a CPU engine that
    serves; empty for eager."""
    beside: Beside = ""
    """What keeps a draft model in step as in vLLM, or has the engine served plainly; empty for none of it."""

    @property
    def name(self) -> str:
        """For example `v2-async-eagle`, `v2-async-eagle-tp2-ray`, `v2-async-eagle-piecewise`, `v2-async-eagle-kv-connector`."""
        ranks = f"tp{self.ranks}" if self.ranks > 1 else ""
        others = (ranks, self.executor, "lends" if self.lends else "", self.compiled, self.beside)
        return "-".join((f"v{self.runner}", self.scheduling, self.drafter, *(word for word in others if word)))

    @classmethod
    def named(cls, name: str) -> Combination:
        """The inverse of `name`. Raises ValueError."""
        for combination in (*STEERED, *LENDING, *SERVED_PLAINLY, REFERENCE, SLIDING_REFERENCE):
            if combination.name == name:
                return combination
        raise ValueError(f"no combination {name!r}")

    @property
    def in_one_process(self) -> bool:
        """Whether scheduler and worker are in the process that makes the engine."""
        return self.ranks == 1 and not self.executor

    @property
    def forwards_at_zero(self) -> int | None:
        """What K = 0 costs: forwards of the drafter's model in such a step; None where it has no model."""
        kind = kind_of(self.drafter)
        if kind.model == "none":
            return None
        if kind.drafts_a_block:
            return 0
        runs = not self.writes_kv_alone if kind.is_head else bool(self.beside)
        return 1 if runs else 0

    @property
    def writes_kv_alone(self) -> bool:
        """Whether at K = 0 the drafter's forward stops once it has written its KV; a block's KV needs no forward."""
        kind = kind_of(self.drafter)
        return kind.is_head and not kind.drafts_a_block and self.runner == 2 and self.beside != "kv-connector"

    @property
    def answers_all_kinds(self) -> bool:
        """Whether it also has grammars, sampled rows and a LoRA adapter, with which vLLM compiles no engine on a CPU."""
        return not (self.compiled or self.beside)

    @property
    def reference(self) -> Combination:
        """Plain decoding of the same target, whose texts this engine must repeat."""
        return SLIDING_REFERENCE if self.beside == "sliding-window" else REFERENCE

    def forwards(self, num_speculative_tokens: int) -> int | None:
        """Forwards that a step of this K needs; None where the drafter has no model."""
        at_zero = self.forwards_at_zero
        most = 1 if kind_of(self.drafter).drafts_a_block else num_speculative_tokens
        return at_zero if at_zero is None else min(num_speculative_tokens, most) or at_zero


REFERENCE: Final = Combination(1, "sync", PLAIN)
"""Plain decoding, whose texts the engines of the usual target must repeat."""
SLIDING_REFERENCE: Final = replace(REFERENCE, beside="sliding-window")


def _all() -> list[Combination]:
    schedulings: tuple[Scheduling, ...] = ("sync", "async")
    runners: tuple[Runner, ...] = (1, 2)
    return [
        Combination(runner, scheduling, kind.method)
        for runner in runners
        for scheduling in schedulings
        for kind in KINDS.values()
        if (kind.obeys_k_on_v1 or (kind.obeys_k and runner == 2)) and (scheduling == "sync" or kind.runs_asynchronously)
    ]


SPREAD: Final = tuple(Combination(2, "async", drafter, ranks=2) for drafter in (SEPARATE_DRAFT_MODEL, "eagle"))
BY_RAY: Final = (
    Combination(1, "async", SEPARATE_DRAFT_MODEL, executor="ray"),
    Combination(2, "async", "eagle", executor="ray"),
    Combination(2, "async", SEPARATE_DRAFT_MODEL, ranks=2, executor="ray"),
)
COMPILED: Final = (
    *(Combination(2, "async", drafter, compiled="piecewise") for drafter in (SEPARATE_DRAFT_MODEL, "eagle", "eagle3", "mtp")),
    Combination(2, "sync", "ngram", compiled="piecewise"),
    Combination(1, "sync", SEPARATE_DRAFT_MODEL, compiled="whole"),
)
"""Each steered drafter that drafts token by token once, and the engine that a CPU serves with."""
BESIDE: Final = (
    Combination(2, "async", SEPARATE_DRAFT_MODEL, beside="sliding-window"),
    Combination(2, "async", SEPARATE_DRAFT_MODEL, beside="kv-connector"),
    Combination(2, "async", SEPARATE_DRAFT_MODEL, beside="shorter-draft"),
    Combination(2, "async", "eagle", beside="sliding-window"),
    Combination(2, "async", "eagle", beside="kv-connector"),
)
"""A draft model that stays in step as in vLLM, for each reason that a test can have; and heads beside the same."""
STEERED_ON_V2: Final = {kind.method for kind in KINDS.values() if kind.obeys_k_on_v2 or kind.is_made_to_obey_on_v2}
"""By vLLM or by our worker."""
ALONE: Final = tuple(each for each in _all() if each.runner == 1 or each.drafter in STEERED_ON_V2)
"""Without any of it, in one process."""
STEERED: Final = (*ALONE, *SPREAD, *BY_RAY, *COMPILED, *BESIDE)
LENDING: Final = tuple(replace(each, lends=True) for each in ALONE if each.drafter == SEPARATE_DRAFT_MODEL)
SERVED_PLAINLY: Final = (
    *(each for each in _all() if each not in ALONE),
    Combination(1, "async", SEPARATE_DRAFT_MODEL, beside="parallel-drafting"),
    Combination(1, "async", "dflash"),
)
"""Of drafters that obey K elsewhere; vLLM 0.32 itself starts no engine on V2 whose draft model drafts in parallel."""


def engine_arguments(combination: Combination, models: Path) -> EngineArguments:
    """What production would start this engine with. Needs the rig's environment, and builds vLLM's configuration."""
    from vllm import EngineArgs

    user = user_arguments(combination, models)
    config = EngineArgs(**user).create_engine_config()
    facts = replace(resolve_facts(config, on_cpu=False), captures_graphs=False)
    arguments = steered_engine_kwargs(user, facts)
    return on_the_rig(arguments, runner=combination.runner, lending_draft=models / DRAFT if combination.lends else None)


def user_arguments(combination: Combination, models: Path) -> dict[str, Any]:
    """What a user would write for this engine. `models` is the folder of the tiny models."""
    target = SLIDING if combination.beside == "sliding-window" else TARGET
    arguments: dict[str, Any] = {
        "model": str(models / (MIMO if combination.drafter == "mtp" else target)),
        "dtype": "float32",
        "enforce_eager": not combination.compiled,
        "disable_log_stats": False,
        "async_scheduling": combination.scheduling == "async",
        "tensor_parallel_size": combination.ranks,
        "distributed_executor_backend": combination.executor or None,
        "seed": 0,
        **ENGINE_OPTIONS,
    }
    if combination.answers_all_kinds:
        arguments |= ADAPTER_OPTIONS
    if combination.beside == "sliding-window":
        arguments["num_gpu_blocks_override"] = SLIDING_BLOCKS
    if combination.compiled == "whole":
        arguments["compilation_config"] = {"mode": DYNAMO_TRACE_ONCE, "backend": "inductor"}
    if combination.beside == "kv-connector":
        folder = str(models.parent / f"kv-of-{combination.name}")
        connector = {
            "kv_connector": STORING_CONNECTOR[1],
            "kv_connector_module_path": STORING_CONNECTOR[0],
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": folder},
        }
        arguments["kv_transfer_config"] = connector
    if combination.drafter != PLAIN:
        beside = SPECULATIVE_BESIDE.get(combination.beside, {})
        arguments["speculative_config"] = {**_speculative(combination.drafter, models), **beside}
    return arguments


def _speculative(drafter: str, models: Path) -> dict[str, Any]:
    config: dict[str, Any] = {"method": drafter, "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS}
    kind = kind_of(drafter)
    if drafter.startswith("ngram"):
        return config | {"prompt_lookup_max": 3, "prompt_lookup_min": 1}
    return config if drafter == "mtp" else config | {"model": str(models / (DRAFT if kind.can_sleep else drafter))}
