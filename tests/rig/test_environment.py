"""What the rig puts into a process's environment, and that nothing of it reaches a process that did not ask."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig import plugins
from tests.rig.environment import ASYNC_VARIABLE, ROOT, rig_environment

ENTRY_POINTS = """
from importlib.metadata import entry_points
for group in ("vllm.platform_plugins", "vllm.general_plugins", "triton.backends"):
    print(group, *sorted(point.value for point in entry_points(group=group) if "rig" in point.value))
"""


def found(environment: dict[str, str]) -> list[str]:
    """Entry points of the rig that a process with this environment finds, by group."""
    command = [sys.executable, "-c", ENTRY_POINTS]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_process_finds_the_plugins_and_a_triton_backend_only_where_triton_is_wanted(tmp_path: Path) -> None:
    on_v2 = found(rig_environment(tmp_path, runner=2, asynchronous=True))
    assert on_v2 == [
        "vllm.platform_plugins tests.rig.plugins:platform",
        "vllm.general_plugins tests.rig.plugins:mend_interpreter",
        "triton.backends tests.rig.triton_cpu",
    ]
    on_v1 = found(rig_environment(tmp_path, runner=1, asynchronous=True))
    assert on_v1 == [*on_v2[:2], "triton.backends"]


def test_what_the_process_had_on_its_path_stays_there_behind_the_repository(tmp_path: Path) -> None:
    for inherited in ("/a:/b", f"/a:{ROOT}:/b"):
        values = rig_environment(tmp_path, runner=2, asynchronous=True, environ={"PYTHONPATH": inherited})
        assert values["PYTHONPATH"].split(os.pathsep)[-3:] == [ROOT, "/a", "/b"]


def test_a_process_finds_the_modules_that_the_plugins_name_wherever_it_starts(tmp_path: Path) -> None:
    environment = rig_environment(tmp_path / "rig", runner=2, asynchronous=True, environ={})
    command = [sys.executable, "-c", "import tests.rig.plugins as plugins; print(plugins.platform())"]
    done = subprocess.run(command, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tests.rig.platform.RigPlatform"


def test_no_installed_distribution_brings_the_rig_into_an_engine_of_production() -> None:
    points = [point for distribution in importlib.metadata.distributions() for point in distribution.entry_points]
    assert [point for point in points if point.value.startswith("nightjar.")]
    assert not [point for point in points if point.value.startswith("tests.")]


def test_without_its_variables_the_platform_is_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ASYNC_VARIABLE, raising=False)
    assert plugins.platform() is None
    for asynchronous in "01":
        monkeypatch.setenv(ASYNC_VARIABLE, asynchronous)
        module, _, name = (plugins.platform() or "").rpartition(".")
        assert (module, name) == ("tests.rig.platform", "RigPlatform")
