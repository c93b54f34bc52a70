"""The Serve deployment: each replica is vLLM's own OpenAI server around one engine, with a ReplicaAgent beside it.

Requests go from Serve's proxy straight into vLLM's routes, as far as they are answered (routes.py); all that a client sees, errors
included, is vLLM's. Whatever is wrong with the policy, with the hooks or with the steered arguments, the engine serves plainly and
the reports say why (replica_control.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import serve

from nightjar.deployments.llm_config import LLMConfig, needs_no_hub
from nightjar.deployments.models import resolve_model
from nightjar.deployments.replica_control import ReplicaControl

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.schema import ReplicaRank

    from nightjar.deployments.engine.start.hooks import MissingHooks
    from nightjar.deployments.engine.start.openai_server import OpenAIServer


@dataclass(frozen=True, slots=True)
class ModelToServe:
    """What `build` hands to every replica. Sources are as the user wrote them: each node resolves its own folders."""

    config: LLMConfig
    cores: int
    starts_in_mode: str = ""  # the kill switch as `args` set it


@serve.ingress()
class LLMReplica:
    """One replica. Serve calls the methods; `build` in deployments/app.py binds it."""

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
