"""`build(args)`: the Serve application of one model, from the `llm_configs` block of ray.serve.llm, and its replicas.

    import_path: nightjar.deployments.app:build        # was ray.serve.llm:build_openai_app
    args:
      llm_configs:
      - model_loading_config: {model_id: ..., model_source: ...}
        engine_kwargs: {...}                           # vLLM's own names, passed through untouched
        deployment_config: {...}                       # Ray Serve's own names
        hung_after_s: 120                              # Nightjar's own: an engine without a step for so long is replaced

What is wrong with it is one message at build time, naming field, value and what is allowed (`ConfigurationError`). Nothing
tunable lives here: a change of `args` replaces every replica. Beside `args` a change of how many replicas there are, or how many
requests one takes, replaces none, and neither does the kill switch for emergencies, which is `user_config` with `mode` alone:

    deployments: [{name: LLM, num_replicas: 3, max_ongoing_requests: 512, user_config: {mode: "off"}}]

Serve lays these over `deployment_config`; `nightjar check` looks at both together.

Each replica is vLLM's own OpenAI server around one engine, with a ReplicaAgent beside it. Requests go from Serve's proxy straight
into vLLM's routes, as far as they are answered (routes.py); all that a client sees, errors included, is vLLM's. Whatever is wrong
with the policy, with the hooks or with the steered arguments, the engine serves plainly and the reports say why
(replica_control.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from ray import serve
from ray.serve import Application, Deployment

from nightjar.deployments.llm_config import (
    DEPLOYMENT_NAME,
    ConfigurationError,
    LLMConfig,
    needs_no_hub,
    parse_args,
    parse_local_mode,
)
from nightjar.deployments.models import resolve_model
from nightjar.deployments.replica_control import ReplicaControl

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.schema import ReplicaRank

    from nightjar.deployments.engine.start.hooks import MissingHooks
    from nightjar.deployments.engine.start.openai_server import OpenAIServer


log = structlog.get_logger(__name__)


def build(args: Mapping[str, Any]) -> Application:
    """The application for Serve's `import_path`. Raises ConfigurationError."""
    return deploy(parse_args(args), LLMReplica)


def deploy(config: LLMConfig, replica_class: type) -> Application:
    """The application of `config`, with `replica_class` in its replicas."""
    options = deployment_options(config)
    try:
        deployment: Deployment = serve.deployment(replica_class).options(**options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"llm_configs.0.deployment_config: {' '.join(str(error).split())}") from error
    model = ModelToServe(
        config,
        cores=max(int(options["ray_actor_options"]["num_cpus"] or 1), 1),
        starts_in_mode=str(mode) if (mode := parse_local_mode(options.get("user_config"))) else "",
    )
    application: Application = deployment.bind(model)
    return application


def deployment_options(config: LLMConfig) -> dict[str, Any]:
    """Serve's options for the deployment: the user's, completed where Serve's defaults would hurt. Null is Serve's default."""
    given_options = {option: value for option, value in config.deployment_config.items() if value is not None}
    options: dict[str, Any] = {"name": DEPLOYMENT_NAME} | given_options | {"ray_actor_options": config.actor_options()}
    enough = config.enough_ongoing_requests
    given = options.setdefault("max_ongoing_requests", enough)
    if isinstance(given, int) and given < enough:
        log.warning(
            "max_ongoing_requests_is_low",
            max_ongoing_requests=given,
            wanted_at_least=enough,
            consequence=f"Serve holds requests back before the engine's batch of max_num_seqs={enough // 2} is full",
        )
    return options


@dataclass(frozen=True, slots=True)
class ModelToServe:
    """What `build` hands to every replica. Sources are as the user wrote them: each node resolves its own folders."""

    config: LLMConfig
    cores: int
    starts_in_mode: str = ""  # the kill switch as `args` set it


@serve.ingress()
class LLMReplica:
    """One replica. Serve calls the methods; `build` binds it."""

    async def __init__(self, model: ModelToServe) -> None:  # type: ignore[misc]  # Serve awaits it
        from nightjar.deployments.engine.start.launch import EngineRequest
        from nightjar.deployments.engine.start.openai_server import start_openai_server

        self._control = ReplicaControl()
        config, model_id = model.config, model.config.model_loading_config.model_id
        target, draft = resolve_model(config.model_source), resolve_model(config.draft_source) if config.draft_source else ""
        request = EngineRequest(
            served_model_name=model_id,
            target_name=config.model_source,
            draft_name=config.draft_source,
            engine_kwargs=_with_paths(config.engine_kwargs, target, draft),
            models_are_local=needs_no_hub(config.engine_kwargs, target, draft),
            local_rank=self._control.local_rank,
            cores_per_engine=model.cores,
            options=config,
        )
        self._server: OpenAIServer = await start_openai_server(
            request,
            wants_shadow=lambda: self._control.wants_shadow(model.starts_in_mode),
            missing_hooks=self.missing_hooks(),
        )
        self._control.begin(self._server, model_id=model_id, hung_after_s=config.hung_after_s)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """vLLM's application, which Serve calls for every request."""
        return self._server.app

    async def check_health(self) -> None:
        """Healthy while the engine is. Raises vLLM's own error for a dead engine, EngineHungError for a hung one."""
        await self._control.check_health()

    async def reconfigure(self, user_config: object, rank: ReplicaRank) -> None:
        """Set the kill switch and return at once; a wrong value is logged and shown in `status`, and the old one stays.

        Async, so that Serve calls it on the agent's event loop and not in a thread. `rank` is not used: a method that takes it is
        also called when `user_config` is taken away.
        """
        del rank
        self._control.reconfigure(user_config)

    async def __del__(self) -> None:
        """Serve's graceful shutdown: requests have ended or had their time."""
        if (control := getattr(self, "_control", None)) is not None:
            await control.end()

    @staticmethod
    def missing_hooks() -> MissingHooks:
        """What this vLLM lacks of what Nightjar hooks into."""
        from nightjar.deployments.engine.start.hooks import missing_hooks

        return missing_hooks()


def _with_paths(engine_kwargs: Mapping[str, Any], target: str, draft: str) -> dict[str, Any]:
    kwargs = dict(engine_kwargs) | {"model": target}
    if draft:
        kwargs["speculative_config"] = dict(kwargs["speculative_config"]) | {"model": draft}
    return kwargs
