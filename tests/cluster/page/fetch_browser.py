"""Puts a browser where it is asked for: `python -m tests.cluster.page.fetch_browser .venv/bin/chromium-headless-shell`.

Chromium's headless shell from Debian's packages, with the libraries that this machine lacks and one font, unpacked and not
installed: that needs no root and touches nothing outside one folder. Fails where apt does, in apt's own words.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

PACKAGES: Final = ("chromium-headless-shell", "fonts-dejavu-core")
BROWSER: Final = "usr/lib/chromium/chromium-headless-shell"
FONTS: Final = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/usr/share/fonts</dir><cachedir>{folder}/font-cache</cachedir></fontconfig>
"""
WRAPPER: Final = """#!/bin/sh
export LD_LIBRARY_PATH='{libraries}' FONTCONFIG_FILE='{folder}/fonts.conf'
exec '{folder}/{browser}' "$@"
"""


def main(target: Path, folder: Path) -> None:
    """Unpack below `folder`; `target` becomes a script that starts the browser with what lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        download(folder)
    except subprocess.CalledProcessError:  # package lists that are missing or old
        run("apt-get", "update")
        download(folder)
    for package in folder.glob("*.deb"):
        run("dpkg-deb", "--extract", str(package), str(folder))
        package.unlink()
    (folder / "fonts.conf").write_text(FONTS.format(folder=folder))
    libraries = ":".join(sorted({str(path.parent) for path in folder.glob("usr/lib/*-linux-gnu*/**/*.so*")}))
    target.write_text(WRAPPER.format(folder=folder, browser=BROWSER, libraries=libraries))
    target.chmod(0o755)


def download(folder: Path) -> None:
    """PACKAGES and what apt would install with them here, into `folder`. Raises CalledProcessError."""
    simulate = ["apt-get", "install", "--simulate", "--no-install-recommends", *PACKAGES]
    planned = subprocess.run(simulate, capture_output=True, text=True, check=True).stdout.splitlines()
    missing = [line.split()[1] for line in planned if line.startswith("Inst ")]
    run("apt-get", "download", *dict.fromkeys([*PACKAGES, *missing]), folder=folder)


def run(*command: str, folder: Path | None = None) -> None:
    """Run a command, its output shown. Raises CalledProcessError."""
    subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    where = Path(sys.argv[1]).absolute()
    main(where, where.parents[1] / "opt" / "chromium")
