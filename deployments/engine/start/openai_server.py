"""vLLM's own OpenAI server around one engine, inside this process: routes, streams and error bodies are vLLM's.

Starting fails open (launch.py). Arguments that vLLM does not know are refused before that.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import structlog

from nightjar.deployments.engine.environment import is_on_cpu
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.engine.start.hooks import MissingHooks, moved
from nightjar.deployments.engine.start.launch import EngineRequest, group_of, prepare_process, start_steered
from nightjar.deployments.engine.start.ranks import restore_table
from nightjar.deployments.engine.start.resolved_facts import resolve_facts
from nightjar.deployments.engine.start.running_engine import LoadObserver, RunningEngine
from nightjar.deployments.routes import absent_routes, close_other_routes

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIServer(RunningEngine):
    """A running engine with its HTTP application."""

    app: FastAPI


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
    on_cpu = is_on_cpu()
    folder = prepare_process(request, engine_kwargs, on_cpu=on_cpu)
    _, user_config = _configure(engine_kwargs)
    facts = resolve_facts(user_config, on_cpu=on_cpu, draft_offload=request.options.draft_offload)
    load = LoadObserver()
    (engine, engine_args), arguments = start_steered(
        request,
        engine_kwargs,
        facts,
        _configure_chosen,
        lambda configured: _start(*configured, load),
        shadow=await wants_shadow(),
        missing_hooks=missing_hooks,
        folder=folder,
    )
    app = await _build_app(engine, engine_args, frontend_kwargs, request.options.extra_routes)
    group = group_of(engine.vllm_config, facts, request, arguments.graph_tiers, accelerator=current_platform.get_device_name())
    return OpenAIServer(engine=engine, app=app, arguments=arguments, group=group, load=load, folder=folder)


def split_kwargs(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Engine arguments, and the server's own (chat template, tool parser, ...): vLLM's command line takes both, so do we.

    Raises ValueError for names that are neither.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_names = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    frontend_names = {field.name for field in dataclasses.fields(moved("FrontendArgs"))}
    if unknown := sorted(set(kwargs) - engine_names - frontend_names):
        near = get_close_matches(unknown[0], engine_names | frontend_names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"engine_kwargs: vLLM has no argument {', '.join(unknown)}{hint}")
    engine_kwargs = {name: value for name, value in kwargs.items() if name in engine_names}
    return engine_kwargs, {name: value for name, value in kwargs.items() if name not in engine_names}


def _configure_chosen(chosen: EngineArguments) -> tuple[AsyncEngineArgs, VllmConfig]:
    engine_args, config = _configure(chosen.kwargs)
    restore_table(config, chosen.dropped_table)
    return engine_args, config


def _configure(kwargs: Mapping[str, Any]) -> tuple[AsyncEngineArgs, VllmConfig]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    engine_args = AsyncEngineArgs(**kwargs)
    return engine_args, engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def _start(engine_args: AsyncEngineArgs, config: VllmConfig, load: LoadObserver) -> tuple[AsyncLLM, AsyncEngineArgs]:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

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
