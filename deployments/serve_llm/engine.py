"""The engine of ray.serve.llm, started with steered arguments and with a ReplicaControl beside it.

Theirs stay: how arguments are made of an LLMConfig, where (a task with the GPU), the placement group, metrics, adapters and the
serving objects. Between their configuration and their engine the arguments are changed, by the code of our own replica, and where
the steered ones are refused at either step the user's own are configured and started (launch.py).

Two of their methods are not public; with a Ray that lacks one of them the server takes their engine class (`missing_in_ray`). The
replica of an engine on GPUs has no GPU itself: vLLM's configuration is made in a task of Ray's, and its workers are Ray's actors.
That was run on the rig, whose devices Ray gives out of nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import ray
import structlog
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

from nightjar.deployments.engine.environment import is_on_cpu
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.engine.start.hooks import missing_hooks
from nightjar.deployments.engine.start.launch import EngineRequest, group_of, prepare_process, start_steered
from nightjar.deployments.engine.start.ranks import why_plain_under_ray
from nightjar.deployments.engine.start.resolved_facts import resolve_facts
from nightjar.deployments.engine.start.running_engine import LoadObserver, RunningEngine, observe_load
from nightjar.deployments.llm_config import draft_source, needs_no_hub, parse_local_mode, steering_options
from nightjar.deployments.replica_control import ReplicaControl

if TYPE_CHECKING:
    from ray.llm._internal.common.callbacks.base import CallbackCtx
    from ray.serve.llm import LLMConfig
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    Prepared = tuple[AsyncEngineArgs, object, VllmConfig]  # the second are vLLM's arguments of a server, whose class has moved

PRIVATE_METHODS: Final = ("_prepare_engine_config", "_start_async_llm_engine")
"""Of VLLMEngine (Ray 2.60, ray/llm/_internal/serve/engines/vllm/vllm_engine.py), called by its `start` in this order."""
NEVER_ACROSS_NODES: Final = "an engine whose workers are on several nodes has never run steered"

log = structlog.get_logger(__name__)


class SteeredVLLMEngine(VLLMEngine):
    """Their engine and our control. LLMServer calls the methods."""

    control: ReplicaControl | None = None  # once the engine runs

    def __init__(self, llm_config: LLMConfig) -> None:
        super().__init__(llm_config)
        self._options = steering_options(llm_config.experimental_configs)
        self._shadow = False
        self._launched: RunningEngine | None = None

    async def start(self) -> None:
        """Start the engine, and report and steer from then on. Raises what theirs raises, and SteeringRequiredError."""
        if self._running:
            return
        control = ReplicaControl()
        mode = parse_local_mode(self.llm_config.deployment_config.get("user_config"))
        self._shadow = await control.wants_shadow(str(mode or ""))
        await super().start()
        assert self._launched is not None
        control.begin(self._launched, model_id=self.llm_config.model_id, hung_after_s=self._options.hung_after_s)
        self.control = control

    async def check_health(self) -> None:
        """Healthy while the engine is. Raises vLLM's own error for a dead engine, EngineHungError for a hung one."""
        if self.control is not None:
            await self.control.check_health()

    async def shutdown(self) -> None:
        """Serve's graceful shutdown. Theirs leaves the engine's processes to end with this one."""
        try:
            await super().shutdown()
        finally:
            if self.control is not None:
                await self.control.end()

    def _prepare_engine_config(self, callback_ctx: CallbackCtx) -> Prepared:
        """Configure and start the engine, so that a refusal of either leads to the plain one; answer what it was started with."""
        on_cpu = is_on_cpu()
        users = dict(self.llm_config.get_engine_config().engine_kwargs)
        request = self._request(users)
        folder = prepare_process(request, users, on_cpu=on_cpu)
        *_, user_config = super()._prepare_engine_config(callback_ctx)
        facts = resolve_facts(user_config, on_cpu=on_cpu, draft_offload=self._options.draft_offload)
        facts = dataclasses.replace(
            facts,
            why_not_here=self._why_not_here() or facts.why_not_here,
            why_ranks_plain=why_plain_under_ray(facts.data_parallel_size),
        )
        load = LoadObserver()
        (engine, prepared), arguments = start_steered(
            request,
            users,
            facts,
            lambda chosen: self._configure_chosen(chosen, callback_ctx),
            lambda configured: self._start_configured(configured, callback_ctx, load),
            shadow=self._shadow,
            missing_hooks=missing_hooks(),
            folder=folder,
        )
        if not arguments.serving_plainly and len(_nodes_of(callback_ctx)) > 1:
            notices = (arguments.notice, NEVER_ACROSS_NODES)
            arguments = dataclasses.replace(arguments, notice="; ".join(notice for notice in notices if notice))
        group = group_of(prepared[2], facts, request, arguments.graph_tiers, accelerator=self._accelerator())
        self._launched = RunningEngine(engine=engine, arguments=arguments, group=group, load=load, folder=folder)
        return prepared

    def _start_async_llm_engine(self, *_args: object, **_kwargs: object) -> AsyncLLM:
        """The engine that was started with its configuration."""
        assert self._launched is not None
        return self._launched.engine

    def _configure_chosen(self, chosen: EngineArguments, callback_ctx: CallbackCtx) -> Prepared:
        self.llm_config.get_engine_config().engine_kwargs = dict(chosen.kwargs)
        told = dataclasses.replace(callback_ctx, runtime_env=_with_variables(callback_ctx.runtime_env, chosen.environment))
        prepared: Prepared = super()._prepare_engine_config(told)
        return prepared

    def _start_configured(self, prepared: Prepared, callback_ctx: CallbackCtx, load: LoadObserver) -> tuple[AsyncLLM, Prepared]:
        engine: AsyncLLM = super()._start_async_llm_engine(prepared[0], prepared[2], callback_ctx.placement_group)
        observe_load(engine, load)  # theirs takes no logger of ours
        return engine, prepared

    def _request(self, engine_kwargs: Mapping[str, Any]) -> EngineRequest:
        config = self.llm_config
        engine_config = config.get_engine_config()
        target, draft = str(engine_config.actual_hf_model_id), draft_source(engine_kwargs)
        bundles = engine_config.placement_bundles
        context = ray.serve.get_replica_context()
        return EngineRequest(
            served_model_name=config.model_id,
            target_name=target,
            draft_name=draft,
            engine_kwargs=engine_kwargs,
            models_are_local=needs_no_hub(engine_kwargs, target, draft),
            local_rank=context.rank.local_rank,
            cores_per_engine=max(int(sum(bundle.get("CPU", 0) for bundle in bundles)), 1),
            options=self._options,
        )

    def _why_not_here(self) -> str:
        kind = getattr(self.llm_config.accelerator_config, "kind", "gpu")
        return "" if kind in ("cpu", "gpu") else f"accelerator_config.kind {kind!r}: engines on CPU and GPU are steered"

    def _accelerator(self) -> str:
        """The device's name; the kind that the user asked Ray for where this process sees none."""
        from vllm.platforms import current_platform

        try:
            return str(current_platform.get_device_name())
        except Exception as error:  # noqa: BLE001 - whatever a platform raises without a device
            log.info("device_name_unknown", error=str(error), consequence="the group is named by accelerator_type")
            return str(self.llm_config.accelerator_type or "gpu")


def missing_in_ray() -> list[str]:
    """What this Ray's engine class lacks of what is overridden here."""
    return [name for name in PRIVATE_METHODS if not hasattr(VLLMEngine, name)]


def _with_variables(runtime_env: Mapping[str, Any] | None, variables: Mapping[str, str]) -> dict[str, Any]:
    """The environment of the task that makes the configuration, which looks at the same variables as the engine."""
    env = dict(runtime_env or {})
    return env | {"env_vars": {**(env.get("env_vars") or {}), **variables}} if variables else env


def _nodes_of(callback_ctx: CallbackCtx) -> set[str]:
    if callback_ctx.placement_group is None:
        return set()
    return set(ray.util.placement_group_table(callback_ctx.placement_group)["bundles_to_node_id"].values())
