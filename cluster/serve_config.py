"""A Serve YAML file, checked before anything starts.

Ray Serve accepts misspelt fields in silence and finds wrong values minutes later, in a replica's log. Here every problem
that can be known off-line is one line naming field, value and what is allowed (`ServeFileError`): unreadable or malformed
YAML, unknown fields, Serve's own schema, an import path that does not exist, the policy app's settings, and what our own
builders find wrong with their `args`: those build nothing but a description and are called here as Serve will call them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

import yaml
from pydantic import BaseModel, ValidationError

from nightjar.policy.wire.operator import SettingsError, parse_operator_settings
from nightjar.policy.wire.record import describe_validation_error

POLICY_IMPORT_PATH: Final = "nightjar.cluster.policy_app:build"
POLICY_DEPLOYMENT: Final = "Policy"
POLICY_NAME: Final = "nightjar"
"""Of the policy's application, in the chart and in every file that we write. Another one works, and alerts do not know it."""
OWN_MODULES: Final = "nightjar."
HOSTED_MODULE: Final = "nightjar.deployments.serve_llm"
"""Its builder is ray.serve.llm's, which asks Ray about itself, and Ray would start here for that."""


class ServeFileError(ValueError):
    """A Serve YAML file that cannot be deployed. The message names the field, the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Application:
    """What people need to know of one application of the file."""

    name: str
    import_path: str
    route_prefix: str | None


@dataclass(frozen=True, slots=True)
class ServeFile:
    """A checked file: `values` is Serve's multi-application config as plain types."""

    path: Path
    values: Mapping[str, Any]
    applications: tuple[Application, ...]
    host: str
    port: int


def load_serve_file(path: Path) -> ServeFile:
    """Read and check a file. Imports Ray Serve's schema and the applications' modules; raises ServeFileError."""
    values = read_yaml(path)
    try:
        checked = check_shape(values)
        applications = tuple(check_application(application) for application in checked.applications)
    except ServeFileError as error:
        raise ServeFileError(f"{path}: {error}") from error
    return ServeFile(
        path=path, values=values, applications=applications, host=checked.http_options.host, port=checked.http_options.port
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's mapping. Raises ServeFileError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ServeFileError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ServeFileError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ServeFileError(f"{path}: holds {type(values).__name__}, expected a mapping with the field applications")
    return values


def check_shape(values: Mapping[str, Any]) -> Any:
    """Serve's own `ServeDeploySchema` of the values, without unknown fields. Raises ServeFileError."""
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    try:
        checked = ServeDeploySchema.model_validate(values)
    except (ValidationError, ValueError) as error:
        raise ServeFileError(describe_validation_error(error) if isinstance(error, ValidationError) else str(error)) from error
    refuse_unknown("", values, ServeDeploySchema)
    refuse_unknown("http_options.", values.get("http_options") or {}, HTTPOptionsSchema)
    for number, application in enumerate(values["applications"]):
        refuse_unknown(f"applications.{number}.", application, ServeApplicationSchema)
        for place, deployment in enumerate(application.get("deployments") or []):
            refuse_unknown(f"applications.{number}.deployments.{place}.", deployment, DeploymentSchema)
    if not checked.applications:
        raise ServeFileError("applications: the list is empty, at least one application is needed")
    return checked


def refuse_unknown(prefix: str, values: Mapping[str, Any], schema: type[BaseModel]) -> None:
    """Raises ServeFileError for a field that Serve would drop in silence."""
    for field in values:
        if field not in schema.model_fields:
            near = get_close_matches(str(field), schema.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(schema.model_fields)}"
            raise ServeFileError(f"{prefix}{field}: no such field (value {str(values[field])[:80]!r}); {hint}")


def check_application(application: Any) -> Application:
    """The checks that only the application's own code can make. Raises ServeFileError."""
    name = f"application {application.name}"
    if application.import_path == POLICY_IMPORT_PATH:
        check_policy_settings(name, application)
    if not application.runtime_env:
        builder = import_application(name, application.import_path)
        if application.import_path.startswith(OWN_MODULES) and not application.import_path.startswith(HOSTED_MODULE):
            try:
                builder(application.args)
            except ValueError as error:
                raise ServeFileError(f"{name}: args: {error}") from error
    return Application(name=application.name, import_path=application.import_path, route_prefix=application.route_prefix)


def check_policy_settings(name: str, application: Any) -> None:
    """The operator's settings in the policy app's `user_config`. Raises ServeFileError."""
    for deployment in application.deployments:
        if deployment.name != POLICY_DEPLOYMENT:
            raise ServeFileError(f"{name}: deployments: no deployment {deployment.name!r}; the policy app has {POLICY_DEPLOYMENT}")
        user_config = deployment.user_config if "user_config" in deployment.model_fields_set else None
        try:
            parse_operator_settings(cast("Mapping[str, object]", user_config or {}))
        except SettingsError as error:
            raise ServeFileError(f"{name}: user_config: {error}") from error


def import_application(name: str, import_path: str) -> Any:
    """What `module:attribute` (or `module.attribute`) names, found as Serve finds it. Raises ServeFileError.

    An application with a `runtime_env` may live only there and is not imported.
    """
    module_name, _, attribute = import_path.partition(":") if ":" in import_path else import_path.rpartition(".")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ServeFileError(
            f"{name}: import_path: {import_path!r} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    if not hasattr(module, attribute):
        raise ServeFileError(f"{name}: import_path: module {module_name!r} has no {attribute!r}")
    return getattr(module, attribute)
