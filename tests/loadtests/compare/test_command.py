"""`nightjar compare` from the command to the page, against a fake fleet and a load generator that needs no load."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nightjar.loadtests.arms import session
from nightjar.loadtests.compare import command as command_module
from nightjar.loadtests.compare import run
from nightjar.loadtests.compare.command import app
from nightjar.loadtests.compare.run import TURNS_FILE, PlayedTurn
from nightjar.loadtests.demo import command as commands
from tests.loadtests.arms.fleet import FakeFleet
from tests.loadtests.compare.harness import result
from tests.loadtests.fake_server import FakeServer

HARNESS = f"{sys.executable} -m tests.loadtests.compare.harness {{url}} {{result_file}} {{round}}"


Compare = Callable[..., Result]


@pytest.fixture
def fleet(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeFleet:
    monkeypatch.setattr(session, "STEADY_S", 0.0)
    monkeypatch.setattr(session, "POLL_PERIOD_S", 0.01)
    monkeypatch.chdir(Path(__file__).parents[3])
    return FakeFleet(server)


@pytest.fixture
def compare(fleet: FakeFleet, tmp_path: Path) -> Compare:
    """Runs the command with these arguments on the fleet, into the test's folder."""

    def call(*arguments: str, command: str = f"{HARNESS} none") -> Result:
        options = ["--url", fleet.server.url, "--folder", str(tmp_path), "--command", command, "--token", "secret-of-the-test"]
        return CliRunner().invoke(app, [*options, *arguments])

    return call


def answer_at_once(load: object, url: str, seed: int, path: Path, where: str, *, places: Mapping[str, str]) -> None:
    """A turn without a process."""
    path.write_text(json.dumps(result(0.02)))


def planned(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of off against itself, without processes: each turn writes its result at once."""
    monkeypatch.setattr(run, "send", answer_at_once)
    assert compare("--arm", "off", "--arm", "again=off", "--rounds", "2", "--lessons", "0").exit_code == 0


@pytest.mark.heavy
def test_a_planted_slowdown_of_ten_percent_is_found_with_raw_results_table_and_page(
    compare: Compare, fleet: FakeFleet, tmp_path: Path
) -> None:
    done = compare("--arm", "off", "--arm", "pin=5", "--rounds", "6", command=f"{HARNESS} pin=5")
    assert done.exit_code == 0, done.output
    (verdict,) = [line for line in done.stdout.splitlines() if line.startswith("pin=5 is ")]
    assert " slower than off: answers at 0.9" in verdict
    assert (tmp_path / "table.md").read_text() in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert all(words in page for words in ("pin=5 against off", verdict.split(":")[0], "<svg", "prefers-color-scheme: dark"))
    assert "secret-of-the-test" not in page + (tmp_path / "compare.json").read_text()
    assert len(list(tmp_path.glob("round-*.json"))) == 14
    assert "put back: the settings" in done.stderr
    assert fleet.override is None


@pytest.mark.heavy
def test_off_against_off_gives_no_verdict(compare: Compare) -> None:
    done = compare("--arm", "off", "--arm", "again=off", "--rounds", "6", "-o", "json", command=f"{HARNESS} none")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["comparisons"]
    assert (found["arm"], found["verdict"]) == ("again", "no difference shown")


def test_a_harness_that_fails_is_one_line_and_what_ran_before_is_put_back(compare: Compare, fleet: FakeFleet) -> None:
    failing = f"{sys.executable} -m tests.loadtests.compare.harness {{url}} {{result_file}} -1 none"
    done = compare("--arm", "off", "--arm", "pin=5", command=failing)
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "ended with exit code 3; it said last: no dataset of that name; what was played is kept" in line
    assert "Traceback" not in done.output
    assert fleet.told[-1] == {"mode": "default", "scope": "fleet"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("no-such-program {result_file}", "no-such-program"),
        (f"{sys.executable} -c pass {{result_file}}", "the harness left nothing to read"),
        ("bench --to /tmp/x", "command: it names neither {result_file} nor {result_name}"),
        ("bench 'open {result_file}", "cannot be read as words"),
    ],
    ids=["missing", "silent", "no place", "quotes"],
)
def test_a_command_that_cannot_give_a_result_is_one_line(compare: Compare, fleet: FakeFleet, command: str, said: str) -> None:
    done = compare("--arm", "off", "--arm", "pin=5", command=command)
    assert done.exit_code in {1, 2}
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said in line
    assert fleet.override is None


def test_a_run_that_was_stopped_goes_on_where_it_was(
    compare: Compare, fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[tuple[int, str]] = []

    def send(load: object, url: str, seed: int, path: Path, where: str, *, places: Mapping[str, str]) -> None:
        if len(played) == 3:
            played.append((0, "stopped"))
            raise KeyboardInterrupt
        played.append((int(places["round"]), places["arm"]))
        answer_at_once(load, url, seed, path, where, places=places)

    monkeypatch.setattr(run, "send", send)
    arguments = ("--arm", "off", "--arm", "fleet", "--rounds", "5")
    stopped = compare(*arguments)
    assert stopped.exit_code == 130
    assert "error: stopped; what was played is kept, --resume --folder" in stopped.stderr
    assert fleet.override is None
    turns_file = tmp_path / TURNS_FILE
    turns_file.write_text(turns_file.read_text() + '{"round": 2, "arm": "off", "is_le')  # killed while it wrote

    again = compare(*arguments)
    assert (again.exit_code, "holds a comparison already" in again.stderr) == (1, True)
    other = compare("--arm", "off", "--arm", "pin=5", "--rounds", "5", "--resume")
    assert (other.exit_code, "is a run with another arms" in other.stderr) == (1, True)

    done = compare(*arguments, "--resume")
    assert done.exit_code == 0, done.output
    assert "3 turns were played before, 9 are left" in done.stderr
    turns = [one for one in played if one[0]]
    assert sorted(turns) == sorted((number, arm) for number in range(1, 7) for arm in ("off", "fleet"))


def test_the_report_says_whether_what_was_learned_was_kept_and_what_ran(
    compare: Compare, fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "send", answer_at_once)
    assert compare("--arm", "off", "--arm", "nightjar", "--rounds", "1", "--lessons", "0").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert "nightjar: what was learned was kept from turn to turn" in page
    assert "nightjar is the planner nightjar, the paper's, in every engine" in unescape(page)
    turns = [PlayedTurn.model_validate_json(line) for line in (tmp_path / TURNS_FILE).read_text().splitlines()]
    assert {(turn.arm, turn.planner) for turn in turns} == {("off", "fleet"), ("nightjar", "nightjar")}


def test_report_reads_the_folder_of_a_comparison_again_and_a_result_file_of_vllm_bench_serve(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(compare, monkeypatch)
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    again = CliRunner().invoke(commands.app, ["report", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "report.html").read_text() == page
    shown = CliRunner().invoke(commands.app, ["report", str(tmp_path / "round-01-off.json")])
    assert "requests: 8 in 2.7 s" in shown.stdout
    wrong = CliRunner().invoke(commands.app, ["report", str(tmp_path / "turns.jsonl")])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)


def test_sums_are_of_rounds_that_every_arm_played(compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(compare, monkeypatch)
    assert "| all | off | 16 | 0 |" in (tmp_path / "table.md").read_text()
    first, *others = (tmp_path / TURNS_FILE).read_text().splitlines(keepends=True)
    (tmp_path / TURNS_FILE).write_text("".join(others))
    assert CliRunner().invoke(commands.app, ["report", str(tmp_path)]).exit_code == 0
    table = (tmp_path / "table.md").read_text()
    assert [f"| all | {arm} | 8 | 0 |" in table for arm in ("off", "again")] == [True, True]
    assert first


def test_another_server_is_an_arm_that_nobody_switches(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def send(load: object, url: str, seed: int, path: Path, where: str, *, places: Mapping[str, str]) -> None:
        asked.append(url)
        answer_at_once(load, url, seed, path, where, places=places)

    monkeypatch.setattr(run, "send", send)
    arms = ("--arm", "one=http://one:1", "--arm", "two=http://two:2")
    done = compare(*arms, "--rounds", "1", "--lessons", "0")
    assert done.exit_code == 0, done.output
    assert sorted(asked) == ["http://one:1", "http://two:2"]
    assert "put back" not in done.stderr


@pytest.mark.heavy
def test_our_own_load_is_played_with_a_warm_up_that_does_not_count(server: FakeServer, fleet: FakeFleet, tmp_path: Path) -> None:
    options = ["--url", server.url, "--folder", str(tmp_path), "--arm", "off", "--arm", "pin=5", "--rounds", "1", "--lessons", "0"]
    done = CliRunner().invoke(app, [*options, "--regime", "quiet:0.5@=10,surge:0.5@=20", "--warm-up-s", "0.5"])
    assert done.exit_code == 0, done.output
    table = (tmp_path / "table.md").read_text()
    assert "| quiet | off | 5 | 0 |" in table
    assert "| surge | pin=5 | 10 | 0 |" in table
    assert "no verdict from 1 of at least 6 rounds" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arm", "off", "--arm", "fast"], "arm 'fast' is none of"),
        (["--regime", "quiet"], "--regime and --command"),
        (["--learned", "some"], "--learned 'some': allowed are keep, reset"),
        (["--url", "nowhere"], "server address 'nowhere'"),
    ],
)
def test_a_wrong_option_is_one_line_with_exit_code_2(compare: Compare, arguments: list[str], said: str) -> None:
    done = compare(*arguments)
    assert (done.exit_code, said in done.stderr, done.stderr.count("\n")) == (2, True, 1)


def test_the_command_that_is_kept_holds_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nightjar", "compare", "--token", "s3cret", "--arm", "off", "--token=s3cret"])
    assert command_module._command_line() == "nightjar compare --arm off"
