"""Nightjar into a ray.serve.llm configuration: edits of the user's own text.

The application's import path changes, the policy's application goes behind the last one, and what of ray.serve.llm Nightjar's
deployment has no use for turns into comments that say so. What cannot be carried over is refused with `SourceError`, which
names line, value and the way out; nothing is dropped in silence. One way out is to keep ray.serve.llm as the host: then the import
path alone changes, and it is offered wherever that would do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import yaml

from nightjar.cluster.serve_config import POLICY_IMPORT_PATH, POLICY_NAME
from nightjar.deployments.configuration.check.carried import ARGUMENTS, DEPLOYMENT, LOADING, MODEL, Row, misfits
from nightjar.deployments.configuration.check.deployed import ENTRY, OPTIONS
from nightjar.deployments.configuration.check.findings import Place, shown
from nightjar.deployments.configuration.check.hosted import (
    HOSTED_IMPORT_PATH,
    RAY_IMPORT_PATH,
    SERVER,
    accelerator_kind,
    engine_bundles,
    never_steered,
)
from nightjar.deployments.configuration.check.report import MODEL_IMPORT_PATH
from nightjar.deployments.configuration.check.source import ServeSource, SourceError
from nightjar.deployments.configuration.migrate.application import (
    ADDED,
    OWN_FIELDS,
    TAKEN_OUT,
    Application,
    TextEdits,
    child,
    edited,
    item_nodes,
    last_line,
    pair_of,
    rename,
)
from nightjar.deployments.llm_config import num_workers

KEEP_HOST_OPTION: Final = "--keep-ray-serve-llm"
POLICY_ROUTE: Final = "/nightjar"
_POLICY_FLOW: Final = json.dumps(
    {
        "name": POLICY_NAME,
        "import_path": POLICY_IMPORT_PATH,
        "route_prefix": POLICY_ROUTE,
        "deployments": [{"name": "Policy", "user_config": {"mode": "shadow", "planner": "fleet"}}],
    }
)
"""As JSON, for a config in braces may be JSON, which is YAML as well."""
_MAPPINGS: Final = (
    "model_loading_config",
    "engine_kwargs",
    "deployment_config",
    "runtime_env",
    "accelerator_config",
    "placement_group_config",
    "experimental_configs",
)
_GONE_FROM_VLLM: Final[Mapping[str, frozenset[object]]] = {
    "device": frozenset({"auto", "cuda"}),
    "use_v2_block_manager": frozenset({True}),
}
"""Arguments that vLLM dropped and that samples still hold, with the values that are what vLLM does anyway."""


def add_nightjar(text: str, *, keep_host: bool = False) -> str:
    """The text with Nightjar in it; unchanged where it is in already. Raises SourceError.

    With `keep_host` ray.serve.llm goes on serving its applications.
    """
    if keep_host:
        return _add(text, _host)
    try:
        return _add(text, _adopt)
    except SourceError as error:
        try:
            _add(text, _host)
        except SourceError:
            raise error from None
        message = f"{error}; or let ray.serve.llm go on serving, steered by Nightjar: migrate {KEEP_HOST_OPTION}"
        raise SourceError(error.line, message) from error


def _add(text: str, change: Callable[[Application, TextEdits], None]) -> str:
    def edit(source: ServeSource, applications: list[Application], edits: TextEdits) -> None:
        theirs = [application for application in applications if application.import_path() == RAY_IMPORT_PATH]
        ours = (MODEL_IMPORT_PATH, HOSTED_IMPORT_PATH)
        if not theirs and not any(application.import_path() in ours for application in applications):
            _refuse_what_is_here(applications)
        for application in theirs:
            change(application, edits)
        _add_policy(source, applications, edits)

    return edited(text, edit)


def _refuse_what_is_here(applications: list[Application]) -> NoReturn:
    for application in applications:
        if never := never_steered(application.import_path()):
            message = f"import_path: {never}; Nightjar takes the place of {RAY_IMPORT_PATH} alone: leave it as it is"
            raise application.refuse(("import_path",), message)
    paths = ", ".join(application.import_path() for application in applications)
    message = f"import_path: {paths}; Nightjar takes the place of {RAY_IMPORT_PATH}, and none is here"
    raise applications[0].refuse(("import_path",), message)


def _host(application: Application, edits: TextEdits) -> None:
    """What one application of ray.serve.llm needs whose host it stays: its models get Nightjar's server class from the builder."""
    rename(application, RAY_IMPORT_PATH, HOSTED_IMPORT_PATH, edits)
    for number, model in enumerate(application.models):
        place = ("args", "llm_configs", number)
        if not isinstance(model, dict):
            raise application.refuse(place, f"{shown(model)} is no mapping; write the model itself there")
        server, engine = model.get("server_cls"), model.get("llm_engine", "vLLM")
        if server not in (None, SERVER):
            message = f"{shown(server)} would go on serving, but not steered: derive it from {SERVER}, or take it out first"
            raise application.refuse((*place, "server_cls"), f"server_cls: {message}")
        if engine != "vLLM":
            raise application.refuse((*place, "llm_engine"), f"llm_engine: {shown(engine)}; Nightjar steers vLLM alone")


def _adopt(application: Application, edits: TextEdits) -> None:
    """Everything that one application of ray.serve.llm needs to be Nightjar's: what the rows of carried.py say, field by field."""
    if application.values.get("deployments"):
        message = "they are ray.serve.llm's own; move their options to llm_configs: deployment_config first, and take them out"
        raise application.refuse(("deployments",), f"deployments: {message}")
    rename(application, RAY_IMPORT_PATH, MODEL_IMPORT_PATH, edits)
    entry, values, arguments = application.entry, application.entry_values, application.values["args"]
    for key in _checked(application, ARGUMENTS, arguments, ("args",)):
        _comment_out(application, child(application.node, "args"), key, ("args", key), edits)
    _check_kinds(application)
    for key in _checked(application, MODEL, values, ENTRY):
        _comment_out(application, entry, key, (*ENTRY, key), edits)
    _checked(application, LOADING, values.get("model_loading_config") or {}, (*ENTRY, "model_loading_config"))
    options = values.get("deployment_config") or {}
    gone = _checked(application, DEPLOYMENT, {key: options[key] for key in options if key in DEPLOYMENT}, OPTIONS)
    for misfit in misfits(options):
        raise application.refuse((*OPTIONS, *misfit.place), f"{misfit.place[-1]}: {misfit.message}; take it out first")
    is_emptied = _comment_out_of(application, "deployment_config", gone, edits)
    _comment_out_of(application, "engine_kwargs", _gone_from_vllm(values.get("engine_kwargs") or {}), edits)
    _add_gpus(application, None if is_emptied else child(entry, "deployment_config"), edits)


def _checked(application: Application, rows: Mapping[str, Row], values: Mapping[str, Any], place: Place) -> list[str]:
    """The keys of `values` that turn into comments. Raises SourceError for what cannot be carried over."""
    for key, value in values.items():
        if rows is MODEL and key in OWN_FIELDS:
            continue
        row = rows.get(key, Row("refused", "Nightjar's deployment has no such field"))
        if row.fate == "refused":
            message = f"{key}: {shown(value)} cannot be carried over: {row.why}; take it out first"
            raise application.refuse((*place, key), message)
        if problem := row.problem(value):
            raise application.refuse((*place, key), f"{key}: {shown(value)}; {problem}")
    return [key for key in values if key in rows and rows[key].fate == "commented"]


def _gone_from_vllm(kwargs: Mapping[str, Any]) -> list[str]:
    """Arguments that vLLM dropped, where they say nothing else than what it does: `nightjar check` names all others."""
    return [key for key, value in kwargs.items() if isinstance(value, str | bool) and value in _GONE_FROM_VLLM.get(key, ())]


def _comment_out_of(application: Application, mapping: str, gone: list[str], edits: TextEdits) -> bool:
    """Turn keys of one of the model's mappings into comments, and the mapping itself, if it holds nothing else: whether it did."""
    if gone and len(gone) == len(application.entry_values[mapping]):
        _comment_out(application, application.entry, mapping, (*ENTRY, mapping), edits)
        return True
    for key in gone:
        _comment_out(application, child(application.entry, mapping), key, (*ENTRY, mapping, key), edits)
    return False


def _check_kinds(application: Application) -> None:
    """What is looked into below must be what it should be. `nightjar check` says more."""
    values = application.entry_values

    def refuse(what: str, *place: str) -> SourceError:
        return application.refuse((*ENTRY, *place), f"{place[-1]}: {what}; mend it first")

    for key in _MAPPINGS:
        if values.get(key) is not None and not isinstance(values[key], dict):
            raise refuse(f"{shown(values[key])} is no mapping", key)
    options = (values.get("deployment_config") or {}).get("ray_actor_options")
    if options is not None and not isinstance(options, dict):
        raise refuse(f"{shown(options)} is no mapping", "deployment_config", "ray_actor_options")
    placement = values.get("placement_group_config") or {}
    bundles = placement.get("bundles") or []
    if not isinstance(bundles, list) or not all(
        isinstance(one, dict) for one in [*bundles, placement.get("bundle_per_worker") or {}]
    ):
        raise refuse(f"{shown(placement)} holds bundles that are no mappings", "placement_group_config")
    try:
        num_workers(values.get("engine_kwargs") or {})
    except (TypeError, ValueError) as error:
        raise refuse(f"tensor_parallel_size and pipeline_parallel_size are whole numbers ({error})", "engine_kwargs") from error


def _add_gpus(application: Application, options: yaml.Node | None, edits: TextEdits) -> None:
    """ray.serve.llm takes a GPU for each worker beside what it is told; Nightjar's deployment takes what it is told.

    `options`: the model's `deployment_config` in the text, None where there is none.
    """
    values = application.entry_values
    if accelerator_kind(values) == "cpu":
        return
    workers, taken = num_workers(values.get("engine_kwargs") or {}), sum(engine_bundles(values))
    given = ((values.get("deployment_config") or {}).get("ray_actor_options") or {}).get("num_gpus")
    if taken != workers:
        message = f"its bundles take GPU {taken:g}, and Nightjar's deployment one for each of the engine's {workers} workers"
        raise application.refuse((*ENTRY, "placement_group_config"), f"placement_group_config: {message}; take it out first")
    if given not in (None, workers):
        message = f"ray.serve.llm adds it to the engine's GPU {workers}, and in Nightjar's deployment it is all that a replica gets"
        place = (*OPTIONS, "ray_actor_options", "num_gpus")
        raise application.refuse(place, f"num_gpus: {shown(given)}; {message}: take it out first")
    if values.get("accelerator_type") or given is not None:
        return
    gpus = f"num_gpus: {workers}"
    actor = child(options, "ray_actor_options")
    if actor is not None:
        _insert_last(application, actor, [f"{gpus}{ADDED}"], gpus, edits)
    elif options is not None:
        _insert_last(application, options, [f"ray_actor_options: {{{gpus}}}{ADDED}"], gpus, edits)
    else:
        lines = [f"deployment_config:{ADDED}", f"  ray_actor_options: {{{gpus}}}{ADDED}"]
        _insert_last(application, application.entry, lines, gpus, edits)


def _insert_last(application: Application, mapping: yaml.Node, lines: list[str], what: str, edits: TextEdits) -> None:
    """Put keys into a block mapping, behind its last one."""
    if not isinstance(mapping, yaml.MappingNode) or mapping.flow_style or not mapping.value:
        place = ("args", "llm_configs", 0)
        message = f"no accelerator_type, so {what} must go where braces are; add it, or accelerator_type, first"
        raise application.refuse(place, message)
    indent = " " * mapping.start_mark.column
    edits.insert_after(last_line(mapping), [indent + line for line in lines])


def _comment_out(
    application: Application, mapping: yaml.Node | None, key: str, place: tuple[str | int, ...], edits: TextEdits
) -> None:
    """Turn a key's lines into comments that `remove_nightjar` knows."""
    pair = pair_of(mapping, key)
    assert isinstance(mapping, yaml.MappingNode)
    assert pair is not None
    if mapping.flow_style:
        raise application.refuse(place, f"{key}: of no use to Nightjar, and inside braces; take it out first")
    column, lines = pair[0].start_mark.column, application.source.lines
    for number in range(pair[0].start_mark.line, last_line(pair[1]) + 1):
        if lines[number][:column].strip(" -"):
            raise application.refuse(place, f"{key}: its lines are indented less than it is; indent them, or take it out first")
        if lines[number][column:].strip():
            edits.replace(number, column, column, TAKEN_OUT)


def _add_policy(source: ServeSource, applications: list[Application], edits: TextEdits) -> None:
    if any(application.import_path() == POLICY_IMPORT_PATH for application in applications):
        return
    for application in applications:
        for field, taken in (("name", POLICY_NAME), ("route_prefix", POLICY_ROUTE)):
            if application.values.get(field) == taken:
                raise application.refuse((field,), f"{field}: {taken} is the policy's own; choose another one")
    nodes, last = item_nodes(source), applications[-1].node
    if nodes.flow_style:
        edits.replace(last.end_mark.line, last.end_mark.column, last.end_mark.column, f", {_POLICY_FLOW}")
        return
    dash, item = nodes.start_mark.column, last.start_mark.column
    edits.insert_after(_behind_comments(source, last_line(last), dash), list(policy_lines(dash, item)))


def policy_lines(dash: int, item: int) -> Iterator[str]:
    """The policy's application as an item of a list whose dashes stand in column `dash` and whose keys stand in column `item`."""
    indent = " " * item
    yield f"{' ' * dash}-{' ' * (item - dash - 1)}name: {POLICY_NAME}"
    yield f"{indent}import_path: {POLICY_IMPORT_PATH}"
    yield f"{indent}route_prefix: {POLICY_ROUTE}"
    yield f"{indent}deployments:"
    yield f"{indent}- name: Policy"
    yield f"{indent}  user_config:"
    yield f"{indent}    mode: shadow    # measure and plan, touch nothing; auto steers. A change here replaces no replica"
    yield f"{indent}    planner: fleet"


def _behind_comments(source: ServeSource, line: int, column: int) -> int:
    """The last of the comments that follow `line` and are indented further than `column`: they belong to what it ends."""
    lines = source.lines
    while (
        line + 1 < len(lines)
        and (text := lines[line + 1].lstrip(" ")).startswith("#")
        and len(lines[line + 1]) - len(text) > column
    ):
        line += 1
    return line
