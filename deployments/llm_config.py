"""One model as `llm_configs` describes it, and what is wrong with it. Pure: needs neither Ray nor vLLM.

`build` in app.py turns it into a Serve application and refuses it in one message; `nightjar check` says the same with the file's
lines. So each rule stands here once, as an `SettingProblem` that names place, value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, field_validator

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine_watch import HUNG_AFTER_S
from nightjar.deployments.models import ModelError, resolve_model
from nightjar.deployments.routes import route_problem
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import DraftOffload, SettingProblem
from nightjar.policy.wire.record import NumSpeculativeTokens, without_credentials
from nightjar.policy.wire.report import Layer

DEPLOYMENT_NAME: Final = "LLM"
ASSUMED_MAX_NUM_SEQS: Final = 1024
"""vLLM's largest default, for engines whose max_num_seqs is left to vLLM."""

HOSTED_OPTIONS: Final = "nightjar"
"""The key of `experimental_configs` that holds a model's SteeringOptions where ray.serve.llm is the host."""

DIRECT_STREAMING: Final = "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"
"""ray.serve.llm's variable, read by its builder and its replicas: with 1 requests go past its ingress into vLLM's own server."""

_COUNTS: Final = (
    "max_num_seqs",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "data_parallel_size_local",
)
"""Engine arguments that a replica's options are made with."""
_OTHER_SOURCES: Final = ("tokenizer", "hf_config_path")
_MAY_ASK_HUB: Final = ("enable_lora", "lora_modules", "trust_remote_code")
"""Engine arguments by which hub names come in later: an adapter's of a request, a module's of `auto_map`."""

Location = tuple[str | int, ...]


class ConfigurationError(ValueError):
    """Application arguments that cannot be used. One message: field, value, what is allowed."""


class ModelLoadingConfig(BaseModel):
    """Under which name the model is served, and where it is loaded from."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_id: Annotated[str, Field(min_length=1)]
    model_source: Annotated[str, Field(min_length=1)] | None = None  # None: model_id


class SteeringOptions(BaseModel):
    """Nightjar's own options of a model, whichever host serves it; ray.serve.llm has no such fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    hung_after_s: Annotated[float, Field(ge=0.0, le=86_400.0)] = HUNG_AFTER_S
    """Seconds without a step, with requests to work on, after which the engine counts as hung and its replica is replaced.

    0 watches for no hang. Default 120: a false alarm costs a restart and every running request, so keep it well above the
    longest step, which is a long prefill (tens of seconds on a CPU).
    """

    require_steering: StrictBool = False
    """Whether a replica whose engine cannot be steered fails to start, in place of serving as plain vLLM.

    Default false: a drafter, a vLLM or a combination that Nightjar does not know shall not take the service with it.
    """

    graph_tiers: Annotated[tuple[NumSpeculativeTokens, ...], Field(min_length=1)] | None = None
    """The K to capture CUDA graphs for, where each K needs graphs of its own; 0 and the maximum are always among them.

    Default: 0, 1, 3 and the maximum. The planner plans among these alone. More of them take memory that the KV cache would have.
    """

    head_log_steps: Annotated[StrictInt, Field(ge=0, le=256)] | None = None
    """Accepted for one release, and does nothing: an EAGLE or MTP head that is off writes its KV in each step."""

    without: tuple[Layer, ...] = ()
    """Layers of Nightjar that are switched off in this engine: `steering`, `sleeping`, `heads`.

    Default none. Without `sleeping` a draft model runs at K = 0 as in vLLM, on model runner V1, where vLLM itself makes it obey K;
    without `heads` an EAGLE or MTP head runs as in vLLM; without both, vLLM's worker, look-ahead and draft slots stay as they are.
    Without `steering` the engine is plain vLLM. The switch of the fourth layer, lending, is `draft_offload`.
    """

    draft_offload: DraftOffload = "never"
    """Whether this engine plans its KV blocks so that a sleeping draft model's memory can be lent to requests.

    `under_memory_pressure`: the policy's setting of the same name then says whether and when. At start the engine shortly needs
    memory for all blocks together. Default never.
    """

    extra_routes: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Routes of vLLM's server to answer beside the OpenAI ones and `/health`, by path: `[/metrics, /tokenize]`.

    Default none: Serve's port is often the public one. Routes that manage an engine are refused (routes.py). Under ray.serve.llm it
    holds where its direct streaming is on; its own ingress has routes of its own.
    """

    @field_validator("without", mode="before")
    @classmethod
    def _without_names_layers(cls, named: object) -> object:
        allowed = [layer.value for layer in Layer if layer is not Layer.LENDING]
        for name in named if isinstance(named, list | tuple) else ():
            if name == Layer.LENDING:
                raise ValueError(f"lending is switched off by draft_offload: never; allowed here are {', '.join(allowed)}")
            if name not in allowed:
                raise ValueError(f"{str(name)[:40]!r} is no layer; allowed are {', '.join(allowed)}")
        return named

    @field_validator("extra_routes")
    @classmethod
    def _extra_routes_may_be_answered(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        problems = [problem for path in paths if (problem := route_problem(path))]
        if problems:
            raise ValueError("; ".join(problems))
        return paths


class LLMConfig(SteeringOptions):
    """One entry of `llm_configs`, in the shape of ray.serve.llm."""

    model_loading_config: ModelLoadingConfig
    accelerator_type: str | None = None
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    deployment_config: dict[str, Any] = Field(default_factory=dict)
    runtime_env: dict[str, Any] | None = None

    @property
    def model_source(self) -> str:
        """What to load: a folder of NIGHTJAR_MODELS, a path or a hub name."""
        return self.model_loading_config.model_source or self.model_loading_config.model_id

    @property
    def draft_source(self) -> str:
        """The drafter's model as the user named it; empty where the drafter has none."""
        return draft_source(self.engine_kwargs)

    @property
    def num_workers(self) -> int:
        """Processes that run the model, one accelerator each."""
        return num_workers(self.engine_kwargs) * num_ranks(self.engine_kwargs)

    @property
    def enough_ongoing_requests(self) -> int:
        """What Serve must let through at least, so that the batch of each engine core can fill while others queue in it."""
        return 2 * num_ranks(self.engine_kwargs) * int(self.engine_kwargs.get("max_num_seqs") or ASSUMED_MAX_NUM_SEQS)

    def actor_options(self) -> dict[str, Any]:
        """Ray's options of a replica: the user's, completed by what the engine needs."""
        options: dict[str, Any] = {"num_cpus": 1}
        if self.accelerator_type:
            options |= {"num_gpus": self.num_workers, "accelerator_type": self.accelerator_type}
        if self.runtime_env:
            options["runtime_env"] = self.runtime_env
        return options | dict(self.deployment_config.get("ray_actor_options") or {})


def steering_options(experimental_configs: Mapping[str, Any]) -> SteeringOptions:
    """Nightjar's own options of a model under ray.serve.llm, in the one place that it leaves open. Raises ConfigurationError."""
    options, problems = read_options(experimental_configs)
    if options is None:
        raise ConfigurationError("; ".join(map(str, problems)))
    return options


def read_options(experimental_configs: Mapping[str, Any]) -> tuple[SteeringOptions | None, tuple[SettingProblem, ...]]:
    """The same, and everything that is wrong with them, placed below the model."""
    place: Location = ("experimental_configs", HOSTED_OPTIONS)
    try:
        return SteeringOptions.model_validate(experimental_configs.get(HOSTED_OPTIONS) or {}), ()
    except ValidationError as error:
        details = error.errors(include_url=False)
    return None, tuple(_problem(dict(detail), place, list(SteeringOptions.model_fields)) for detail in details)


def num_workers(engine_kwargs: Mapping[str, Any]) -> int:
    """Processes that run one engine core of these arguments, one accelerator each."""
    return int(engine_kwargs.get("tensor_parallel_size") or 1) * int(engine_kwargs.get("pipeline_parallel_size") or 1)


def num_ranks(engine_kwargs: Mapping[str, Any]) -> int:
    """Engine cores that one front end starts, a rank of data parallelism each (EngineArgs.create_engine_config, 0.32).

    >>> num_ranks({"data_parallel_size": 4}), num_ranks({"data_parallel_size": 4, "data_parallel_rank": 1}), num_ranks({})
    (4, 1, 1)
    """
    if has_a_front_end_for_each_rank(engine_kwargs):
        return 1
    return int(engine_kwargs.get("data_parallel_size_local") or engine_kwargs.get("data_parallel_size") or 1)


def has_a_front_end_for_each_rank(engine_kwargs: Mapping[str, Any]) -> bool:
    """Whether something else balances between the ranks (vLLM's external load balancer)."""
    return bool(engine_kwargs.get("data_parallel_external_lb")) or engine_kwargs.get("data_parallel_rank") is not None


def needs_no_hub(engine_kwargs: Mapping[str, Any], *models: str) -> bool:
    """Whether nothing that such an engine may load has a hub name.

    Its `models`, resolved, and its tokenizer are folders, it serves no adapters, which a request may name, and runs no code that a
    model's `config.json` names.
    """
    named = [*models, *(str(engine_kwargs.get(name) or "") for name in _OTHER_SOURCES)]
    return all(source.startswith("/") for source in named if source) and not any(engine_kwargs.get(name) for name in _MAY_ASK_HUB)


def draft_source(engine_kwargs: Mapping[str, Any]) -> str:
    """The model of the drafter of such an engine as the user named it; empty where the drafter has none."""
    speculative = engine_kwargs.get("speculative_config") or {}
    has_model = kind_of(str(speculative.get("method") or SEPARATE_DRAFT_MODEL)).model != "none"
    return str(speculative.get("model") or "") if has_model else ""


def parse_args(args: Mapping[str, Any]) -> LLMConfig:
    """The one model of `args`, its folders checked. Raises ConfigurationError."""
    config, problems = read_args(args)
    if config is not None and not problems:
        problems = (*_number_problems(config.engine_kwargs), *(problem for problem, _ in model_problems(config)))
    if config is None or problems:
        raise ConfigurationError("; ".join(str(problem) for problem in problems))
    return config


def read_args(args: Mapping[str, Any]) -> tuple[LLMConfig | None, tuple[SettingProblem, ...]]:
    """The one model of `args` and everything that is wrong with it, whether or not its models are on this machine.

    None where it is too wrong to be one.
    """
    unknown = (field for field in args if field != "llm_configs")
    problems = [SettingProblem((field,), _no_such_field(field, args[field], ["llm_configs"])) for field in unknown]
    entries = args.get("llm_configs")
    if not isinstance(entries, list) or not entries:
        problems.append(SettingProblem(("llm_configs",), f"a list with one model is needed (got {str(entries)[:80]})"))
        return None, tuple(problems)
    if len(entries) > 1:
        message = f"{len(entries)} models, but an application serves one; give each its own application"
        return None, (*problems, SettingProblem(("llm_configs",), message))
    try:
        config = LLMConfig.model_validate(entries[0])
    except ValidationError as error:
        return None, (*problems, *(_model_problem(dict(detail)) for detail in error.errors(include_url=False)))
    return config, (*problems, *_engine_kwargs_problems(config.engine_kwargs), *_user_config_problems(config))


def model_problems(config: LLMConfig) -> Iterator[tuple[SettingProblem, str]]:
    """Models that are no folder of this machine and no hub name, each with its name as written."""
    named = (
        (("model_loading_config", "model_source"), config.model_source),
        (("engine_kwargs", "speculative_config", "model"), config.draft_source),
    )
    for location, source in named:
        try:
            if source:
                resolve_model(source)
        except ModelError as error:
            yield SettingProblem(("llm_configs", 0, *location), str(error)), source


def parse_local_mode(user_config: object) -> Mode | None:
    """The kill switch in a deployment's `user_config`; None where it holds none. Raises ValueError."""
    if user_config is None:
        return None
    if not isinstance(user_config, dict) or set(user_config) - {"mode"}:
        raise ValueError(f"user_config: allowed is mode alone, for example {{mode: 'off'}} (got {str(user_config)[:80]!r})")
    mode = user_config.get("mode")
    if mode is None or mode == "default":
        return None
    try:
        return Mode.model_validate(mode)
    except ValidationError as error:
        raise ValueError(f"user_config: mode {str(mode)[:40]!r} is none of auto, shadow, off, pin=K, default") from error


def _engine_kwargs_problems(engine_kwargs: Mapping[str, Any]) -> Iterator[SettingProblem]:
    place: Location = ("llm_configs", 0, "engine_kwargs")
    for taken, instead in (("model", "model_loading_config.model_source"), ("served_model_name", "model_loading_config.model_id")):
        if taken in engine_kwargs:
            yield SettingProblem((*place, taken), f"{engine_kwargs[taken]!r}; use {instead} instead")
    speculative = engine_kwargs.get("speculative_config")
    if speculative is not None and not isinstance(speculative, dict):
        yield SettingProblem((*place, "speculative_config"), f"a mapping is needed (got {str(speculative)[:80]!r})")


def _number_problems(engine_kwargs: Mapping[str, Any]) -> Iterator[SettingProblem]:
    for name in _COUNTS:
        try:
            int(engine_kwargs.get(name) or 1)
        except (TypeError, ValueError, OverflowError):
            message = f"a whole number is needed (got {str(engine_kwargs[name])[:80]!r})"
            yield SettingProblem(("llm_configs", 0, "engine_kwargs", name), message)


def _user_config_problems(config: LLMConfig) -> Iterator[SettingProblem]:
    try:
        parse_local_mode(config.deployment_config.get("user_config"))
    except ValueError as error:
        yield SettingProblem(("llm_configs", 0, "deployment_config", "user_config"), str(error))


def _model_problem(detail: Mapping[str, Any]) -> SettingProblem:
    """Of an entry of `llm_configs`; ray.serve.llm's fields are named before Nightjar's own."""
    model = ModelLoadingConfig if detail["loc"][:1] == ("model_loading_config",) else LLMConfig
    return _problem(detail, ("llm_configs", 0), sorted(model.model_fields, key=SteeringOptions.model_fields.__contains__))


def _problem(detail: Mapping[str, Any], place: Location, fields: list[str]) -> SettingProblem:
    location = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        message = _no_such_field(str(location[-1]), detail["input"], fields)
    else:
        message = f"{detail['msg'].removeprefix('Value error, ')} (got {without_credentials(str(detail['input']))[:80]!r})"
    return SettingProblem((*place, *location), message)


def _no_such_field(field: str, value: object, allowed: list[str]) -> str:
    near = get_close_matches(field, allowed, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
    return f"no such field (value {without_credentials(str(value))[:80]!r}); {hint}"
