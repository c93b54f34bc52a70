"""How an engine starts under either host: its process's environment and cores, the steered arguments, the group that it joins.

Starting fails open (fallback.py). The user's arguments are resolved first, so a mistake in them is the user's own message from
vLLM; if the steered arguments are then refused, by the configuration or by the engine, the engine starts with the user's alone, in
the environment that the user gave it, and `serving_plainly` says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from nightjar.deployments.engine import graph_memory
from nightjar.deployments.engine.engine_folder import EngineFolder, folders_beside, make_engine_folder, noted_head
from nightjar.deployments.engine.engine_processes import Processes, engine_pids
from nightjar.deployments.engine.environment import CORES_VARIABLE, apply_environment, engine_environment, gather_host_facts
from nightjar.deployments.engine.process_guard import own_token
from nightjar.deployments.engine.start.arguments import EngineArguments, steered_engine_kwargs
from nightjar.deployments.engine.start.fallback import refusals_of_node, start_failing_open
from nightjar.deployments.engine.start.hooks import MissingHooks
from nightjar.deployments.engine.start.resolved_facts import EngineFacts
from nightjar.deployments.llm_config import SteeringOptions, num_ranks, num_workers
from nightjar.policy.wire.report import GroupKey

if TYPE_CHECKING:
    from vllm.config import VllmConfig


log = structlog.get_logger(__name__)

C = TypeVar("C")
T = TypeVar("T")
_LOCK: Final = "nightjar-cores-{user}.lock"
_CORES: Final = "cores.json"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What to serve: resolved paths in `engine_kwargs`, and the names that the user gave.

    `cores_per_engine` is 0 where cores, threads and KV cache of an engine on a CPU are left to vLLM.
    """

    served_model_name: str
    target_name: str
    draft_name: str
    engine_kwargs: Mapping[str, Any]
    models_are_local: bool
    local_rank: int
    cores_per_engine: int
    options: SteeringOptions


def prepare_process(request: EngineRequest, engine_kwargs: Mapping[str, Any], *, on_cpu: bool) -> EngineFolder | None:
    """Make the engine's folder and set, where the user has not, what its processes need in their environment."""
    folder = make_engine_folder()
    workers, ranks = num_workers(engine_kwargs), num_ranks(engine_kwargs)
    claimed: tuple[int, ...] = ()
    if on_cpu and workers == 1 and folder is not None and request.cores_per_engine and not os.environ.get(CORES_VARIABLE):
        claimed = claim_cores(folder.path, sorted(os.sched_getaffinity(0)), max(request.cores_per_engine, ranks))
    host = gather_host_facts(
        replica=own_token(),
        local_rank=request.local_rank,
        cores_per_engine=request.cores_per_engine,
        on_cpu=on_cpu,
        num_workers=workers,
        num_ranks=ranks,
        models_are_local=request.models_are_local,
        kv_cache_is_sized=any(engine_kwargs.get(name) for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override")),
        engine_folder="" if folder is None else str(folder.path),
        claimed_cores=claimed,
    )
    if on_cpu and not host.openmp_library:
        log.warning(
            "openmp_library_missing", consequence="drafting on CPU is several times slower", remedy="pip install intel-openmp"
        )
    log.info("engine_environment", **apply_environment(engine_environment(host), os.environ))
    return folder


def chosen_arguments(
    request: EngineRequest, engine_kwargs: Mapping[str, Any], facts: EngineFacts, *, shadow: bool, missing_hooks: MissingHooks
) -> EngineArguments:
    """What this engine is started with, as far as nothing refuses it."""
    return steered_engine_kwargs(
        engine_kwargs,
        facts,
        missing_hooks=missing_hooks,
        shadow=shadow,
        wanted_tiers=request.options.graph_tiers,
        without=request.options.without,
    )


def start_steered(
    request: EngineRequest,
    engine_kwargs: Mapping[str, Any],
    facts: EngineFacts,
    configure: Callable[[EngineArguments], C],
    start: Callable[[C], T],
    *,
    shadow: bool,
    missing_hooks: MissingHooks,
    folder: EngineFolder | None,
) -> tuple[T, EngineArguments]:
    """Start the engine of `engine_kwargs`, the user's, with the steered arguments, or with the user's where those are refused.

    Blocks for as long as the engine loads: seconds to minutes, and three times as long where the steered arguments are refused.
    Raises what `configure` and `start` raise for the user's arguments, and SteeringRequiredError where the request requires an
    engine that is steered, and this one would not be.
    """
    arguments = chosen_arguments(request, engine_kwargs, facts, shadow=shadow, missing_hooks=missing_hooks)
    plain = EngineArguments(
        dict(engine_kwargs), facts.drafter_kind, facts.max_num_speculative_tokens, runner_is_v1=facts.runner_is_v1
    )
    started, arguments = start_failing_open(
        arguments,
        plain,
        configure,
        start,
        os.environ,
        refusals=refusals_of_node(),
        processes=Processes(pids=lambda: engine_pids(None if folder is None else folder.path)),
        require_steering=request.options.require_steering,
    )
    if folder is not None:
        folder.note(engine_pids(folder.path))
        notices = (arguments.notice, graph_memory.in_words(graph_memory.captures(folder.path)))
        arguments = dataclasses.replace(
            arguments,
            notice="; ".join(part for part in notices if part),
            why_never_asleep=arguments.why_never_asleep or noted_head(folder.path),
        )
    return started, arguments


def group_of(
    config: VllmConfig, facts: EngineFacts, request: EngineRequest, graph_tiers: tuple[int, ...], *, accelerator: str
) -> GroupKey:
    """The group of this engine, from the configuration it runs with, on devices of this name."""
    import vllm

    parallel = config.parallel_config
    eager = config.model_config.enforce_eager
    return GroupKey(
        target=request.target_name[-256:],
        draft=request.draft_name[-256:],
        drafter_kind=facts.drafter_kind,
        accelerator=accelerator[:64],
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        data_parallel_size=parallel.data_parallel_size,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        max_num_speculative_tokens=min(facts.max_num_speculative_tokens, 32),
        max_num_seqs=min(facts.max_num_seqs, 4096),
        graph_mode="eager" if eager else config.compilation_config.cudagraph_mode.name.lower(),
        engine_version=vllm.__version__,
        graph_tiers=graph_tiers,
        adaptive_verification=facts.adaptive_verification,
    )


def least_used(allowed: Sequence[int], used: Counter[int], count: int) -> tuple[int, ...]:
    """`count` of the `allowed` cores, or all where there are fewer: those that the fewest hold, the first of equals.

    >>> least_used((0, 2, 4), Counter({0: 1}), 1), least_used((0, 2, 4), Counter({0: 1, 2: 1, 4: 1}), 2)
    ((2,), (0, 2))
    """
    return tuple(sorted(sorted(allowed, key=lambda core: (used[core], core))[:count]))


def claim_cores(folder: Path, allowed: Sequence[int], count: int) -> tuple[int, ...]:
    """Take `count` cores for the engine of `folder`, for as long as the folder lives. Empty where they cannot be noted.

    Serve counts replicas by deployment: the first replica of each application would take the first core. So each engine notes its
    cores in its folder (engine_folder.py), and the next one takes those that the fewest live engines hold, whichever application
    they are of. Fails open: where nothing can be noted or read, the caller counts by deployment.
    """
    try:
        with _one_at_a_time(folder.parent):
            used = Counter(core for other in folders_beside(folder) for core in _noted(other))
            cores = least_used(allowed, used, count)
            (folder / _CORES).write_text(json.dumps(cores))
    except OSError as error:
        log.warning("cores_not_claimed", folder=str(folder), error=str(error), consequence="cores are counted by deployment")
        return ()
    return cores


def _noted(folder: Path) -> list[int]:
    """The cores of one engine; none where it noted none, or what is no list of cores."""
    try:
        cores = json.loads((folder / _CORES).read_text())
    except (OSError, ValueError):
        return []
    return [core for core in cores if isinstance(core, int)] if isinstance(cores, list) else []


@contextlib.contextmanager
def _one_at_a_time(parent: Path) -> Iterator[None]:
    lock = os.open(parent / _LOCK.format(user=os.getuid()), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
