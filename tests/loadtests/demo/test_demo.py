"""The demo against a small fake system: everything but the engines, from the command to the written run."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from nightjar.cluster.api.operations import MODE, STATUS, OperationError
from nightjar.cluster.local.progress import MAX_SILENCE_S
from nightjar.loadtests.arms import session
from nightjar.loadtests.arms.arm import TurnError, parse_arm
from nightjar.loadtests.arms.processes import ManagedProcess, ProcessError, run_to_end
from nightjar.loadtests.arms.samples import read_samples
from nightjar.loadtests.arms.session import Session, service_api
from nightjar.loadtests.demo import command as commands
from nightjar.loadtests.demo import run as demo
from nightjar.loadtests.demo.machine import read_served
from nightjar.loadtests.demo.run import kill_policy
from nightjar.loadtests.demo.summary import RunSummary
from nightjar.loadtests.demo.watch import Sampler, Screen, View, plain_line
from nightjar.loadtests.load.regimes import arrival_times
from nightjar.loadtests.load.rows import read_rows
from nightjar.policy.wire.report import EngineLoad
from tests.loadtests.demo.fake_demo import use_the_fake_system
from tests.loadtests.fake_server import FakeServer
from tests.loadtests.recorded import replica, sample
from tests.reference.figures import demo_run

ROOT = Path(__file__).parents[3]
FIXED = f"pin={read_served(demo.LOCAL_CONFIG).num_speculative_tokens}"
REGIME = "quiet:0.2@=10,surge:0.6@=20"


@pytest.fixture
def fake_nightjar(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_fake_system(monkeypatch.setattr)
    monkeypatch.chdir(ROOT)


@pytest.mark.heavy
@pytest.mark.usefixtures("fake_nightjar")
def test_the_demo_compares_the_modes_kills_the_policy_once_and_leaves_a_whole_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SYSTEM_EVENTS", str(tmp_path / "events"))
    result = CliRunner().invoke(commands.app, ["demo", "--regime", REGIME, "--quick", "--runs", str(tmp_path), "-o", "json"])
    assert result.exit_code == 0, result.output
    latest = tmp_path / "latest"
    summary = RunSummary.model_validate_json((latest / "summary.json").read_bytes())
    assert json.loads(result.stdout) == json.loads(summary.model_dump_json())
    assert summary.passed
    assert [check.name for check in summary.checks] == [
        "no failed request", "equal text", "replicas are steered", "K under off", f"K under {FIXED}", "K under auto",
        "the policy comes back",
    ]  # fmt: skip
    assert [(row.mode, row.phase) for row in summary.phases] == [
        (mode, phase) for mode in ("off", FIXED, "auto") for phase in ("quiet", "surge", "all")
    ]
    assert {row.mode for row in read_rows(latest / "requests.jsonl")} == {"off", FIXED, "auto"}
    assert {one.mode for one in read_samples(latest / "samples.jsonl")} >= {"off", FIXED, "auto"}
    assert "decided" in (latest / "decisions.jsonl").read_text()
    assert "<svg" in (latest / "report.html").read_text()
    assert result.stderr.index("lines of Ray that follow") < result.stderr.index("killed the policy actor")
    assert "the policy is back as incarnation 2" in result.stderr
    assert "in a browser: http://127.0.0.1:" in result.stderr

    again = CliRunner().invoke(commands.app, ["report", str(latest)])
    assert again.exit_code == 0
    assert again.stdout.splitlines()[-2:] == [f"all of it: {latest / 'report.html'}", summary.headline]
    assert summary.memory is not None
    assert summary.memory.pss_bytes > 0
    assert all(0 <= share <= 1 for share in summary.others.values())
    assert summary.run is not None
    assert f"memory at most {summary.memory}" in again.stdout
    assert max(map(len, again.stdout.splitlines()[: len(summary.phases)])) <= 80

    drawn = demo_run.draw(demo_run.take(latest))
    assert all(f"{name}</tspan>" in drawn for name in ("speculation off", f"K = {FIXED.removeprefix('pin=')} always", "Nightjar"))

    asked = [event for event, _ in itertools.groupby((tmp_path / "events").read_text().splitlines())]
    before, *turns = [
        (f"{FIXED} keep", "text"),
        *((f"{told}", "load", "text") for told in ("off keep", f"{FIXED} keep", "auto reset")),
    ]
    expected = [*before, *itertools.chain(*turns), "stop"]
    assert asked == expected, "auto has learned from nothing before its load"
    assert RunSummary.model_validate_json((latest / "summary.json").read_bytes()) == summary


@pytest.mark.usefixtures("fake_nightjar")
@pytest.mark.parametrize(
    ("raised", "exit_code", "told"),
    [
        (TurnError("half way"), 1, "error: half way"),
        (KeyboardInterrupt(), 130, "nothing was left running"),
    ],
    ids=["failure", "ctrl-c"],
)
def test_a_run_that_ends_half_way_stops_what_was_started_and_keeps_what_was_recorded(
    raised: BaseException, exit_code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(demo, "send", end)
    monkeypatch.setenv("FAKE_SYSTEM_EVENTS", str(tmp_path / "events"))
    result = CliRunner().invoke(commands.app, ["demo", "--quick", "--runs", str(tmp_path)])
    assert (result.exit_code, told in result.output) == (exit_code, True), result.output
    (folder,) = (one for one in tmp_path.iterdir() if one.is_dir())  # what has no report takes the place of no earlier one
    assert read_samples(folder / "samples.jsonl")
    assert (folder / "decisions.jsonl").stat().st_size
    assert not marked_processes(str(tmp_path))


STAGES = {
    "models": "models are there",
    "run": "starting Ray Serve",
    "mode": "warming up",
    "text": "warming up",
    "load": "mode off: load",
}


@pytest.mark.heavy
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_at_any_stage_ends_with_one_line_and_leaves_nothing_running(stage: str, tmp_path: Path) -> None:
    code, told = interrupted_demo(stage, STAGES[stage], tmp_path)
    (folder,) = (one for one in tmp_path.iterdir() if one.is_dir())
    assert (code, told[-1]) == (130, f"error: stopped; nothing was left running, what was recorded is in {folder}")
    assert not marked_processes(str(tmp_path))


@pytest.mark.heavy
def test_ctrl_c_while_everything_is_stopped_hurries_it_and_the_report_is_written(tmp_path: Path) -> None:
    code, told = interrupted_demo("stop", "stopping everything", tmp_path)
    assert code == 0, told
    assert (tmp_path / "latest" / "report.html").exists()
    assert not marked_processes(str(tmp_path))


def interrupted_demo(stuck: str, told: str, folder: Path) -> tuple[int, list[str]]:
    """Exit code and last lines of a demo that goes no further than a stage, and got a SIGINT when it said that it is there."""
    events = folder / "events"
    events.touch()
    environment = {**os.environ, "FAKE_SYSTEM_STUCK": stuck, "FAKE_SYSTEM_EVENTS": str(events), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tests.loadtests.demo.fake_demo", "--regime", REGIME, "--runs", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert any(told in line for line in process.stdout), "it ended before"
            while stuck in {"text", "load", "stop"} and stuck not in events.read_text().splitlines():
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            return process.wait(60), process.stdout.read().splitlines()
        finally:
            process.kill()


def marked_processes(words: str) -> list[str]:
    """Command lines of the processes whose environment has these words."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if words in process.environ().get("FAKE_SYSTEM_EVENTS", ""):
                found.append(" ".join(process.cmdline()))
    return found


def test_a_process_is_stopped_with_all_of_its_session_also_when_it_ignores_the_signal() -> None:
    lines: list[str] = []
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    with ManagedProcess("stubborn", [sys.executable, "-c", code], lines.append) as process:
        while not lines:
            time.sleep(0.005)
        process.stop(timeout_s=0.01)
        assert process.poll() == -signal.SIGKILL
    assert lines == ["up"]


def test_a_command_that_fails_shows_its_last_lines() -> None:
    with pytest.raises(ProcessError, match="the command ended with exit code 3\n  went wrong"):
        run_to_end(
            "the command",
            [sys.executable, "-c", "import sys; print('went wrong', file=sys.stderr); sys.exit(3)"],
            lambda line: None,
        )


def test_what_the_sampler_of_a_demo_sees_is_what_an_arm_waits_for(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STEADY_S", 0.0)
    status = sample(1.0, "", replica("r1", mode="auto")).status
    assert status is not None
    answers = iter([b"", status.model_dump_json().encode(), b""])
    server.fleet_status = lambda: next(answers, b"")
    with service_api(server.url, "sesame") as api:
        sampler = Sampler(api, tmp_path / "samples.jsonl")
        seconds = itertools.count(0.0, 0.1)
        running = Session(
            api, "a test", look=lambda: sampler.sample().status, patience_s=3.0, clock=lambda: next(seconds), sleep=lambda _: None
        )
        assert len(running.prepare().replicas) == 1
        with pytest.raises(TurnError, match=r"arm off was not applied by every replica within 3 s: the policy does not answer"):
            running.run(parse_arm("off"))
    assert [one.status is None for one in sampler.samples[:3]] == [True, False, True], "a policy that is away is a sample, too"
    assert server.authorizations == ["Bearer sesame"]


def test_a_sample_without_an_answer_says_why(server: FakeServer, tmp_path: Path) -> None:
    server.fleet_status = lambda: b'{"policy": 3}'
    with service_api(server.url, "t") as api:
        taken = Sampler(api, tmp_path / "samples.jsonl").sample()
    assert taken.status is None
    assert "the answer is no status of this version of Nightjar: policy" in taken.error
    assert read_samples(tmp_path / "samples.jsonl") == (taken,)


def test_the_api_says_what_was_asked_and_what_came_back(server: FakeServer) -> None:
    server.set_mode = lambda body: (403, b'{"detail": "read-only"}')
    with service_api(server.url, "t") as api, pytest.raises(OperationError, match=r"^read-only \(HTTP 403\)"):
        api.call(MODE, {"mode": "off"})
    with service_api("http://127.0.0.1:9", "t") as api, pytest.raises(OperationError, match="nothing answers at"):
        api.call(STATUS)


def test_only_a_process_that_is_the_policy_actor_is_killed() -> None:
    with pytest.raises(TurnError, match="not the policy actor; nothing was killed"):
        kill_policy(os.getpid())
    with pytest.raises(TurnError, match="not on this machine"):
        kill_policy(2**22 + 1)


def test_off_a_terminal_a_line_comes_whenever_nothing_was_said_for_a_while() -> None:
    now_s, file = 0.0, io.StringIO()
    view = View("mode off: load", sample(1.0, "off", replica("replica-1")).status, requests=3, failed=1)
    screen = Screen(Console(file=file), lambda: view, clock=lambda: now_s)
    for second in range(31):
        now_s = float(second)
        screen.refresh()
    lines = file.getvalue().splitlines()
    assert len(lines) == int(30 / MAX_SILENCE_S)
    assert lines[0] == f"[   9 s] {plain_line(view)}"
    assert plain_line(view) == "mode off: load; 3 answered, 1 failed; lica-1 batch 0 waiting 0 K=0"


def test_on_a_terminal_of_80_columns_the_fleet_is_shown_as_status_shows_it_and_nothing_is_cut() -> None:
    file = io.StringIO()
    decoding = (
        replica(name, load=EngineLoad(decode_batch_size=3, num_speculative_tokens=5)) for name in ("replica-1", "replica-2")
    )
    view = View("mode auto: load quiet:32@0.4,surge:16@5", sample(1.0, "auto", *decoding).status, requests=3)
    with Screen(Console(file=file, force_terminal=True, width=80), lambda: view) as screen:
        screen.refresh()
    assert "…" not in file.getvalue()
    assert re.search(r"replica-1 +3 +0 +0% +5 ", file.getvalue()), "batch, waiting, KV and K"
    assert all(word in file.getvalue() for word in ("replica-1", "replica-2", "3 answered, 0 failed", "incarnation 1"))


def test_the_usual_demo_sends_ten_requests_or_more_in_every_phase_with_arrivals() -> None:
    plan = commands.USUAL.plan("", 0, None)
    sent = Counter(arrival.phase for arrival in arrival_times(plan.regime, plan.seed))
    assert {phase.name for phase in sent} == {"quiet", "surge", "calm"}
    assert min(sent.values()) >= 10
    assert plan.regime.duration_s < commands.LONG.plan("", 0, None).regime.duration_s


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo", "--regime", "quiet:60"], "NAME:SECONDS@LOAD"),
        (["demo", "--quick", "--long"], "name one of them"),
        (["report", "nowhere"], "nowhere is no recorded run"),
    ],
)
def test_bad_input_is_one_clear_message(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(commands.app, arguments)
    assert result.exit_code != 0
    assert told in " ".join(result.output.replace("│", " ").split())
