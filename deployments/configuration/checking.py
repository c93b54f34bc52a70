"""`nightjar check`: everything that can be known of a configuration file before it is deployed. Needs neither Ray nor vLLM.

Errors of form come first and end the check of what they spoil; rules that span applications (the policy's settings against the
models' limits) are the last. An application that is not Nightjar's is Serve's own business beyond its form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nightjar.cluster.serve_config import POLICY_DEPLOYMENT, POLICY_IMPORT_PATH
from nightjar.deployments.configuration.cluster_gpus import ClusterGpus, cluster_gpus, gpu_findings
from nightjar.deployments.configuration.deployed import ENTRY
from nightjar.deployments.configuration.findings import Finding, FoundLine, Place, ServedOn, shown
from nightjar.deployments.configuration.hosted import HostedModel, hosted_findings
from nightjar.deployments.configuration.rules import CheckedModel, check_model
from nightjar.deployments.configuration.schema_findings import place_named_in, schema_findings
from nightjar.deployments.configuration.serve_schema import ServeConfig
from nightjar.deployments.configuration.source import SourceError, read_sources
from nightjar.policy.wire.operator import OperatorSettings, parse_operator_settings, setting_problems

MODEL_IMPORT_PATH: Final = "nightjar.deployments.app:build"
RAY_IMPORT_PATH: Final = "ray.serve.llm:build_openai_app"
HOSTED_IMPORT_PATH: Final = "nightjar.deployments.serve_llm:build_openai_app"
"""Of an application whose host stays ray.serve.llm."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model application by name."""

    name: str
    model: CheckedModel


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, in the order of the file's lines, and the models that could be looked into."""

    lines: tuple[FoundLine, ...]
    models: tuple[ModelReport, ...] = ()
    hosted: tuple[HostedModel, ...] = ()

    @property
    def num_errors(self) -> int:
        """Findings that fail the check."""
        return sum(line.finding.severity == "error" for line in self.lines)


def check_text(text: str, *, is_served_here: bool = False) -> Report:
    """Check a file's text. `is_served_here`: on this machine, so that a model folder must be here."""
    try:
        sources = read_sources(text)
    except SourceError as error:
        return Report((FoundLine(error.line, Finding("error", (), str(error))),))
    lines: list[FoundLine] = []
    models: list[ModelReport] = []
    hosted: list[HostedModel] = []
    for source in sources:
        served_on: ServedOn = "this machine" if is_served_here else "unknown" if source.manifest is None else "pods"
        found, checked, theirs = check_config(source.values, cluster_gpus(source.manifest), served_on)
        lines += [FoundLine(source.line_of(finding.place), finding) for finding in found]
        models += checked
        hosted += theirs
    return Report(tuple(sorted(lines, key=lambda line: line.line)), tuple(models), tuple(hosted))


def check_config(
    values: Any, gpus: ClusterGpus | None = None, served_on: ServedOn = "unknown"
) -> tuple[list[Finding], list[ModelReport], list[HostedModel]]:
    """Findings and models of one Serve config, as plain values, on a cluster whose pods have so many GPUs (None: not known)."""
    if not isinstance(values, Mapping):
        return [Finding("error", (), f"holds {shown(values)}; a mapping with the field applications is needed")], [], []
    if "applications" not in values and "import_path" in values:
        message = f"{shown(values['import_path'])} stands at the top; write applications: and this one as its first entry"
        return [Finding("error", ("import_path",), message)], [], []
    found = list(schema_findings(ServeConfig, values, ()))
    applications = [application for application in _list(values.get("applications")) if isinstance(application, Mapping)]
    if len(applications) == len(_list(values.get("applications"))):
        found += _unique(applications)
    settings_found, settings = _policy(applications)
    found += settings_found
    is_shadow = settings is not None and settings.mode.kind == "shadow"
    models, hosted = [], []
    for number, application in enumerate(applications):
        place: Place = ("applications", number)
        if _import_path(application) == RAY_IMPORT_PATH:
            message = f"{shown(application['import_path'])} serves without Nightjar; nightjar migrate shows what to change"
            found.append(Finding("warning", (*place, "import_path"), message))
        if _import_path(application) in (RAY_IMPORT_PATH, HOSTED_IMPORT_PATH) and not _spoiled(found, place):
            is_steered = _import_path(application) == HOSTED_IMPORT_PATH
            hosted_found, theirs = hosted_findings(application, served_on, is_steered=is_steered)
            found += _below(place, hosted_found)
            hosted += theirs
        if _import_path(application) != MODEL_IMPORT_PATH or _spoiled(found, place):
            continue
        model, model_found = check_model(application, shadow=is_shadow, served_on=served_on)
        found += _below(place, model_found)
        if model is not None:
            models.append((number, ModelReport(str(application.get("name", "default")), model)))
    found += _across(settings, _place_of_settings(applications), models)
    if gpus is not None:
        found += gpu_findings(gpus, [(("applications", number), report.model.deployed) for number, report in models])
    return found, [model for _, model in models], hosted


def _below(place: Place, found: Iterable[Finding]) -> Iterator[Finding]:
    return (Finding(finding.severity, (*place, *finding.place), finding.message) for finding in found)


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _import_path(application: Mapping[str, Any]) -> str:
    """With a colon, whichever of Serve's two forms was written."""
    path = str(application.get("import_path"))
    return path if ":" in path else ":".join(path.rsplit(".", 1))


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
        if _import_path(application) == POLICY_IMPORT_PATH:
            return ("applications", number, "deployments", 0, "user_config")
    return ()


def _policy(applications: Sequence[Mapping[str, Any]]) -> tuple[list[Finding], OperatorSettings | None]:
    """Findings of the policy app and its settings; None where they are wrong. Without an app, the built-in ones."""
    found: list[Finding] = []
    settings: OperatorSettings | None = OperatorSettings()
    for number, application in enumerate(applications):
        if _import_path(application) != POLICY_IMPORT_PATH:
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


def _across(settings: OperatorSettings | None, place: Place, models: Sequence[tuple[int, ModelReport]]) -> Iterator[Finding]:
    """Rules between the policy's settings and the models that they steer."""
    if settings is None or not models:
        return
    if not place:
        message = f"no application {POLICY_IMPORT_PATH}: the policy runs its built-in settings, mode shadow, and steers nothing"
        yield Finding("advice", (), message)
    most = max(report.model.outlook.facts.max_num_speculative_tokens for _, report in models)
    for setting, lengths in _lengths(settings):
        if most and max(lengths, default=0) > most:
            message = (
                f"{max(lengths)} is above the num_speculative_tokens of every application ({most}); allowed are 0 to {most}: "
                "lower it, or raise num_speculative_tokens in the application's speculative_config"
            )
            yield Finding("error", (*place, setting), message)
    for number, report in models:
        if slower := settings.mode.why_slow(report.model.outlook.arguments.graph_tiers):
            yield Finding("warning", (*place, "mode"), f"{settings.mode}, in application {report.name}: {slower}")
        theirs = report.model.config.draft_offload
        if theirs != settings.draft_offload:
            at: Place = ("applications", number, *ENTRY, "draft_offload")
            message = (
                f"{theirs} here and {settings.draft_offload} in the policy's user_config: memory is lent only where both say "
                "under_memory_pressure"
            )
            yield Finding("advice", at, message)


def _lengths(settings: OperatorSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "mode", (settings.mode.num_speculative_tokens or 0,)
    yield "num_speculative_tokens", (settings.num_speculative_tokens or 0,)
    yield "allowed_num_speculative_tokens", settings.allowed_num_speculative_tokens or ()
    yield "num_speculative_tokens_per_batch_size", tuple(row[2] for row in settings.num_speculative_tokens_per_batch_size)
