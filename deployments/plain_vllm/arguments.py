"""vLLM's engine arguments as the mapping that steering reads, and back; and what steering adds to them, as people read it.

vLLM's command line makes objects of some arguments. Steering works on the words of a user, as a Serve file has them: what is not
vLLM's default, with `speculative_config` as one mapping however it was spelled. Nothing here changes what it is given.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

SPELLED_APART: Final = ("spec_method", "spec_model", "spec_tokens")
"""Of vLLM 0.32 (EngineArgs.create_speculative_config): parts of `speculative_config`, which vLLM puts into it."""
_ADDED_BY_VLLM: Final = ("target_model_config", "target_parallel_config")
"""What the same function adds to it, for its own use."""


def why_plainly(args: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """Why these arguments of a server are served without us; empty where one Python front end runs here, beside its engine."""
    ranks, nodes = getattr(args, "data_parallel_size", 1) or 1, getattr(args, "nnodes", 1) or 1
    local = getattr(args, "data_parallel_size_local", None)
    servers, balances_all = _num_api_servers(args, ranks), not _is_balanced_elsewhere(args)
    no_server = "--headless" if getattr(args, "headless", False) else f"--api-server-count {servers}"
    checks = (
        (no_server == "--headless" or servers < 1, f"{no_server} starts no API server here, and the agent runs in one"),
        (getattr(args, "grpc", False), "--grpc has a server of its own"),
        (
            environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"),
            "VLLM_USE_RUST_FRONTEND: the agent runs in vLLM's Python server",
        ),
        (
            getattr(args, "data_parallel_multi_port_external_lb", False),
            "--data-parallel-multi-port-external-lb starts several servers",
        ),
        (nodes > 1, f"--nnodes {nodes}: other commands start what runs on the other nodes, with arguments of their own"),
        (
            balances_all and local not in (None, ranks),
            f"--data-parallel-size-local {local} of {ranks}: other commands start the other ranks, with arguments of their own",
        ),
        (servers > 1, f"{servers} API server processes: one engine is steered from one, --api-server-count 1"),
    )
    return next((reason for applies, reason in checks if applies), "")


def _num_api_servers(args: argparse.Namespace, ranks: int) -> int:
    """As in vLLM 0.32, ServeSubcommand.cmd: where nobody says, one for each rank that this command balances between."""
    servers = getattr(args, "api_server_count", None)
    if servers is None and _has_a_rank_of_its_own(args):
        servers = 1
    elif servers is None:
        servers = (getattr(args, "data_parallel_size_local", None) or 1) if _is_balanced_elsewhere(args) else ranks
    return int(min(servers, 1) if getattr(args, "enable_elastic_ep", False) else servers)


def _has_a_rank_of_its_own(args: argparse.Namespace) -> bool:
    """Whether something outside balances between the ranks (vLLM's external load balancer)."""
    return getattr(args, "data_parallel_external_lb", False) or getattr(args, "data_parallel_rank", None) is not None


def _is_balanced_elsewhere(args: argparse.Namespace) -> bool:
    """Whether something outside balances between the commands of the ranks: that, or vLLM's hybrid load balancer."""
    is_hybrid = getattr(args, "data_parallel_hybrid_lb", False) or getattr(args, "data_parallel_start_rank", None) is not None
    return is_hybrid or _has_a_rank_of_its_own(args)


def users_kwargs(engine_args: AsyncEngineArgs) -> dict[str, Any]:
    """What the user said, by name: all that is not vLLM's default, be it the field's or, of nothing, its parser's. Of a
    configuration object its own differences, as a mapping.
    """
    found = {}
    for field in dataclasses.fields(engine_args):
        value, default = getattr(engine_args, field.name), _default(field)
        if value not in (default, None, ""):
            found[field.name] = _differences(value, default) if dataclasses.is_dataclass(value) else copy.copy(value)
    spelled = {name.removeprefix("spec_"): found.pop(name) for name in SPELLED_APART if name in found}
    if spelled or found.get("speculative_config"):
        renamed = {"tokens": "num_speculative_tokens"}
        parts = {renamed.get(name, name): value for name, value in spelled.items()}
        users = {str(name).replace("-", "_"): value for name, value in dict(found.get("speculative_config") or {}).items()}
        found["speculative_config"] = {name: value for name, value in users.items() if name not in _ADDED_BY_VLLM} | parts
    return found


def with_kwargs(engine_args: AsyncEngineArgs, users: Mapping[str, Any], chosen: Mapping[str, Any]) -> AsyncEngineArgs:
    """A copy of the arguments with what `chosen` has otherwise than `users`; a mapping where vLLM wants an object is made one."""
    made = copy.copy(engine_args)
    made.speculative_config = copy.copy(engine_args.speculative_config)  # vLLM writes into it
    for name, value in added(users, chosen).items():
        before = getattr(engine_args, name)
        is_object = dataclasses.is_dataclass(before) and isinstance(value, Mapping)
        setattr(made, name, type(before)(**value) if is_object else copy.copy(value))
        if name == "speculative_config":
            for part in SPELLED_APART:
                if hasattr(made, part):
                    setattr(made, part, None)
    return made


def configured(engine_args: AsyncEngineArgs, usage_context: Any) -> VllmConfig:
    """vLLM's configuration of these arguments, which stay as they are. Raises what vLLM raises."""
    return with_kwargs(engine_args, {}, {}).create_engine_config(usage_context=usage_context)


def added(users: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What `chosen` has otherwise than `users`."""
    return {name: value for name, value in chosen.items() if name not in users or users[name] != value}


def in_words(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """As lines that a shell takes: variables, then options.

    >>> print(in_words({"scheduler_cls": "a.B", "speculative_config": {"method": "ngram"}}, {"LD_PRELOAD": "/lib/x.so"}))
    LD_PRELOAD=/lib/x.so
    --scheduler-cls a.B
    --speculative-config '{"method": "ngram"}'
    """
    options = [f"--{name.replace('_', '-')} {shlex.quote(_text(value))}" for name, value in sorted(arguments.items())]
    return "\n".join([*(f"{name}={shlex.quote(value)}" for name, value in sorted(environment.items())), *options])


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _differences(value: Any, default: Any) -> dict[str, Any]:
    default = default if type(default) is type(value) else type(value)()
    fields = [field.name for field in dataclasses.fields(value) if field.init]
    return {name: getattr(value, name) for name in fields if getattr(value, name) != getattr(default, name)}
