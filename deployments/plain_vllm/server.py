"""What stands in for two functions of vLLM's server: it starts the engine steered, with an agent on the server's own loop, and
puts the API of a policy that runs here beside vLLM's routes.

Starting fails open (launch.py). A mistake in the user's arguments is vLLM's own message, for what fails before the steered
arguments are tried is done again by vLLM alone. Requests pass through nothing of ours: the engine is vLLM's, the routes are vLLM's,
and the agent asks the engine beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nightjar.cluster.api.access import configured_token, reader_tokens
from nightjar.cluster.api.exchange_client import HttpPolicy
from nightjar.cluster.api.http_client import ROUTE_PREFIX
from nightjar.cluster.api.policy_api import create_policy_api
from nightjar.cluster.policy_thread import PolicyThread
from nightjar.cluster.telemetry.logs import log_plain_tracebacks
from nightjar.cluster.telemetry.metrics import Backend
from nightjar.deployments.engine.engine_folder import EngineFolder
from nightjar.deployments.engine.environment import is_on_cpu
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.engine.start.hooks import missing_hooks
from nightjar.deployments.engine.start.launch import EngineRequest, chosen_arguments, group_of, prepare_process, start_steered
from nightjar.deployments.engine.start.ranks import restore_table
from nightjar.deployments.engine.start.resolved_facts import EngineFacts, resolve_facts
from nightjar.deployments.engine.start.running_engine import LoadObserver, RunningEngine, observe_load
from nightjar.deployments.engine_control import agent_of, identity_of
from nightjar.deployments.llm_config import SteeringOptions, draft_source
from nightjar.deployments.metrics import common_labels
from nightjar.deployments.plain_vllm.arguments import added, configured, users_kwargs, with_kwargs

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from nightjar.cluster.telemetry.prometheus import PrometheusPage
    from nightjar.deployments.agent import ReplicaAgent

APPLICATION: Final = "vllm"
MAX_NAME_LENGTH: Final = 256
"""Of an application in a report (policy/wire/record.py, Identifier)."""
NODE_VARIABLE: Final = "NODE_NAME"
"""As pods are usually given the name of their node, from `spec.nodeName`."""
ADDRESS_VARIABLE: Final = "POD_IP"
"""The same of a pod's address, from `status.podIP`."""
DEPLOYMENT: Final = "serve"
STARTING_MODE_TIMEOUT_S: Final = 2.0
FILES_GO_WITHIN_S: Final = 5.0
"""After the end of an engine, for its processes to leave what they used."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A process that is ready for its engine."""

    request: EngineRequest
    facts: EngineFacts
    folder: EngineFolder | None
    variables: Mapping[str, str]
    """Its environment, before vLLM set variables of its own."""


class SteeredServer:
    """One server's. `engine_client` and `build_app` take the arguments of vLLM's functions, `theirs` and `their_build_app`.

    `place` tells this server from others of its machine: its port. `api` is the policy, where it runs here; the application of a
    server under one elsewhere is the name of its model. `mode` is what the user's settings say, for where the policy is late.
    """

    def __init__(
        self,
        *,
        theirs: Callable[..., Any],
        their_build_app: Callable[..., FastAPI],
        policy: PolicyThread | HttpPolicy,
        api: PolicyThread | None,
        backend: Callable[[Mapping[str, str]], Backend],
        place: str,
        mode: str = "",
    ) -> None:
        log_plain_tracebacks()
        self._theirs = theirs
        self._their_build_app = their_build_app
        self._policy = policy
        self._api = api
        self._backend = backend
        self._mode = mode
        self._replica_id = f"{host_name(os.environ)}:{place}"

    @contextlib.asynccontextmanager
    async def engine_client(self, engine_args: AsyncEngineArgs, **rest: Any) -> AsyncIterator[AsyncLLM]:
        """The engine, steered where it can be, for as long as the server runs."""
        try:
            self._start_policy()
            running = await self._start(engine_args, rest.get("usage_context"))
            if running is None:
                async with self._theirs(engine_args, **rest) as engine:
                    yield engine
            else:
                async with self._steered(running, engine_args) as engine:
                    yield engine
        finally:
            self._policy.stop()

    def build_app(self, *arguments: Any, **keywords: Any) -> FastAPI:
        """vLLM's application, with the policy's API in it."""
        app = self._their_build_app(*arguments, **keywords)
        if self._api is None:
            return app
        try:
            app.mount(ROUTE_PREFIX, create_policy_api(self._api, configured_token, reader_tokens))
        except Exception:
            log.exception("policy_api_missing", consequence="vLLM's routes are served without it")
        return app

    @contextlib.asynccontextmanager
    async def _steered(self, running: RunningEngine, engine_args: AsyncEngineArgs) -> AsyncIterator[AsyncLLM]:
        """As vLLM's own builder does once its engine runs, with its agents beside it."""
        engine, agents = running.engine, list[asyncio.Task[None]]()
        try:
            await engine.reset_mm_cache()
            agents = self._begin(running, engine_args)
            yield engine
        finally:
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)
            try:
                engine.shutdown(timeout=engine.vllm_config.shutdown_timeout)
            finally:
                running.shutdown(FILES_GO_WITHIN_S)

    def _start_policy(self) -> None:
        try:
            self._policy.start()
        except Exception:
            log.exception("policy_not_begun", consequence="the engine is served without a policy")

    def _begin(self, running: RunningEngine, engine_args: AsyncEngineArgs) -> list[asyncio.Task[None]]:
        """An agent of the engine, or of each of its ranks."""
        agents: list[ReplicaAgent] = []
        try:
            identity = identity_of(
                running,
                replica_id=self._replica_id,
                application=self._application(engine_args),
                deployment=DEPLOYMENT,
                node_id=node_name(os.environ),
            )
            for rank in running.ranks:
                its = replace(identity, rank=rank)
                backend = self._backend(common_labels(its, served_name(engine_args)))
                agents.append(agent_of(running, its, policy=self._policy, backend=backend, hung_after_s=0.0)[0])
        except Exception:
            log.exception("agent_not_begun", consequence="the engine is served with the K that it begins with")
        return [asyncio.create_task(agent.run()) for agent in agents]

    async def _start(self, engine_args: AsyncEngineArgs, usage_context: Any) -> RunningEngine | None:
        """The engine; None where nothing runs and vLLM is to start it alone. Raises what vLLM raises for the user's arguments."""
        users = dict(os.environ)
        try:
            prepared = prepare(engine_args, usage_context)
            shadow = await self._wants_shadow(engine_args)
        except Exception as error:  # noqa: BLE001 - the user's mistake, which vLLM says next, or one of ours
            self._serve_plainly(users, error)
            return None
        return self._start_prepared(prepared, engine_args, usage_context, users, shadow=shadow)

    def _start_prepared(
        self, prepared: Prepared, engine_args: AsyncEngineArgs, usage_context: Any, users: Mapping[str, str], *, shadow: bool
    ) -> RunningEngine | None:
        request, facts = prepared.request, prepared.facts
        started: list[AsyncLLM] = []
        tried: list[EngineArguments] = []

        def configure(chosen: EngineArguments) -> tuple[AsyncEngineArgs, VllmConfig]:
            tried.append(chosen)
            made = with_kwargs(engine_args, request.engine_kwargs, chosen.kwargs)
            config = configured(made, usage_context)
            restore_table(config, chosen.dropped_table)
            return made, config

        def start(made: tuple[AsyncEngineArgs, VllmConfig]) -> AsyncLLM:
            started.append(_start_engine(*made, usage_context))
            return started[-1]

        try:
            engine, arguments = start_steered(
                request,
                request.engine_kwargs,
                facts,
                configure,
                start,
                shadow=shadow,
                missing_hooks=missing_hooks(),
                folder=prepared.folder,
            )
            load = LoadObserver()
            observe_load(engine, load)
            group = group_of(engine.vllm_config, facts, request, arguments.graph_tiers, accelerator=_accelerator())
            return RunningEngine(engine=engine, arguments=arguments, group=group, load=load, folder=prepared.folder)
        except BaseException as error:  # a signal ends what begins here, too
            for engine in started:
                engine.shutdown(timeout=0)
            if prepared.folder is not None:
                prepared.folder.remove()
            is_users = not started and bool(tried) and bool(tried[-1].serving_plainly)  # vLLM's word on the user's own arguments
            if is_users or not isinstance(error, Exception):
                raise
            self._serve_plainly(users, error)
            return None

    def _application(self, engine_args: AsyncEngineArgs) -> str:
        return APPLICATION if self._api is not None else served_name(engine_args)[:MAX_NAME_LENGTH]

    async def _wants_shadow(self, engine_args: AsyncEngineArgs) -> bool:
        """Where a policy does not answer in time, as the user's settings say; with none of them here, no."""
        application = self._application(engine_args)
        try:
            mode = await self._policy.starting_mode(self._replica_id, application, STARTING_MODE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the policy, the engine starts
            mode = self._mode
            arguments = "the user's" if mode == "shadow" else "steered"
            log.warning("starting_mode_unknown", error=str(error), consequence=f"the engine starts with {arguments} arguments")
        else:
            log.info("starting_mode", mode=mode)
        return mode == "shadow"

    @staticmethod
    def _serve_plainly(users: Mapping[str, str], error: Exception) -> None:
        """In the environment that the user gave it."""
        log.warning(
            "serving_plainly", reason=f"{type(error).__name__}: {error}", consequence="vLLM serves alone, nothing is steered"
        )
        _restore(os.environ, users)


def prepare(engine_args: AsyncEngineArgs, usage_context: Any) -> Prepared:
    """Ask vLLM what it makes of the user's arguments, and set what the engine's processes need in their environment.

    Raises what vLLM raises for them.
    """
    kwargs = users_kwargs(engine_args)
    options, on_cpu = SteeringOptions(), is_on_cpu()
    request = EngineRequest(
        served_model_name=served_name(engine_args),
        target_name=str(engine_args.model),
        draft_name=draft_source(kwargs),
        engine_kwargs=kwargs,
        models_are_local=False,  # whether a hub is asked stays the user's
        local_rank=0,
        cores_per_engine=0,
        options=options,
    )
    folder = prepare_process(request, kwargs, on_cpu=on_cpu)  # before vLLM looks, which preloads an OpenMP of its own choice
    variables = dict(os.environ)
    try:
        facts = resolve_facts(configured(engine_args, usage_context), on_cpu=on_cpu, draft_offload=options.draft_offload)
    except BaseException:
        if folder is not None:
            folder.remove()
        raise
    return Prepared(request, facts, folder, variables)


def what_is_added(engine_args: AsyncEngineArgs, usage_context: Any, *, shadow: bool) -> tuple[dict[str, Any], dict[str, str], str]:
    """Arguments and variables that an engine of these arguments would be started with beside the user's, and why it would not be
    steered, if so. Starts nothing and leaves nothing behind.
    """
    users = dict(os.environ)
    prepared = prepare(engine_args, usage_context)
    try:
        request = prepared.request
        chosen = chosen_arguments(request, request.engine_kwargs, prepared.facts, shadow=shadow, missing_hooks=missing_hooks())
        variables = {name: value for name, value in prepared.variables.items() if users.get(name) != value} | chosen.environment
        return added(request.engine_kwargs, chosen.kwargs), variables, chosen.serving_plainly
    finally:
        _restore(os.environ, users)
        if prepared.folder is not None:
            prepared.folder.remove()


def with_our_series(build_app: Callable[..., FastAPI], page: PrometheusPage) -> Callable[..., FastAPI]:
    """`build_app`, whose application shows `page` among vLLM's metrics also where PROMETHEUS_MULTIPROC_DIR is set.

    vLLM (0.29 to 0.33) then reads files of several processes in place of the registry that `page` is in; production-stack sets it
    for every server. Without our series where this fails.
    """

    def built(*arguments: Any, **keywords: Any) -> FastAPI:
        app = build_app(*arguments, **keywords)
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            try:
                app.router.routes.insert(0, _metrics_route(page))
            except Exception:
                log.exception("metrics_missing", consequence="vLLM's page has no series of Nightjar; nothing else is affected")
        return app

    return built


def _metrics_route(page: PrometheusPage) -> Route:
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    registry = get_prometheus_registry()
    page.show_on(registry)

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Route("/metrics", metrics, include_in_schema=False)


def node_name(environ: Mapping[str, str]) -> str:
    """The node whose link reloads share: a pod's as it was told, else this host.

    >>> node_name({"NODE_NAME": "gpu-node-7"})
    'gpu-node-7'
    """
    return environ.get(NODE_VARIABLE, "").strip()[:MAX_NAME_LENGTH] or platform.node()


def host_name(environ: Mapping[str, str]) -> str:
    """What tells this server from others of its port: a pod's address, where it was told, else the host's name.

    production-stack gives all pods of a model one host name.

    >>> host_name({"POD_IP": "10.1.2.3"})
    '10.1.2.3'
    """
    return environ.get(ADDRESS_VARIABLE, "").strip()[:MAX_NAME_LENGTH] or platform.node()


def served_name(engine_args: AsyncEngineArgs) -> str:
    """The first name that the model is served under, as vLLM's own metrics have it."""
    names = engine_args.served_model_name
    return str(names if isinstance(names, str) else names[0] if names else engine_args.model)


def _start_engine(engine_args: AsyncEngineArgs, config: VllmConfig, usage_context: Any) -> AsyncLLM:
    """As vLLM's own builder does (0.29 to 0.33, launchers/api_server/entry.py), for one front end."""
    from vllm.v1.engine.async_llm import AsyncLLM

    engine: AsyncLLM = AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=usage_context,
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )
    return engine


def _accelerator() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name())


def _restore(environ: MutableMapping[str, str], users: Mapping[str, str]) -> None:
    for name in [name for name in environ if name not in users]:
        del environ[name]
    environ.update(users)
