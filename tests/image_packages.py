"""What Ray and Nightjar add to the images that the Dockerfile stands on, by pip's own resolver: `python -m tests.image_packages`.

No image is at hand. For each base pip resolves what that image is made from (vLLM, or Ray with its vLLM), and then the same with
Ray and our requirements, held to the first answer; both as `--dry-run --report`, which reads metadata and downloads no wheel of
CUDA. So what is found is of today's package index, not of the day on which an image was built; the build itself is held to the
image by helm/add_nightjar.sh. pip chooses wheels for `--python-version` and evaluates markers for the Python that runs it, so the
image's is put in there; where a pip has that elsewhere, its report shows it and this fails. Fails with pip's own words.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

from tests.contract.__main__ import VERSIONS

ROOT: Final = Path(__file__).parents[1]
PYTHON_OF_IMAGES: Final = "3.12"
PINS: Final = ROOT / "constraints-gpu.txt"
PIP: Final = """\
from pip._vendor.packaging import markers
here = markers.default_environment
there = {{"python_version": "{python}", "python_full_version": "{python}.0"}}
markers.default_environment = lambda: here() | there
from pip._internal.cli.main import main
raise SystemExit(main())
"""
INSTALL: Final = ("install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "--only-binary", ":all:")
HANGS_AFTER_S: Final = 600.0
"""A resolution takes half a minute; this is for an index that does not answer."""

Versions = dict[str, str]
"""Of packages, by canonical name."""


@dataclass(frozen=True, slots=True)
class Base:
    """An image of another project: the Dockerfile's target on it, and what its packages follow from."""

    target: str
    requirement: str


@dataclass(frozen=True, slots=True)
class Addition:
    """What a base holds, what our target holds, and the pins of vLLM's that the latter breaks."""

    base: Base
    before: Versions
    after: Versions
    broken_pins: tuple[str, ...]

    @property
    def changed(self) -> Versions:
        """What the base has in another version, or not any more."""
        return {name: version for name, version in self.before.items() if self.after.get(name) != version}

    @property
    def added(self) -> Versions:
        """What the base does not have."""
        return {name: version for name, version in self.after.items() if name not in self.before}


def bases() -> tuple[Base, ...]:
    """As the Dockerfile names them: vLLM's of each version that can be given to it, and Ray's."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (ray,) = re.findall(r"^ARG RAY_LLM=.*:([\d.]+)-", text, re.MULTILINE)
    return *(Base("gpu", f"vllm=={version}") for version in VERSIONS), Base("ray-llm", f"ray[llm,serve]=={ray}")


def our_requirements() -> list[str]:
    """Those of the wheel with the extra that an image gets, `serve`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["serve"]]


def pins() -> Versions:
    """What helm/add_nightjar.sh gives pip for packages that the image has not."""
    lines = PINS.read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def addition(base: Base) -> Addition:
    """Resolve a base twice. Raises AssertionError with pip's words where nothing fits."""
    before = _versions(_metadata(resolved([base.requirement], {})))
    packages = _metadata(resolved([base.requirement, *our_requirements()], pins() | before))
    return Addition(base, before, _versions(packages), tuple(broken_pins(packages)))


def broken_pins(packages: Sequence[dict[str, Any]]) -> list[str]:
    """vLLM's requirements, on the images' Python, that the packages of one resolution do not satisfy."""
    versions = _versions(packages)
    (vllm,) = (package for package in packages if package["name"] == "vllm")
    needed = (Requirement(text) for text in vllm["requires_dist"])
    environment = {"python_version": PYTHON_OF_IMAGES, "python_full_version": f"{PYTHON_OF_IMAGES}.0", "extra": ""}
    return [
        f"{requirement} (got {versions[name]})"
        for requirement in needed
        if (requirement.marker is None or requirement.marker.evaluate(environment))
        and (name := canonicalize_name(requirement.name)) in versions
        and not requirement.specifier.contains(versions[name], prereleases=True)
    ]


def resolved(requirements: Sequence[str], constraints: Versions, python: str = PYTHON_OF_IMAGES) -> list[dict[str, Any]]:
    """What pip would install for that Python on this platform, each as its report has it: `metadata`, `download_info`."""
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "constraints.txt"
        held.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()), encoding="utf-8")
        place = ("--python-version", python, "--target", str(Path(folder) / "target"), "--constraint", str(held))
        command = [sys.executable, "-c", PIP.format(python=python), *INSTALL, *place, *requirements]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER_S, check=False)
    assert done.returncode == 0, f"{' '.join(requirements)}\n{done.stderr[-4000:]}"
    report = json.loads(done.stdout)
    assert report["environment"]["python_version"] == python, "this pip evaluates markers for another Python"
    packages: list[dict[str, Any]] = report["install"]
    return packages


def _metadata(packages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [package["metadata"] for package in packages]


def _versions(packages: Sequence[dict[str, Any]]) -> Versions:
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


def main() -> int:
    """Print a row per image, and each package that changes; the exit code."""
    found = [addition(base) for base in bases()]
    table = Table("target", "its base", "packages", "added", "changed", "pins of vLLM broken")
    for column in table.columns:
        column.overflow = "fold"
    for each in found:
        counts = (len(each.before), len(each.added), len(each.changed), len(each.broken_pins))
        table.add_row(each.base.target, each.base.requirement.replace("[", r"\["), *map(str, counts))
    console = Console()
    console.print(table)
    for each in found:
        console.print(f"{each.base.requirement}: adds {', '.join(f'{name} {version}' for name, version in each.added.items())}")
    return 1 if any(each.changed or each.broken_pins for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
