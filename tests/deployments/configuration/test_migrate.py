"""`nightjar migrate` and `migrate --remove` are inverse, byte for byte, and what lies between is a config that passes the check."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nightjar.deployments.configuration.adoption import add_nightjar
from nightjar.deployments.configuration.change import plan_change
from nightjar.deployments.configuration.checking import check_text
from nightjar.deployments.configuration.commands import app
from nightjar.deployments.configuration.migration import MigrationError
from nightjar.deployments.configuration.removal import remove_nightjar
from nightjar.deployments.configuration.vllm_command import command_to_config, config_to_command, parse_command
from tests.deployments.configuration.samples import COMMANDS, RAY_SERVICES, SERVE_FILES

YAML_FILES = SERVE_FILES | {f"RayService, {name}": text for name, text in RAY_SERVICES.items()}


@pytest.mark.parametrize("text", YAML_FILES.values(), ids=YAML_FILES.keys())
@pytest.mark.parametrize("form", ["as it is", "no newline at the end", "Windows line ends"])
def test_taking_it_out_gives_the_very_bytes_back(text: str, form: str) -> None:
    before = {"no newline at the end": text.removesuffix("\n"), "Windows line ends": text.replace("\n", "\r\n")}.get(form, text)
    after = add_nightjar(before)
    assert after != before
    assert remove_nightjar(after) == before


@pytest.mark.parametrize("text", YAML_FILES.values(), ids=YAML_FILES.keys())
def test_what_comes_out_passes_the_check_and_twice_is_once(text: str) -> None:
    after = add_nightjar(text)
    assert [line.text("f") for line in check_text(after).lines if line.finding.severity == "error"] == []
    assert add_nightjar(after) == after
    assert remove_nightjar(text) == text


def test_the_import_path_changes_and_the_policy_comes_behind() -> None:
    values = yaml.safe_load(add_nightjar(SERVE_FILES["comments and blank lines"]))
    assert [application["import_path"] for application in values["applications"]] == [
        "nightjar.deployments.app:build",
        "nightjar.cluster.policy_app:build",
    ]
    assert values["applications"][1]["deployments"] == [{"name": "Policy", "user_config": {"mode": "shadow", "planner": "fleet"}}]


def test_an_engine_whose_accelerator_nobody_names_gets_the_gpus_that_ray_serve_llm_would_take() -> None:
    values = yaml.safe_load(add_nightjar(SERVE_FILES["what only ray.serve.llm knows"]))
    (entry,) = values["applications"][0]["args"]["llm_configs"]
    assert entry == {
        "model_loading_config": {"model_id": "m"},
        "engine_kwargs": {"tensor_parallel_size": 2},
        "deployment_config": {"ray_actor_options": {"num_gpus": 2}},
    }
    values = yaml.safe_load(add_nightjar(SERVE_FILES["no accelerator named"]))
    (entry,) = values["applications"][0]["args"]["llm_configs"]
    assert entry["deployment_config"]["ray_actor_options"] == {"num_cpus": 4, "num_gpus": 1}
    (entry,) = yaml.safe_load(add_nightjar(SERVE_FILES["on a cpu"]))["applications"][0]["args"]["llm_configs"]
    assert entry == {"model_loading_config": {"model_id": "m"}}


def test_what_an_operator_added_for_nightjar_goes_with_it() -> None:
    small = SERVE_FILES["small"]
    edited = add_nightjar(small).replace("planner: fleet", "planner: fleet\n    # ours\n      dwell_steps: 2")
    edited = edited.replace("        accelerator_type: A10G\n", "        accelerator_type: A10G\n        hung_after_s: 60\n")
    edited = edited.replace("  name: llm_app\n", "  deployments: [{name: LLM, user_config: {mode: 'off'}}]\n  name: llm_app\n")
    assert remove_nightjar(edited) == small
    braces = small.replace("accelerator_type: A10G\n", "accelerator_type: A10G\n        draft_offload: never\n")
    braces = braces.replace("ray.serve.llm:build_openai_app", "nightjar.deployments.app:build")
    assert remove_nightjar(braces) == small


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("applications: []", 1, "a list of Serve applications is needed"),
        ("applications:\n- import_path: shop:app", 2, "Nightjar takes the place of ray.serve.llm:build_openai_app"),
        (
            SERVE_FILES["small"].replace("accelerator_type: A10G", "lora_config: {max_num_adapters_per_replica: 4}"),
            7,
            "lora_config: {'max_num_adapters_per_replica': 4} cannot be carried over: .*lora_modules.*take it out first",
        ),
        (
            SERVE_FILES["small"].replace("accelerator_type: A10G", "llm_engine: SGLang"),
            7,
            "'SGLang'; Nightjar serves with vLLM alone",
        ),
        (
            SERVE_FILES["small"].replace("model_source: someone/small-chat-0.5b", "model_source: {bucket_uri: gs://b}"),
            6,
            "model_source: {'bucket_uri': 'gs://b'}; Nightjar loads a hub name or a folder",
        ),
        (
            SERVE_FILES["on a cpu"] + "    - model_loading_config: {model_id: n}\n",
            9,
            "2 models, and Nightjar serves one per application",
        ),
        (
            SERVE_FILES["small"].replace("name: llm_app", "name: nightjar"),
            13,
            "name: nightjar is the policy's own; choose another one",
        ),
        (
            SERVE_FILES["small"].replace("  name: llm_app", "  deployments: [{name: 'LLMServer:x'}]\n  name: llm_app"),
            13,
            "move their options to llm_configs",
        ),
        (
            SERVE_FILES["in braces"].replace('"accelerator_type": "L4"', '"llm_engine": "vLLM"'),
            2,
            "llm_engine: of no use to Nightjar, and inside braces",
        ),
        (
            SERVE_FILES["in braces"].replace(', "accelerator_type": "L4"', ""),
            2,
            "no accelerator_type, so num_gpus: 1 must go where braces are",
        ),
        (RAY_SERVICES["literal"].replace("serveConfigV2: |", "serveConfigV2: >"), 6, "no literal block; write it behind"),
        ("a: 1\r\nb: 2\n", 1, "line ends are mixed"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_with_line_value_and_way_out(text: str, line: int, message: str) -> None:
    with pytest.raises(MigrationError, match=message) as refused:
        add_nightjar(text)
    assert refused.value.line == line


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_becomes_a_config_and_the_same_command_again(command: str) -> None:
    config = command_to_config(command)
    assert [line.text("f") for line in check_text(config).lines if line.finding.severity == "error"] == []
    assert config_to_command(config) == f"{command}\n"


def test_a_command_says_what_it_said() -> None:
    found = parse_command(COMMANDS["options"])
    assert (found.model, found.served_name, found.http_options["port"]) == ("someone/chat-7b", "chat", 9000)
    assert found.arguments == {
        "tensor_parallel_size": 2,
        "max_model_len": 32000,
        "enforce_eager": True,
        "enable_prefix_caching": False,
    }
    found = parse_command(COMMANDS["short options, equals, dots"])
    assert found.arguments["speculative_config"] == {"method": "eagle3", "model": "someone/eagle", "num_speculative_tokens": 3}
    assert parse_command(COMMANDS["json and environment"]).environment == {"VLLM_LOGGING_LEVEL": "DEBUG"}


def test_a_config_that_was_edited_gives_a_command_of_its_values() -> None:
    config = command_to_config("vllm serve someone/chat-7b --max-num-seqs 64").replace("max_num_seqs: 64", "max_num_seqs: 32")
    assert config_to_command(config) == (
        "vllm serve someone/chat-7b --served-model-name someone/chat-7b --host 0.0.0.0 --port 8000 --max-num-seqs 32\n"
    )


TEXTS = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=12).filter(
    lambda text: text[0] not in "-{["
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "max_num_seqs": st.integers(1, 4096),
        "gpu_memory_utilization": st.floats(0.1, 1.0),
        "enforce_eager": st.booleans(),
        "download_dir": TEXTS,
        "allowed_origins": st.lists(TEXTS, min_size=1, max_size=3),
        "speculative_config": st.fixed_dictionaries(
            {"method": st.sampled_from(["ngram", "eagle3"]), "num_speculative_tokens": st.integers(1, 9)}
        ),
    },
)


@given(ARGUMENTS)
def test_values_survive_a_command_written_from_them(arguments: dict[str, object]) -> None:
    config = yaml.safe_load(command_to_config("vllm serve someone/chat"))
    config["applications"][0]["args"]["llm_configs"][0]["engine_kwargs"] = arguments
    command = config_to_command(command_to_config("vllm serve someone/chat").split("\n")[0] + "\n" + yaml.safe_dump(config))
    assert command is not None
    assert dict(parse_command(command).arguments) == arguments


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("vllm serve m --max-num-seq 3", "--max-num-seq: vLLM 0.32.0 has no such option; did you mean --max-num-seqs?"),
        ("vllm serve", "no model"),
        ("vllm serve m --port", "--port: no value behind it"),
        ("vllm serve m --api-key secret", "--api-key: a key in a configuration file can be read by many"),
        ("vllm serve m n", "'n': neither an option nor the model, which is m"),
        ("vllm serve m --speculative-config '{method: ngram}'", "is not JSON"),
        ("vllm serve 'm", "not a shell command"),
    ],
)
def test_a_command_that_cannot_be_carried_over_is_refused(command: str, message: str) -> None:
    with pytest.raises(MigrationError) as refused:
        parse_command(command)
    assert message in str(refused.value)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["migrate", *arguments])
    return result.exit_code, result.output


def test_the_command_shows_a_diff_and_writes_only_when_told(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(SERVE_FILES["small"])
    code, output = run(str(file))
    assert code == 0
    assert "-  import_path: ray.serve.llm:build_openai_app\n+  import_path: nightjar.deployments.app:build\n" in output
    assert file.read_text() == SERVE_FILES["small"]
    assert run(str(file), "--write")[0] == 0
    assert file.read_text() == add_nightjar(SERVE_FILES["small"])
    assert "nothing to change" in run(str(file))[1]
    assert run(str(file), "--remove", "--write")[0] == 0
    assert file.read_bytes() == SERVE_FILES["small"].encode()


def test_a_script_gets_a_config_beside_it_and_is_given_back(tmp_path: Path) -> None:
    script = tmp_path / "server.sh"
    script.write_text(COMMANDS["continued"] + "\n")
    assert run(str(script), "--write")[0] == 0
    config = tmp_path / "server.yaml"
    assert config.read_text() == command_to_config(COMMANDS["continued"])
    back = plan_change(str(config), remove=True)
    assert back.path == script
    assert back.after == script.read_text()
    back.write()
    config.write_text("something: else\n")
    code, output = run(str(script), "--write")
    assert code == 1
    assert "is there already and holds something else" in output


def test_a_command_in_quotes_becomes_a_new_file(tmp_path: Path) -> None:
    target = tmp_path / "new.yaml"
    code, output = run(COMMANDS["plain"], "--write", "--output", str(target))
    assert code == 0
    assert output.startswith(f"--- command\n+++ {target}\n")
    assert target.read_text() == command_to_config(COMMANDS["plain"])


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("applications:\n- import_path: shop:app\n")
    code, output = run(str(file))
    assert code == 1
    assert output.startswith(f"{file}:2: error: import_path: shop:app; ")
    assert run(str(tmp_path / "nowhere.yaml"))[0] == 1
