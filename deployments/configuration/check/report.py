"""`nightjar check`: everything that can be known of a configuration file before it is deployed. Needs neither Ray nor vLLM.

Errors of form come first and end the check of what they spoil; rules that span applications (the policy's settings against the
models' limits) are the last. An application that is not Nightjar's is Serve's own business beyond its form, and the report says
that it was not read: "errors 0" holds of what was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nightjar.cluster.serve_config import POLICY_DEPLOYMENT, POLICY_IMPORT_PATH
from nightjar.deployments.configuration.check.deployed import ENTRY
from nightjar.deployments.configuration.check.findings import (
    Finding,
    Place,
    ServedOn,
    near_name,
    place_named_in,
    schema_findings,
    shown,
)
from nightjar.deployments.configuration.check.hosted import (
    HOSTED_IMPORT_PATH,
    RAY_IMPORT_PATH,
    HostedModel,
    doors,
    hosted_findings,
    model_files,
    never_steered,
)
from nightjar.deployments.configuration.check.placement import Demand, placement_findings
from nightjar.deployments.configuration.check.rayservice import (
    SUPPORTED_RAY,
    ServicePods,
    cluster_findings,
    pod_variables,
    service_pods,
    unknown_images,
)
from nightjar.deployments.configuration.check.rules import CheckedModel, check_model
from nightjar.deployments.configuration.check.serve_schema import ServeConfig
from nightjar.deployments.configuration.check.source import SourceError, import_path_of, read_sources
from nightjar.policy.wire.operator import OperatorSettings, parse_operator_settings, setting_problems

MODEL_IMPORT_PATH: Final = "nightjar.deployments.app:build"


OWN_IMPORT_PATHS: Final = (MODEL_IMPORT_PATH, HOSTED_IMPORT_PATH, POLICY_IMPORT_PATH)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, in the order of the file's lines, and the models that could be looked into."""

    findings: tuple[Finding, ...]
    models: tuple[CheckedModel, ...] = ()
    hosted: tuple[HostedModel, ...] = ()
    doors: tuple[str, ...] = ()  # of applications that ray.serve.llm serves, a line each
    not_read: tuple[str, ...] = ()  # what no finding can be of, a line each

    @property
    def num_errors(self) -> int:
        """Findings that fail the check."""
        return sum(finding.severity == "error" for finding in self.findings)


def check_text(text: str, *, is_served_here: bool = False, no_gpu_here: bool = False) -> Report:
    """Check a file's text. `is_served_here`: on this machine, so that a model folder must be here, and the GPUs, too."""
    try:
        sources = read_sources(text)
    except SourceError as error:
        return Report((Finding("error", (), str(error), error.line),))
    findings: list[Finding] = []
    models: list[CheckedModel] = []
    hosted: list[HostedModel] = []
    open_doors: list[str] = []
    unread: list[str] = []
    for source in sources:
        served_on: ServedOn = "this machine" if is_served_here else "unknown" if source.manifest is None else "pods"
        pods = service_pods(source.manifest)
        found, checked, theirs = check_config(source.values, pods, served_on, no_gpu_here=no_gpu_here)
        applications = _applications(source.values)
        found += cluster_findings(source.manifest, applications)
        findings += [replace(finding, line=source.line_of(finding.place)) for finding in found]
        models += checked
        hosted += theirs
        open_doors += _doors(source.manifest, applications)
        unread += _not_read(source.manifest, applications)
    findings.sort(key=lambda finding: finding.line)
    return Report(tuple(findings), tuple(models), tuple(hosted), tuple(open_doors), tuple(unread))


def check_config(
    values: Any, pods: ServicePods | None = None, served_on: ServedOn = "unknown", *, no_gpu_here: bool = False
) -> tuple[list[Finding], list[CheckedModel], list[HostedModel]]:
    """Findings and models of one Serve config, as plain values, on a cluster of these pods (None: not known)."""
    if wrong := _no_config(values):
        return [wrong], [], []
    found = list(schema_findings(ServeConfig, values, ()))
    applications = _applications(values)
    if len(applications) == len(_list(values.get("applications"))):
        found += _unique(applications)
    settings_found, settings = _policy(applications)
    found += settings_found
    is_shadow = settings is not None and settings.mode.kind == "shadow"
    models: list[tuple[int, CheckedModel]] = []
    hosted: list[HostedModel] = []
    demands: list[Demand] = []
    for number, application in enumerate(applications):
        place: Place = ("applications", number)
        path = import_path_of(application)
        found += _below(place, [*_unsteered(path), *_no_path_of_ours(path)])
        if _spoiled(found, place):
            continue
        if path in (RAY_IMPORT_PATH, HOSTED_IMPORT_PATH):
            hosted_found, theirs = hosted_findings(application, served_on, is_steered=path == HOSTED_IMPORT_PATH, shadow=is_shadow)
            found += _below(place, hosted_found)
            hosted += theirs
            demands += _placed(place, [hosted_model.demand for hosted_model in theirs])
        elif path == MODEL_IMPORT_PATH:
            model, model_found = check_model(application, shadow=is_shadow, served_on=served_on)
            found += _below(place, model_found)
            if model is not None:
                models.append((number, model))
                demands += _placed(place, [model.deployed.demand])
    place_of_settings = _place_of_settings(applications)
    found += _without_policy(applications)
    found += _across(settings, place_of_settings, models)
    if no_gpu_here and served_on != "pods":
        found += _without_gpus(demands, served_on)
    if pods is not None:
        found += placement_findings(pods, demands)
    return found, [model for _, model in models], hosted


def _no_config(values: Any) -> Finding | None:
    """Why values are no Serve config, where looking further makes no sense."""
    if not isinstance(values, Mapping):
        return Finding("error", (), f"holds {shown(values)}; a mapping with the field applications is needed")
    if "applications" not in values and "import_path" in values:
        message = f"{shown(values['import_path'])} stands at the top; write applications: and this one as its first entry"
        return Finding("error", ("import_path",), message)
    return None


def _applications(values: Any) -> list[Mapping[str, Any]]:
    """Those of the right form."""
    entries = _list(values.get("applications")) if isinstance(values, Mapping) else ()
    return [application for application in entries if isinstance(application, Mapping)]


def _unsteered(import_path: str) -> Iterator[Finding]:
    """Applications of ray.serve.llm that are served without Nightjar."""
    if import_path == RAY_IMPORT_PATH:
        message = f"{shown(import_path)} serves without Nightjar; nightjar migrate shows what to change"
        yield Finding("warning", ("import_path",), message)
    if never := never_steered(import_path):
        message = f"{never}; Nightjar takes the place of {RAY_IMPORT_PATH} alone"
        yield Finding("warning", ("import_path",), message)


def _no_path_of_ours(import_path: str) -> Iterator[Finding]:
    """A path below Nightjar's package that leads to no application: Serve would say so a minute after the start."""
    if import_path.startswith("nightjar.") and import_path not in OWN_IMPORT_PATHS:
        near = near_name(import_path, OWN_IMPORT_PATHS, 0.0)
        yield Finding("error", ("import_path",), f"{shown(import_path)}: no application of Nightjar's; did you mean {near}?")


def _without_policy(applications: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    paths = {import_path_of(application) for application in applications}
    if POLICY_IMPORT_PATH not in paths and paths & {MODEL_IMPORT_PATH, HOSTED_IMPORT_PATH}:
        message = f"no application {POLICY_IMPORT_PATH}: the policy runs its built-in settings, mode shadow, and steers nothing"
        yield Finding("advice", (), message)


def _without_gpus(demands: Iterable[Demand], served_on: ServedOn) -> Iterator[Finding]:
    """Replicas that no machine like this one can hold."""
    for demand in demands:
        gpus = float(sum(demand.bundles))
        if served_on == "this machine":
            message = (
                f"each replica asks for GPU {gpus:g}, and this machine has none, so it would wait for ever; serve it where GPUs "
                "are, or with vLLM's CPU build and without accelerator_type and num_gpus"
            )
            yield Finding("error", demand.where, message)
        else:
            yield Finding(
                "advice", demand.where, f"each replica asks for GPU {gpus:g}, and this machine has none: nightjar run refuses it"
            )


def _doors(manifest: Any, applications: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for application in applications:
        path = import_path_of(application)
        if path in (RAY_IMPORT_PATH, HOSTED_IMPORT_PATH):
            name = application.get("name", "default")
            yield f"application {name}: {doors(application, pod_variables(manifest), is_steered=path == HOSTED_IMPORT_PATH)}"


def _not_read(manifest: Any, applications: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    known = (*OWN_IMPORT_PATHS, RAY_IMPORT_PATH)
    paths = [import_path_of(application) for application in applications]
    for path, application in zip(paths, applications, strict=True):
        name = f"application {application.get('name', 'default')}"
        if path in (RAY_IMPORT_PATH, HOSTED_IMPORT_PATH):
            yield f"{name}: arguments near no name of vLLM's, adapters, callbacks, ingress options: ray.serve.llm judges them"
            yield from (f"{name}: the model that {shown(file)} holds" for file in model_files(application))
        elif path not in known and application.get("import_path") is not None:
            yield f"{name}: {path}, beyond the form of its entry"
    if any(path in (MODEL_IMPORT_PATH, HOSTED_IMPORT_PATH, POLICY_IMPORT_PATH) for path in paths):
        for image in unknown_images(manifest):
            yield f"image {image}: whether it holds nightjar-serve, Ray {SUPPORTED_RAY} and vLLM"


def _below(place: Place, found: Iterable[Finding]) -> Iterator[Finding]:
    return (Finding(finding.severity, (*place, *finding.place), finding.message) for finding in found)


def _placed(place: Place, demands: Iterable[Demand | None]) -> Iterator[Demand]:
    return (replace(demand, where=(*place, *demand.where)) for demand in demands if demand is not None)


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _spoiled(found: Sequence[Finding], place: Place) -> bool:
    """Whether an application's `args` or `deployments` are not even of the right form."""
    below = ((*place, "args"), (*place, "deployments"))
    return any(finding.severity == "error" and finding.place[: len(part)] == part for finding in found for part in below)


def _unique(applications: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for field, default in (("name", "default"), ("route_prefix", "/")):
        seen: dict[object, int] = {}
        for number, application in enumerate(applications):
            value = application.get(field, default)
            if value is not None and str(value) in seen:
                message = f"{shown(value)} is the {field} of application {seen[str(value)]}, too; each needs its own: change one"
                yield Finding("error", ("applications", number, field), message)
            seen[str(value)] = number


def _place_of_settings(applications: Sequence[Mapping[str, Any]]) -> Place:
    for number, application in enumerate(applications):
        if import_path_of(application) == POLICY_IMPORT_PATH:
            return ("applications", number, "deployments", 0, "user_config")
    return ()


def _policy(applications: Sequence[Mapping[str, Any]]) -> tuple[list[Finding], OperatorSettings | None]:
    """Findings of the policy app and its settings; None where they are wrong. Without an app, the built-in ones."""
    found: list[Finding] = []
    settings: OperatorSettings | None = OperatorSettings()
    for number, application in enumerate(applications):
        if import_path_of(application) != POLICY_IMPORT_PATH:
            continue
        place: Place = ("applications", number)
        if application.get("args"):
            message = f"{shown(application['args'])}; the policy app takes none: settings belong in deployments: user_config"
            found.append(Finding("error", (*place, "args"), message))
        for row, deployment in enumerate(_list(application.get("deployments"))):
            if not isinstance(deployment, Mapping):
                continue
            at: Place = (*place, "deployments", row)
            if deployment.get("name") != POLICY_DEPLOYMENT:
                message = (
                    f"{shown(deployment.get('name'))}; the policy app has one deployment, {POLICY_DEPLOYMENT}: write that name"
                )
                found.append(Finding("error", (*at, "name"), message))
                continue
            values = deployment.get("user_config") or {}
            problems = setting_problems(values) if isinstance(values, Mapping) else ()
            for problem in problems:
                where = problem.location or place_named_in(problem.message, values)
                found.append(Finding("error", (*at, "user_config", *where), f"{problem.message}; correct it, or take it out"))
            settings = None if problems or not isinstance(values, Mapping) else parse_operator_settings(values)
    return found, settings


def _across(settings: OperatorSettings | None, place: Place, models: Sequence[tuple[int, CheckedModel]]) -> Iterator[Finding]:
    """Rules between the policy's settings and the models that they steer."""
    if settings is None or not models:
        return
    most = max(model.outlook.facts.max_num_speculative_tokens for _, model in models)
    for setting, ks in _ks(settings):
        if most and max(ks, default=0) > most:
            message = (
                f"{max(ks)} is above the num_speculative_tokens of every application ({most}); allowed are 0 to {most}: "
                "lower it, or raise num_speculative_tokens in the application's speculative_config"
            )
            yield Finding("error", (*place, setting), message)
    for number, model in models:
        if slower := settings.mode.why_slow(model.outlook.arguments.graph_tiers):
            yield Finding("warning", (*place, "mode"), f"{settings.mode}, in application {model.name}: {slower}")
        theirs = model.config.draft_offload
        if theirs != settings.draft_offload:
            at: Place = ("applications", number, *ENTRY, "draft_offload")
            message = (
                f"{theirs} here and {settings.draft_offload} in the policy's user_config: memory is lent only where both say "
                "under_memory_pressure"
            )
            yield Finding("advice", at, message)


def _ks(settings: OperatorSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "mode", (settings.mode.num_speculative_tokens or 0,)
    yield "num_speculative_tokens", (settings.num_speculative_tokens or 0,)
    yield "allowed_num_speculative_tokens", settings.allowed_num_speculative_tokens or ()
    yield "num_speculative_tokens_per_batch_size", tuple(row[2] for row in settings.num_speculative_tokens_per_batch_size)
