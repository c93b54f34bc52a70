"""What `nightjar check` says of an application that ray.serve.llm serves: with Nightjar's server class, or not migrated yet.

ray.serve.llm and the vLLM that it pins judge models, engine arguments and deployments; they do so minutes after the start, in a
replica's log. Found here are the mistakes that no version of them takes: a name close to a real one, a wrong type, a method that
does not exist, an absent folder. A name that is near none may be another version's and is left alone. Pure: values in, findings and
models out; a model of the wrong form has findings and no block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from nightjar.deployments.configuration.check.carried import ARGUMENTS, LOADING, MODEL
from nightjar.deployments.configuration.check.deployed import kill_switch_findings
from nightjar.deployments.configuration.check.engine_facts import drafter_kind, engine_facts, severity_of_absence, variables_in
from nightjar.deployments.configuration.check.engine_schema import (
    ENGINE_ARGUMENTS,
    SERVER_ARGUMENTS,
    SPECULATIVE_ARGUMENTS,
    EngineKwargs,
    argument_findings,
)
from nightjar.deployments.configuration.check.findings import (
    Finding,
    Place,
    ServedOn,
    near_name,
    no_such_name,
    schema_findings,
    shown,
)
from nightjar.deployments.configuration.check.placement import Demand, demand_of, replicas_in_words
from nightjar.deployments.configuration.check.serve_schema import DeploymentOptions
from nightjar.deployments.configuration.check.source import mapping_in, mappings_in
from nightjar.deployments.engine.start.arguments import steered_engine_kwargs
from nightjar.deployments.engine.start.ranks import why_plain_under_ray
from nightjar.deployments.engine.start.vllm_versions import OF_RAY_LLM
from nightjar.deployments.llm_config import DIRECT_STREAMING, LLMConfig, draft_source, num_workers, read_options
from nightjar.deployments.models import ModelError, resolve_model
from nightjar.deployments.routes import API_KEY
from nightjar.deployments.steering_level import level_at_start

RAY_IMPORT_PATH: Final = "ray.serve.llm:build_openai_app"
HOSTED_IMPORT_PATH: Final = "nightjar.deployments.serve_llm:build_openai_app"
"""Of an application whose host stays ray.serve.llm."""
SERVER: Final = "nightjar.deployments.serve_llm:LLMServer"
DEPLOYMENT_PREFIX: Final = "LLMServer:"
"""ray.serve.llm names the deployment of a model by its server class."""
MOST_WORKERS: Final = 1 << 16
"""Of one engine that are counted one by one. No cluster has more GPUs, and a mistyped size shall not fill the memory."""
LIKENESS: Final = 0.88
"""Of a misspelt argument to the real one. Lower would take arguments that vLLM dropped for misspelt ones."""


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model of ray.serve.llm, as far as its file tells how it will run."""

    application: str
    model: str
    drafter: str
    steering: str
    replicas: str
    demand: Demand | None = None


def hosted_findings(
    application: Mapping[str, Any], served_on: ServedOn, *, is_steered: bool, shadow: bool = False
) -> tuple[list[Finding], list[HostedModel]]:
    """Findings of the application, placed below it, and its models.

    `is_steered`: its builder is Nightjar's. `shadow`: the policy's settings have that mode.
    """
    arguments = mapping_in(application.get("args"))
    found = list(_misspelt(arguments, ("args",), ARGUMENTS, "field of ray.serve.llm")) or list(_models(arguments))
    models: list[HostedModel] = []
    for number, model in enumerate(mappings_in(arguments.get("llm_configs"))):
        place: Place = ("args", "llm_configs", number)
        mistakes = [*_form(model, place), *_absent(model, place, served_on)]
        is_ours = _is_ours(model, is_steered=is_steered)
        if is_ours or is_steered:
            mistakes += _own_words(model, place)
        found += mistakes
        if any(mistake.severity == "error" for mistake in mistakes) or not mapping_in(model.get("model_loading_config")):
            continue
        hosted, more = _looked_into(str(application.get("name", "default")), model, place, is_ours=is_ours, shadow=shadow)
        found += more
        models.append(replace(hosted, demand=_demand(application, model, place)))
    for number, deployment in enumerate(mappings_in(application.get("deployments"))):
        if is_steered and str(deployment.get("name")).startswith(DEPLOYMENT_PREFIX):
            found += kill_switch_findings(deployment, ("deployments", number))
    return found, models


def model_files(application: Mapping[str, Any]) -> list[str]:
    """Files that hold a model, in the place of the model itself: ray.serve.llm reads them where it runs."""
    entries = mapping_in(application.get("args")).get("llm_configs")
    return [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []


def never_steered(import_path: str) -> str:
    """Why an application of ray.serve.llm is no matter of Nightjar's; empty for those that are, and for all others."""
    if import_path == RAY_IMPORT_PATH or not import_path.startswith("ray.serve.llm:"):
        return ""
    return f"{import_path} builds servers of its own: it is served, never steered"


def doors(application: Mapping[str, Any], pod_variables: Sequence[Mapping[str, str]], *, is_steered: bool) -> str:
    """What answers whom under ray.serve.llm, in one line for the application at hand (docs/security.md has the whole).

    `pod_variables`: those of each pod, any of which may get the ingress. `is_steered`: its builder is Nightjar's.
    """
    arguments = mapping_in(application.get("args"))
    own = variables_in(application.get("runtime_env"))
    variables = [{**of_pod, **own} for of_pod in pod_variables or ({},)]
    asks = _asks([bool(each.get(API_KEY)) for each in variables])
    if any(each.get(DIRECT_STREAMING) == "1" for each in variables):
        if all(_is_ours(model, is_steered=is_steered) for model in mappings_in(arguments.get("llm_configs"))):
            return f"direct streaming, which never ran here: replicas answer the OpenAI routes and /health alone; {asks}"
        return f"direct streaming: replicas answer every route of vLLM's server, /invocations without a key as well; {asks}"
    if ingress := mapping_in(arguments.get("ingress_cls_config")).get("ingress_cls"):
        return f"an ingress of its own, {shown(ingress)}, which Nightjar leaves as it is"
    asked = f"{asks}; scripts of any site may call it" if is_steered else f"it asks nobody for a key, whatever {API_KEY} says"
    return f"ray.serve.llm's ingress answers /tokenize, /detokenize, /v1/score and /docs beside the OpenAI routes; {asked}"


def _asks(has_key: Sequence[bool]) -> str:
    """Who is asked for a key, by whether each pod has one; an empty key is none, as in vLLM."""
    if all(has_key):
        return f"{API_KEY} is set here"
    if any(has_key):
        return f"{API_KEY} is set in some pods alone, and an ingress in another asks nobody for a key"
    return f"{API_KEY} is not set here, so that nobody is asked for a key"


def _is_ours(model: Mapping[str, Any], *, is_steered: bool) -> bool:
    """Whether a model gets Nightjar's server class; `is_steered`: from a builder of Nightjar's, if it names none."""
    server = model.get("server_cls")
    return server == SERVER or (is_steered and server is None)


def _own_words(model: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """What Nightjar reads of a model."""
    for problem in read_options(mapping_in(model.get("experimental_configs")))[1]:
        yield Finding("error", (*place, *problem.location), f"{problem.message}; correct it, or take it out")
    yield from kill_switch_findings(mapping_in(model.get("deployment_config")), (*place, "deployment_config"))
    if (server := model.get("server_cls")) not in (None, SERVER):
        message = f"{shown(server)} is not Nightjar's: this model is served as without Nightjar; derive it from {SERVER}"
        yield Finding("warning", (*place, "server_cls"), message)


def _form(model: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """Names that are nearly right, and what is no value of theirs in any version."""
    kwargs = mapping_in(model.get("engine_kwargs"))
    speculative = mapping_in(kwargs.get("speculative_config"))
    at: Place = (*place, "engine_kwargs")
    for where, values, known, what in (
        (place, model, MODEL, "field of ray.serve.llm"),
        ((*place, "model_loading_config"), mapping_in(model.get("model_loading_config")), LOADING, "field of ray.serve.llm"),
        (at, kwargs, ENGINE_ARGUMENTS | SERVER_ARGUMENTS, "argument of vLLM"),
        ((*at, "speculative_config"), speculative, SPECULATIVE_ARGUMENTS, "argument of vLLM"),
    ):
        yield from _misspelt(values, where, known, what)
    yield from argument_findings(kwargs, at)
    yield from schema_findings(DeploymentOptions, mapping_in(model.get("deployment_config")), (*place, "deployment_config"))


def _models(arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """No model at all, or two of one name: ray.serve.llm 2.60 starts neither (core/ingress/builder.py, LLMServingArgs)."""
    place: Place = ("args", "llm_configs")
    entries = arguments.get("llm_configs")
    if not isinstance(entries, list) or not entries:
        yield Finding("error", place, f"{shown(entries)}; a list with at least one model is needed")
        return
    seen: dict[str, int] = {}
    for number, model in enumerate(mappings_in(entries)):
        name = mapping_in(model.get("model_loading_config")).get("model_id")
        if isinstance(name, str) and name in seen:
            message = f"{shown(name)} is the model_id of llm_configs.{seen[name]}, too; requests name a model by it: change one"
            yield Finding("error", (*place, number, "model_loading_config", "model_id"), message)
        elif isinstance(name, str):
            seen[name] = number


def _misspelt(values: Mapping[str, Any], place: Place, known: Iterable[str], what: str) -> Iterator[Finding]:
    """Names close to a known one. One that is close to none may be another version's."""
    names = frozenset(known)
    for name, value in values.items():
        if name not in names and near_name(str(name), names, LIKENESS):
            yield Finding("error", (*place, name), no_such_name(str(name), value, names, what))


def _absent(model: Mapping[str, Any], place: Place, served_on: ServedOn) -> Iterator[Finding]:
    """Folders that are not there. A name without a slash is the hub's under ray.serve.llm."""
    loading, kwargs = mapping_in(model.get("model_loading_config")), mapping_in(model.get("engine_kwargs"))
    named = (
        (("model_loading_config", "model_source"), loading.get("model_source")),
        (
            ("engine_kwargs", "speculative_config", "model"),
            draft_source(kwargs) if mapping_in(kwargs.get("speculative_config")) else "",
        ),
    )
    for where, source in named:
        if not isinstance(source, str) or "/" not in source:
            continue
        try:
            resolve_model(source)
        except ModelError as error:
            yield Finding(severity_of_absence(source, served_on), (*place, *where), str(error))


def _looked_into(
    application: str, model: Mapping[str, Any], place: Place, *, is_ours: bool, shadow: bool
) -> tuple[HostedModel, list[Finding]]:
    """How a model of the right form will run."""
    kwargs_given, options = mapping_in(model.get("engine_kwargs")), mapping_in(model.get("deployment_config"))
    kwargs, loading = EngineKwargs.model_validate(kwargs_given), mapping_in(model.get("model_loading_config"))
    source, name = loading.get("model_source") or loading.get("model_id"), loading.get("model_id")
    speculative = kwargs.speculative_config
    drafter = drafter_kind(speculative)
    if speculative is not None:
        drafted = f"{drafter} {draft_source(kwargs_given)}".strip()
        drafter = f"{drafted}, num_speculative_tokens {speculative.num_speculative_tokens or 'as the drafter says'}"
    steering = (
        _steering(model, kwargs, shadow=shadow)
        if is_ours
        else "none: served without Nightjar; nightjar migrate shows what to change"
    )
    gpus, found = _gpus(model, place)
    replicas = replicas_in_words(options, gpus, model.get("accelerator_type"))
    named = f"{source if isinstance(source, str) else 'of a bucket'} as {name}"
    return HostedModel(application, named, drafter, steering, replicas), found


def _steering(model: Mapping[str, Any], kwargs: EngineKwargs, *, shadow: bool) -> str:
    """How much, in words. With the vLLM that ray[llm] pins every steered drafter runs on model runner V1."""
    options, _ = read_options(mapping_in(model.get("experimental_configs")))
    assert options is not None
    try:
        config = LLMConfig.model_validate(
            {
                "model_loading_config": {"model_id": "hosted"},
                "engine_kwargs": dict(mapping_in(model.get("engine_kwargs"))),
                "accelerator_type": "GPU" if accelerator_kind(model) == "gpu" else None,
                **options.model_dump(),
            }
        )
    except ValidationError:
        return "not known: its model has the wrong form"
    ranks = why_plain_under_ray(kwargs.data_parallel_size)
    facts = engine_facts(config, kwargs)
    facts = replace(facts, runner_is_v1=True, vllm_version=OF_RAY_LLM, why_not_here="", why_ranks_plain=ranks)
    return level_at_start(steered_engine_kwargs(config.engine_kwargs, facts, shadow=shadow, without=config.without)).in_words()


def _gpus(model: Mapping[str, Any], place: Place) -> tuple[float, list[Finding]]:
    """What ray.serve.llm 2.60 asks Ray for on behalf of one replica, and what `num_gpus` does to that.

    An engine is placed by bundles, one for each worker, and `ray_actor_options` is added to the first of them.
    """
    of_engine = sum(engine_bundles(model))
    actor = mapping_in(mapping_in(model.get("deployment_config")).get("ray_actor_options"))
    given = actor.get("num_gpus")
    at: Place = (*place, "deployment_config", "ray_actor_options", "num_gpus")
    if given == 0 and of_engine:
        message = (
            f"0, and each replica needs GPU {of_engine:g} all the same: ray.serve.llm places engines by bundles of its own. For "
            "vLLM's CPU build write accelerator_config: {kind: cpu}; on GPUs take it out"
        )
        return of_engine, [Finding("warning", at, message)]
    if isinstance(given, int | float) and given and of_engine:
        message = (
            f"{given:g} is added to what ray.serve.llm takes for the engine, so that each replica needs GPU {of_engine + given:g}; "
            "take it out"
        )
        return of_engine + given, [Finding("warning", at, message)]
    return of_engine + float(given or 0), []


def engine_bundles(model: Mapping[str, Any]) -> list[float]:
    """GPUs of each bundle that ray.serve.llm 2.60 places an engine by: as the model says, else one for each worker."""
    placement = mapping_in(model.get("placement_group_config"))
    workers = min(num_workers(mapping_in(model.get("engine_kwargs"))), MOST_WORKERS)
    bundles = mappings_in(placement.get("bundles")) or [mapping_in(placement.get("bundle_per_worker"))] * workers
    if not placement:
        bundles = [{"GPU": 1 if accelerator_kind(model) == "gpu" else 0}] * workers
    return [float(gpus) if isinstance(gpus := bundle.get("GPU"), int | float) else 0.0 for bundle in bundles]


def _demand(application: Mapping[str, Any], model: Mapping[str, Any], place: Place) -> Demand | None:
    """The GPUs of its replicas. None too where an engine has ranks of data parallelism, whose number of replicas is another."""
    if (mapping_in(model.get("engine_kwargs")).get("data_parallel_size") or 1) != 1:
        return None
    options = mapping_in(model.get("deployment_config"))
    actor, bundles = mapping_in(options.get("ray_actor_options")), engine_bundles(model) or [0.0]
    bundles[0] += float(actor.get("num_gpus") or 0)
    served = str(mapping_in(model.get("model_loading_config")).get("model_id"))
    name = options.get("name") or served.replace("/", "--").replace(".", "_")
    for override in mappings_in(application.get("deployments")):
        if override.get("name") == f"{DEPLOYMENT_PREFIX}{name}":
            options = {**options, **override}
    strategy = mapping_in(model.get("placement_group_config")).get("strategy") or "PACK"
    return demand_of((*place, "deployment_config"), options, bundles, strategy, model.get("accelerator_type"))


def accelerator_kind(model: Mapping[str, Any]) -> str:
    """`gpu`, `cpu` or `tpu` as ray.serve.llm finds it: said, or told from the bundles, else gpu."""
    if kind := mapping_in(model.get("accelerator_config")).get("kind"):
        return str(kind)
    placement = mapping_in(model.get("placement_group_config"))
    bundles = [mapping_in(placement.get("bundle_per_worker")), *mappings_in(placement.get("bundles"))]
    if not placement:
        return "gpu"
    return next((name.lower() for name in ("TPU", "GPU") if any(bundle.get(name) for bundle in bundles)), "cpu")
