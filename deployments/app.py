"""`build(args)`: the Serve application of one model, from the `llm_configs` block that ray.serve.llm users have already.

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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from ray import serve
from ray.serve import Application, Deployment

from nightjar.deployments.llm_config import DEPLOYMENT_NAME, ConfigurationError, LLMConfig, parse_args, parse_local_mode
from nightjar.deployments.replica import LLMReplica, ModelToServe

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
        raise ConfigurationError(f"llm_configs.0.deployment_config: {error}") from error
    model = ModelToServe(
        config,
        cores=max(int(options["ray_actor_options"]["num_cpus"] or 1), 1),
        starts_in_mode=str(mode) if (mode := parse_local_mode(options.get("user_config"))) else "",
    )
    application: Application = deployment.bind(model)
    return application


def deployment_options(config: LLMConfig) -> dict[str, Any]:
    """Serve's options for the deployment: the user's, completed where Serve's defaults would hurt."""
    options: dict[str, Any] = {"name": DEPLOYMENT_NAME} | config.deployment_config | {"ray_actor_options": config.actor_options()}
    enough = config.enough_ongoing_requests
    given = options.setdefault("max_ongoing_requests", enough)
    if given < enough:
        log.warning(
            "max_ongoing_requests_is_low",
            max_ongoing_requests=given,
            wanted_at_least=enough,
            consequence=f"Serve holds requests back before the engine's batch of max_num_seqs={enough // 2} is full",
        )
    return options
