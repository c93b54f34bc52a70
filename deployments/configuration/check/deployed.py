"""A model as Serve deploys it: what stands beside `args` laid over what stands in it.

Serve puts the options of `deployments` over those of the builder, and an application's `runtime_env` under its replicas' own. A
rule that reads `args` alone sees neither. Both have passed the checks of form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nightjar.deployments.configuration.check.engine_facts import variables_in
from nightjar.deployments.configuration.check.findings import Finding, Place, shown
from nightjar.deployments.configuration.check.placement import Demand, demand_of, replicas_in_words
from nightjar.deployments.configuration.check.serve_schema import DeploymentOptions
from nightjar.deployments.llm_config import DEPLOYMENT_NAME, LLMConfig, parse_local_mode

ENTRY: Final[Place] = ("args", "llm_configs", 0)
OPTIONS: Final[Place] = (*ENTRY, "deployment_config")

BESIDE_ARGS_ALONE: Final = frozenset({"rolling_update_percentage"})
"""Serve's options of `deployments` that a builder cannot set; a test holds them against Ray's."""
_ACTOR_NUMBERS: Final = ("num_cpus", "num_gpus", "memory")


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """What replicas get, and where it was written."""

    config: LLMConfig
    places: Mapping[str, Place]  # of Serve's options that stand beside `args`
    lost_variables: tuple[str, ...] = ()  # of the application's runtime_env, which its replicas do not get

    def place_of(self, option: str) -> Place:
        """Where an option of Serve's stands, or would."""
        return self.places.get(option, (*OPTIONS, option))

    @property
    def demand(self) -> Demand | None:
        """The GPUs of its replicas; None: they need none. Its engine is one actor, in one pod, unless it is placed by bundles."""
        options = self.config.deployment_config
        is_placed_by_bundles = options.get("placement_group_bundles") is not None
        strategy = (options.get("placement_group_strategy") or "PACK") if is_placed_by_bundles else None
        accelerator = options["ray_actor_options"].get("accelerator_type")
        return demand_of(self.place_of("ray_actor_options"), options, self._bundles, strategy, accelerator)

    @property
    def replicas(self) -> str:
        """How many, and what one needs, in words."""
        options = self.config.deployment_config
        return replicas_in_words(options, sum(self._bundles), options["ray_actor_options"].get("accelerator_type"))

    @property
    def _bundles(self) -> list[float]:
        """GPUs of each bundle of a replica, or of its actor."""
        options = self.config.deployment_config
        bundles = options.get("placement_group_bundles")
        if bundles is None:
            return [float(options["ray_actor_options"].get("num_gpus") or 0)]
        return [float(bundle.get("GPU") or 0) for bundle in bundles]


def as_deployed(config: LLMConfig, application: Mapping[str, Any]) -> DeployedModel:
    """`config`, read from the `args` of `application`, with all that Serve makes of it."""
    options, actor = _as_serve_reads(config.deployment_config), config.actor_options()
    places: dict[str, Place] = {}
    overrides = list(_overrides(application))
    for number, override in overrides:
        options |= override
        places |= {option: ("deployments", number, option) for option in override}
        if (given := override.get("ray_actor_options")) is not None:
            actor = {"num_gpus": 0} | given  # not merged: these alone count, and without num_gpus there is none
    above, own = variables_in(application.get("runtime_env")), variables_in(actor.get("runtime_env"))
    is_handed_down = bool(overrides) or "runtime_env" not in actor
    if above and is_handed_down:
        actor["runtime_env"] = (actor.get("runtime_env") or {}) | {"env_vars": above | own}
    changes = {
        "accelerator_type": actor.get("accelerator_type"),
        "runtime_env": None,
        "deployment_config": options | {"ray_actor_options": actor},
    }
    lost = () if is_handed_down else tuple(sorted(above.keys() - own.keys()))
    return DeployedModel(config.model_copy(update=changes), places, lost)


def _overrides(application: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, override in enumerate(application.get("deployments") or ()):
        if override.get("name") == DEPLOYMENT_NAME:
            yield number, _as_serve_reads({option: value for option, value in override.items() if option != "name"})


def _as_serve_reads(options: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers in quotes are numbers to Serve."""
    return DeploymentOptions.model_validate(options).model_dump(exclude_unset=True)


def kill_switch_findings(options: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """What keeps the `user_config` of a deployment's options from being a kill switch."""
    try:
        parse_local_mode(options.get("user_config"))
    except ValueError as error:
        yield Finding("error", (*place, "user_config"), f"{error}; correct it, or take it out")


def findings_in_args(options: Mapping[str, Any]) -> Iterator[Finding]:
    """What Serve takes beside `args` alone: there it reads a configuration, here it is called with Python's values."""
    for option in sorted(BESIDE_ARGS_ALONE & set(options)):
        message = f"{shown(options[option])}; Serve takes it beside args alone: write it into deployments, below name: LLM"
        yield Finding("error", (*OPTIONS, option), message)
    actor = options.get("ray_actor_options")
    for option, value in actor.items() if isinstance(actor, Mapping) else ():
        if option in _ACTOR_NUMBERS and isinstance(value, str):
            yield Finding("error", (*OPTIONS, "ray_actor_options", option), f"{shown(value)}; Ray takes a number here: no quotes")
