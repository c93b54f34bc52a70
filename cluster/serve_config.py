"""A Serve YAML file as Serve reads it, before anything starts, and the names by which files know the policy.

`nightjar check` says what is wrong with a file, and `nightjar run` starts none with an error. Left for here is what takes Ray and
the applications' own code, and what Serve finds minutes later, in a replica's log: its schema, an import path that does not exist,
and what our own builders find wrong with their `args`: those build nothing but a description and are called here as Serve will call
them. Each is one line naming field, value and what is allowed (`ServeFileError`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

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
    """Read a file. Imports Ray Serve's schema and the applications' modules; raises ServeFileError."""
    from ray.serve.schema import ServeDeploySchema

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        checked = ServeDeploySchema.model_validate(values)
        applications = tuple(check_application(application) for application in checked.applications)
    except ValidationError as error:
        raise ServeFileError(f"{path}: {describe_validation_error(error)}") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ServeFileError(f"{path}: {' '.join(str(error).split())}") from error
    return ServeFile(
        path=path, values=values, applications=applications, host=checked.http_options.host, port=checked.http_options.port
    )


def check_application(application: Any) -> Application:
    """The checks that only the application's own code can make. Raises ServeFileError."""
    name = f"application {application.name}"
    if not application.runtime_env:
        builder = import_application(name, application.import_path)
        if application.import_path.startswith(OWN_MODULES) and not application.import_path.startswith(HOSTED_MODULE):
            try:
                builder(application.args)
            except ValueError as error:
                raise ServeFileError(f"{name}: args: {error}") from error
    return Application(name=application.name, import_path=application.import_path, route_prefix=application.route_prefix)


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
