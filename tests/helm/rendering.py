"""The chart rendered by the helm command line, as plain objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm/nightjar"
EXAMPLES: Final = tuple(sorted((CHART / "examples").glob("*.yaml")))
ALL_ON: Final = (CHART / "examples/production.yaml", CHART / "examples/load-test.yaml")
"""Two values files that together turn on every object which needs no file of the chart."""

HELM: Final = os.environ.get("HELM") or shutil.which("helm", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
needs_helm: Final = pytest.mark.skipif(not HELM, reason="the helm command line is absent: `make chart` installs it into .venv")

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Release:
    """What one `helm template` gave."""

    manifests: tuple[Manifest, ...]

    def all(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str) -> Manifest:
        (manifest,) = self.all(kind)
        return manifest

    @property
    def cluster(self) -> dict[str, Any]:
        """The RayService's `rayClusterConfig`."""
        cluster: dict[str, Any] = self.one("RayService")["spec"]["rayClusterConfig"]
        return cluster

    @property
    def serve_config(self) -> dict[str, Any]:
        """The Serve config inside the RayService."""
        config: dict[str, Any] = yaml.safe_load(self.one("RayService")["spec"]["serveConfigV2"])
        return config

    def ray_pods(self) -> dict[str, dict[str, Any]]:
        """Pod templates by name: `head`, and each worker group's."""
        workers = {group["groupName"]: group["template"] for group in self.cluster["workerGroupSpecs"]}
        return {"head": self.cluster["headGroupSpec"]["template"], **workers}

    def pod_specs(self) -> Iterator[dict[str, Any]]:
        """The spec of every pod that the release leads to."""
        yield from (template["spec"] for template in self.ray_pods().values())
        yield from (job["spec"]["template"]["spec"] for job in self.all("Job"))
        yield from (pod["spec"] for pod in self.all("Pod"))


def release(
    *files: Path, values: Mapping[str, Any] | None = None, name: str = "llm", chart: Path = CHART, sets: Sequence[str] = ()
) -> Release:
    """The chart rendered with values files, then `values`, then `--set` strings."""
    done = _template(files, values, name, chart, sets)
    assert done.returncode == 0, done.stderr
    return Release(tuple(manifest for manifest in yaml.safe_load_all(done.stdout) if manifest))


def refusal(*files: Path, values: Mapping[str, Any] | None = None, name: str = "llm", chart: Path = CHART) -> str:
    """What helm says of values that the chart must refuse."""
    done = _template(files, values, name, chart, ())
    assert done.returncode != 0, "these values were accepted"
    return done.stderr


def notes_of(*options: str) -> str:
    """What helm says after an install with these options."""
    done = helm("install", "llm", str(CHART), "--namespace", "serving", "--dry-run=client", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


def helm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run helm."""
    assert HELM
    return subprocess.run([HELM, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)


def _template(
    files: Sequence[Path], values: Mapping[str, Any] | None, name: str, chart: Path, sets: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    options = [option for path in files for option in ("--values", str(path))]
    options += ["--values", "-"] if values else []
    options += [option for text in sets for option in ("--set", text)]
    return helm("template", name, str(chart), "--namespace", "serving", *options, stdin=json.dumps(values) if values else "")
