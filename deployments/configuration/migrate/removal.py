"""Nightjar out of a configuration again: what `migrate` did is undone byte for byte, whatever else was edited meanwhile.

Beside that, what only Nightjar's deployment understands is taken out: its own fields and the kill switch. Fails with
`SourceError`.
"""

from __future__ import annotations

import yaml

from nightjar.cluster.serve_config import POLICY_IMPORT_PATH
from nightjar.deployments.configuration.check.findings import shown
from nightjar.deployments.configuration.check.hosted import DEPLOYMENT_PREFIX, HOSTED_IMPORT_PATH, RAY_IMPORT_PATH, SERVER
from nightjar.deployments.configuration.check.report import MODEL_IMPORT_PATH
from nightjar.deployments.configuration.check.source import ServeSource, SourceError, mappings_in, value_at
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
from nightjar.deployments.llm_config import DEPLOYMENT_NAME, HOSTED_OPTIONS


def remove_nightjar(text: str) -> str:
    """The text as ray.serve.llm takes it; unchanged where Nightjar is not in it. Raises SourceError."""
    return edited(text, _remove)


def _remove(source: ServeSource, applications: list[Application], edits: TextEdits) -> None:
    for application in applications:
        if application.import_path() == MODEL_IMPORT_PATH:
            rename(application, MODEL_IMPORT_PATH, RAY_IMPORT_PATH, edits)
            _check_added(application)
            _take_out_ours(application, edits)
        elif application.import_path() == HOSTED_IMPORT_PATH:
            rename(application, HOSTED_IMPORT_PATH, RAY_IMPORT_PATH, edits)
            _take_out_hosted(application, edits)
        elif application.import_path() == RAY_IMPORT_PATH and SERVER in _servers(application):
            _take_out_hosted(application, edits)
    _remove_policy(source, applications, edits)
    for number, line in enumerate(source.lines):
        if line.endswith(ADDED):
            edits.delete(number, number)
        elif (start := line.find(TAKEN_OUT)) >= 0:
            edits.replace(number, start, start + len(TAKEN_OUT), "")


def _remove_policy(source: ServeSource, applications: list[Application], edits: TextEdits) -> None:
    nodes = item_nodes(source)
    for application in applications:
        if application.import_path() != POLICY_IMPORT_PATH:
            continue
        if len(applications) == 1:
            raise application.refuse((), "the policy's application is the only one; there is nothing that could go on without it")
        first, last = application.node.start_mark, application.node
        if not nodes.flow_style:
            if source.lines[first.line][: first.column].strip() != "-":
                raise application.refuse((), "the policy's application begins below its dash; put both on one line first")
            edits.delete(first.line, last_line(last))
            continue
        is_first = application.number == 0
        start = first if is_first else applications[application.number - 1].node.end_mark
        end = applications[1].node.start_mark if is_first else last.end_mark
        if start.line != end.line:
            raise application.refuse((), "the policy's application in brackets spans lines; write it on one line first")
        edits.replace(start.line, start.column, end.column, "")


def _check_added(application: Application) -> None:
    """Lines that `migrate` added go as a whole, so nothing of the user's own may stand in what they begin."""
    lines = application.source.lines
    options = pair_of(application.entry, "deployment_config")
    actor = pair_of(options[1], "ray_actor_options") if options else None
    for pair, ours in ((options, {"ray_actor_options", "user_config"}), (actor, {"num_gpus"})):
        if pair is None or not lines[pair[0].start_mark.line].endswith(ADDED) or not isinstance(pair[1], yaml.MappingNode):
            continue
        theirs = [str(key.value) for key, _ in pair[1].value if key.value not in ours]
        if theirs:
            line = application.source.first_line + pair[0].start_mark.line + 1
            message = (
                f"{pair[0].value}: migrate added this line, and {', '.join(theirs)} stands there now; to keep it, take the remark "
                "behind it off, and num_gpus out"
            )
            raise SourceError(line, message)


def _take_out_ours(application: Application, edits: TextEdits) -> None:
    """What only Nightjar's deployment understands: its own fields and the kill switch."""
    for key in OWN_FIELDS:
        _delete_key(application, application.entry, key, edits)
    _delete_alone_or_within(application, application.entry, "deployment_config", "user_config", edits)
    for deployment in application.values.get("deployments") or ():
        if (
            not isinstance(deployment, dict)
            or deployment.get("name") != DEPLOYMENT_NAME
            or set(deployment) - {"name", "user_config"}
        ):
            message = f"{shown(deployment)} is more than a kill switch; move its options to deployment_config, and take it out"
            raise application.refuse(("deployments",), f"deployments: {message}")
    _delete_key(application, application.node, "deployments", edits)


def _take_out_hosted(application: Application, edits: TextEdits) -> None:
    """The same where ray.serve.llm is the host: its own server has neither the options nor a `user_config`."""
    entries = child(child(application.node, "args"), "llm_configs")
    for entry in entries.value if isinstance(entries, yaml.SequenceNode) else ():
        if getattr(child(entry, "server_cls"), "value", None) == SERVER:
            _delete_key(application, entry, "server_cls", edits)
        _delete_alone_or_within(application, entry, "experimental_configs", HOSTED_OPTIONS, edits)
        _delete_alone_or_within(application, entry, "deployment_config", "user_config", edits)
    deployments = child(application.node, "deployments")
    nodes = deployments.value if isinstance(deployments, yaml.SequenceNode) else []
    switches = [
        node
        for node, values in zip(nodes, application.values.get("deployments") or (), strict=True)
        if isinstance(values, dict) and str(values.get("name")).startswith(DEPLOYMENT_PREFIX) and "user_config" in values
    ]
    if switches and all(node in switches and len(node.value) == len(("name", "user_config")) for node in nodes):
        _delete_key(application, application.node, "deployments", edits)
        return
    for node in switches:
        _delete_key(application, node, "user_config", edits)


def _servers(application: Application) -> list[object]:
    return [model.get("server_cls") for model in mappings_in(value_at(application.values, "args", "llm_configs"))]


def _delete_alone_or_within(application: Application, entry: yaml.Node, outer: str, key: str, edits: TextEdits) -> None:
    """A key of a mapping below `entry`, with the mapping where it holds nothing else."""
    mapping = child(entry, outer)
    if child(mapping, key) is None:
        return
    is_alone = isinstance(mapping, yaml.MappingNode) and len(mapping.value) == 1
    _delete_key(application, entry if is_alone else mapping, outer if is_alone else key, edits)


def _delete_key(application: Application, mapping: yaml.Node | None, key: str, edits: TextEdits) -> None:
    pair = pair_of(mapping, key)
    if pair is None:
        return
    assert isinstance(mapping, yaml.MappingNode)
    name, value = pair
    lines, number = application.source.lines, mapping.value.index(pair)
    if not mapping.flow_style and not lines[name.start_mark.line][: name.start_mark.column].strip():
        edits.delete(name.start_mark.line, last_line(value))
        return
    if number == 0 and len(mapping.value) == 1:
        start, end = name.start_mark, value.end_mark
    elif number == 0:
        start, end = name.start_mark, mapping.value[1][0].start_mark
    else:
        start, end = mapping.value[number - 1][1].end_mark, value.end_mark
    if start.line != end.line:
        line = application.source.first_line + name.start_mark.line + 1
        raise SourceError(line, f"{key}: only Nightjar knows it, and it shares a line with others; take it out by hand")
    edits.replace(start.line, start.column, end.column, "")
