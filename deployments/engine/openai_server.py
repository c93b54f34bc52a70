"""vLLM's own OpenAI server around one engine, inside this process: routes, streams and error bodies are vLLM's.

Starting fails open (failing_open.py). The user's arguments are resolved first, so a mistake in them is the user's own message from
vLLM; if the steered arguments are then refused, by the configuration or by the engine, the engine starts with the user's alone, in
the environment that the user gave it, and `serving_plainly` says why.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from nightjar.deployments.engine import graph_memory
from nightjar.deployments.engine.arguments import EngineArguments, EngineFacts, resolve_facts, steered_engine_kwargs
from nightjar.deployments.engine.cores import claim_cores
from nightjar.deployments.engine.engine_folder import EngineFolder, make_engine_folder
from nightjar.deployments.engine.environment import CORES_VARIABLE, apply_environment, engine_environment, gather_host_facts
from nightjar.deployments.engine.failing_open import Processes, refusals_of_node, start_failing_open
from nightjar.deployments.engine.head_notes import noted_head
from nightjar.deployments.engine.hooks import MissingHooks
from nightjar.deployments.engine.moved_names import moved
from nightjar.deployments.engine.process_guard import descendants
from nightjar.deployments.engine_watch import FrontEnd
from nightjar.deployments.routes import absent_routes, close_other_routes
from nightjar.policy.wire.operator import DraftOffload
from nightjar.policy.wire.report import GroupKey

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.stats import SchedulerStats

PAUSE_ANSWER_TIMEOUT_S: Final = 1.0
"""Far below the time that Serve gives a health check; an engine that hangs does not answer at all."""

log = structlog.get_logger(__name__)

T = TypeVar("T")


class EngineArgumentError(ValueError):
    """Engine arguments that vLLM does not know. The message names them and the nearest real ones."""


class LoadObserver:
    """Keeps vLLM's newest scheduler statistics, the load of an engine whose scheduler is not ours, and counts its steps.

    Has a stat logger's methods.
    """

    def __init__(self) -> None:
        self.latest: SchedulerStats | None = None
        self.num_steps = 0

    def record(self, scheduler_stats: SchedulerStats | None, iteration_stats: object, **_rest: object) -> None:
        """Called by vLLM after each step; without scheduler statistics where only requests were aborted.

        A pass over requests that can not be scheduled is recorded as well: it has no output and nothing runs, so it is no step.
        """
        self.latest = scheduler_stats or self.latest
        if iteration_stats is not None or (scheduler_stats is not None and scheduler_stats.num_running_reqs):
            self.num_steps += 1

    def log(self) -> None:
        """Called by vLLM every few seconds; this one writes nothing."""

    def log_engine_initialized(self) -> None:
        """Called by vLLM once."""


@dataclass(frozen=True, slots=True)
class OpenAIServer:
    """A running engine with its HTTP application."""

    engine: AsyncLLM
    app: FastAPI
    arguments: EngineArguments
    group: GroupKey
    load: LoadObserver
    folder: EngineFolder | None = None

    def shutdown(self, timeout_s: float) -> None:
        """End the engine's processes within `timeout_s` and leave no file of theirs behind."""
        try:
            self.engine.shutdown(timeout=timeout_s)
        finally:
            if self.folder is not None:
                self.folder.remove()

    def front_end(self) -> FrontEnd:
        """What the front end knows now. A session whose client is still to send (streaming input) is no unfinished request."""
        requests = self.engine.output_processor.request_states.values()
        return FrontEnd(
            num_unfinished_reqs=sum(not getattr(request, "streaming_input", False) for request in requests),
            num_steps=self.load.num_steps or None,
        )

    async def is_paused(self) -> bool:
        """Whether an operator paused the engine or put it to sleep. False where it does not answer."""
        try:
            async with asyncio.timeout(PAUSE_ANSWER_TIMEOUT_S):
                return bool(await self.engine.is_sleeping())
        except Exception:  # noqa: BLE001 - whatever it is, it is no pause
            return False


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What to serve: resolved paths in `engine_kwargs`, and the names that the user gave."""

    served_model_name: str
    target_name: str
    draft_name: str
    engine_kwargs: Mapping[str, Any]
    models_are_local: bool
    local_rank: int
    cores_per_engine: int
    draft_offload: DraftOffload = "never"
    require_steering: bool = False
    graph_tiers: tuple[int, ...] | None = None
    head_log_steps: int = 0
    extra_routes: tuple[str, ...] = ()


async def start_openai_server(
    request: EngineRequest, *, wants_shadow: Callable[[], Awaitable[bool]], missing_hooks: MissingHooks
) -> OpenAIServer:
    """Start the engine and build its application. Blocks the event loop while the engine loads: seconds to minutes.

    `wants_shadow` is asked at the last moment before the engine starts. Raises SteeringRequiredError where the request requires
    an engine that is steered, and this one would not be.
    """
    from vllm.platforms import current_platform

    engine_kwargs, frontend_kwargs = split_kwargs(request.engine_kwargs)
    engine_kwargs["served_model_name"] = [request.served_model_name]
    on_cpu = current_platform.is_cpu()
    folder = make_engine_folder()
    _set_environment(request, engine_kwargs, on_cpu, folder)
    _, user_config = _configure(engine_kwargs)
    facts = resolve_facts(user_config, on_cpu=on_cpu, draft_offload=request.draft_offload)
    arguments = steered_engine_kwargs(
        engine_kwargs,
        facts,
        missing_hooks=missing_hooks,
        shadow=await wants_shadow(),
        wanted_tiers=request.graph_tiers,
        head_log_steps=request.head_log_steps,
    )
    plain = EngineArguments(engine_kwargs, facts.drafter_kind, facts.max_num_speculative_tokens, runner_is_v1=facts.runner_is_v1)
    load = LoadObserver()
    (engine, engine_args), arguments = start_failing_open(
        arguments,
        plain,
        lambda chosen: _launch(chosen, load),
        os.environ,
        refusals=refusals_of_node(),
        processes=Processes(),
        require_steering=request.require_steering,
    )
    if folder is not None:
        folder.note(descendants())
        notices = (arguments.notice, graph_memory.in_words(graph_memory.captures(folder.path)))
        arguments = dataclasses.replace(
            arguments,
            notice="; ".join(part for part in notices if part),
            why_never_asleep=arguments.why_never_asleep or noted_head(folder.path),
        )
    app = await _build_app(engine, engine_args, frontend_kwargs, request.extra_routes)
    group = _identify(engine.vllm_config, facts, request, arguments.graph_tiers)
    return OpenAIServer(engine=engine, app=app, arguments=arguments, group=group, load=load, folder=folder)


def _set_environment(request: EngineRequest, engine_kwargs: Mapping[str, Any], on_cpu: bool, folder: EngineFolder | None) -> None:
    num_workers = int(engine_kwargs.get("tensor_parallel_size") or 1) * int(engine_kwargs.get("pipeline_parallel_size") or 1)
    claimed: tuple[int, ...] = ()
    if on_cpu and num_workers == 1 and folder is not None and not os.environ.get(CORES_VARIABLE):
        claimed = claim_cores(folder.path, sorted(os.sched_getaffinity(0)), request.cores_per_engine)
    host = gather_host_facts(
        local_rank=request.local_rank,
        cores_per_engine=request.cores_per_engine,
        on_cpu=on_cpu,
        num_workers=num_workers,
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


def split_kwargs(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Engine arguments, and the server's own (chat template, tool parser, ...): vLLM's command line takes both, so do we.

    Raises EngineArgumentError for names that are neither.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_names = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    frontend_names = {field.name for field in dataclasses.fields(moved("FrontendArgs"))}
    if unknown := sorted(set(kwargs) - engine_names - frontend_names):
        near = get_close_matches(unknown[0], engine_names | frontend_names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise EngineArgumentError(f"engine_kwargs: vLLM has no argument {', '.join(unknown)}{hint}")
    engine_kwargs = {name: value for name, value in kwargs.items() if name in engine_names}
    return engine_kwargs, {name: value for name, value in kwargs.items() if name not in engine_names}


def _configure(kwargs: Mapping[str, Any]) -> tuple[AsyncEngineArgs, VllmConfig]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine_args = AsyncEngineArgs(**kwargs)
    return engine_args, engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def _launch(arguments: EngineArguments, load: LoadObserver) -> tuple[AsyncLLM, AsyncEngineArgs]:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    engine_args, config = _configure(arguments.kwargs)
    engine = AsyncLLM.from_vllm_config(
        vllm_config=config,
        stat_loggers=[] if engine_args.disable_log_stats else [RayPrometheusStatLogger, lambda _config, _index: load],
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )
    return engine, engine_args


async def _build_app(
    engine: AsyncLLM, engine_args: AsyncEngineArgs, frontend_kwargs: Mapping[str, Any], extra_routes: Sequence[str]
) -> FastAPI:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    args = argparse.Namespace(**(vars(moved("FrontendArgs")(**frontend_kwargs)) | vars(engine_args)))
    tasks = await engine.get_supported_tasks()
    app: FastAPI = build_app(args, tasks, engine.model_config)
    if absent := absent_routes(app, extra_routes):
        log.warning("extra_routes_absent", paths=absent, consequence="404: this vLLM has no such route for this model")
    log.info("routes_closed", paths=close_other_routes(app, extra_routes))
    await init_app_state(engine, app.state, args, tasks)
    app.state.server = SimpleNamespace()  # where vLLM asks its own server to stop; here the replica itself ends with a dead engine
    return app


def _identify(config: VllmConfig, facts: EngineFacts, request: EngineRequest, graph_tiers: tuple[int, ...]) -> GroupKey:
    """The group of this engine, from the configuration it runs with."""
    import vllm
    from vllm.platforms import current_platform

    parallel = config.parallel_config
    eager = config.model_config.enforce_eager
    return GroupKey(
        target=request.target_name[-256:],
        draft=request.draft_name[-256:],
        drafter_kind=facts.drafter_kind,
        accelerator=current_platform.get_device_name()[:64],
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        data_parallel_size=parallel.data_parallel_size,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        max_num_speculative_tokens=min(facts.max_num_speculative_tokens, 32),
        max_num_seqs=min(facts.max_num_seqs, 4096),
        graph_mode="eager" if eager else config.compilation_config.cudagraph_mode.name.lower(),
        engine_version=vllm.__version__,
        graph_tiers=graph_tiers,
    )
