"""A configuration file as values whose lines are known: plain Serve configs, and RayServices that hold one in `serveConfigV2`.

PyYAML's nodes know where they stand. A RayService's config is a text inside the manifest; written as a literal block (`|`), its
lines are the manifest's, moved and indented. Fails with `SourceError`, which names the line and the way out; a key that is
there twice is such an error, since YAML would drop the first in silence. So are aliases that make a short file a huge one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from nightjar.deployments.configuration.check.findings import Place

RAY_SERVICE: Final = "RayService"
SERVE_CONFIG_FIELD: Final = "serveConfigV2"
OF_CHART_VALUES: Final = frozenset(
    {"models", "serveConfigV2", "policy", "workerGroups", "head", "image", "rayVersion", "modelStore", "autoscaler", "loadTest"}
)
"""Fields of our chart's values; a Serve config has none of them."""
MAX_NODES: Final = 100_000
"""Values in one YAML document, each alias counted as what it stands for. A RayService with its status has some hundreds."""


class SourceError(ValueError):
    """Text that is read as no Serve configuration, or not changed. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class ServeSource:
    """One Serve config: its values, its nodes, and where its first line stands in the file."""

    values: Any
    node: yaml.Node | None
    text: str
    first_line: int = 0  # counted from 0
    indent: int = 0  # columns that the file puts before each of its lines
    lines_are_known: bool = True  # False: a RayService's text in quotes or folded, whose lines are all where it begins
    manifest: Any = None  # the RayService that holds it, as plain values
    manifest_node: yaml.Node | None = None

    @property
    def lines(self) -> list[str]:
        """Its text's, without their ends."""
        return [line.removesuffix("\r") for line in self.text.split("\n")]

    def line_of(self, place: Place) -> int:
        """Line in the file, from 1, of the deepest part of `place` that is there: a key's, or an item's.

        A place below `spec` is the manifest's, for a Serve config has no such field.
        """
        if self.manifest_node is not None and place[:1] == ("spec",):
            return _deepest(self.manifest_node, place) + 1
        line = _deepest(self.node, place) if self.lines_are_known else 0
        return self.first_line + line + 1


def read_sources(text: str) -> tuple[ServeSource, ...]:
    """The Serve configs of a file, one for each RayService or for the file itself. Raises SourceError."""
    documents = [each for node in _compose(text) for each in _listed(node, _values(node))]
    manifests = [(node, values) for node, values in documents if isinstance(values, dict) and "kind" in values]
    if not manifests:
        if len(documents) != 1:
            raise SourceError(
                1, f"{len(documents)} YAML documents, none of kind {RAY_SERVICE}; give one Serve config, or manifests"
            )
        ((node, values),) = documents
        _refuse_chart_values(values)
        return (ServeSource(values, node, text),)
    services = [(node, values) for node, values in manifests if values["kind"] == RAY_SERVICE]
    if not services:
        kinds = ", ".join(sorted({str(values["kind"]) for _, values in manifests}))
        raise SourceError(1, f"kind: {kinds}; a {RAY_SERVICE} is needed, or a Serve config with the field applications")
    return tuple(replace(_embedded(text, node), manifest=values, manifest_node=node) for node, values in services)


def _listed(node: yaml.Node, values: Any) -> list[tuple[yaml.Node, Any]]:
    """A document, or those of a `kind: List`, as `kubectl get rayservice -o yaml` prints several, and one asked for by no name."""
    items = _find(node, ("items",))
    if isinstance(values, dict) and str(values.get("kind")).endswith("List") and isinstance(items, yaml.SequenceNode):
        return list(zip(items.value, values["items"], strict=True))
    return [(node, values)]


def _refuse_chart_values(values: Any) -> None:
    """Raises SourceError: they are no Serve config, but a chart makes one of them."""
    if isinstance(values, dict) and "applications" not in values and (found := OF_CHART_VALUES.intersection(values)):
        raise SourceError(
            1,
            f"holds {', '.join(sorted(found))}: values of a Helm chart; render it first, as in "
            "`helm template CHART --values FILE | nightjar check -`",
        )


def _compose(text: str) -> list[yaml.Node]:
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise SourceError(mark.line + 1 if mark else 1, f"not YAML ({problem}); mend it there") from error
    except yaml.YAMLError as error:
        raise SourceError(1, f"not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise SourceError(1, "nested too deeply to be read; no Serve config is") from error


def _values(node: yaml.Node) -> Any:
    _refuse_bombs(node)
    _refuse_doubled_keys(node)
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SourceError(line, f"not plain values ({error.problem}); write a string, number, list or mapping") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a date that is none, a list as a key, !!bool maybe
        raise SourceError(node.start_mark.line + 1, f"not plain values ({error}); put it in quotes") from error
    finally:
        loader.dispose()


def _refuse_bombs(node: yaml.Node) -> None:
    """Raises SourceError for more than MAX_NODES values. Counted without expanding them, each node once."""
    number = _expanded(node, {})
    if number > MAX_NODES:
        many = f"{number:,.0f}" if number < math.inf else "endlessly many"
        message = f"{many} values with its aliases written out; at most {MAX_NODES:,} are read: take aliases out, or split the file"
        raise SourceError(node.start_mark.line + 1, message)


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Values that a node stands for; without end where it holds itself."""
    if (number := known.get(id(node))) is not None:
        return number
    known[id(node)] = math.inf  # until it is known: an alias of itself finds this
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    known[id(node)] = 1.0 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def _refuse_doubled_keys(node: yaml.Node) -> None:
    for mapping in _mappings(node, set()):
        seen: dict[str, int] = {}
        for key, _ in mapping.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line
                if key.value in seen:
                    message = f"is there already, {line - seen[key.value]} lines above; YAML keeps only the last: take one out"
                    raise SourceError(line + 1, f"{key.value}: {message}")
                seen[key.value] = line


def _mappings(node: yaml.Node, seen: set[int]) -> Iterator[yaml.MappingNode]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _mappings(item, seen)


def _embedded(text: str, manifest: yaml.Node) -> ServeSource:
    found = _find(manifest, ("spec", SERVE_CONFIG_FIELD))
    if not isinstance(found, yaml.ScalarNode):
        raise SourceError(
            manifest.start_mark.line + 1, f"spec.{SERVE_CONFIG_FIELD}: no text there; a {RAY_SERVICE} keeps its Serve config in it"
        )
    is_literal = found.style == "|"
    first_line = found.start_mark.line + is_literal
    indent = _indent_of(text.split("\n")[first_line:], found.value.split("\n")) if is_literal else 0
    try:
        nodes = _compose(found.value)
        values = _values(nodes[0]) if nodes else None
    except SourceError as error:
        raise SourceError(first_line + (error.line if is_literal else 1), str(error)) from error
    return ServeSource(values, nodes[0] if nodes else None, found.value, first_line, indent, lines_are_known=is_literal)


def _indent_of(lines: list[str], values: list[str]) -> int:
    """Columns that YAML took off the lines of a literal block: an indicator (`|2`) may leave some of theirs to them."""
    pairs = ((line.rstrip("\r"), value) for line, value in zip(lines, values, strict=False) if value.strip())
    line, value = next(pairs, ("", ""))
    return len(line) - len(value)


def _find(node: yaml.Node | None, place: Place) -> yaml.Node | None:
    for part in place:
        found = _child(node, part)
        if found is None:
            return None
        node = found[1]
    return node


def _deepest(node: yaml.Node | None, place: Place) -> int:
    """The line, from 0, of the deepest part of `place` that is there."""
    line = node.start_mark.line if node is not None else 0
    for part in place:
        found = _child(node, part)
        if found is None:
            break
        mark, node = found
        line = mark.line
    return line


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Mark, yaml.Node] | None:
    """Where a mapping's key or a list's item begins, and what it holds."""
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark, value) for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark, item
    return None


def value_at(values: Any, *place: str | int, default: Any = None) -> Any:
    """What stands at a place of plain values of any form; `default` where nothing does."""
    for part in place:
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return default
    return default if values is None else values


def mapping_in(value: object) -> Mapping[str, Any]:
    """The value where it is a mapping, an empty one for all else."""
    return value if isinstance(value, Mapping) else {}


def mappings_in(value: object) -> list[Mapping[str, Any]]:
    """A list's items, an empty mapping for each that is none; none where it is no list."""
    return [mapping_in(one) for one in value] if isinstance(value, list) else []


def import_path_of(application: Mapping[str, Any]) -> str:
    """With a colon, whichever of Serve's two forms was written."""
    path = str(application.get("import_path"))
    return path if ":" in path else ":".join(path.rsplit(".", 1))
