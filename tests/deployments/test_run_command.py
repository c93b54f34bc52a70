"""`nightjar run` of a file that `nightjar check` refuses starts nothing, and says all that is wrong on one screen."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.deployments import run_command
from nightjar.deployments.engine.environment import no_gpu_here

MODEL = """\
applications:
- import_path: nightjar.deployments.app:build
  args:
    llm_configs:
    - model_loading_config: {{model_id: chat, model_source: {source}}}
      engine_kwargs: {{{kwargs}}}
      deployment_config: {{ray_actor_options: {{num_gpus: 0}}}}
"""
NO_GPU_NO_DRAFTER = "engine_kwargs hold no speculative_config"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would hold a cluster."""
    commands: list[list[str]] = []

    class Session:
        def __init__(self, command: list[str]) -> None:
            commands.append(command)

        def run(self) -> int:
            return 0

    monkeypatch.setattr(run_command, "LocalSession", Session)
    return commands


def write(folder: Path, *, kwargs: str = "", source: str = "someone/chat") -> str:
    file = folder / "serve.yaml"
    file.write_text(MODEL.format(kwargs=kwargs, source=source))
    return str(file)


def test_a_misspelt_argument_of_the_engine_starts_nothing(tmp_path: Path, started: list[list[str]]) -> None:
    file = write(tmp_path, kwargs="max_num_seq: 4")
    shown = CliRunner().invoke(app, ["run", file])
    assert (shown.exit_code, shown.stdout, started) == (1, "", [])
    assert f"{file}:6: error: " in shown.stderr
    assert "did you mean max_num_seqs?" in shown.stderr
    assert shown.stderr.endswith(f"error: {file} has one error; nothing was started\n")


def test_an_absent_model_folder_starts_nothing_on_the_machine_that_should_have_it(tmp_path: Path, started: list[list[str]]) -> None:
    shown = CliRunner().invoke(app, ["run", write(tmp_path, source="/models-of-the-cluster/chat")])
    assert (shown.exit_code, started) == (1, [])
    assert "model '/models-of-the-cluster/chat': no such folder" in shown.stderr


def test_a_warning_is_shown_and_what_is_only_advice_is_not(tmp_path: Path, started: list[list[str]]) -> None:
    shown = CliRunner().invoke(app, ["run", write(tmp_path)])
    assert (shown.exit_code, shown.stdout, len(started)) == (0, "", 1)
    assert ": warning: " in shown.stderr
    assert NO_GPU_NO_DRAFTER in shown.stderr
    assert "advice" not in shown.stderr


def test_many_errors_fit_one_screen(tmp_path: Path, started: list[list[str]]) -> None:
    file = write(tmp_path, kwargs=", ".join(f"no_{number}: 1" for number in range(40)))
    shown = CliRunner().invoke(app, ["run", file])
    assert (shown.exit_code, started) == (1, [])
    assert len(shown.stderr.splitlines()) == run_command.MOST_LINES + 2
    assert f"and 20 more: nightjar check {file}" in shown.stderr


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, started: list[list[str]]) -> None:
    shown = CliRunner().invoke(app, ["run", str(tmp_path / "nowhere.yaml")])
    assert (shown.exit_code, started) == (1, [])
    assert shown.stderr.startswith("error: ")
    assert len(shown.stderr.splitlines()) == 1


def test_a_file_for_gpus_starts_nothing_on_a_machine_without(
    tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path)
    Path(file).write_text(Path(file).read_text().replace("num_gpus: 0", "num_gpus: 2"))
    for has_none, commands in ((True, 0), (False, 1)):
        monkeypatch.setattr(run_command, "no_gpu_here", lambda has_none=has_none: has_none)
        shown = CliRunner().invoke(app, ["run", file])
        assert (shown.exit_code, len(started)) == (int(has_none), commands)
        assert ("each replica asks for GPU 2, and this machine has none, so it would wait for ever" in shown.stderr) == has_none


@pytest.mark.parametrize("mark", ["proc/driver/nvidia/gpus", "dev/kfd", "dev/dxg"])
def test_a_machine_with_a_driver_of_a_gpu_is_none_without(tmp_path: Path, mark: str) -> None:
    assert no_gpu_here(tmp_path)
    (tmp_path / mark).mkdir(parents=True)
    assert not no_gpu_here(tmp_path)
