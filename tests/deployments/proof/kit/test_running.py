"""Tasks that an earlier run finished are not run again, another choice is refused, and a task that failed says why."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightjar.deployments.proof.kit import command, running
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.plan import PHASES
from nightjar.deployments.proof.kit.running import (
    AnotherRunError,
    Ended,
    alone_in,
    begun,
    open_folder,
    read_outcomes,
    run_tasks,
    tasks_of,
    wanted_phases,
)
from tests.deployments.proof.kit.outcomes import ON_RIG, good_run


def opened(out: Path, chosen: Chosen = ON_RIG, *, again: bool = False) -> Chosen:
    return dataclasses.replace(chosen, work=str(open_folder(out, chosen, again=again)))


def fill(chosen: Chosen) -> None:
    for name, outcome in good_run().items():
        (Path(chosen.work) / f"{name}.json").write_text(json.dumps(outcome))


def test_what_an_earlier_run_of_the_same_choice_finished_is_read_and_not_run_again(tmp_path: Path) -> None:
    fill(opened(tmp_path))
    chosen = opened(tmp_path)
    ended: list[Ended] = []
    run_tasks(PHASES, chosen, ended.append)
    assert {each.task.file_name for each in ended if each.was_there} == good_run().keys()
    assert read_outcomes(PHASES, chosen) == good_run()


def test_tasks_run_in_the_order_of_the_phases_and_what_is_measured_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = dataclasses.replace(opened(tmp_path), rehearsal="")
    monkeypatch.setattr(running, "_run", lambda task, *_: Ended(task, 1.0, ""))
    ended: list[Ended] = []
    run_tasks(PHASES, on_gpu, ended.append)
    assert [each.task for each in ended] == tasks_of(PHASES, on_gpu)
    assert [each.task.file_name for each in ended[:2]] == ["off.draft", "off.head"]


def test_a_folder_of_another_choice_is_refused_and_begun_anew_where_asked(tmp_path: Path) -> None:
    fill(opened(tmp_path))
    other = dataclasses.replace(ON_RIG, seed=1)
    with pytest.raises(AnotherRunError, match="holds a run with other models or seed:"):
        opened(tmp_path, other)
    chosen = opened(tmp_path, other, again=True)
    assert not list(Path(chosen.work).glob("*.json"))


def test_a_task_that_ends_with_an_error_or_a_signal_is_told_with_it_and_its_log_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = opened(tmp_path)
    facts = wanted_phases(bench=False, only=["facts"])
    python, program = sys.executable, tmp_path / "program"
    monkeypatch.setattr(sys, "executable", str(program))
    for body, error in (
        ("import sys; print('Traceback'); sys.exit('ValueError: too small\\n')", "ValueError: too small"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ChildProcessError: ended by signal 9"),
        ("print('nothing to say')", "it ended without an error; its log says more"),
    ):
        program.write_text(f"#!{python}\n{body}\n")
        program.chmod(0o755)
        ended: list[Ended] = []
        run_tasks(facts, chosen, ended.append)
        assert [each.error for each in ended] == [error]
        assert read_outcomes(facts, chosen) == {"facts.machine": {"error": error}}
        assert (Path(chosen.work) / "facts.machine.log").is_file()


def test_another_gpu_a_variable_of_vllms_or_other_sources_make_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(AnotherRunError, match="holds a run with other GPU, driver, variables or source:"):
        opened(tmp_path)


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    work = Path(opened(tmp_path).work)
    with alone_in(work), pytest.raises(AnotherRunError, match="another gpu-proof runs there"), alone_in(work):
        pass
    with alone_in(work):
        pass


def test_a_phase_alone_brings_the_plain_answers_that_it_needs_and_phases_that_never_ran_are_not_judged(tmp_path: Path) -> None:
    chosen = opened(tmp_path)
    alone = wanted_phases(bench=False, only=["catch-up"])
    assert [task.file_name for task in tasks_of(alone, chosen)] == ["correctness.plain-roomy", "catch-up.draft"]
    assert [task.file_name for task in tasks_of(wanted_phases(bench=False, only=["facts"]), chosen)] == ["facts.machine"]
    (Path(chosen.work) / "catch-up.draft.log").touch()
    assert [phase.name for phase in begun(PHASES, chosen)] == ["catch-up"]


def test_the_contest_runs_only_where_it_is_asked_for() -> None:
    assert [phase.name for phase in wanted_phases(bench=True, only=())] == [phase.name for phase in PHASES]
    assert "contest" not in {phase.name for phase in wanted_phases(bench=False, only=())}
    assert [phase.name for phase in wanted_phases(bench=False, only=["contest", "facts"])] == ["facts", "contest"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "everything"], "--only everything: no such phase; there are off, facts, start-up"),
        (["--target", "./nowhere", "--draft", "owner/small"], "--target ./nowhere: no such folder"),
        (["--rig"], "--rig left the package: in a checkout of the repository, python -m tests.rig.rehearsal is the same"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", sys)  # any module: nothing of it is used before the models are found
    result = CliRunner().invoke(command.app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_without_vllm_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    result = CliRunner().invoke(command.app, ["--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "install nightjar-serve[gpu]" in result.output
