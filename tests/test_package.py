"""What a user gets who installs the package: wheel and sdist, built from this checkout, and the wheel in an empty environment.

Needs the package index, for hatchling and for what the wheel depends on; at the versions of constraints-cpu.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.package

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = ("policy", "cluster", "deployments", "loadtests")
PIP_INSTALL: Final = ("-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints-cpu.txt"))


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What a command prints; where it fails, its words are the error."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("NIGHTJAR_")}
    done = subprocess.run(command, cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def built(folder: Path) -> tuple[Path, Path]:
    """The wheel of this checkout, and the one that its sdist builds."""
    backend = folder / "backend"
    run(sys.executable, *PIP_INSTALL, "--target", backend, "hatchling", cwd=folder)
    build = (sys.executable, "-m", "hatchling", "build", "-d")
    run(*build, folder / "dist", cwd=ROOT, PYTHONPATH=str(backend))
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(*build, folder / "again", "-t", "wheel", cwd=unpacked, PYTHONPATH=str(backend))
    (wheel,), (again,) = (folder / "dist").glob("*.whl"), (folder / "again").glob("*.whl")
    return wheel, again


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], folder: Path) -> Path:
    """The programs of an environment that had nothing in it but pip, and then the wheel with its dependencies."""
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=folder)
    run(environment / "bin" / "python", *PIP_INSTALL, built[0], cwd=folder)
    return environment / "bin"


def checksums(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_the_wheel_holds_every_file_of_the_rooms_and_no_other(built: tuple[Path, Path]) -> None:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS, cwd=ROOT).split()
    wanted = {f"nightjar/{name}" for name in listed if (ROOT / name).is_file()} | {"nightjar/__init__.py", "nightjar/py.typed"}
    assert {name for name in checksums(built[0]) if ".dist-info/" not in name} == wanted


def test_the_sdist_builds_the_same_wheel(built: tuple[Path, Path]) -> None:
    wheel, again = built
    assert checksums(again) == checksums(wheel)


def test_the_installed_package_is_imported_from_its_environment_and_typed(installed: Path, folder: Path) -> None:
    place = Path(run(installed / "python", "-c", "import nightjar.policy; print(nightjar.__file__)", cwd=folder).strip())
    assert place.is_relative_to(installed.parent)
    assert place.with_name("py.typed").is_file()


def test_the_installed_command_tells_what_there_is(installed: Path, folder: Path) -> None:
    told = run(installed / "nightjar", "--help", cwd=folder)
    assert all(command in told for command in ("run", "status", "check", "migrate", "simulate"))


def test_the_installed_simulator_reads_its_profiles_and_finishes(installed: Path, folder: Path) -> None:
    small = ("--quick", "--only", "steady", "--planner", "fleet", "--planner", "off", "--seeds", "1")
    run(installed / "nightjar", "simulate", *small, "--runs", folder / "runs", cwd=folder)
    summary = json.loads((folder / "runs" / "latest" / "summary.json").read_text(encoding="utf-8"))
    assert summary["failed"] == 0
    assert summary["runs"] > 0


def test_the_installed_assess_finds_its_template_and_writes_a_page(installed: Path, folder: Path) -> None:
    run(installed / "nightjar", "assess", "--sample", "--page", folder / "page.html", cwd=folder)
    assert (folder / "page.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_the_installed_migrate_knows_vllms_names(installed: Path, folder: Path) -> None:
    told = run(installed / "nightjar", "migrate", "vllm serve some/model --max-model-len 100", cwd=folder)
    assert "max_model_len" in told
