"""A `vllm serve` command line as a Serve config with Nightjar in it, and back.

The config keeps the command as a comment. While the config is what that command makes, taking Nightjar out gives the very same
command back; once somebody edited it, the command is written anew from its values. Fails with `SourceError`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

import yaml

from nightjar.cluster.serve_config import POLICY_NAME
from nightjar.deployments.configuration.check.engine_schema import (
    ENGINE_ARGUMENTS,
    FLAGS,
    LISTS,
    SERVER_ARGUMENTS,
    TEXTS,
    VLLM_VERSION,
    versions_with,
)
from nightjar.deployments.configuration.check.findings import shown
from nightjar.deployments.configuration.check.report import MODEL_IMPORT_PATH
from nightjar.deployments.configuration.check.source import SourceError
from nightjar.deployments.configuration.migrate.adoption import policy_lines
from nightjar.deployments.configuration.migrate.application import OTHER_LINE_BREAKS
from nightjar.deployments.llm_config import ASSUMED_MAX_NUM_SEQS, num_ranks, num_workers

HEADER: Final = "# Made by `nightjar migrate` from this command, which `nightjar migrate --remove` gives back:"
COMMAND_LINE: Final = "#$ "
_CONTINUED: Final = re.compile(r"\\\r?\n")
_VARIABLE: Final = r"""\w+=("[^"]*"|'[^']*'|\$\([^)]*\)|\\.|[^\s"'\\])*"""
_SERVER: Final = r"(\S*/)?(vllm\s+serve\b|python[0-9.]*\s+-m\s+vllm\.entrypoints\.openai\.api_server\b)"
_COMMAND: Final = re.compile(rf"\s*(({_VARIABLE}|exec|env|uv\s+run)\s+)*{_SERVER}")
_BEFORE: Final = re.compile(rf"\s*(set(\s+[-+]\w+|\s+pipefail)+|export(\s+{_VARIABLE})+)?(\s*|(^|\s+)#.*)$")
"""Lines that a script may have above its server: they change nothing for it, or its environment."""
_STARTERS: Final = ("exec", "env", "uv", "run")
SHORT_OPTIONS: Final = {
    "-tp": "tensor_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-dcp": "decode_context_parallel_size",
    "-pcp": "prefill_context_parallel_size",
    "-dp": "data_parallel_size",
    "-dpn": "data_parallel_rank",
    "-dpr": "data_parallel_start_rank",
    "-dpl": "data_parallel_size_local",
    "-dpa": "data_parallel_address",
    "-dpp": "data_parallel_rpc_port",
    "-dpb": "data_parallel_backend",
    "-dph": "data_parallel_hybrid_lb",
    "-dpe": "data_parallel_external_lb",
    "-dpm": "data_parallel_multi_port_external_lb",
    "-ep": "enable_expert_parallel",
    "-n": "nnodes",
    "-r": "node_rank",
    "-q": "quantization",
    "-sc": "speculative_config",
    "-dc": "diffusion_config",
    "-cc": "compilation_config",
    "-ac": "attention_config",
    "-asc": "api_server_count",
    "-O": "optimization_level",  # also without a space, as in -O3
}
"""Of one dash. A test holds them against vLLM's own."""
_NUMBERS: Final = (
    "max_num_seqs",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "data_parallel_size_local",
)
"""What the config is made with."""
_HTTP_OPTIONS: Final = ("host", "port", "root_path", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs")
_JSON_LISTS: Final = frozenset({"allowed_origins", "allowed_methods", "allowed_headers"})
"""One word on the command line, a JSON list."""
_REPEATED: Final = frozenset({"middleware"})
"""One word on the command line, which may be there several times."""
_NUMBER_LISTS: Final = frozenset({"cudagraph_capture_sizes", "device_ids", "numa_bind_nodes"})
_UNITS: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_WITH_UNITS: Final = frozenset({"kv_cache_memory_bytes", "safetensors_prefetch_block_size"})
_REFUSED: Final = {
    "api_key": "a key in a configuration file can be read by many; set VLLM_API_KEY in the replicas' environment and leave it out",
    "api_server_count": "Serve's replicas take its place; leave it out",
    "config": "write the file's arguments on the command line first",
    "headless": "an engine of Nightjar's stays on one node; leave it out",
    "uds": "Serve's proxies listen on TCP; leave it out",
}


@dataclass(frozen=True, slots=True)
class VllmCommand:
    """What a command line asks for."""

    model: str
    served_name: str
    arguments: Mapping[str, Any]
    http_options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def is_command(text: str) -> bool:
    """Whether a text is a `vllm serve` command, perhaps at the end of a script that sets options of the shell and variables.

    >>> is_command("vllm serve Qwen/Qwen3-8B -tp 2"), is_command("applications: []")
    (True, False)
    >>> is_command("set -euo pipefail\\nexport HF_HOME=/models\\nexec uv run vllm serve Qwen/Qwen3-8B")
    True
    """
    lines = (line for line in _CONTINUED.sub(" ", text).splitlines() if not _BEFORE.match(line))
    return bool(_COMMAND.match(next(lines, "")))


def check_no_other_script(text: str) -> None:
    """Raises SourceError for a script with a server in it that is_command does not take, with the line that it does not know."""
    others = ((number, line) for number, line in enumerate(text.splitlines(), start=1) if not _BEFORE.match(line))
    number, line = next(others, (0, ""))
    if not number or "applications:" in text or not re.search(rf"^(?!\s*#).*{_SERVER}", text, re.MULTILINE):
        return
    raise SourceError(
        number,
        f"{shown(line.strip())}: more than a script is read for, which may set options of the shell, export variables, and start "
        "`vllm serve` behind exec, env or uv run; write the command alone",
    )


def command_to_config(text: str) -> str:
    """The Serve config of a command. Raises SourceError."""
    return "\n".join(_config_lines(text.rstrip("\n"), parse_command(text))) + "\n"


def config_to_command(text: str) -> str | None:
    """The command that a config was made from, or that its values ask for; None where it was not made from one."""
    lines = text.split("\n")
    if lines[0] != HEADER:
        return None
    kept = []
    for line in lines[1:]:
        if not line.startswith(COMMAND_LINE.rstrip()):
            break
        kept.append(line.removeprefix(COMMAND_LINE.rstrip()).removeprefix(" "))
    command = "\n".join(kept) + "\n"
    try:
        is_unedited = command_to_config(command) == text
    except SourceError:
        is_unedited = False
    if is_unedited:
        return command
    try:
        return _write_command(yaml.safe_load(text))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SourceError(1, f"no config that a command can be written from ({' '.join(str(error).split())}); mend it") from error


def parse_command(text: str) -> VllmCommand:
    """Read a command line. Raises SourceError."""
    lines = _without_comments(_CONTINUED.sub(" ", text)).split("\n")
    exports = []
    while lines and _BEFORE.match(lines[0]):
        exports += [line for line in lines[:1] if line.split()[:1] == ["export"]]
        del lines[0]
    try:
        words = shlex.split("\n".join(lines))
        exported = [word for line in exports for word in shlex.split(line)[1:]]
    except ValueError as error:
        raise SourceError(1, f"not a shell command ({error}); close its quotes") from error
    environment = dict(word.split("=", 1) for word in exported)
    while words and (words[0] in _STARTERS or re.match(r"^\w+=", words[0])):
        word = words.pop(0)
        if "=" in word:
            name, _, value = word.partition("=")
            environment[name] = value
    words = words[2:] if words[1:2] == ["serve"] else words[3:]
    model, arguments = _read_words(words)
    model = arguments.pop("model", None) or model
    if not model:
        raise SourceError(1, "no model; write it behind `vllm serve`")
    for name in _NUMBERS:
        if not isinstance(arguments.get(name, 1), int):
            raise SourceError(1, f"--{name.replace('_', '-')}: {shown(arguments[name])} is no whole number; write one")
    names = arguments.pop("served_model_name", None) or [model]
    if len(names) > 1:
        raise SourceError(1, f"--served-model-name: {len(names)} names; Nightjar serves a model under one: leave one")
    http_options = {"host": "0.0.0.0", "port": 8000}  # noqa: S104 - vLLM's own default, all interfaces
    http_options |= {name: arguments.pop(name) for name in _HTTP_OPTIONS if name in arguments}
    return VllmCommand(model, str(names[0]), arguments, http_options, environment)


def _without_comments(text: str) -> str:
    """A command as a shell reads it, without comments. Raises SourceError for what only a shell can work out."""
    kept: list[str] = []
    quote, place = "", 0
    while place < len(text):
        mark = text[place]
        if mark == "#" and not quote and (not kept or kept[-1].isspace()):
            place = text.find("\n", place) if "\n" in text[place:] else len(text)
            continue
        if mark in "$`" and quote != "'":
            raise SourceError(1, f"{shown(text[place : place + 16])}: a shell puts something else there; write that itself")
        if mark in "&|;<>" and not quote:
            raise SourceError(1, f"{mark}: what a shell does beside the server; write the command alone, quotes round a value")
        if mark in OTHER_LINE_BREAKS:
            raise SourceError(1, f"{mark!r}: ends a line in YAML, and not in a shell; take it out")
        if mark in "\"'" and quote in ("", mark):
            quote = "" if quote else mark
        elif mark == "\\" and quote != "'":
            kept.append(mark)
            place += 1
        kept.append(text[place : place + 1])
        place += 1
    return "".join(kept)


def _read_words(words: list[str]) -> tuple[str, dict[str, Any]]:
    model = ""
    arguments: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if model:
                raise SourceError(1, f"{shown(word)}: neither an option nor the model, which is {model}; take it out")
            model = word
            continue
        if word.startswith("-O") and word != "-O":
            word = f"-O={word.removeprefix('-O').removeprefix('=')}"
        option, equals, given = word.partition("=")
        path, negated = _name(option)
        if path[0] in FLAGS and not equals:
            value: Any = not negated
        elif path[0] in LISTS - _JSON_LISTS - _REPEATED and not equals:
            value = []
            while rest and not rest[0].startswith("-"):
                value.append(_item(path[0], rest.pop(0)))
        else:
            if not equals and not rest:
                raise SourceError(1, f"{option}: no value behind it; add one")
            text = given if equals else rest.pop(0)
            value = [_item(path[0], text)] if path[0] in LISTS - _JSON_LISTS else _value(path[0], text)
            value = [*arguments.get(path[0], ()), *value] if path[0] in _REPEATED else value
        _put(arguments, path, value)
    return model, arguments


def _name(option: str) -> tuple[list[str], bool]:
    """An option's name, split at dots (`--speculative-config.method`), and whether it says no."""
    head, *rest = SHORT_OPTIONS.get(option, option.removeprefix("--")).split(".")
    name = head.replace("-", "_")
    if name in _REFUSED:
        raise SourceError(1, f"{option}: {_REFUSED[name]}")
    known = ENGINE_ARGUMENTS | SERVER_ARGUMENTS
    if name in known:
        return [name, *rest], False
    if name.removeprefix("no_") in FLAGS:
        return [name.removeprefix("no_")], True
    if versions := versions_with(name):
        raise SourceError(1, f"{option}: an option of vLLM {', '.join(versions)} whose form is not known here; add it afterwards")
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean --{near[0].replace('_', '-')}?" if near else "take it out"
    raise SourceError(1, f"{option}: vLLM {VLLM_VERSION} has no such option; {hint}")


def _item(name: str, text: str) -> Any:
    return _value(name, text) if name in _NUMBER_LISTS else text


def _value(name: str, text: str) -> Any:
    """A word as what it says: JSON, number, or text.

    >>> _value("max_model_len", "32k"), _value("dtype", "bfloat16"), _value("speculative_config", '{"method": "ngram"}')
    (32000, 'bfloat16', {'method': 'ngram'})
    """
    if name in TEXTS:
        return text
    if name == "max_model_len" and text == "auto":
        return -1
    has_units = name.startswith("max_") or name in _WITH_UNITS
    if has_units and (found := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT])", text)):
        return int(float(found[1]) * _UNITS[found[2]])
    if re.fullmatch(r"-?\.\d+", text):
        return float(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith(("{", "[")):
            raise SourceError(1, f"--{name.replace('_', '-')}: {shown(text)} is not JSON ({error}); mend it") from error
        return text


def _put(arguments: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        arguments = arguments.setdefault(part, {})
        if not isinstance(arguments, dict):
            raise SourceError(1, f"--{'.'.join(path)}: {part} is {shown(arguments)} already; write one of the two")
    arguments[path[-1]] = value


def _config_lines(command_text: str, command: VllmCommand) -> Iterator[str]:
    workers = num_workers(command.arguments) * num_ranks(command.arguments)
    yield HEADER
    for line in command_text.split("\n"):
        yield f"{COMMAND_LINE}{line}".rstrip()
    yield f"http_options: {_flow(dict(command.http_options))}"
    yield "applications:"
    yield f"- name: {_flow(_application_name(command.served_name))}"
    yield f"  import_path: {MODEL_IMPORT_PATH}"
    yield "  route_prefix: /"
    yield "  args:"
    yield "    llm_configs:"
    yield f"    - model_loading_config: {_flow({'model_id': command.served_name, 'model_source': command.model})}"
    if command.arguments:
        yield "      engine_kwargs:"
        for name, value in command.arguments.items():
            yield f"        {name}: {_flow(value)}"
    if command.environment:
        yield f"      runtime_env: {_flow({'env_vars': dict(command.environment)})}"
    yield "      deployment_config:"
    yield "        num_replicas: 1"
    rows = num_ranks(command.arguments) * int(command.arguments.get("max_num_seqs", ASSUMED_MAX_NUM_SEQS))
    yield f"        max_ongoing_requests: {2 * rows}"
    yield f"        ray_actor_options: {{num_gpus: {workers}}}"
    yield from policy_lines(dash=0, item=2)


def _application_name(model: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rsplit("/", 1)[-1]).lower() or "llm"
    return f"{name}-llm" if name == POLICY_NAME else name


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 20, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _write_command(values: Mapping[str, Any]) -> str:
    models = [application for application in values["applications"] if application.get("import_path") == MODEL_IMPORT_PATH]
    if len(models) != 1 or len(models[0]["args"]["llm_configs"]) != 1:
        raise SourceError(1, f"{len(models)} models; a command serves one: take the others out first")
    entry = models[0]["args"]["llm_configs"][0]
    loading = entry["model_loading_config"]
    variables = ((entry.get("runtime_env") or {}).get("env_vars") or {}).items()
    words = [f"{name}={shlex.quote(str(value))}" for name, value in variables]
    words += ["vllm", "serve", shlex.quote(loading.get("model_source") or loading["model_id"])]
    http_options = {name: value for name, value in (values.get("http_options") or {}).items() if name in _HTTP_OPTIONS}
    options = {"served_model_name": loading["model_id"]} | http_options | (entry.get("engine_kwargs") or {})
    for name, value in options.items():
        if value is not None:
            words += _words(name, value)
    return " ".join(words) + "\n"


def _words(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if name in FLAGS:
        return [option if value else option.replace("--", "--no-", 1)]
    if name in _REPEATED and isinstance(value, list):
        return [word for part in value for word in (option, shlex.quote(str(part)))]
    if name in LISTS - _JSON_LISTS and isinstance(value, list):
        return [option, *(shlex.quote(str(part)) for part in value)]
    return [option, shlex.quote(value if isinstance(value, str) else json.dumps(value))]
