"""What is wrong with one application of ours, and what is merely unwise: each rule a function that yields findings.

A rule that another module holds (what steering refuses, what can be lent, what `build` refuses) is asked there, never said again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from nightjar.deployments.configuration.check.carried import misfits
from nightjar.deployments.configuration.check.deployed import (
    ENTRY,
    OPTIONS,
    DeployedModel,
    as_deployed,
    findings_in_args,
    kill_switch_findings,
)
from nightjar.deployments.configuration.check.engine_facts import (
    EngineOutlook,
    drafter_kind,
    environment_of,
    is_on_cpu,
    offload_facts,
    outlook,
    severity_of_absence,
)
from nightjar.deployments.configuration.check.engine_schema import (
    ENGINE_ARGUMENTS,
    IN_SOME_VERSIONS,
    SERVER_ARGUMENTS,
    SPECULATIVE_ARGUMENTS,
    SPECULATIVE_IN_SOME_VERSIONS,
    VLLM_VERSION,
    EngineKwargs,
    argument_findings,
    versions_with,
)
from nightjar.deployments.configuration.check.findings import (
    Finding,
    Place,
    ServedOn,
    no_such_name,
    schema_findings,
    shown,
)
from nightjar.deployments.configuration.check.memory_estimate import MemoryEstimate, estimate_memory
from nightjar.deployments.configuration.check.serve_schema import AutoscalingConfig, DeploymentOptions
from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.engine.start.dormancy import why_not_lendable
from nightjar.deployments.engine.start.resolved_facts import RUNNER_VARIABLE, SWITCHED_OFF
from nightjar.deployments.engine.start.vllm_versions import READ, in_words, installed_vllm
from nightjar.deployments.llm_config import DEPLOYMENT_NAME, LLMConfig, model_problems, read_args
from nightjar.deployments.routes import BY_NAME, SERVED
from nightjar.policy.wire.report import Layer

KWARGS: Final[Place] = (*ENTRY, "engine_kwargs")
SPECULATIVE: Final[Place] = (*KWARGS, "speculative_config")
LONG_VARIABLE: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model application that parsed: its name, what it is, how it will run, what it will hold."""

    name: str
    deployed: DeployedModel
    kwargs: EngineKwargs
    outlook: EngineOutlook
    memory: MemoryEstimate

    @property
    def config(self) -> LLMConfig:
        """As its replicas get it."""
        return self.deployed.config


def check_model(
    application: Mapping[str, Any], *, shadow: bool, served_on: ServedOn = "unknown"
) -> tuple[CheckedModel | None, list[Finding]]:
    """Findings of an application of `nightjar.deployments.app:build`, placed below the application."""
    config, problems = read_args(application.get("args") or {})
    found = [Finding("error", ("args", *problem.location), problem.message) for problem in problems]
    if config is None:
        return None, found
    found += schema_findings(DeploymentOptions, config.deployment_config, OPTIONS)
    found += findings_in_args(config.deployment_config)
    found += _unknown_names(config.engine_kwargs)
    found += argument_findings(config.engine_kwargs, KWARGS)
    found += _overrides(application.get("deployments") or [])
    if _has_error(found):
        return None, found
    deployed = as_deployed(config, application)
    found += _laid_over(config, deployed)
    if _has_error(found):
        return None, found
    for problem, source in model_problems(config):
        found.append(Finding(severity_of_absence(source, served_on), ("args", *problem.location), problem.message))
    name = str(application.get("name", "default"))
    config, kwargs = deployed.config, EngineKwargs.model_validate(config.engine_kwargs)
    model = CheckedModel(name, deployed, kwargs, outlook(config, kwargs, shadow=shadow), estimate_memory(config, kwargs))
    for rule in RULES:
        found += rule(model)
    return model, found


def _has_error(found: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in found)


def _unknown_names(engine_kwargs: Mapping[str, Any]) -> Iterator[Finding]:
    known = {*ENGINE_ARGUMENTS, *SERVER_ARGUMENTS, *IN_SOME_VERSIONS}
    yield from _unknown(KWARGS, engine_kwargs, known, versions_with)
    speculative = engine_kwargs.get("speculative_config")
    if isinstance(speculative, Mapping):
        known = {*SPECULATIVE_ARGUMENTS, *SPECULATIVE_IN_SOME_VERSIONS}
        yield from _unknown(SPECULATIVE, speculative, known, partial(versions_with, speculative=True))


def _unknown(
    place: Place, given: Mapping[str, Any], known: Iterable[str], having: Callable[[str], Collection[str]]
) -> Iterator[Finding]:
    """Names that no version of vLLM has, and those that the version has not for which this is checked."""
    version = installed_vllm()
    for name, value in given.items():
        versions = having(name)
        if not versions:
            yield Finding("error", (*place, name), no_such_name(str(name), value, known, f"argument of vLLM {VLLM_VERSION}"))
        elif version in READ and in_words(version) not in versions:
            message = f"vLLM {', '.join(versions)} has it, {in_words(version)} has not: with that a replica ends at its start"
            yield Finding("warning", (*place, name), message)


def _overrides(deployments: list[Mapping[str, Any]]) -> Iterator[Finding]:
    for number, deployment in enumerate(deployments):
        place: Place = ("deployments", number)
        if deployment.get("name") != DEPLOYMENT_NAME:
            message = f"{shown(deployment.get('name'))}; the application has one deployment, {DEPLOYMENT_NAME}: write that name"
            yield Finding("error", (*place, "name"), message)
        yield from kill_switch_findings(deployment, place)


def _laid_over(written: LLMConfig, deployed: DeployedModel) -> Iterator[Finding]:
    """What is right in `args` and right beside it, and wrong together."""
    for finding in schema_findings(DeploymentOptions, deployed.config.deployment_config, ()) if deployed.places else ():
        option, *below = finding.place or ("",)
        yield Finding(finding.severity, (*deployed.place_of(str(option)), *below), finding.message)
    if "ray_actor_options" in deployed.places and (written.accelerator_type or written.runtime_env):
        message = "Serve takes these alone, without what accelerator_type and runtime_env add; move them to deployment_config"
        yield Finding("warning", deployed.places["ray_actor_options"], message)
    if deployed.lost_variables:
        message = (
            f"{', '.join(deployed.lost_variables)} will not be set in the replicas: they have a runtime_env of their own in "
            "llm_configs, and Serve then takes that one alone; write it there"
        )
        yield Finding("warning", ("runtime_env", "env_vars"), message)


def _steering(model: CheckedModel) -> Iterator[Finding]:
    reason = model.outlook.arguments.serving_plainly
    if not reason:
        if model.outlook.arguments.only_observing:
            message = "mode shadow starts an engine that captures graphs with your own arguments; leaving shadow needs a new start"
            yield Finding("advice", KWARGS, message)
        return
    if model.config.require_steering:
        message = f"true, and this engine would serve as plain vLLM, so its replicas will not start: {reason}"
        yield Finding("error", (*ENTRY, "require_steering"), message)
    if Layer.STEERING in model.config.without:
        yield Finding("advice", (*ENTRY, "without"), f"{reason}: it serves as plain vLLM")
        return
    if model.kwargs.speculative_config is None:
        message = (
            f"{reason}; it serves as plain vLLM. Add one, for example "
            "speculative_config: {method: draft_model, model: <a small model of the same family>, num_speculative_tokens: 5}"
        )
        yield Finding("warning", KWARGS, message)
        return
    place, way_out = _blamed(model)
    yield Finding("error", place, f"{reason}, so it would serve as plain vLLM; {way_out}")


def _blamed(model: CheckedModel) -> tuple[Place, str]:
    """Where what steering refuses stands, and what to do about it."""
    blamed, facts = model.outlook.arguments.blamed, model.outlook.facts
    unsteered = "or serve it without Nightjar (nightjar migrate --remove)"
    *outer, name = blamed.split(".")
    ways_out = {
        "speculative_config": f"take {RUNNER_VARIABLE} out of env_vars",
        "method": f"take one of those, {unsteered}",
        "model": f"take a draft of {kind_of(facts.drafter_kind).variant_of}'s own, {unsteered}",
        "parallel_drafting": f"take it out, {unsteered}",
        "num_speculative_tokens": f"write 1, for which one module drafts, {unsteered}" if facts.several_mtp_modules else "lower it",
        "enable_adaptive_verification": f"take it out, {unsteered}",
        "max_num_seqs": "lower it",
        "pipeline_parallel_size": f"allowed is 1: take {name} out, and use tensor_parallel_size or more replicas instead",
        "data_parallel_size": f"allowed is 1 here: take {name} out, and use tensor_parallel_size or more replicas instead",
    }
    if name == "method" and kind_of(facts.drafter_kind).obeys_k:
        ways_out[name] = ways_out["speculative_config"] if facts.runner_is_users else f"take another drafter, {unsteered}"
    written = "model" if name == "method" and "method" not in model.config.engine_kwargs["speculative_config"] else name
    return (*KWARGS, *outer, written), ways_out.get(name, f"take {name} out")


def _offload(model: CheckedModel) -> Iterator[Finding]:
    config, kwargs = model.config, model.kwargs
    if config.draft_offload == "never":
        return
    reason = SWITCHED_OFF.format(Layer.SLEEPING) if Layer.SLEEPING in config.without else ""
    reason = reason or why_not_lendable(offload_facts(config, kwargs))
    if not reason and _is_hub_name(config.draft_source):
        reason = f"the draft {config.draft_source!r} is a hub name, and its size is read from a local folder"
    if reason:
        message = f"{config.draft_offload!r} cannot be done: {reason}; mend that, or set draft_offload: never"
        yield Finding("error", (*ENTRY, "draft_offload"), message)


def _is_hub_name(source: str) -> bool:
    return "/" in source and not source.startswith((".", "/", "~"))


def _draft_parallelism(model: CheckedModel) -> Iterator[Finding]:
    speculative, size = model.kwargs.speculative_config, model.kwargs.tensor_parallel_size
    if speculative is None:
        return
    draft_size = speculative.draft_tensor_parallel_size
    if drafter_kind(speculative) == SEPARATE_DRAFT_MODEL and draft_size not in (None, size):
        message = (
            f"{draft_size}, tensor_parallel_size is {size}; vLLM runs a draft model on as many ranks as its target: take it out"
        )
        yield Finding("error", (*SPECULATIVE, "draft_tensor_parallel_size"), message)


def _adapters(model: CheckedModel) -> Iterator[Finding]:
    if model.outlook.facts.adaptive_verification and model.config.engine_kwargs.get("enable_lora"):
        message = "true beside enable_lora: vLLM refuses to start with both; take one of them out"
        yield Finding("error", (*SPECULATIVE, "enable_adaptive_verification"), message)


def _extra_routes(model: CheckedModel) -> Iterator[Finding]:
    for number, path in enumerate(model.config.extra_routes):
        if path in SERVED:
            yield Finding("advice", (*ENTRY, "extra_routes", number), f"{path} is answered anyway; take it out")
        elif path not in BY_NAME:
            problem = no_such_name(path, path, BY_NAME, f"route of vLLM {VLLM_VERSION}")
            yield Finding("warning", (*ENTRY, "extra_routes", number), f"{problem}; replicas would answer 404")


def _context_length(model: CheckedModel) -> Iterator[Finding]:
    asked, target = model.kwargs.max_model_len, model.memory.target
    if asked is None or target is None or target.most_tokens is None or asked <= target.most_tokens:
        return
    if environment_of(model.config).get(LONG_VARIABLE, "0") in {"0", ""}:
        message = (
            f"{asked} is above the {target.most_tokens} positions of {model.config.model_source} (max_position_embeddings): vLLM "
            f"refuses to start; write at most {target.most_tokens}, or set {LONG_VARIABLE} in its runtime_env"
        )
        yield Finding("error", (*KWARGS, "max_model_len"), message)


def _serving_room(model: CheckedModel) -> Iterator[Finding]:
    config = model.config
    options = DeploymentOptions.model_validate(config.deployment_config)
    given, enough = options.max_ongoing_requests, config.enough_ongoing_requests
    if given is not None and given < enough:
        whose = "" if model.kwargs.max_num_seqs else ", the largest default of vLLM"
        message = (
            f"{given} is below twice max_num_seqs ({enough // 2}{whose}): Serve holds requests back before the "
            f"engine's batch is full; write {enough}, or take it out"
        )
        yield Finding("warning", model.deployed.place_of("max_ongoing_requests"), message)
    if is_on_cpu(config):
        if config.actor_options().get("num_gpus") is not None:
            return  # somebody wrote 0
        message = "no accelerator_type and no ray_actor_options.num_gpus: its replicas get no GPU, right only for vLLM's CPU build"
        yield Finding("advice", ENTRY, message)
        return
    gpus = config.actor_options().get("num_gpus")
    if gpus is not None and gpus < config.num_workers:
        message = f"{gpus:g}, and the engine runs {config.num_workers} workers with a GPU each; write {config.num_workers}"
        yield Finding("error", (*model.deployed.place_of("ray_actor_options"), "num_gpus"), message)


def _classes_of_the_host(model: CheckedModel) -> Iterator[Finding]:
    """Classes that would be called with what they do not expect."""
    for misfit in misfits(model.config.deployment_config):
        option, *below = misfit.place
        message = f"{misfit.message}; take it out, or keep ray.serve.llm as the host (docs/serve-llm.md)"
        yield Finding(misfit.severity, (*model.deployed.place_of(str(option)), *below), message)


def _autoscaling(model: CheckedModel) -> Iterator[Finding]:
    values = model.config.deployment_config.get("autoscaling_config")
    if values is None:
        return
    place = model.deployed.place_of("autoscaling_config")
    scaling = AutoscalingConfig.model_validate(values)
    target = scaling.target_ongoing_requests or 0.0
    most = model.config.deployment_config.get("max_ongoing_requests") or model.config.enough_ongoing_requests
    if target > most:
        message = f"{target:g} is above max_ongoing_requests ({most}): no replica ever holds as many, so none is added; lower it"
        yield Finding("warning", (*place, "target_ongoing_requests"), message)
    elif "target_ongoing_requests" not in values:
        message = "not set; Serve's default of 2 adds a replica for every two requests: set it near max_num_seqs"
        yield Finding("warning", (*place, "target_ongoing_requests"), message)
    if scaling.min_replicas == 0:
        yield Finding("advice", (*place, "min_replicas"), "0: the first request after a pause waits until a model is loaded")


def _costs(model: CheckedModel) -> Iterator[Finding]:
    facts, arguments = model.outlook.facts, model.outlook.arguments
    if model.config.graph_tiers is not None and not arguments.graph_tiers:
        message = "has no effect on this engine: only a steered one on model runner V2 captures graphs for each K"
        yield Finding("advice", (*ENTRY, "graph_tiers"), message)
    if model.config.head_log_steps is not None:
        message = "has no effect any more, and the next release refuses it: a head writes its KV in each step; take it out"
        yield Finding("advice", (*ENTRY, "head_log_steps"), message)
    if arguments.serving_plainly or facts.on_cpu:
        return
    if arguments.runner_is_v1 and facts.captures_graphs and not arguments.only_observing:
        message = (
            "runner V1 means piecewise CUDA graphs, for which 3 to 14 % slower steps are reported; EAGLE and MTP keep full ones"
        )
        yield Finding("advice", SPECULATIVE, message)
    if kind_of(facts.drafter_kind).is_head:
        reason = arguments.why_never_asleep
        off = f"off still runs the drafter once a step ({reason})" if reason else "off writes the head's KV alone"
        message = f"kept in step at K = 0: {off}, and nothing can be lent; restarts are free"
        yield Finding("advice", SPECULATIVE, message)


RULES: Final = (
    _steering,
    _offload,
    _draft_parallelism,
    _adapters,
    _context_length,
    _extra_routes,
    _serving_room,
    _classes_of_the_host,
    _autoscaling,
    _costs,
)
