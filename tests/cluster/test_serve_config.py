"""A Serve YAML is read as Serve reads it: each mistake is one line naming file, field, value and what is allowed."""

from pathlib import Path

import pytest

pytest.importorskip("ray.serve")

from nightjar.cluster.policy_app import build
from nightjar.cluster.serve_config import POLICY_IMPORT_PATH, ServeFileError, load_serve_file
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import parse_operator_settings

MODEL_APP = """
applications:
- name: model
  import_path: nightjar.deployments.app:build
  args: {{llm_configs: [{models}]}}
"""
POLICY_APP = """
applications:
- name: nightjar
  import_path: nightjar.cluster.policy_app:build
  route_prefix: /nightjar
  deployments:
  - name: {name}
    user_config: {user_config}
"""


def refusal(tmp_path: Path, text: str) -> str:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ServeFileError) as refused:
        load_serve_file(file)
    message = str(refused.value)
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


def test_a_good_file_gives_its_applications_host_and_port(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("http_options: {host: 127.0.0.1, port: 8123}" + POLICY_APP.format(name="Policy", user_config="{mode: auto}"))
    serve_file = load_serve_file(file)
    assert (serve_file.host, serve_file.port) == ("127.0.0.1", 8123)
    assert [(application.name, application.route_prefix) for application in serve_file.applications] == [("nightjar", "/nightjar")]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServeFileError, match=r"nowhere.yaml: .*No such file"):
        load_serve_file(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("applications: [", ["while parsing a flow node"]),
        ("just words", ["record", "valid dictionary", "'just words'"]),
        ("{}", ["applications", "Field required"]),
        ("applications: [{name: a}]", ["applications.0.import_path", "Field required"]),
        ("http_options: {port: many}\napplications: [{import_path: 'a:b'}]", ["http_options.port", "integer", "'many'"]),
        (
            "applications: [{import_path: 'a:b', deployments: [{name: D, num_replicas: -2}]}]",
            ["deployments.0", "num_replicas", "-2"],
        ),
        ("applications: [{import_path: 'a:b'}, {import_path: 'a:b'}]", ["default", "duplicate"]),
        (
            "applications: [{import_path: 'no_such_module_here:build'}]",
            ["'no_such_module_here:build'", "ModuleNotFoundError"],
        ),
        ("applications: [{import_path: 'json:build'}]", ["import_path", "'json' has no 'build'"]),
    ],
)
def test_a_wrong_shape_is_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("models", "parts"),
    [
        ("", ["llm_configs", "one model"]),
        ("{model_loading_config: {model_id: a}}, {model_loading_config: {model_id: b}}", ["llm_configs", "2 models", "serves one"]),
        ("{model_loading_config: {model_id: a, model_source: nowhere}}", ["model_source", "'nowhere'", "nightjar models build"]),
    ],
)
def test_what_our_model_app_finds_wrong_with_its_args_is_known_off_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: str, parts: list[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_MODELS", str(tmp_path))
    message = refusal(tmp_path, MODEL_APP.format(models=models))
    assert message.startswith("application model: args: llm_configs")
    assert [part for part in parts if part not in message] == [], message


def test_an_unquoted_off_which_yaml_reads_as_false_is_the_mode_off(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(POLICY_APP.format(name="Policy", user_config="{mode: off}"))
    (policy,) = load_serve_file(file).values["applications"]
    assert parse_operator_settings(policy["deployments"][0]["user_config"]).mode == Mode.parse("off")


def test_args_of_the_policy_app_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, POLICY_APP.format(name="Policy", user_config="{}") + "  args: {mode: auto}")
    assert "mode: the policy app takes no args" in message


def test_the_import_path_that_the_checks_look_for_is_the_policy_apps() -> None:
    assert f"{build.__module__}:{build.__name__}" == POLICY_IMPORT_PATH
