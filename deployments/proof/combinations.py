"""Which engines there are to prove: model runner x scheduling x drafter, as a GPU would start each of them.

An engine gets its arguments from the same code as in production (engine/arguments.py), with facts as a GPU has them. Two things are
the rig's: the worker is the CPU's, and no graphs are captured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from nightjar.deployments.drafter_kinds import KINDS, SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine.arguments import EngineArguments, resolve_facts, steered_engine_kwargs
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes
from nightjar.deployments.engine.offload_config import OffloadConfig
from nightjar.deployments.proof.scenarios import ENGINE_OPTIONS, MAX_NUM_SPECULATIVE_TOKENS
from nightjar.deployments.rig.environment import Runner
from nightjar.deployments.rig.model_names import DRAFT, MIMO, TARGET

PLAIN: Final = "none"
MAPPED_MEMORY_WORKERS: Final = {
    1: "nightjar.deployments.rig.worker.MappedMemoryWorker",
    2: "nightjar.deployments.rig.v2_worker.MappedMemoryV2Worker",
}
LENDING_KV_BYTES: Final = 2 << 20
"""About twenty blocks of the tiny target and its draft: fewer than the crowd needs."""
Scheduling = Literal["sync", "async"]
Executor = Literal["", "ray"]


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

    @property
    def name(self) -> str:
        """For example `v2-async-eagle`, `v2-async-eagle-tp2`, `v2-async-eagle-ray`."""
        ranks, lends = f"-tp{self.ranks}" if self.ranks > 1 else "", "-lends" if self.lends else ""
        executor = f"-{self.executor}" if self.executor else ""
        return f"v{self.runner}-{self.scheduling}-{self.drafter}{ranks}{executor}{lends}"

    @classmethod
    def named(cls, name: str) -> Combination:
        """The inverse of `name`. Raises ValueError."""
        for combination in (*STEERED, *LENDING, *SERVED_PLAINLY, REFERENCE):
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
        return 1 if kind.is_head and not self.writes_kv_alone else 0

    @property
    def writes_kv_alone(self) -> bool:
        """Whether at K = 0 the drafter is a head that only writes its KV."""
        return kind_of(self.drafter).is_head and self.runner == 2

    def forwards(self, num_speculative_tokens: int) -> int | None:
        """Forwards that a step of this K needs; None where the drafter has no model."""
        at_zero = self.forwards_at_zero
        return at_zero if at_zero is None else num_speculative_tokens or at_zero


REFERENCE: Final = Combination(1, "sync", PLAIN)
"""Plain decoding, whose texts all others must repeat."""


def _all() -> list[Combination]:
    schedulings: tuple[Scheduling, ...] = ("sync", "async")
    runners: tuple[Runner, ...] = (1, 2)
    alone = [
        Combination(runner, scheduling, kind.method)
        for runner in runners
        for scheduling in schedulings
        for kind in KINDS.values()
        if kind.obeys_k and (scheduling == "sync" or kind.runs_asynchronously)
    ]
    spread = [Combination(2, "async", drafter, ranks=2) for drafter in (SEPARATE_DRAFT_MODEL, "eagle")]
    by_ray = [
        Combination(1, "async", SEPARATE_DRAFT_MODEL, executor="ray"),
        Combination(2, "async", "eagle", executor="ray"),
        Combination(2, "async", SEPARATE_DRAFT_MODEL, ranks=2, executor="ray"),
    ]
    return [*alone, *spread, *by_ray]


STEERED: Final = tuple(each for each in _all() if each.runner == 1 or kind_of(each.drafter).is_steered_on_v2)
LENDING: Final = tuple(
    replace(each, lends=True) for each in STEERED if each.drafter == SEPARATE_DRAFT_MODEL and each.in_one_process
)
SERVED_PLAINLY: Final = tuple(each for each in _all() if each not in STEERED)
"""Of drafters that obey K elsewhere."""


def engine_arguments(combination: Combination, models: Path, *, head_log_steps: int = 0) -> EngineArguments:
    """What production would start this engine with. Needs the rig's environment, and builds vLLM's configuration."""
    from vllm import EngineArgs

    user = user_arguments(combination, models)
    config = EngineArgs(**user).create_engine_config()
    facts = replace(resolve_facts(config, on_cpu=False), captures_graphs=False)
    arguments = steered_engine_kwargs(user, facts, head_log_steps=head_log_steps)
    return on_the_rig(arguments, runner=combination.runner, lending_draft=models / DRAFT if combination.lends else None)


def on_the_rig(arguments: EngineArguments, *, runner: Runner, lending_draft: Path | None = None) -> EngineArguments:
    """A GPU's arguments for an engine on the rig, whose platform changes the worker (rig/platform.py).

    With the folder of a draft that lends its memory, few KV blocks on pages of the process.
    """
    kwargs = dict(arguments.kwargs)
    if lending_draft is not None:
        draft_bytes = draft_weight_bytes(lending_draft, bytes_per_value=4, tensor_parallel_size=1)
        del kwargs["num_gpu_blocks_override"]
        kwargs |= {
            "worker_cls": MAPPED_MEMORY_WORKERS[runner],
            "additional_config": OffloadConfig(draft_bytes).to_additional_config(None),
            "kv_cache_memory_bytes": LENDING_KV_BYTES,
        }
    return replace(arguments, kwargs=kwargs)


def user_arguments(combination: Combination, models: Path) -> dict[str, Any]:
    """What a user would write for this engine."""
    arguments: dict[str, Any] = {
        "model": str(models / (MIMO if combination.drafter == "mtp" else TARGET)),
        "dtype": "float32",
        "enforce_eager": True,
        "disable_log_stats": False,
        "async_scheduling": combination.scheduling == "async",
        "tensor_parallel_size": combination.ranks,
        "distributed_executor_backend": combination.executor or None,
        "seed": 0,
        **ENGINE_OPTIONS,
    }
    if combination.drafter != PLAIN:
        arguments["speculative_config"] = _speculative(combination.drafter, models)
    return arguments


def _speculative(drafter: str, models: Path) -> dict[str, Any]:
    config: dict[str, Any] = {"method": drafter, "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS}
    kind = kind_of(drafter)
    if drafter.startswith("ngram"):
        return config | {"prompt_lookup_max": 3, "prompt_lookup_min": 1}
    return config if kind.model == "optional" else config | {"model": str(models / (DRAFT if kind.can_sleep else drafter))}
