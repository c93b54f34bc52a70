"""The `nightjar` command without a cluster: what it sends, what it prints, how it fails."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from nightjar.cluster import cli
from tests.cluster.fleets import some_fleet

Handler = Callable[[httpx.Request], httpx.Response]


pytestmark = pytest.mark.usefixtures("plain_environment")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def fleet_answer(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=some_fleet().model_dump(mode="json"))


def away(_: httpx.Request) -> httpx.Response:
    return httpx.Response(503, json={"detail": "away"})


def override_answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"override": json.loads(request.content)})


def test_status_shows_replicas_plan_overrides_and_the_policys_incarnation(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    requests = serve(fleet_answer)
    shown = call("status")
    assert shown.exit_code == 0
    assert [str(request.url) for request in requests] == ["http://127.0.0.1:8000/nightjar/status"]
    parts = [
        "incarnation 3",
        "smollm2/abc",
        "25%",
        "0.80..0.40",
        "41.5",
        "3.17",
        "1-5: 5  6-16: 0",
        "too [hot]",
        "nightjar explain smollm2/abc",
    ]
    assert [part for part in parts if part not in shown.stdout] == []


@pytest.mark.parametrize(("typed", "meant"), [("stauts", "status"), ("mirgate", "migrate"), ("explan", "explain")])
def test_a_misspelt_command_is_answered_with_the_nearest_one(typed: str, meant: str) -> None:
    shown = call(typed)
    assert shown.exit_code == 2
    assert f"No such command '{typed}'. Did you mean '{meant}'" in shown.stderr


def test_version_names_nightjar_and_what_is_installed_of_what_it_runs_on() -> None:
    shown = call("--version")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == f"nightjar-serve {version('nightjar-serve')}"
    assert all(len(line.split()) == 2 for line in shown.stdout.splitlines())


def test_status_as_json_is_the_record(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    serve(fleet_answer)
    assert json.loads(call("status", "-o", "json").stdout)["policy"]["incarnation"] == 3


def test_the_url_comes_from_the_environment_and_the_option_wins(
    serve: Callable[[Handler], list[httpx.Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = serve(fleet_answer)
    monkeypatch.setenv("NIGHTJAR_URL", "http://gpu-box:9000/")
    call("status")
    call("status", "--url", "http://127.0.0.1:8100")
    assert [str(request.url) for request in requests] == [
        "http://gpu-box:9000/nightjar/status",
        "http://127.0.0.1:8100/nightjar/status",
    ]


def test_mode_sends_scope_duration_reason_and_token(
    serve: Callable[[Handler], list[httpx.Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = serve(override_answer)
    monkeypatch.setenv("NIGHTJAR_API_TOKEN", "s3cret")
    done = call("mode", "pin=3", "--application", "smollm2", "--for", "30m", "--reason", "load [test]")
    assert done.exit_code == 0
    assert "application smollm2: mode pin=3 for 30m" in done.stdout
    assert json.loads(requests[0].content) == {
        "mode": "pin=3",
        "scope": "application",
        "name": "smollm2",
        "for_s": 1800.0,
        "reason": "load [test]",
    }
    assert requests[0].headers["Authorization"] == "Bearer s3cret"


def in_one_line(shown: Result) -> str:
    return " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("head", "upgrade", "told"),
    [
        (True, True, ("losing the head node does not end it", "an upgrade that runs both clusters takes it along (seed_from)")),
        (
            False,
            False,
            ("losing the head node ends it: no GCS fault tolerance", "an upgrade to a new cluster ends it: seed_from names no"),
        ),
    ],
)
def test_mode_says_how_long_its_word_holds_and_what_would_end_it(
    serve: Callable[[Handler], list[httpx.Request]], head: bool, upgrade: bool, told: tuple[str, str]
) -> None:
    serve(lambda _: httpx.Response(200, json={"override": {}, "outlives": {"head": head, "upgrade": upgrade}}))
    text = in_one_line(call("mode", "off", "--application", "chat"))
    assert "holds until `nightjar mode default --application chat`; new settings and a restart of the policy do not end it" in text
    assert [part for part in told if part not in text] == []
    assert ("Then the settings' mode holds" in text) == (not head)


def test_of_a_policy_of_the_release_before_mode_says_that_it_does_not_know_and_default_needs_no_such_words(
    serve: Callable[[Handler], list[httpx.Request]],
) -> None:
    serve(override_answer)
    assert "this policy does not say whether losing the head node or an upgrade ends it" in in_one_line(call("mode", "off"))
    assert "ends with its replica" in in_one_line(call("mode", "off", "--replica", "chat/r1"))
    assert call("mode", "default").stdout == "fleet: mode default\n"


def test_mode_sends_a_limit_of_a_step_where_one_is_given(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    requests = serve(override_answer)
    done = call("mode", "auto", "--application", "chat", "--max-step-ms", "40", "--for", "30m")
    assert "application chat: mode auto, steps of up to 40 ms for 30m" in done.stdout
    assert json.loads(requests[0].content)["max_step_ms"] == 40.0


def test_mode_sends_an_objective_where_one_is_given(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    requests = serve(override_answer)
    done = call("mode", "auto", "--application", "jobs", "--objective", "throughput", "--for", "8h")
    assert "application jobs: mode auto, objective throughput for 8h" in done.stdout
    assert json.loads(requests[0].content)["objective"] == "throughput"


def test_mode_sends_a_planner_and_a_reset_where_they_are_given(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    requests = serve(override_answer)
    done = call("mode", "auto", "--planner", "nightjar", "--learned", "reset")
    assert "fleet: mode auto, planner nightjar" in done.stdout
    assert json.loads(requests[0].content) | {"planner": "nightjar", "learned": "reset"} == json.loads(requests[0].content)


def test_mode_without_a_name_concerns_the_fleet_until_taken_back(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    requests = serve(override_answer)
    call("mode", "default", "--token", "other", "-o", "json")
    assert json.loads(requests[0].content) == {"mode": "default", "scope": "fleet", "name": "", "for_s": None, "reason": ""}
    assert requests[0].headers["Authorization"] == "Bearer other"


def test_freeze_sends_duration_and_reason_and_end_ends_it(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    requests = serve(lambda request: httpx.Response(200, json={"freeze": json.loads(request.content)}))
    begun, ended = call("freeze", "--for", "30m", "--reason", "release"), call("freeze", "--end")
    assert begun.stdout.splitlines()[0] == "fleet: frozen for 30m: no new plan, measurement or lease"
    assert "holds for 30m, or until `nightjar freeze --end`" in in_one_line(begun)
    assert ended.stdout == "fleet: not frozen\n"
    assert [str(request.url) for request in requests] == ["http://127.0.0.1:8000/nightjar/freeze"] * 2
    assert json.loads(requests[0].content) == {"frozen": True, "reason": "release", "for_s": 1800.0}
    assert json.loads(requests[1].content) == {"frozen": False, "reason": ""}


def test_canary_sends_what_is_tried_by_whom_and_prints_how_it_stands(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    requests = serve(lambda _: httpx.Response(200, json={"canary": {"words": "canary mode pin=3 on [25 %]: baseline"}}))
    tried = (
        "--mode",
        "pin=3",
        "--share",
        "0.25",
        "--application",
        "chat",
        "--set",
        "dwell_steps=8",
        "--set",
        "draft_offload=never",
    )
    begun = call("canary", *tried, "--for", "2h", "--block", "30s", "--reason", "faster?")
    call("canary", "--promote")
    call("canary", "--end", "--reason", "enough")
    assert begun.stdout == "canary mode pin=3 on [25 %]: baseline\n"
    assert json.loads(requests[0].content) == {
        "do": "begin",
        "mode": "pin=3",
        "share": 0.25,
        "application": "chat",
        "settings": {"dwell_steps": 8, "draft_offload": "never"},
        "for_s": 7200.0,
        "block_s": 30.0,
        "reason": "faster?",
    }
    assert [json.loads(request.content) for request in requests[1:]] == [{"do": "promote"}, {"do": "end", "reason": "enough"}]


@pytest.mark.parametrize("status_code", [401, 403, 422, 503])
def test_a_refusal_is_shown_as_the_api_worded_it_with_exit_code_1(
    serve: Callable[[Handler], list[httpx.Request]], status_code: int
) -> None:
    serve(lambda _: httpx.Response(status_code, json={"detail": "mode: 'fast' is none of [auto]"}))
    refused = call("mode", "fast")
    assert refused.exit_code == 1
    assert refused.stderr == f"error: mode: 'fast' is none of [auto] (HTTP {status_code})\n"


@pytest.mark.parametrize(
    ("arguments", "detail", "said"),
    [
        (("canary", "--mode", "off"), "share: missing; allowed are above 0 to 0.5", "--share: missing; allowed are above 0 to 0.5"),
        (("canary", "--set", "dwel_steps=3"), "settings: dwel_steps is no setting", "--set: dwel_steps is no setting"),
        (("canary", "--block", "1s"), "block_s: too short; for_s: too long", "--block: too short; --for: too long"),
        (("mode", "off", "--replica", "x"), "name: no replica 'x' reports now", "--replica: no replica 'x' reports now"),
        (("mode", "off", "--application", "x"), "name: no application 'x' reports", "--application: no application 'x' reports"),
        (("mode", "pin=9"), "mode: pin=9 is above the maximum", "mode: pin=9 is above the maximum"),
        (("freeze", "--for", "2d"), "for_s: Input should be less", "--for: Input should be less"),
        (("mode", "off"), "no canary begins: a share: of it", "no canary begins: a share: of it"),
    ],
)
def test_a_refusal_names_the_commands_options_where_the_api_names_fields(
    serve: Callable[[Handler], list[httpx.Request]], arguments: tuple[str, ...], detail: str, said: str
) -> None:
    serve(lambda _: httpx.Response(422, json={"detail": detail}))
    shown = call(*arguments)
    assert (shown.exit_code, shown.stderr) == (1, f"error: {said} (HTTP 422)\n")


@pytest.mark.parametrize(
    ("arguments", "doubt"),
    [(("status",), False), (("mode", "off", "--token", "a-token-of-some-length"), True)],
    ids=["read", "write"],
)
def test_an_answer_that_does_not_come_leaves_it_open_only_for_a_change_whether_it_is_in_force(
    serve: Callable[[Handler], list[httpx.Request]], arguments: tuple[str, ...], doubt: bool
) -> None:
    def hang(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("hangs", request=request)

    serve(hang)
    done = call(*arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "did not answer within 15 s" in done.stderr
    assert ("may be in force all the same" in done.stderr) == doubt


def test_nothing_that_answers_is_one_line_naming_the_url(serve: Callable[[Handler], list[httpx.Request]]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    serve(refuse)
    failed = call("status", "--url", "http://127.0.0.1:8123")
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert "nothing answers at http://127.0.0.1:8123" in failed.stderr


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (httpx.Response(404, text="Not Found"), "no Nightjar policy app there"),
        (httpx.Response(200, text="<html>"), "no JSON"),
        (httpx.Response(200, json={"policy": {}}), "no status of this version"),
    ],
)
def test_something_else_that_answers_is_one_line(
    serve: Callable[[Handler], list[httpx.Request]], answer: httpx.Response, part: str
) -> None:
    serve(lambda _: answer)
    failed = call("status")
    assert failed.exit_code == 1
    assert part in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["http://me:swordfish@box:8000", "ftp://me:swordfish@box"])
@pytest.mark.parametrize("answer", [httpx.Response(404, text="Not Found"), httpx.Response(200, text="<html>"), httpx.Response(401)])
def test_a_password_in_the_url_is_not_repeated(
    serve: Callable[[Handler], list[httpx.Request]], answer: httpx.Response, url: str
) -> None:
    requests = serve(lambda _: answer)
    failed = call("status", "--url", url)
    assert failed.exit_code == 1
    assert "box" in failed.stderr
    assert "swordfish" not in failed.output
    assert ["authorization" in request.headers for request in requests] == ([True] if url.startswith("http:") else [])


@pytest.mark.parametrize("url", ["gpu-box:8000", "http://127.0.0.1:abc", "http://[::1", "ftp://h", "http://h:8000/\\[/x]:"])
def test_a_url_that_is_none_is_one_line(url: str) -> None:
    failed = call("status", "--url", url)
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("mode", "off", "--for", "3x"), "duration '3x'"),
        (("mode", "off", "--application", "a", "--replica", "b"), "not both"),
        (("freeze", "--end", "--for", "3m"), "not both"),
        (("canary", "--end", "--promote"), "one of them"),
        (("canary", "--promote", "--share", "0.2"), "one of them"),
        (("canary", "--set", "dwell_steps", "--share", "0.2"), "'dwell_steps' is no NAME=VALUE"),
    ],
)
def test_wrong_arguments_are_a_usage_error(arguments: tuple[str, ...], part: str) -> None:
    failed = call(*arguments)
    assert failed.exit_code == 2
    assert part in failed.stderr


def test_watch_as_json_prints_a_line_per_look_until_the_service_is_gone(
    serve: Callable[[Handler], list[httpx.Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([fleet_answer, fleet_answer, away])

    def answer(request: httpx.Request) -> httpx.Response:
        return next(answers)(request)

    serve(answer)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    watched = call("watch", "-o", "json")
    assert [json.loads(line)["policy"]["pid"] for line in watched.stdout.splitlines()] == [42, 42]
    assert "away" in watched.stderr


def test_help_lists_every_command_and_imports_no_heavy_package() -> None:
    program = """
import sys
from nightjar.cluster.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = {"ray", "vllm", "torch", "locust", "fastapi", "transformers", "httpx", "pydantic"} & loaded
assert not heavy, heavy
"""
    shown = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=False, timeout=600)
    assert shown.returncode == 0, shown.stderr
    for command in ("run", "status", "watch", "mode", "canary", "freeze", "export", "import", "demo", "report", "models"):
        assert f" {command} " in shown.stdout


def test_status_imports_neither_numpy_nor_another_command() -> None:
    program = """
import sys
from nightjar.cluster.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 1, end.code
prefix = "nightjar.cluster.commands."
commands = {name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)}
assert commands == {"options", "status"}, commands
heavy = {"numpy", "ray", "fastapi"} & sys.modules.keys()
assert not heavy, heavy
"""
    arguments = [sys.executable, "-c", program, "status", "--url", "http://127.0.0.1:1"]
    asked = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=600)
    assert asked.returncode == 0, asked.stderr
    assert "nothing answers" in asked.stderr


def test_a_room_whose_packages_are_missing_is_one_line_naming_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room_without_its_packages.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(cli.COMMANDS, "demo", cli.RoomCommand("room_without_its_packages", "A demo.", extra="load"))
    failed = call("demo")
    assert failed.exit_code == 1
    assert "a_package_that_nobody_has" in failed.stderr
    assert "nightjar-serve[load]" in failed.stderr


def test_a_rooms_commands_are_mounted_under_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room_with_commands.py").write_text(
        "import typer\napp = typer.Typer()\n\n@app.command()\ndef demo(n: int = 1):\n    print('demo', n)\n\n"
        "@app.command()\ndef build():\n    print('built')\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(cli.COMMANDS, "demo", cli.RoomCommand("room_with_commands", "A demo.", extra="load"))
    monkeypatch.setitem(cli.COMMANDS, "models", cli.RoomCommand("room_with_commands", "Models.", is_group=True))
    assert call("demo", "--n", "3").stdout == "demo 3\n"
    assert call("models", "build").stdout == "built\n"


def test_the_commands_that_are_listed_are_those_that_the_rooms_have() -> None:
    for name, command in cli.COMMANDS.items():
        loaded = cli.load_command(name, command)
        assert callable(loaded)
        assert command.is_group == hasattr(loaded, "commands")


@pytest.mark.parametrize("command", ["assess", "compare", "simulate", "check", "canary"])
def test_help_has_no_line_ends_of_its_own(command: str) -> None:
    """A narrow line is followed by a word that would not have fitted on it, or by the end of its paragraph."""
    shown = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "100"}).stdout
    prose = shown.partition("╭")[0].splitlines()
    width = max(len(line.rstrip()) for line in prose)
    for line, following in pairwise(line.strip() for line in prose):
        if line and following and not line.startswith("Usage:"):
            assert len(line) + 1 + len(following.split()[0]) > width - 2, line


def test_a_command_that_nobody_has_is_a_usage_error() -> None:
    failed = call("statsu")
    assert failed.exit_code == 2
    assert "No such command 'statsu'" in failed.stderr


def test_the_bare_command_shows_help() -> None:
    assert "watch" in call().output
