"""What ways into and out of Nightjar share: a config's applications as text, its edits, and marks that make the way back exact.

Edits leave every other byte alone: comments, blank lines, quotes, line ends. Their places are lines and columns of one Serve
config, as PyYAML's marks count them; `applied` moves them to where that config stands in its file. All edits name places of the
original, so their order does not matter; two edits of one place are a mistake of the caller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import Any, Final

import yaml

from nightjar.deployments.configuration.check.findings import shown
from nightjar.deployments.configuration.check.source import ServeSource, SourceError, import_path_of, read_sources
from nightjar.deployments.llm_config import SteeringOptions

TAKEN_OUT: Final = "# ray.serve.llm only: "
"""Before what was turned into a comment; taking it away restores the line."""
ADDED: Final = "  # nightjar migrate: ray.serve.llm counts GPUs by itself"
"""Behind lines that Nightjar's deployment needs beside the user's own."""
OWN_FIELDS: Final = tuple(SteeringOptions.model_fields)
"""Of an `llm_configs` entry, unknown to ray.serve.llm."""


@dataclass(frozen=True, slots=True)
class Application:
    """An entry of `applications`, with the text's nodes."""

    source: ServeSource
    number: int
    node: yaml.MappingNode
    values: dict[str, Any]

    def import_path(self) -> str:
        """With a colon, whichever form was written."""
        return import_path_of(self.values)

    def refuse(self, place: Sequence[str | int], message: str) -> SourceError:
        """An error at a place below the application."""
        return SourceError(self.source.line_of(("applications", self.number, *place)), message)

    @property
    def models(self) -> list[Any]:
        """Its models, as plain values. Raises SourceError."""
        arguments = self.values.get("args")
        entries = arguments.get("llm_configs") if isinstance(arguments, dict) else None
        if not isinstance(entries, list) or not entries:
            raise self.refuse(("args", "llm_configs"), "args.llm_configs: a list of models is needed")
        return entries

    @property
    def entry(self) -> yaml.MappingNode:
        """Its one model. Raises SourceError."""
        entries = child(child(self.node, "args"), "llm_configs")
        if not isinstance(entries, yaml.SequenceNode) or not entries.value:
            raise self.refuse(("args", "llm_configs"), "args.llm_configs: a list with one model is needed")
        if len(entries.value) > 1:
            message = f"{len(entries.value)} models, and Nightjar serves one per application; give each its own application first"
            raise self.refuse(("args", "llm_configs", 1), message)
        (entry,) = entries.value
        if not isinstance(entry, yaml.MappingNode):
            raise self.refuse(("args", "llm_configs", 0), f"{shown(entry.value)} is no mapping; write the model itself there")
        return entry

    @property
    def entry_values(self) -> dict[str, Any]:
        """The one model, as plain values."""
        values: dict[str, Any] = self.values["args"]["llm_configs"][0]
        return values


def item_nodes(source: ServeSource) -> yaml.SequenceNode:
    """The list of applications. Raises SourceError."""
    nodes = child(source.node, "applications")
    if not isinstance(nodes, yaml.SequenceNode) or not nodes.value:
        raise SourceError(source.line_of(("applications",)), "applications: a list of Serve applications is needed")
    return nodes


def child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """What a mapping holds under a key; None where there is nothing."""
    pair = pair_of(node, key)
    return pair[1] if pair else None


def pair_of(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    """A mapping's key and value."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((pair for pair in pairs if pair[0].value == key), None)


def read_for_edit(text: str) -> tuple[ServeSource, ...]:
    """The Serve configs of a text whose lines are the file's. Raises SourceError."""
    newline_of(text)
    sources = read_sources(text)
    for source in sources:
        if not source.lines_are_known:
            raise SourceError(source.first_line + 1, "serveConfigV2 is no literal block; write it behind `serveConfigV2: |`")
        for token in yaml.scan(source.text):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
                sign = "&" if isinstance(token, yaml.AnchorToken) else "*"
                message = f"{sign}{token.value}: what is shared cannot be edited in one place alone; write it out in each first"
                raise SourceError(source.first_line + token.start_mark.line + 1, message)
    return sources


def edited(text: str, change: Callable[[ServeSource, list[Application], TextEdits], None]) -> str:
    """The text after what `change` edits of each of its Serve configs. Raises SourceError."""
    for source in reversed(read_for_edit(text)):  # from the end, so that lines before stay where they are
        edits = TextEdits()
        change(source, applications_of(source), edits)
        text = edits.applied(text, first_line=source.first_line, indent=source.indent)
    return text


def applications_of(source: ServeSource) -> list[Application]:
    """In the file's order. Raises SourceError."""
    found = []
    for number, (node, values) in enumerate(zip(item_nodes(source).value, source.values["applications"], strict=True)):
        if not isinstance(node, yaml.MappingNode):
            raise SourceError(source.line_of(("applications", number)), f"{shown(values)}: an application is a mapping")
        found.append(Application(source, number, node, values))
    return found


def rename(application: Application, old: str, new: str, edits: TextEdits) -> None:
    """Put the import path `new` in place of `old`, in the form and the quotes that it is written in."""
    node = child(application.node, "import_path")
    assert node is not None
    written = str(application.values["import_path"])
    wanted = new if ":" in written else new.replace(":", ".")
    line, column = node.start_mark.line, node.start_mark.column
    start = application.source.lines[line].find(written, column)
    if start < 0:
        raise application.refuse(("import_path",), f"import_path: {shown(written)} is spread over lines; write {old} on one")
    edits.replace(line, start, start + len(written), wanted)


OTHER_LINE_BREAKS: Final = ("\x85", "\u2028", "\u2029")
"""What ends a line for YAML, and for nothing else."""


@dataclass(slots=True)
class TextEdits:
    """What is to change, collected."""

    replaced: dict[int, list[tuple[int, int, str]]] = field(default_factory=lambda: defaultdict(list))
    after: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    deleted: set[int] = field(default_factory=set)

    def replace(self, line: int, start: int, end: int, text: str) -> None:
        """Put `text` in place of columns `start` to `end` of a line."""
        self.replaced[line].append((start, end, text))

    def insert_after(self, line: int, lines: list[str]) -> None:
        """Put whole lines after a line; -1 is before the first."""
        self.after[line] += lines

    def delete(self, first: int, last: int) -> None:
        """Take whole lines out, both ends included."""
        self.deleted |= set(range(first, last + 1))

    def applied(self, text: str, *, first_line: int = 0, indent: int = 0) -> str:
        """The file's text with the edits, for a config that begins at `first_line` and is indented by `indent` columns."""
        newline = newline_of(text)
        lines = text.split(newline)
        result = lines[:first_line] + [" " * indent + new for new in self.after.get(-1, ())]
        for number, line in enumerate(lines[first_line:]):
            if number not in self.deleted:
                result.append(_edited(line, self.replaced.get(number, ()), indent))
            result += [" " * indent + new for new in self.after.get(number, ())]
        return newline.join(result)


def newline_of(text: str) -> str:
    r"""`"\n"` or `"\r\n"`. Raises SourceError for a text that mixes them, whose lines PyYAML counts otherwise than we do."""
    windows = text.count("\r\n")
    if text.count("\r") != windows or (windows and text.count("\n") != windows) or any(mark in text for mark in OTHER_LINE_BREAKS):
        raise SourceError(1, "line ends are mixed; convert the file to one kind first")
    return "\r\n" if windows else "\n"


def last_line(node: yaml.Node) -> int:
    """The last line that holds something of a node; comments and blank lines behind it are not its own."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        ends = node.value[-1]
        return max(last_line(part) for part in (ends if isinstance(ends, tuple) else (ends,)))
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line


def diff(before: str, after: str, name_before: str, name_after: str) -> str:
    """The unified diff, empty where nothing changed."""
    lines = unified_diff(_split(before), _split(after), name_before, name_after)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _split(text: str) -> list[str]:
    return [f"{line}\n" for line in text.split("\n")[:-1]] + [rest for rest in text.split("\n")[-1:] if rest]


def _edited(line: str, edits: list[tuple[int, int, str]] | tuple[()], indent: int) -> str:
    for start, end, text in sorted(edits, reverse=True):
        line = line[: start + indent] + text + line[end + indent :]
    return line
