"""What Nightjar's own deployment does with each field of ray.serve.llm: one row a field, as Ray 2.60 has them.

`nightjar migrate` carries a field over, turns its lines into a comment, or refuses the file and offers to keep ray.serve.llm as
the host. A row may add what a value must be for that. `nightjar check` asks `misfits` of a file that names our deployment already.
A test holds the rows against Ray's own records, so that a new field of theirs has to be given a row. Pure: values in, words out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from nightjar.deployments.configuration.check.findings import Finding, Place, shown
from nightjar.deployments.configuration.check.serve_schema import DeploymentOptions
from nightjar.deployments.llm_config import HOSTED_OPTIONS, parse_local_mode

Fate = Literal["carried", "commented", "refused"]

_OF_THE_HOST: Final = ("ray.serve.llm", "ray.llm")
_OF_SERVE: Final = "ray.serve."
_SIZES_OF_AN_INGRESS: Final = frozenset({"num_replicas", "autoscaling_config"})
_BUCKETS_OF_VLLM: Final = ("s3://", "gs://", "az://")
"""What vLLM 0.32 loads from by itself (vllm/transformers_utils/utils.py, is_cloud_storage), with Run:ai's streamer installed."""


def _anything(_: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of one field. `why`: what there is in its place. `problem`: why a value cannot go that way, and what to do."""

    fate: Fate
    why: str = ""
    problem: Callable[[Any], str] = _anything


def misfits(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Classes in a deployment's options that are called with what ray.serve.llm's ingress passes on: errors, and warnings of a
    class of the user's own, of which it is not known.

    Its routers look for `messages` or `prompt` in a call's arguments (Ray 2.60, prefix_aware_router.py). A replica of ours is
    called with Serve's HTTP request, so they would raise for each, and none would be answered.
    """
    for place, name in _texts(options, ()):
        is_hosts, is_router = name.startswith(_OF_THE_HOST), place[-1] == "request_router_class"
        if is_hosts and is_router:
            message = (
                f"{shown(name)} reads the calls of ray.serve.llm's ingress, and Nightjar's replicas are called with HTTP requests: "
                "none would be answered"
            )
            yield Finding("error", place, message)
        elif is_hosts:
            yield Finding("error", place, f"{shown(name)} expects the servers of ray.serve.llm, and Nightjar has its own")
        elif is_router and not name.startswith(_OF_SERVE):
            message = f"{shown(name)} is called with HTTP requests here, not with the parsed ones of ray.serve.llm's ingress"
            yield Finding("warning", place, message)


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for part, below in parts:
        yield from _texts(below, (*place, part))


def _ingress_options(value: Any) -> str:
    more = sorted(set(value if isinstance(value, Mapping) else ()) - _SIZES_OF_AN_INGRESS)
    return f"Nightjar has no ingress that {', '.join(more)} could hold for; take it out first" if more else ""


def _engine(value: Any) -> str:
    return "" if value == "vLLM" else "Nightjar serves with vLLM alone"


def _accelerator_type(value: Any) -> str:
    if value == "A10":
        return "ray.serve.llm takes it for A10G; write that first"
    return "Nightjar serves on GPUs and CPUs alone" if str(value).startswith("TPU") else ""


def _accelerator_config(value: Any) -> str:
    return "" if (value or {}).get("kind") in ("gpu", "cpu") else "Nightjar knows the kinds gpu and cpu"


def _placement(value: Any) -> str:
    bundles = [*((value or {}).get("bundles") or ()), (value or {}).get("bundle_per_worker") or {}]
    if any(bundle.get("TPU") for bundle in bundles):
        return "Nightjar serves on GPUs and CPUs alone"
    if "SPREAD" in str((value or {}).get("strategy")):
        return "an engine of Nightjar's stays on one node; spread replicas, not engines, and take it out first"
    return ""


def _experiments(value: Any) -> str:
    return f"write what {HOSTED_OPTIONS} holds beside engine_kwargs first" if HOSTED_OPTIONS in (value or {}) else ""


def _source(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        return "Nightjar loads a hub name or a folder: write one first"
    if "://" in str(value) and not str(value).startswith(_BUCKETS_OF_VLLM):
        return f"vLLM loads from {', '.join(_BUCKETS_OF_VLLM)}, and no other bucket; copy it to one of them first"
    return ""


def _kill_switch(value: Any) -> str:
    try:
        parse_local_mode(value)
    except ValueError as error:
        return f"{str(error).removeprefix('user_config: ')}; take it out first"
    return ""


_NO_INGRESS: Final = "Nightjar has no ingress of its own"
_ONE_ACTOR: Final = "a replica of Nightjar's is one actor, whose GPUs stand in ray_actor_options"
_CARRIED: Final = Row("carried")

ARGUMENTS: Final[Mapping[str, Row]] = {
    "llm_configs": _CARRIED,
    "ingress_cls_config": Row("refused", _NO_INGRESS),
    "ingress_deployment_config": Row("commented", _NO_INGRESS, _ingress_options),
}
"""Of an application's `args` (LLMServingArgs)."""

MODEL: Final[Mapping[str, Row]] = {
    "runtime_env": _CARRIED,
    "model_loading_config": _CARRIED,  # its fields: LOADING
    "llm_engine": Row("commented", "vLLM always", _engine),
    "engine_kwargs": _CARRIED,  # vLLM's own; what vLLM dropped since turns into comments
    "accelerator_type": Row("carried", problem=_accelerator_type),
    "accelerator_config": Row("commented", "GPUs by accelerator_type or num_gpus, none without", _accelerator_config),
    "placement_group_config": Row("commented", _ONE_ACTOR, _placement),
    "lora_config": Row("refused", "Nightjar's deployment loads adapters by vLLM's own lora_modules in engine_kwargs"),
    "deployment_config": _CARRIED,  # its fields: DEPLOYMENT
    "server_cls": Row("refused", "Nightjar brings its own deployment"),
    "experimental_configs": Row("commented", "of ray.serve.llm's ingress, routers and streams", _experiments),
    "log_engine_metrics": Row("commented", "vLLM's metrics always"),
    "callback_config": Row("refused", "Nightjar's deployment calls no callbacks"),
}
"""Of an entry of `llm_configs` (LLMConfig)."""

LOADING: Final[Mapping[str, Row]] = {
    "model_id": Row("carried", problem=_source),
    "model_source": Row("carried", problem=_source),
    "tokenizer_source": Row("refused", "Nightjar loads the tokenizer that engine_kwargs name: write it there as tokenizer"),
}
"""Of `model_loading_config` (ModelLoadingConfig)."""

DEPLOYMENT: Final[Mapping[str, Row]] = {
    **dict.fromkeys(DeploymentOptions.model_fields, _CARRIED),  # of request_router_config Serve's own routers alone: misfits
    "name": Row("commented", "Nightjar's deployment is named LLM, by which its kill switch and dashboards find it"),
    "user_config": Row("carried", problem=_kill_switch),
    "placement_group_bundles": Row("refused", _ONE_ACTOR),
    "placement_group_strategy": Row("refused", _ONE_ACTOR),
    "placement_group_bundle_label_selector": Row("refused", f"{_ONE_ACTOR}: write it as label_selector there"),
}
"""Of `deployment_config`, which Serve takes as a deployment's options (DeploymentSchema)."""
