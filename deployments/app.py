"""`build(args)`: the Serve application of one model, from the `llm_configs` block that ray.serve.llm users have already.

    import_path: nightjar.deployments.app:build        # was ray.serve.llm:build_openai_app
    args:
      llm_configs:
      - model_loading_config: {model_id: ..., model_source: ...}
        engine_kwargs: {...}                           # vLLM's own names, passed through untouched
        deployment_config: {...}                       # Ray Serve's own names
        hung_after_s: 120                              # Nightjar's own: an engine without a step for so long is replaced

What is wrong with it is one message at build time, naming field, value and what is allowed (`ConfigurationError`). Nothing
tunable lives here: a change of `args` replaces every replica. The kill switch for emergencies is the deployment's
`user_config`, `mode` alone, beside `args`, where a change replaces none:

    deployments: [{name: LLM, user_config: {mode: "off"}}]
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application, Deployment

from nightjar.deployments.engine_watch import HUNG_AFTER_S
from nightjar.deployments.models import ModelError, resolve_model
from nightjar.deployments.replica import LLMReplica, ModelToServe, parse_local_mode
from nightjar.policy.settings import DraftOffload

DEPLOYMENT_NAME: Final = "LLM"
ASSUMED_MAX_NUM_SEQS: Final = 1024
"""vLLM's largest default, for engines whose max_num_seqs is left to vLLM."""
_DRAFTERS_WITHOUT_MODEL: Final = frozenset({"ngram", "ngram_gpu", "suffix", "custom_class"})

log = structlog.get_logger(__name__)


class ConfigurationError(ValueError):
    """Application arguments that cannot be used. One message: field, value, what is allowed."""


class ModelLoadingConfig(BaseModel):
    """Under which name the model is served, and where it is loaded from."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_id: Annotated[str, Field(min_length=1)]
    model_source: Annotated[str, Field(min_length=1)] | None = None  # None: model_id


class LLMConfig(BaseModel):
    """One entry of `llm_configs`, in the shape of ray.serve.llm."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_loading_config: ModelLoadingConfig
    accelerator_type: str | None = None
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    deployment_config: dict[str, Any] = Field(default_factory=dict)
    runtime_env: dict[str, Any] | None = None
    hung_after_s: Annotated[float, Field(ge=0.0, le=86_400.0)] = HUNG_AFTER_S
    """Seconds without a step, with requests to work on, after which the engine counts as hung and its replica is replaced.

    0 watches for no hang. Default 120: a false alarm costs a restart and every running request, so keep it well above the
    longest step, which is a long prefill (tens of seconds on a CPU). Nightjar's own; ray.serve.llm has no such field.
    """

    draft_offload: DraftOffload = "never"
    """Whether this engine plans its KV blocks so that a sleeping draft model's memory can be lent to requests.

    `under_memory_pressure`: the policy's setting of the same name then says whether and when. At start the engine shortly needs
    memory for all blocks together. Default never. Nightjar's own; ray.serve.llm has no such field.
    """

    @property
    def model_source(self) -> str:
        """What to load: a folder of NIGHTJAR_MODELS, a path or a hub name."""
        return self.model_loading_config.model_source or self.model_loading_config.model_id

    @property
    def draft_source(self) -> str:
        """The drafter's model as the user named it; empty where the drafter has none."""
        speculative = self.engine_kwargs.get("speculative_config") or {}
        has_model = speculative.get("method") not in _DRAFTERS_WITHOUT_MODEL
        return str(speculative.get("model") or "") if has_model else ""


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
        model_id=config.model_loading_config.model_id,
        source=config.model_source,
        draft_source=config.draft_source,
        engine_kwargs=config.engine_kwargs,
        cores=max(int(options["ray_actor_options"]["num_cpus"] or 1), 1),
        starts_in_mode=str(mode) if (mode := parse_local_mode(options.get("user_config"))) else "",
        hung_after_s=config.hung_after_s,
        draft_offload=config.draft_offload,
    )
    application: Application = deployment.bind(model)
    return application


def parse_args(args: Mapping[str, Any]) -> LLMConfig:
    """The one model of `args`, its folders checked. Raises ConfigurationError."""
    if unknown := sorted(set(args) - {"llm_configs"}):
        raise ConfigurationError(f"args: no such field {', '.join(unknown)}; allowed is llm_configs")
    entries = args.get("llm_configs")
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError(f"llm_configs: a list with one model is needed (got {str(entries)[:80]})")
    if len(entries) > 1:
        raise ConfigurationError(
            f"llm_configs: {len(entries)} models, but an application serves one; give each its own application"
        )
    try:
        config = LLMConfig.model_validate(entries[0])
    except ValidationError as error:
        problems = "; ".join(_problem(dict(detail)) for detail in error.errors(include_url=False))
        raise ConfigurationError(problems) from error
    _check_engine_kwargs(config.engine_kwargs)
    _check_models(config)
    return config


def deployment_options(config: LLMConfig) -> dict[str, Any]:
    """Serve's options for the deployment: the user's, completed where Serve's defaults would hurt."""
    options: dict[str, Any] = {"name": DEPLOYMENT_NAME} | config.deployment_config
    actor_options: dict[str, Any] = {"num_cpus": 1}
    if config.accelerator_type:
        actor_options |= {"num_gpus": _num_workers(config.engine_kwargs), "accelerator_type": config.accelerator_type}
    if config.runtime_env:
        actor_options["runtime_env"] = config.runtime_env
    options["ray_actor_options"] = actor_options | dict(options.get("ray_actor_options") or {})
    max_num_seqs = int(config.engine_kwargs.get("max_num_seqs") or ASSUMED_MAX_NUM_SEQS)
    enough = 2 * max_num_seqs
    given = options.setdefault("max_ongoing_requests", enough)
    if given < enough:
        log.warning(
            "max_ongoing_requests_is_low",
            max_ongoing_requests=given,
            wanted_at_least=enough,
            consequence=f"Serve holds requests back before the engine's batch of max_num_seqs={max_num_seqs} is full",
        )
    _check_user_config(options.get("user_config"))
    return options


def _check_models(config: LLMConfig) -> None:
    named = (
        ("model_loading_config.model_source", config.model_source),
        ("engine_kwargs.speculative_config.model", config.draft_source),
    )
    for field, source in named:
        try:
            if source:
                resolve_model(source)
        except ModelError as error:
            raise ConfigurationError(f"llm_configs.0.{field}: {error}") from error


def _check_engine_kwargs(engine_kwargs: Mapping[str, Any]) -> None:
    for taken, instead in (("model", "model_loading_config.model_source"), ("served_model_name", "model_loading_config.model_id")):
        if taken in engine_kwargs:
            raise ConfigurationError(f"llm_configs.0.engine_kwargs.{taken}: {engine_kwargs[taken]!r}; use {instead} instead")
    speculative = engine_kwargs.get("speculative_config")
    if speculative is not None and not isinstance(speculative, dict):
        raise ConfigurationError(
            f"llm_configs.0.engine_kwargs.speculative_config: a mapping is needed (got {str(speculative)[:80]!r})"
        )


def _check_user_config(user_config: object) -> None:
    try:
        parse_local_mode(user_config)
    except ValueError as error:
        raise ConfigurationError(f"llm_configs.0.deployment_config.user_config: {error}") from error


def _num_workers(engine_kwargs: Mapping[str, Any]) -> int:
    return int(engine_kwargs.get("tensor_parallel_size") or 1) * int(engine_kwargs.get("pipeline_parallel_size") or 1)


def _problem(detail: Mapping[str, Any]) -> str:
    location = [str(part) for part in detail["loc"]]
    field = ".".join(["llm_configs.0", *location])
    if detail["type"] != "extra_forbidden":
        return f"{field}: {detail['msg']} (got {str(detail['input'])[:80]!r})"
    model = ModelLoadingConfig if location[:1] == ["model_loading_config"] else LLMConfig
    near = get_close_matches(location[-1], model.model_fields, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(model.model_fields)}"
    return f"{field}: no such field (value {str(detail['input'])[:80]!r}); {hint}"
