"""The server class and the builder for files of ray.serve.llm. All but the engine class, the kill switch and the doors is theirs.

The class has the name of theirs, since ray.serve.llm names deployments by it: `deployments:` of a file, dashboards and alerts find
`LLMServer:<model>` as before. A model with a `server_cls` of its own keeps it and is not steered, which the log says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog
from ray.serve import Application
from ray.serve.llm import LLMConfig, LLMServingArgs
from ray.serve.llm import LLMServer as TheirLLMServer
from ray.serve.llm import build_openai_app as build_their_openai_app
from ray.serve.schema import ReplicaRank

from nightjar.deployments.engine.start.fallback import SteeringRequiredError
from nightjar.deployments.llm_config import DIRECT_STREAMING, ConfigurationError, parse_local_mode, steering_options
from nightjar.deployments.serve_llm.doors import OpenAiIngress, answer_named_routes

if TYPE_CHECKING:
    from fastapi import FastAPI

ENGINE_VARIABLE: Final = "RAYLLM_VLLM_ENGINE_CLS"
"""ray.serve.llm's: another engine class for every server of the environment."""

log = structlog.get_logger(__name__)


class LLMServer(TheirLLMServer):
    """Their server, whose engine is steered."""

    async def __init__(self, llm_config: LLMConfig, *, engine_cls: type | None = None, **theirs: Any) -> None:  # type: ignore[misc]
        if engine_cls is None and (reason := _why_plain()):
            if steering_options(llm_config.experimental_configs).require_steering:
                raise SteeringRequiredError(f"require_steering is true, and this engine would serve as plain vLLM: {reason}")
            log.warning("serving_plainly", reason=reason)
        elif engine_cls is None:
            from nightjar.deployments.serve_llm.engine import SteeredVLLMEngine

            engine_cls = SteeredVLLMEngine
        await super().__init__(llm_config, engine_cls=engine_cls, **theirs)

    async def reconfigure(self, user_config: object, rank: ReplicaRank) -> None:
        """Set the kill switch and return at once; a wrong value is logged and shown in `status`, and the old one stays.

        Async, so that Serve calls it on the agent's event loop and not in a thread. `rank` is not used: a method that takes it is
        also called when `user_config` is taken away.
        """
        del rank
        if (control := getattr(self.engine, "control", None)) is not None:
            control.reconfigure(user_config)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """With direct streaming: vLLM's application, which answers what a replica of our own answers and no more (doors.py)."""
        app: FastAPI = await super().__serve_build_asgi_app__()
        config = await self.llm_config()
        answer_named_routes(app, steering_options(config.experimental_configs).extra_routes)
        return app

    @classmethod
    def get_deployment_options(cls, llm_config: LLMConfig) -> dict[str, Any]:
        """Theirs; Nightjar's options are checked here, when the application is built. Raises ConfigurationError."""
        place = f"llm_configs: {llm_config.model_id}"
        try:
            steering_options(llm_config.experimental_configs)
            parse_local_mode(llm_config.deployment_config.get("user_config"))
        except ValueError as error:
            raise ConfigurationError(f"{place}: {error}") from error
        options: dict[str, Any] = super().get_deployment_options(llm_config)
        return options


def build_openai_app(args: Mapping[str, Any]) -> Application:
    """Their application with our server class in every model that names none. Raises what theirs raises, ConfigurationError."""
    serving = LLMServingArgs.model_validate(dict(args))
    for config in serving.llm_configs:
        if config.server_cls is None:
            config.server_cls = LLMServer
        elif not (isinstance(config.server_cls, type) and issubclass(config.server_cls, LLMServer)):
            log.warning("serving_plainly", model=config.model_id, reason=f"server_cls is {config.server_cls}, not Nightjar's")
    ingress = serving.ingress_cls_config
    if os.environ.get(DIRECT_STREAMING) == "1":
        log.info("direct_streaming", consequence="requests go past the ingress; servers of Nightjar's answer named routes alone")
    elif "ingress_cls" in ingress.model_fields_set:
        log.warning("nobody_is_asked_for_a_key", reason=f"ingress_cls is {ingress.ingress_cls}, not Nightjar's")
    else:
        ingress.ingress_cls = OpenAiIngress
    application: Application = build_their_openai_app(serving)
    return application


def _why_plain() -> str:
    """Why the engine class must be another one than ours; empty where it need not."""
    from nightjar.deployments.serve_llm.engine import missing_in_ray

    if named := os.environ.get(ENGINE_VARIABLE):
        return f"{ENGINE_VARIABLE}={named} names another engine class than Nightjar's"
    missing = missing_in_ray()
    return f"the VLLMEngine of this Ray has no {' and no '.join(missing)}" if missing else ""
