"""What is generated is up to date, and no value lacks its comment or its place in the schema. Needs no helm."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from helm.values_reference import generated, values_table
from tests.helm.rendering import CHART, EXAMPLES, ROOT

FREE_FORM = {("podSecurityContext",), ("containerSecurityContext",)}
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_readme_and_schema_are_what_the_generator_writes() -> None:
    stale = [path.name for path, text in generated(CHART).items() if path.read_text() != text]
    assert stale == [], "run `python -m helm.values_reference`"


def test_the_table_takes_the_comment_above_a_key_and_its_default() -> None:
    values = "group:\n  # How many.\n  # More than one line.\n  count: 3\n  # A | b.\n  names: [x]\n"
    assert values_table(values).splitlines()[2:] == [
        "| `group.count` | `3` | How many. More than one line. |",
        '| `group.names` | `["x"]` | A \\| b. |',
    ]


def test_a_value_without_a_comment_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a\.b: no comment"):
        values_table("a:\n  b: 1\n")


def test_the_schema_takes_the_defaults_and_knows_no_value_that_they_lack() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(values)] == []
    for keys in ((), *((key,) for key, value in values.items() if isinstance(value, dict) and value)):
        assert unknown_to_defaults(values, *keys) <= {"global"}, keys


def unknown_to_defaults(values: dict[str, Any], *keys: str) -> set[str]:
    """Fields of the schema that values.yaml does not show, at one place; free-form Kubernetes objects aside."""
    part = SCHEMA
    for key in keys:
        part, values = part["properties"][key], values[key]
    return set() if "$ref" in part or keys in FREE_FORM else set(part["properties"]) - set(values)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_schema_takes_every_example(example: Any) -> None:
    values = over(yaml.safe_load((CHART / "values.yaml").read_text()), yaml.safe_load(example.read_text()))
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(values)] == []


def over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A file's values over the defaults, as Helm merges them before it asks the schema."""
    return defaults | {
        key: over(defaults[key], value) if isinstance(value, dict) and isinstance(defaults.get(key), dict) else value
        for key, value in values.items()
    }


def test_every_object_of_ours_is_closed() -> None:
    def open_objects(part: Any, path: str) -> list[str]:
        if not isinstance(part, dict):
            return []
        names = part.get("properties", {}).values()  # where all are forbidden, the object is Kubernetes' own and they are ours
        here = [path] if any(name is not False for name in names) and part.get("additionalProperties") is not False else []
        return here + [found for key, value in part.items() for found in open_objects(value, f"{path}/{key}")]

    assert open_objects(SCHEMA, "") == []


def test_the_charts_app_version_is_the_packages() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == package
