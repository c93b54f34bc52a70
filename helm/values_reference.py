"""Keeps two generated parts of the chart: the README's table of values, and the schema of policy.settings.

`python -m helm.values_reference` writes both, `--check` fails where they are out of date. The table comes from the comments of
values.yaml: the lines directly above a key say what it is. A value without any is an error, so that none goes undocumented. The
schema comes from Nightjar's operator settings, so that a misspelt or impossible one is refused before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from nightjar.policy.wire.operator import OperatorSettings

CHART: Final = Path(__file__).parent / "nightjar"
BEGIN: Final = "<!-- values: begin, written by python -m helm.values_reference -->"
END: Final = "<!-- values: end -->"
LONGEST_DEFAULT: Final = 60
"""Characters of a default that are shown; longer ones are pointed to."""

_ANNOTATIONS: Final = ("title", "description", "default")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the generated parts; the exit code."""
    parser = argparse.ArgumentParser(description="Writes the chart's table of values and its schema of policy.settings.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is out of date")
    options = parser.parse_args(arguments)
    stale = [path for path, text in generated(CHART).items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if options.check:
            sys.stderr.write(f"{path} is out of date: python -m helm.values_reference\n")
        else:
            path.write_text(generated(CHART)[path], encoding="utf-8")
    return 1 if stale and options.check else 0


def generated(chart: Path) -> dict[Path, str]:
    """What the files with generated parts should hold. Raises ValueError."""
    readme, schema = chart / "README.md", chart / "values.schema.json"
    table = values_table((chart / "values.yaml").read_text(encoding="utf-8"))
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    return {
        readme: pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", readme.read_text(encoding="utf-8")),
        schema: schema_with_settings(schema.read_text(encoding="utf-8")),
    }


def values_table(values: str) -> str:
    """The Markdown table of a values.yaml. Raises ValueError."""
    root = yaml.compose(values, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    rows = "\n".join(_rows(root, values.splitlines(), ""))
    return f"| value | default | what it is |\n| --- | --- | --- |\n{rows}"


def schema_with_settings(schema: str) -> str:
    """The chart's schema with `$defs.policySettings` as Nightjar's operator settings are now."""
    document = json.loads(schema)
    settings = _plain(OperatorSettings.model_json_schema())
    settings.pop("$defs")
    settings["properties"]["mode"] = {"anyOf": [{"type": "string", "pattern": "^(auto|shadow|off|pin=[0-9]+)$"}, {"const": False}]}
    document["$defs"]["policySettings"] = settings
    return json.dumps(document, indent=2) + "\n"


def _rows(node: yaml.MappingNode, lines: Sequence[str], prefix: str) -> Iterator[str]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if comment := _comment_above(key.start_mark.line, lines):
            yield f"| `{name}` | {_default(value)} | {comment.replace('|', chr(92) + '|')} |"
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _rows(value, lines, f"{name}.")
        else:
            raise ValueError(f"{name}: no comment above it in values.yaml")


def _comment_above(line: int, lines: Sequence[str]) -> str:
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.strip().removeprefix("#").strip() for text in lines[first:line])


def _default(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node))
    text = json.dumps(value)
    return f"`{text}`" if len(text) <= LONGEST_DEFAULT else "see values.yaml"


def _plain(schema: Any) -> Any:
    """The schema without titles, descriptions and defaults, which no validation needs."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
    return {
        name: {field: _plain(value) for field, value in part.items()} if name == "properties" else _plain(part)
        for name, part in kept.items()
    }


if __name__ == "__main__":
    sys.exit(main())
