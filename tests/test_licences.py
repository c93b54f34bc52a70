"""The list of licences is of what pyproject.toml names today."""

from __future__ import annotations

from importlib import metadata

import pytest

from tests.licences import ROOT, SAME_CODE, Dependency, dependencies, row

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/licences.md").read_text(encoding="utf-8").splitlines()


def is_installed(name: str) -> bool:
    try:
        metadata.version(SAME_CODE.get(name, name))
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("dependency", list(dependencies(PYPROJECT)), ids=lambda dependency: dependency.requirement)
def test_every_dependency_stands_on_the_page_with_the_licence_that_it_names(dependency: Dependency) -> None:
    (line,) = (line for line in PAGE if line.startswith(f"| {dependency.extra or 'all'} | `{dependency.requirement}` |"))
    if is_installed(dependency.name):
        assert line == row(dependency)


def test_the_page_names_nothing_else() -> None:
    assert sum(line.startswith("| ") and "`" in line for line in PAGE) == len(list(dependencies(PYPROJECT)))


def test_all_that_runs_in_production_has_a_reason() -> None:
    told = [dependency for dependency in dependencies(PYPROJECT) if dependency.extra != "dev"]
    assert [dependency.requirement for dependency in told if not dependency.reason] == []
