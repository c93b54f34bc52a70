"""`nightjar migrate` and `migrate --remove` are inverse, byte for byte, and what lies between is a config that passes the check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.configuration.check.source import SourceError
from nightjar.deployments.configuration.commands import app
from nightjar.deployments.configuration.migrate import change as change_module
from nightjar.deployments.configuration.migrate.adoption import add_nightjar
from nightjar.deployments.configuration.migrate.change import plan_change
from nightjar.deployments.configuration.migrate.removal import remove_nightjar
from nightjar.deployments.configuration.migrate.vllm_command import command_to_config, config_to_command, is_command, parse_command
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
    assert [line.text("f") for line in check_text(after).findings if line.severity == "error"] == []
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


def test_an_argument_that_vllm_dropped_becomes_a_comment_where_it_says_what_vllm_does_anyway() -> None:
    sample = RAY_SERVICES["of the shape of KubeRay's LLM samples"]
    assert "            # ray.serve.llm only: device: auto\n" in add_nightjar(sample)
    of_another = add_nightjar(sample.replace("device: auto", "device: tpu"))
    assert [line.text("f") for line in check_text(of_another).findings if "device: no such argument" in line.text("f")]


def test_engine_arguments_that_are_all_of_that_kind_go_as_a_whole() -> None:
    others = ("            dtype: bfloat16\n", "            max_model_len: 1024\n", "            gpu_memory_utilization: 0.75\n")
    alone = RAY_SERVICES["of the shape of KubeRay's LLM samples"]
    for line in others:
        alone = alone.replace(line, "")
    after = add_nightjar(alone)
    assert "# ray.serve.llm only: engine_kwargs:\n" in after
    assert [line.text("f") for line in check_text(after).findings if line.severity == "error"] == []
    assert remove_nightjar(after) == alone


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
        ("x: &chat {a: 1}\n" + SERVE_FILES["small"], 1, "&chat: what is shared cannot be edited in one place alone"),
        (f"applications: {'[' * 1000}", 1, "nested too deeply"),
        (SERVE_FILES["small"].replace("name: llm_app", "name: 2024-13-45"), 1, "not plain values .*put it in quotes"),
        (SERVE_FILES["on a cpu"].replace("{kind: cpu}", "cpu"), 7, "accelerator_config: 'cpu' is no mapping; mend it first"),
        (
            SERVE_FILES["small"].replace("accelerator_type: A10G", "placement_group_config: {bundles: 3}"),
            7,
            "holds bundles that are no mappings",
        ),
        (
            SERVE_FILES["small"].replace("accelerator_type: A10G", "engine_kwargs: {tensor_parallel_size: auto}"),
            7,
            "engine_kwargs: tensor_parallel_size and pipeline_parallel_size are whole numbers",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused_with_line_value_and_way_out(text: str, line: int, message: str) -> None:
    with pytest.raises(SourceError, match=message) as refused:
        add_nightjar(text)
    assert refused.value.line == line


HOSTED = """\
# two models, an adapter store and a router of theirs
applications:
- name: llm_app
  import_path: ray.serve.llm:build_openai_app   # theirs
  args:
    llm_configs:
    - model_loading_config: {model_id: chat}
      lora_config:
        dynamic_lora_loading_path: s3://adapters
      accelerator_type: L4
    - model_loading_config:
        model_id: code
      accelerator_type: L4
      deployment_config:
        request_router_config: {request_router_class: "ray.serve.llm.request_router:PrefixCacheAffinityRouter"}
    ingress_cls_config: {ingress_extra_kwargs: {}}
  deployments:
  - name: LLMServer:chat
    num_replicas: 2
"""


def test_where_our_own_builder_cannot_serve_a_file_the_refusal_offers_to_keep_ray_serve_llm() -> None:
    with pytest.raises(SourceError, match=r"let ray\.serve\.llm go on serving, steered .*: migrate --keep-ray-serve-llm"):
        add_nightjar(HOSTED)
    for neither in (HOSTED.replace("L4", "L4\n      llm_engine: SGLang", 1), HOSTED.replace("name: llm_app", "name: nightjar")):
        with pytest.raises(SourceError) as refused:
            add_nightjar(neither)
        assert "--keep-ray-serve-llm" not in str(refused.value)


@pytest.mark.parametrize("text", [HOSTED, HOSTED.replace("\n", "\r\n"), *YAML_FILES.values()])
def test_keeping_ray_serve_llm_changes_the_import_path_alone_and_is_taken_out_to_the_very_bytes(text: str) -> None:
    after = add_nightjar(text, keep_host=True)
    line = next(number for number, line in enumerate(text.split("\n")) if "build_openai_app" in line)
    assert after.split("\n")[line] == text.split("\n")[line].replace("ray.serve.llm", "nightjar.deployments.serve_llm", 1)
    assert [line.text("f") for line in check_text(after).findings if line.severity == "error"] == []
    assert add_nightjar(after, keep_host=True) == after
    assert remove_nightjar(after) == text


def test_what_ray_serve_llms_own_server_does_not_know_is_taken_out_as_well() -> None:
    after = add_nightjar(HOSTED, keep_host=True)
    model, replicas, switch = "accelerator_type: L4\n", "    num_replicas: 2\n", "    user_config: {mode: 'off'}\n"
    options = f"{model}      experimental_configs: {{nightjar: {{hung_after_s: 60}}}}\n"
    edited = after.replace(model, options).replace(replicas, replicas + switch)
    assert (edited.count("hung_after_s"), edited.count("mode: 'off'")) == (2, 1)
    assert remove_nightjar(edited) == HOSTED
    without = HOSTED.replace(f"  deployments:\n  - name: LLMServer:chat\n{replicas}", "")
    switched = add_nightjar(HOSTED, keep_host=True).replace(replicas, switch)
    assert remove_nightjar(switched) == without
    by_class = HOSTED.replace(model, f"{model}      server_cls: nightjar.deployments.serve_llm:LLMServer\n")
    assert remove_nightjar(by_class) == HOSTED


def test_a_server_class_of_the_users_own_is_refused_for_it_would_not_be_steered() -> None:
    text = HOSTED.replace("accelerator_type: L4\n", "accelerator_type: L4\n      server_cls: shop:Server\n", 1)
    with pytest.raises(SourceError, match="'shop:Server' would go on serving, but not steered: derive it from nightjar"):
        add_nightjar(text, keep_host=True)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_becomes_a_config_and_the_same_command_again(command: str) -> None:
    config = command_to_config(command)
    assert [line.text("f") for line in check_text(config).findings if line.severity == "error"] == []
    assert config_to_command(config) == f"{command}\n"
    assert is_command(command)


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


def test_what_a_script_exports_is_the_servers_environment() -> None:
    found = parse_command(COMMANDS["script with options of the shell and variables"])
    assert found.environment == {"HF_HOME": "/data/hub cache", "VLLM_USE_V1": "1", "OMP_NUM_THREADS": "4", "TZ": "UTC"}
    assert (found.model, dict(found.arguments)) == ("someone/chat-7b", {"max_num_seqs": 64})


@pytest.mark.parametrize("before", ["cd /models", "export HF_HOME", "set -e; cd /models", "PATH=/opt/bin", "source env.sh"])
def test_a_script_that_does_more_before_its_server_is_refused_with_that_line(before: str, tmp_path: Path) -> None:
    script = tmp_path / "server.sh"
    script.write_text(f"#!/bin/sh\n{before}\nvllm serve someone/chat-7b\n")
    with pytest.raises(SourceError, match="more than a script is read for") as refused:
        plan_change(str(script), remove=False)
    assert repr(before) in str(refused.value)
    assert refused.value.line == 2


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


def test_a_command_with_ranks_asks_for_the_gpus_of_all_and_lets_all_their_rows_through() -> None:
    (model,) = yaml.safe_load(command_to_config("vllm serve m -dp 4 -tp 2 --max-num-seqs 8"))["applications"][0]["args"][
        "llm_configs"
    ]
    assert model["deployment_config"]["ray_actor_options"] == {"num_gpus": 8}
    assert model["deployment_config"]["max_ongoing_requests"] == 64
    text = command_to_config("vllm serve m -dp 4 --data-parallel-rank 1")
    assert "{num_gpus: 1}" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("vllm serve m --max-num-seq 3", "--max-num-seq: vLLM 0.32.0 has no such option; did you mean --max-num-seqs?"),
        ("vllm serve m --monokernel", "--monokernel: an option of vLLM 0.33 whose form is not known here; add it afterwards"),
        ("vllm serve", "no model"),
        ("vllm serve m --port", "--port: no value behind it"),
        ("vllm serve m --api-key secret", "--api-key: a key in a configuration file can be read by many"),
        ("vllm serve m -asc 2", "-asc: Serve's replicas take its place"),
        ("vllm serve m n", "'n': neither an option nor the model, which is m"),
        ("vllm serve m --speculative-config '{method: ngram}'", "is not JSON"),
        ("vllm serve 'm", "not a shell command"),
        ("vllm serve m > log.txt", ">: what a shell does beside the server"),
        ("vllm serve m &", "&: what a shell does beside the server"),
        ("export HF_HOME=$HOME/hub\nvllm serve m", "'$HOME/hub"),
        ("HF_TOKEN=$TOKEN vllm serve m", "'$TOKEN vllm serv': a shell puts something else there"),
        ('vllm serve "$(cat model)"', "a shell puts something else there"),
        ("vllm serve m --chat-template a\u2028b", "ends a line in YAML"),
        ("vllm serve m -tp auto", "--tensor-parallel-size: 'auto' is no whole number"),
        ("vllm serve m -dp auto", "--data-parallel-size: 'auto' is no whole number"),
        ("vllm serve m --compilation-config 3 --compilation-config.mode 1", "compilation_config is 3 already"),
    ],
)
def test_a_command_that_cannot_be_carried_over_is_refused(command: str, message: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse_command(command)
    assert message in str(refused.value)
    assert ("close its quotes" in str(refused.value)) == (command == "vllm serve 'm")


def test_a_command_is_read_as_a_shell_reads_it() -> None:
    command = "vllm serve ./models/chat/ --chat-template ./tpl#2.jinja --max-num-seqs 8  # not this: --max-num-seqs 9"
    assert dict(parse_command(command).arguments) == {"chat_template": "./tpl#2.jinja", "max_num_seqs": 8}
    assert yaml.safe_load(command_to_config(command))["applications"][0]["name"] == "chat"
    assert yaml.safe_load(command_to_config("vllm serve nightjar"))["applications"][0]["name"] == "nightjar-llm"
    quoted = parse_command("vllm serve m --kv-cache-memory-bytes 20G --gpu-memory-utilization .9 --download-dir 'a & $b'")
    assert dict(quoted.arguments) == {"kv_cache_memory_bytes": 20 << 30, "gpu_memory_utilization": 0.9, "download_dir": "a & $b"}


def test_an_option_that_may_be_there_several_times_keeps_each_of_them() -> None:
    command = parse_command("vllm serve m --middleware one.Logs --middleware=two.Limits")
    assert dict(command.arguments) == {"middleware": ["one.Logs", "two.Limits"]}
    edited = command_to_config("vllm serve m --middleware one.Logs --middleware two.Limits").replace("[one.Logs,", "[zero.Ids,")
    assert str(config_to_command(edited)).endswith("--middleware zero.Ids --middleware two.Limits\n")


@pytest.mark.parametrize("written", ["-O3", "-O 3", "-O=3", "--optimization-level 3"])
def test_the_optimization_level_is_read_in_each_of_its_forms(written: str) -> None:
    assert dict(parse_command(f"vllm serve m {written} -dpl 2 -dph").arguments) == {
        "optimization_level": 3,
        "data_parallel_size_local": 2,
        "data_parallel_hybrid_lb": True,
    }


def test_an_empty_value_is_an_empty_text() -> None:
    assert dict(parse_command("vllm serve m --quantization '' --hf-token=").arguments) == {"quantization": "", "hf_token": ""}


def test_an_edited_config_without_a_command_in_it_is_refused() -> None:
    header = command_to_config("vllm serve m").split("\n")[0]
    for rest in ("applications: [", "applications:\n- 3\n", "applications: []\n", "{}\n"):
        with pytest.raises(SourceError):
            config_to_command(f"{header}\n{rest}")
    edited = command_to_config("vllm serve m").replace("route_prefix: /\n", "route_prefix: /chat\n", 1)
    edited = edited.replace("port: 8000", "port: 8000, request_timeout_s: 60").replace("port: 8000", "port: null")
    assert config_to_command(edited) == "vllm serve m --served-model-name m --host 0.0.0.0\n"


def test_json_stays_json() -> None:
    model = {"model_loading_config": {"model_id": "m"}, "accelerator_type": "L4"}
    text = json.dumps({"applications": [{"import_path": "ray.serve.llm:build_openai_app", "args": {"llm_configs": [model]}}]})
    after = add_nightjar(text)
    assert len(json.loads(after)["applications"]) == 2
    assert remove_nightjar(after) == text


def test_a_rayservice_whose_text_is_indented_further_than_it_says_is_edited_where_it_stands() -> None:
    before = RAY_SERVICES["literal"]
    start = before.index("serveConfigV2: |") + len("serveConfigV2: |")
    indent = len(before[start:].split("\n")[1]) - len(before[start:].split("\n")[1].lstrip(" "))
    before = before[:start] + str(indent - before[:start].split("\n")[-1].index("s")) + before[start:]
    after = add_nightjar(before)
    assert "import_path: nightjar.deployments.app:build" in after
    assert remove_nightjar(after) == before
    text = before.replace("\n" + " " * indent, "\n" + " " * (indent + 2))
    assert "import_path: nightjar.deployments.app:build" in add_nightjar(text)
    assert remove_nightjar(add_nightjar(text)) == text


def test_what_somebody_wrote_into_what_migrate_added_is_not_taken_out_with_it() -> None:
    after = add_nightjar(SERVE_FILES["what only ray.serve.llm knows"])
    header = next(line for line in after.split("\n") if line.strip().startswith("deployment_config:"))
    indent = " " * (len(header) - len(header.lstrip(" ")) + 2)
    with pytest.raises(SourceError, match="deployment_config: migrate added this line, and num_replicas stands there now"):
        remove_nightjar(after.replace(header, f"{header}\n{indent}num_replicas: 3"))
    with pytest.raises(SourceError, match="ray_actor_options: migrate added this line, and num_cpus stands there now"):
        remove_nightjar(after.replace("{num_gpus: 2}", "{num_gpus: 2, num_cpus: 4}"))
    with pytest.raises(SourceError, match="begins below its dash"):
        remove_nightjar(after.replace("- name: nightjar\n", "-\n  name: nightjar\n"))


def test_edits_that_could_not_be_undone_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(SERVE_FILES["small"])
    for broken in ("applications: [", SERVE_FILES["small"].replace("llm_app", "another")):
        monkeypatch.setattr(change_module, "add_nightjar", lambda _text, broken=broken, **_: broken)
        code, output = run(str(file), "--write")
        assert (code, file.read_text()) == (1, SERVE_FILES["small"])
        assert "could not be taken out again" in output


def test_a_file_is_replaced_as_a_whole_and_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "serve.yaml", tmp_path / "link.yaml"
    file.write_text(SERVE_FILES["small"])
    file.chmod(0o640)
    link.symlink_to(file)
    assert run(str(link), "--write")[0] == 0
    assert link.is_symlink()
    assert file.read_text() == add_nightjar(SERVE_FILES["small"])
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "serve.yaml"]
    file.write_bytes(b"\xef\xbb\xbf" + SERVE_FILES["small"].encode())
    assert "begins with a byte order mark" in run(str(file))[1]
    assert run("")[0] == 1


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


def test_standard_input_goes_to_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["migrate", "-", "--write"], input=SERVE_FILES["small"])
    assert result.exit_code == 0
    assert (tmp_path / "serve.yaml").read_text() == add_nightjar(SERVE_FILES["small"])
    (tmp_path / "serve.yaml").write_text("something: else\n")
    refused = CliRunner().invoke(app, ["migrate", "-", "--write"], input=SERVE_FILES["small"])
    assert refused.exit_code == 1
    assert "is there already and holds something else" in refused.output


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
