"""What `nightjar check` says of an application whose host stays ray.serve.llm: what Nightjar reads of it, and no more.

Models, engine arguments and deployments are ray.serve.llm's to judge, by the vLLM that it pins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from nightjar.deployments.configuration.findings import Finding, Place, shown
from nightjar.deployments.llm_config import parse_local_mode, read_options

SERVER: Final = "nightjar.deployments.serve_llm:LLMServer"
DEPLOYMENT_PREFIX: Final = "LLMServer:"
"""ray.serve.llm names the deployment of a model by its server class."""


def hosted_findings(application: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings of the application, placed below it."""
    for number, model in enumerate(_mappings((application.get("args") or {}).get("llm_configs"))):
        place: Place = ("args", "llm_configs", number)
        for problem in read_options(_mapping(model.get("experimental_configs")))[1]:
            yield Finding("error", (*place, *problem.location), f"{problem.message}; correct it, or take it out")
        yield from _kill_switch(_mapping(model.get("deployment_config")), (*place, "deployment_config"))
        if (server := model.get("server_cls")) not in (None, SERVER):
            message = f"{shown(server)} is not Nightjar's: this model is served as without Nightjar; derive it from {SERVER}"
            yield Finding("warning", (*place, "server_cls"), message)
    for number, deployment in enumerate(_mappings(application.get("deployments"))):
        if str(deployment.get("name")).startswith(DEPLOYMENT_PREFIX):
            yield from _kill_switch(deployment, ("deployments", number))


def _kill_switch(options: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    try:
        parse_local_mode(options.get("user_config"))
    except ValueError as error:
        yield Finding("error", (*place, "user_config"), f"{error}; correct it, or take it out")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [one if isinstance(one, Mapping) else {} for one in value] if isinstance(value, list) else []
