"""Nightjar out of a configuration again: what `migrate` did is undone byte for byte, whatever else was edited meanwhile.

Beside that, what only Nightjar's deployment understands is taken out: its own fields and the kill switch. Fails with
`MigrationError`.
"""

from __future__ import annotations

import yaml

from nightjar.cluster.serve_config import POLICY_IMPORT_PATH
from nightjar.deployments.configuration.checking import MODEL_IMPORT_PATH, RAY_IMPORT_PATH
from nightjar.deployments.configuration.findings import shown
from nightjar.deployments.configuration.migration import (
    ADDED,
    OWN_FIELDS,
    TAKEN_OUT,
    Application,
    MigrationError,
    applications_of,
    child,
    item_nodes,
    pair_of,
    read_for_edit,
    rename,
)
from nightjar.deployments.configuration.source import ServeSource
from nightjar.deployments.configuration.text_edits import TextEdits, last_line
from nightjar.deployments.llm_config import DEPLOYMENT_NAME


def remove_nightjar(text: str) -> str:
    """The text as ray.serve.llm takes it; unchanged where Nightjar is not in it. Raises MigrationError."""
    for source in reversed(read_for_edit(text)):
        edits = TextEdits()
        applications = applications_of(source)
        for application in applications:
            if application.import_path() == MODEL_IMPORT_PATH:
                rename(application, MODEL_IMPORT_PATH, RAY_IMPORT_PATH, edits)
                _check_added(application)
                _take_out_ours(application, edits)
        _remove_policy(source, applications, edits)
        for number, line in enumerate(source.lines):
            if line.endswith(ADDED):
                edits.delete(number, number)
            elif (start := line.find(TAKEN_OUT)) >= 0:
                edits.replace(number, start, start + len(TAKEN_OUT), "")
        text = edits.applied(text, first_line=source.first_line, indent=source.indent)
    return text


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
    """Lines that `migrate` added go as a whole, so nobody may have written anything of theirs into what they begin."""
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
            raise MigrationError(line, message)


def _take_out_ours(application: Application, edits: TextEdits) -> None:
    """What only Nightjar's deployment understands: its own fields and the kill switch."""
    for key in OWN_FIELDS:
        _delete_key(application, application.entry, key, edits)
    options = child(application.entry, "deployment_config")
    if child(options, "user_config") is not None:
        is_alone = isinstance(options, yaml.MappingNode) and len(options.value) == 1
        if is_alone:
            _delete_key(application, application.entry, "deployment_config", edits)
        else:
            _delete_key(application, options, "user_config", edits)
    for deployment in application.values.get("deployments") or ():
        if (
            not isinstance(deployment, dict)
            or deployment.get("name") != DEPLOYMENT_NAME
            or set(deployment) - {"name", "user_config"}
        ):
            message = f"{shown(deployment)} is more than a kill switch; move its options to deployment_config, and take it out"
            raise application.refuse(("deployments",), f"deployments: {message}")
    _delete_key(application, application.node, "deployments", edits)


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
        raise MigrationError(line, f"{key}: only Nightjar knows it, and it shares a line with others; take it out by hand")
    edits.replace(start.line, start.column, end.column, "")
