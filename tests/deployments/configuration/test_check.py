"""`nightjar check`: every mistake is one message with the line, the value seen and the way out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nightjar.deployments.configuration.check.report import Report, check_text
from nightjar.deployments.configuration.commands import app, describe

GOOD = """\
http_options: {host: 0.0.0.0, port: 8000}
applications:
- name: chat
  import_path: nightjar.deployments.app:build
  args:
    llm_configs:
    - model_loading_config: {model_id: chat, model_source: someone/target}
      accelerator_type: H100
      engine_kwargs:
        tensor_parallel_size: 2
        max_num_seqs: 64
        speculative_config:
          method: draft_model
          model: someone/draft
          num_speculative_tokens: 5
      deployment_config:
        num_replicas: 3
- name: nightjar
  import_path: nightjar.cluster.policy_app:build
  route_prefix: /nightjar
  deployments:
  - name: Policy
    user_config:
      mode: auto
      planner: fleet
"""
RAY_SERVICE = """\
# a manifest
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: chat
spec:
  serveConfigV2: |
{config}
  rayClusterConfig:
    headGroupSpec:
      template: {{}}
"""
MANIFEST_LINES_BEFORE = 7


def errors(report: Report) -> list[str]:
    return [line.text("f") for line in report.findings if line.severity == "error"]


def said(text: str, severity: str) -> list[str]:
    return [line.message for line in check_text(text).findings if line.severity == severity]


def replaced(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def beside_args(written: str, text: str = GOOD) -> str:
    """`text` with one more line in its model's application."""
    return text.replace("- name: chat\n", f"- name: chat\n  {written}\n")


def test_replicas_without_a_gpu_are_advised_of_unless_somebody_wrote_that() -> None:
    on_cpu = replaced("      accelerator_type: H100\n", "").replace("        tensor_parallel_size: 2\n", "")
    assert any("its replicas get no GPU" in message for message in said(on_cpu, "advice"))
    written = on_cpu.replace("num_replicas: 3\n", "num_replicas: 3\n        ray_actor_options: {num_gpus: 0}\n")
    assert not any("no GPU" in message for message in said(written, "advice"))


def test_a_good_file_has_no_error_and_no_warning() -> None:
    assert [line.text("f") for line in check_text(GOOD).findings if line.severity != "advice"] == []


BROKEN = [
    pytest.param(
        replaced("max_num_seqs: 64", "max_num_seq: 64"),
        "f:11: error: applications.0.args.llm_configs.0.engine_kwargs.max_num_seq: no such argument of vLLM 0.32.0 (value 64); "
        "did you mean max_num_seqs?",
        id="misspelt engine argument",
    ),
    pytest.param(
        replaced("tensor_parallel_size: 2", "tensor_parallel_size: '2'"),
        "f:10: error: applications.0.args.llm_configs.0.engine_kwargs.tensor_parallel_size: '2' must be a valid integer; "
        "correct it, or take it out for the default 1",
        id="type",
    ),
    pytest.param(
        replaced("max_num_seqs: 64", "gpu_memory_utilization: 1.5"),
        "f:11: error: applications.0.args.llm_configs.0.engine_kwargs.gpu_memory_utilization: 1.5 must be less than or equal to 1; "
        "correct it, or take it out for the default",
        id="range",
    ),
    pytest.param(
        replaced("method: draft_model", "method: egale3"),
        "f:13: error: applications.0.args.llm_configs.0.engine_kwargs.speculative_config.method: 'egale3' must be one of "
        "custom_class, dflash, draft_model, dspark, eagle, eagle3, extract_hidden_states, medusa, mlp_speculator, mtp, ngram, "
        "ngram_gpu, suffix; correct it, or take it out for the default",
        id="unknown method",
    ),
    pytest.param(
        replaced("tensor_parallel_size: 2", "pipeline_parallel_size: 2"),
        "f:10: error: applications.0.args.llm_configs.0.engine_kwargs.pipeline_parallel_size: pipeline_parallel_size 2 is not "
        "supported, so it would serve as plain vLLM; allowed is 1: take pipeline_parallel_size out, and use "
        "tensor_parallel_size or more replicas instead",
        id="pipeline parallelism",
    ),
    pytest.param(
        replaced("tokens: 5\n", "tokens: 5\n          num_speculative_tokens_per_batch_size: [[1, 8, 7], [9, 64, 1]]\n"),
        "f:16: error: applications.0.args.llm_configs.0.engine_kwargs.speculative_config.num_speculative_tokens_per_batch_size: "
        "row [1, 8, 7] asks for 7 tokens, num_speculative_tokens is 5; allowed are 0 to 5: lower it or "
        "raise num_speculative_tokens",
        id="K in a table above the maximum",
    ),
    pytest.param(
        replaced(
            "tokens: 5\n",
            "tokens: 5\n          num_speculative_tokens_per_batch_size:\n          - [1, 8, 5]\n          - [8, 64, 1]\n",
        ),
        "f:16: error: applications.0.args.llm_configs.0.engine_kwargs.speculative_config.num_speculative_tokens_per_batch_size: "
        "row [8, 64, 1] begins at or below batch 8, where the row before ends; rows must ascend: let it begin at 9",
        id="table that does not ascend",
    ),
    pytest.param(
        replaced("tokens: 5\n", "tokens: 5\n          num_speculative_tokens_per_batch_size: [[1, 8]]\n"),
        "f:16: error: applications.0.args.llm_configs.0.engine_kwargs.speculative_config.num_speculative_tokens_per_batch_size: "
        "row [1, 8] has 2 numbers; three are needed: first batch, last batch, tokens",
        id="table with a number too few",
    ),
    pytest.param(
        replaced("max_num_seqs: 64", "data_parallel_size_local: two"),
        "f:11: error: applications.0.args.llm_configs.0.engine_kwargs.data_parallel_size_local: 'two' must be a valid integer; "
        "correct it, or take it out for the default",
        id="local ranks that are no number",
    ),
    pytest.param(
        replaced("max_num_seqs: 64", "nnodes: two"),
        "f:11: error: applications.0.args.llm_configs.0.engine_kwargs.nnodes: 'two' must be a valid integer; "
        "correct it, or take it out for the default 1",
        id="nodes that are no number",
    ),
    pytest.param(
        replaced("num_replicas: 3", "ray_actor_options: {num_gpus: '2'}"),
        "f:17: error: applications.0.args.llm_configs.0.deployment_config.ray_actor_options.num_gpus: '2'; Ray takes a number "
        "here: no quotes",
        id="GPUs in quotes, which Ray is called with",
    ),
    pytest.param(
        replaced("num_replicas: 3", "rolling_update_percentage: 0.5"),
        "f:17: error: applications.0.args.llm_configs.0.deployment_config.rolling_update_percentage: 0.5; Serve takes it beside "
        "args alone: write it into deployments, below name: LLM",
        id="what a builder cannot set",
    ),
    pytest.param(
        replaced("num_replicas: 3", "autoscaling_config:\n          min_replicas: 4\n          max_replicas: 2"),
        "f:18: error: applications.0.args.llm_configs.0.deployment_config.autoscaling_config.min_replicas: min_replicas 4 is above "
        "max_replicas 2 (default 1); raise max_replicas or lower min_replicas",
        id="more replicas at least than at most",
    ),
    pytest.param(
        replaced("method: draft_model", "method: eagle3").replace("accelerator_type: H100", "draft_offload: under_memory_pressure"),
        "f:8: error: applications.0.args.llm_configs.0.draft_offload: 'under_memory_pressure' cannot be done: only a separate "
        "draft model has memory of its own; mend that, or set draft_offload: never",
        id="offload of a drafter that cannot leave",
    ),
    pytest.param(
        replaced("planner: fleet", "planer: fleet"),
        "f:25: error: applications.1.deployments.0.user_config.planer: no such setting (value 'fleet'); did you mean planner?; "
        "correct it, or take it out",
        id="setting that does not parse",
    ),
    pytest.param(
        replaced("planner: fleet", "allowed_num_speculative_tokens: [0, 8]"),
        "f:25: error: applications.1.deployments.0.user_config.allowed_num_speculative_tokens: 8 is above the "
        "num_speculative_tokens of every application (5); allowed are 0 to 5: lower it, or raise "
        "num_speculative_tokens in the application's speculative_config",
        id="setting above the model's maximum",
    ),
    pytest.param(
        replaced("  import_path: nightjar.deployments.app:build", "  import_pth: nightjar.deployments.app:build"),
        "f:4: error: applications.0.import_pth: no such field (value 'nightjar.deployments.app:build'); did you mean import_path?",
        id="misspelt key of Serve",
    ),
    pytest.param(
        replaced("num_replicas: 3", "num_replicas: 3\n        autoscaling_config: {max_replicas: 2}"),
        "f:17: error: applications.0.args.llm_configs.0.deployment_config.num_replicas: num_replicas 3 and autoscaling_config "
        "exclude each other; take one of them out",
        id="fixed and autoscaled",
    ),
    pytest.param(
        replaced("      mode: auto\n", "      mode: auto\n      mode: off\n"),
        "f:25: error: mode: is there already, 1 lines above; YAML keeps only the last: take one out",
        id="a key twice",
    ),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_told_line_value_and_way_out(text: str, message: str) -> None:
    assert message in errors(check_text(text))


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_in_a_rayservice_the_same_messages_name_the_manifests_lines(text: str, message: str) -> None:
    manifest = RAY_SERVICE.format(config=indent(text, "    ").rstrip())
    _, line, rest = message.split(":", 2)
    assert f"f:{int(line) + MANIFEST_LINES_BEFORE}:{rest}" in errors(check_text(manifest))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: [", "f:1: error: not YAML"),
        ("applications: !!bool maybe", "f:1: error: not plain values ('maybe'); put it in quotes"),
        ("applications: !!timestamp soon", "f:1: error: not plain values"),
        ("just words", "holds 'just words'; a mapping with the field applications is needed"),
        (
            "import_path: a:b",
            "f:1: error: import_path: 'a:b' stands at the top; write applications: and this one as its first entry",
        ),
        ("applications: []", "applications: [] "),
        ("kind: Deployment", "kind: Deployment; a RayService is needed"),
        ("kind: RayService\nspec: {}", "spec.serveConfigV2: no text there"),
        ("a: 1\n---\nb: 2", "2 YAML documents, none of kind RayService"),
        (replaced("- name: Policy", "- name: Polizy"), "'Polizy'; the policy app has one deployment, Policy: write that name"),
        (
            replaced("- name: nightjar", "- name: chat"),
            "f:18: error: applications.1.name: 'chat' is the name of application 0, too; each needs its own: change one",
        ),
        (replaced("port: 8000", "port: many"), "http_options.port: 'many' must be a valid integer"),
        (replaced("port: 8000", "prot: 8000"), "http_options.prot: no such field (value 8000); did you mean port?"),
        (f"{GOOD}aplications: []\n", "aplications: no such field (value []); did you mean applications?"),
        (replaced("planner: fleet", "dwell_steps: -1"), "dwell_steps: Input should be greater than or equal to 0 (value -1)"),
        (
            replaced("num_replicas: 3", "user_config: {mode: fast}"),
            "user_config: mode 'fast' is none of auto, shadow, off, pin=K, default",
        ),
        (replaced("num_speculative_tokens: 5", "num_speculative_tokens: 99"), "num_speculative_tokens 99 is above 32"),
        (replaced("method: draft_model", "method: medusa"), "drafter 'medusa' does not obey a K chosen per step"),
        (replaced("max_num_seqs: 64", "scheduler_cls: my.Scheduler"), "engine_kwargs set scheduler_cls themselves"),
        (
            replaced("accelerator_type: H100", "accelerator_type: H100\n      draft_offload: under_memory_pressure"),
            "on a GPU it has never run; NIGHTJAR_CUDA_OFFLOAD=1 tries it",
        ),
        (replaced("planner: fleet", "planner: schedule"), "planner schedule needs num_speculative_tokens_per_batch_size"),
        (replaced("mode: auto", "mode: pin=7"), "7 is above the num_speculative_tokens of every application (5)"),
        (
            replaced("num_replicas: 3", "ray_actor_options: {num_gpus: 1}"),
            "1, and the engine runs 2 workers with a GPU each; write 2",
        ),
        (
            beside_args("deployments: [{name: LLM, ray_actor_options: {num_gpus: 1}}]"),
            "f:4: error: applications.0.deployments.0.ray_actor_options.num_gpus: 1, and the engine runs 2 workers with a GPU each",
        ),
        (
            beside_args("deployments: [{name: LLM, ray_actor_options: {num_gpus: '1'}}]"),
            "deployments.0.ray_actor_options.num_gpus: 1, and the engine runs 2 workers with a GPU each",
        ),
        (replaced("tokens: 5\n", "tokens: 5\n          3: 4\n"), "speculative_config.3: no such argument of vLLM 0.32.0 (value 4)"),
        (
            beside_args("deployments: [{name: LLM, ray_actor_options: {accelerator_type: H100}}]"),
            "f:4: error: applications.0.deployments.0.ray_actor_options.num_gpus: 0, and the engine runs 2 workers",
        ),
        (
            beside_args("deployments: [{name: LLM, autoscaling_config: {max_replicas: 2}}]"),
            "num_replicas: num_replicas 3 and autoscaling_config exclude each other; take one of them out",
        ),
        (
            beside_args("deployments: [{name: LLM, num_replica: 2}]"),
            "deployments.0.num_replica: no such field (value 2); did you mean num_replicas?",
        ),
        (
            beside_args(
                "runtime_env: {env_vars: {NIGHTJAR_CUDA_OFFLOAD: '1'}}",
                replaced("accelerator_type: H100", "accelerator_type: H100\n      draft_offload: under_memory_pressure"),
            ),
            "on a GPU it needs enable_cumem_allocator: true",
        ),
        (
            replaced("accelerator_type: H100", "accelerator_type: H100\n      require_steering: true").replace(
                "method: draft_model", "method: medusa"
            ),
            "require_steering: true, and this engine would serve as plain vLLM, so its replicas will not start: drafter 'medusa'",
        ),
    ],
)
def test_further_mistakes(text: str, message: str) -> None:
    found = errors(check_text(text))
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (replaced("num_replicas: 3", "max_ongoing_requests: 5"), "5 is below twice max_num_seqs (64)"),
        (replaced("num_replicas: 3", "max_ongoing_requests: '5'"), "5 is below twice max_num_seqs (64)"),
        (replaced("num_replicas: 3", "autoscaling_config: {max_replicas: 2}"), "Serve's default of 2 adds a replica for every two"),
        (
            replaced("num_replicas: 3", "autoscaling_config: {max_replicas: 2, target_ongoing_requests: 500}"),
            "500 is above max_ongoing_requests (128)",
        ),
        (
            GOOD[: GOOD.index("        speculative_config")] + GOOD[GOOD.index("      deployment_config") :],
            "there is nothing to steer",
        ),
        (
            replaced("nightjar.deployments.app:build", "ray.serve.llm:build_openai_app"),
            "serves without Nightjar; nightjar migrate shows what to change",
        ),
        (replaced("model: someone/draft", "model: ./no/such/folder"), "model './no/such/folder': no such folder"),
        (beside_args("deployments: [{name: LLM, max_ongoing_requests: 5}]"), "5 is below twice max_num_seqs (64)"),
        (
            beside_args(
                "deployments: [{name: LLM, autoscaling_config: {max_replicas: 2, target_ongoing_requests: 500}}]",
                replaced("num_replicas: 3", "max_ongoing_requests: 400"),
            ),
            "500 is above max_ongoing_requests (400)",
        ),
        (
            beside_args("deployments: [{name: LLM, ray_actor_options: {num_gpus: 2}}]"),
            "Serve takes these alone, without what accelerator_type and runtime_env add; move them to deployment_config",
        ),
        (
            beside_args(
                "runtime_env: {env_vars: {A: '1', B: '2'}}",
                replaced("accelerator_type: H100", "accelerator_type: H100\n      runtime_env: {env_vars: {B: '3'}}"),
            ),
            "A will not be set in the replicas: they have a runtime_env of their own",
        ),
    ],
)
def test_what_disappoints_is_a_warning_and_no_error(text: str, message: str) -> None:
    assert errors(check_text(text)) == []
    assert any(message in line for line in said(text, "warning")), said(text, "warning")


def test_what_stands_beside_args_is_told_where_it_stands() -> None:
    found = check_text(beside_args("deployments: [{name: LLM, max_ongoing_requests: 5}]")).findings
    assert [line.text("f").split(": 5 is")[0] for line in found if line.severity == "warning"] == [
        "f:4: warning: applications.0.deployments.0.max_ongoing_requests"
    ]


@pytest.mark.parametrize("text", [replaced("          method: draft_model\n", ""), replaced("mode: auto", "mode: shadow")])
def test_nobody_is_told_to_take_out_a_variable_that_is_not_set(text: str) -> None:
    assert said(text, "warning") == []


@pytest.mark.parametrize(
    "path", ["nightjar.deployments.app:bild", "nightjar.deployments.app.bild", "nightjar.deployment.app:build"]
)
def test_a_path_of_nightjars_that_leads_to_no_application_is_an_error(path: str) -> None:
    (said,) = errors(check_text(replaced("nightjar.deployments.app:build", path)))
    assert "no application of Nightjar's; did you mean nightjar.deployments.app:build?" in said


def described(text: str) -> str:
    (model,) = check_text(text).models
    return "\n".join(describe(model))


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        (GOOD, "3; each needs GPU 2 of type H100"),
        (replaced("accelerator_type: H100", "hung_after_s: 60"), "3; each needs no GPU"),
        (replaced("        tensor_parallel_size: 2\n", ""), "3; each needs GPU 1 of type H100"),
        (replaced("num_replicas: 3", "num_replicas: auto"), "1 to 100; each needs GPU 2 of type H100"),
        (
            replaced("num_replicas: 3", "autoscaling_config: {min_replicas: 2, max_replicas: 8}"),
            "2 to 8; each needs GPU 2 of type H100",
        ),
    ],
)
def test_a_model_says_how_many_replicas_it_has_and_what_each_needs(text: str, needs: str) -> None:
    assert f"  replicas  {needs}" in described(text).splitlines()


@pytest.mark.parametrize(
    ("text", "runner", "graphs"),
    [
        (GOOD, "runner V2, its default", "full and piecewise CUDA graphs for K of 0, 1, 3, 5 (graph_tiers); "),
        (
            replaced("method: draft_model", "method: eagle3"),
            "runner V2, its default",
            "CUDA graphs for K of 0, 1, 3, 5 (graph_tiers); 92 full graphs of the target; 5 of 256 pairs of batch and K have none",
        ),
        (replaced("max_num_seqs: 64", "enforce_eager: true"), "runner V2, its default", "none: enforce_eager"),
        (replaced("accelerator_type: H100", "hung_after_s: 60"), "runner V1, the only one on CPU", "none on CPU"),
        (replaced("mode: auto", "mode: shadow"), "runner V2, its default", "vLLM's default, full and piecewise"),
        (replaced("          method: draft_model\n", ""), "runner V2, its default", "full and piecewise CUDA graphs"),
        (
            beside_args("runtime_env: {env_vars: {VLLM_USE_V2_MODEL_RUNNER: '0'}}"),
            "runner V1, as VLLM_USE_V2_MODEL_RUNNER says",
            "piecewise CUDA graphs: V1 captures no full ones",
        ),
        (
            replaced("someone/draft", "someone/chat-eagle3"),
            "runner V2, its default",
            "full and piecewise CUDA graphs for K of 0, 1, 3, 5 (graph_tiers); ",
        ),
        (
            replaced(
                "accelerator_type: H100", "accelerator_type: H100\n      runtime_env: {env_vars: {VLLM_USE_V2_MODEL_RUNNER: '1'}}"
            ),
            "runner V2, as VLLM_USE_V2_MODEL_RUNNER says",
            "full and piecewise CUDA graphs",
        ),
        (
            beside_args("runtime_env: {env_vars: {VLLM_USE_V2_MODEL_RUNNER: '1'}}"),
            "runner V2",
            "full and piecewise CUDA graphs",
        ),
        (
            beside_args("deployments: [{name: LLM, ray_actor_options: {num_gpus: 0}}]", replaced("H100", "null")),
            "runner V1, the only one on CPU",
            "none on CPU",
        ),
    ],
)
def test_runner_and_graph_mode_are_told(text: str, runner: str, graphs: str) -> None:
    lines = described(text)
    assert runner in lines
    assert graphs in lines


ON_V1 = "runtime_env: {env_vars: {VLLM_USE_V2_MODEL_RUNNER: '0'}}"


@pytest.mark.parametrize(
    ("word", "method", "beside", "is_told"),
    [
        ("graph_tiers: [2]", "eagle3", "", False),
        ("graph_tiers: [2]", "draft_model", "", False),
        ("graph_tiers: [2]", "draft_model", ON_V1, True),
        ("head_log_steps: 0", "eagle3", "", True),
        ("head_log_steps: 16", "eagle3", "", True),
        ("head_log_steps: 16", "draft_model", "", True),
    ],
)
def test_a_word_that_does_nothing_is_told(word: str, method: str, beside: str, is_told: bool) -> None:
    text = replaced("accelerator_type: H100", f"accelerator_type: H100\n      {word}\n      {beside}")
    found = [line.text("f") for line in check_text(text.replace("method: draft_model", f"method: {method}")).findings]
    assert any(f"{word.partition(':')[0]}: has no effect" in line for line in found) is is_told


@pytest.mark.parametrize("steps", ["yes", "1000", "-1", "'16'"])
def test_steps_of_a_heads_log_are_a_small_whole_number(steps: str) -> None:
    (line,) = check_text(replaced("accelerator_type: H100", f"accelerator_type: H100\n      head_log_steps: {steps}")).findings[:1]
    assert line.severity == "error"
    assert "head_log_steps: Input should be" in line.text("f")


ADAPTIVE = replaced("method: draft_model", "method: eagle3\n          enable_adaptive_verification: true")


def test_beside_adaptive_verification_the_ceiling_is_steered_and_shadow_comes_first() -> None:
    told = described(ADAPTIVE)
    assert "steering  fully; K from 0 to 5, asynchronous scheduling" in told
    assert "graphs    full CUDA graphs for any number of verified drafts, and the drafter's for K of 0, 1, 3, 5" in told
    assert "auto of the settings means shadow here until a mode is set by hand" in told


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (ADAPTIVE.replace("accelerator_type: H100", f"accelerator_type: H100\n      {ON_V1}"), "needs model runner V2 on a GPU"),
        (ADAPTIVE.replace("max_num_seqs: 64", "max_num_seqs: 64\n        enforce_eager: true"), "needs full CUDA graphs"),
        (ADAPTIVE.replace("method: eagle3", "method: ngram"), "and a ceiling cannot be had together with ngram"),
    ],
)
def test_adaptive_verification_where_its_ceiling_cannot_be_steered_is_one_line_of_error(text: str, why: str) -> None:
    (line,) = said(text, "error")
    assert line.startswith(f"enable_adaptive_verification {why}")
    assert "take it out, or serve it without Nightjar" in line
    assert "\n" not in line


@pytest.mark.parametrize("wants", [True, False])
def test_adaptive_verification_beside_adapters_which_vllm_refuses_is_one_line_of_error(wants: bool) -> None:
    text = ADAPTIVE.replace("max_num_seqs: 64", f"max_num_seqs: 64\n        enable_lora: {str(wants).lower()}")
    assert said(text, "error") == ["true beside enable_lora: vLLM refuses to start with both; take one of them out"] * wants


def test_ranks_of_a_dense_target_will_be_steered_each_by_itself_with_a_gpu_each() -> None:
    text = replaced("tensor_parallel_size: 2", "data_parallel_size: 2")
    assert errors(check_text(text)) == []
    assert "steering  fully" in described(text)
    assert "; 2 ranks, each by itself, if the target is no mixture of experts" in described(text)
    assert "each needs GPU 2" in described(text)


def test_ranks_of_a_mixture_of_experts_will_be_served_plainly(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_local_experts": 8}))
    text = replaced("tensor_parallel_size: 2", "data_parallel_size: 2").replace("someone/target", str(tmp_path))
    (error,) = errors(check_text(text))
    assert "data_parallel_size: data_parallel_size 2 and a mixture of experts: its ranks step together" in error
    assert error.endswith("take data_parallel_size out, and use tensor_parallel_size or more replicas instead")


def dflash(model: object = "someone/draft") -> str:
    return replaced("method: draft_model\n          model: someone/draft", f"method: dflash\n          model: {model}")


def test_a_block_of_drafts_will_be_steered_on_v2_and_its_queries_left_out_at_k_0() -> None:
    text = described(dflash())
    assert "steering  fully" in text
    assert "model runner V2, its default" in text
    assert "heads: " in text


@pytest.mark.parametrize(
    ("architecture", "drafter"),
    [("Qwen3DSparkModel", "dspark"), ("MuseGlimmerAssistantModel", "dflash"), ("Qwen3ForCausalLM", "draft_model")],
)
def test_a_draft_without_a_method_is_the_drafter_that_vllm_makes_of_its_architecture(
    tmp_path: Path, architecture: str, drafter: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert f"drafter   {drafter} " in described(dflash(tmp_path).replace("method: dflash", "method: draft_model"))


def test_a_draft_that_vllm_runs_by_another_speculator_than_its_methods_will_be_served_plainly_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3XPressModel"]}')
    text = dflash(tmp_path)
    assert "steering  plainly: drafter 'xpress' is dflash with a head of its own" in described(text)
    (found,) = [line for line in said(text, "error") if "xpress" in line]
    assert "take a draft of dflash's own, or serve it without Nightjar" in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("on_v1", "way_out"),
    [
        ("runtime_env: {env_vars: {VLLM_USE_V2_MODEL_RUNNER: '0'}}", "take VLLM_USE_V2_MODEL_RUNNER out of env_vars"),
        ("", "take another drafter, or serve it without Nightjar"),
    ],
)
def test_a_block_of_drafts_on_runner_v1_will_be_served_plainly_and_the_way_out_is_told(on_v1: str, way_out: str) -> None:
    text = dflash()
    if on_v1:
        text = text.replace("accelerator_type: H100", f"accelerator_type: H100\n      {on_v1}")
    else:
        text = text.replace("      accelerator_type: H100\n", "").replace("        tensor_parallel_size: 2\n", "")
    (found,) = [line for line in said(text, "error") if "dflash" in line]
    assert "this engine has runner V1" in found
    assert found.endswith(f"so it would serve as plain vLLM; {way_out}" + ("" if on_v1 else " (nightjar migrate --remove)"))


def without(layers: str, text: str = GOOD) -> str:
    return text.replace("accelerator_type: H100", f"accelerator_type: H100\n      without: {layers}")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (GOOD, ["layers    steering: scheduler_cls, ", "sleeping: worker_cls, ", "lending is off: draft_offload is never"]),
        (replaced("method: draft_model", "method: eagle3"), ["layers    steering: scheduler_cls, ", "heads: worker_cls, "]),
        (
            without("[sleeping]"),
            ["sleeping is off: the layer sleeping is switched off (without)", "lending is off: "],
        ),
        (
            without("[heads]", replaced("method: draft_model", "method: eagle3")),
            ["layers    steering: scheduler_cls, ", "heads is off: the layer heads is switched off (without)"],
        ),
        (without("[steering]"), ["layers    none: nothing of vLLM is touched"]),
        (replaced("mode: auto", "mode: shadow"), ["layers    none: its steps are observed"]),
    ],
)
def test_what_each_layer_touches_of_vllm_is_told_and_why_others_are_off(text: str, lines: list[str]) -> None:
    assert errors(check_text(text)) == []
    found = described(text)
    assert [line for line in lines if line not in found] == []


def test_without_steering_is_no_mistake_unless_steering_is_required() -> None:
    assert said(without("[steering]"), "advice")[:1] == ["the layer steering is switched off (without): it serves as plain vLLM"]
    (error,) = errors(check_text(without("[steering]\n      require_steering: true")))
    assert "require_steering: true, and this engine would serve as plain vLLM" in error


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[sleping]", "without: 'sleping' is no layer; allowed are steering, sleeping, heads (got \"['sleping']\")"),
        (
            "[lending]",
            "without: lending is switched off by draft_offload: never; allowed here are steering, sleeping, heads",
        ),
        ("sleeping", "without: Input should be a valid tuple (got 'sleeping')"),
    ],
)
def test_a_switch_of_no_layer_is_one_line_with_the_value_and_what_is_allowed(layers: str, message: str) -> None:
    (error,) = errors(check_text(without(layers)))
    assert message in error


@pytest.mark.parametrize(("pin", "beside", "is_told"), [(2, "", True), (3, "", False), (2, "enforce_eager: true", False)])
def test_a_pinned_k_without_graphs_of_its_own_is_told(pin: int, beside: str, is_told: bool) -> None:
    text = replaced("mode: auto", f"mode: pin={pin}").replace("max_num_seqs: 64", f"max_num_seqs: 64\n        {beside}")
    told = [line.text("f") for line in check_text(text).findings if line.severity == "warning"]
    slower = "K=2 is none of the graph tiers 0, 1, 3, 5: its steps find no full CUDA graph and run slower"
    assert any(f"user_config.mode: pin=2, in application chat: {slower}" in line for line in told) is is_told


def test_of_two_arguments_that_steering_refuses_the_line_and_the_way_out_are_those_of_the_one_that_is_named() -> None:
    errors_found = errors(check_text(replaced("max_num_seqs: 64", "max_num_seqs: 8192\n        worker_cls: theirs.Worker")))
    (error,) = [error for error in errors_found if "plain vLLM" in error]
    assert "engine_kwargs.max_num_seqs: max_num_seqs 8192 is above 4096, so it would serve as plain vLLM; lower it" in error


@pytest.mark.parametrize("method", ["draft_model", "eagle3"])
def test_a_drafter_that_makes_all_its_tokens_in_one_pass_is_named_with_the_way_out(method: str) -> None:
    (error,) = errors(check_text(replaced("method: draft_model", f"method: {method}\n          parallel_drafting: true")))
    assert "speculative_config.parallel_drafting: parallel_drafting makes all drafts in one pass" in error
    assert error.endswith("so it would serve as plain vLLM; take it out, or serve it without Nightjar (nightjar migrate --remove)")


def of_target(folder: Path, target: dict[str, object], text: str) -> str:
    """`text`, with a target that has this `config.json`."""
    (folder / "config.json").write_text(json.dumps(target))
    return text.replace("someone/target", str(folder))


@pytest.mark.parametrize(("modules", "maximum", "is_told"), [(3, 5, True), (3, 1, False), (1, 5, False)])
def test_an_mtp_head_of_several_modules_is_known_where_the_model_is_on_this_machine(
    tmp_path: Path, modules: int, maximum: int, is_told: bool
) -> None:
    text = replaced("          model: someone/draft\n", "").replace("method: draft_model", "method: mtp")
    text = text.replace("num_speculative_tokens: 5", f"num_speculative_tokens: {maximum}")
    found = errors(check_text(of_target(tmp_path, {"num_nextn_predict_layers": modules}, text)))
    assert any("num_speculative_tokens: the MTP head drafts with several modules in turn" in line for line in found) is is_told


@pytest.mark.parametrize(
    ("target", "has_tiers"),
    [
        ({"model_type": "falcon_h1", "mamba_d_conv": 4}, False),
        ({"text_config": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}}, False),
        ({"model_type": "mamba2"}, False),
        ({"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 128}, True),
        ({"model_type": "llama"}, True),
    ],
)
def test_which_graphs_a_target_of_mamba_like_layers_gets_is_told(
    tmp_path: Path, target: dict[str, object], has_tiers: bool
) -> None:
    lines = described(of_target(tmp_path, target, GOOD))
    assert ("full graphs for K = 5 alone, since the target has Mamba-like layers" in lines) is not has_tiers
    assert ("(graph_tiers)" in lines) is has_tiers


OWN = "accelerator_type: H100\n      runtime_env: {env_vars: {VLLM_USE_V2_MODEL_RUNNER: '0'}}"
LISTED = "deployments: [{name: LLM}]\n  "


@pytest.mark.parametrize(
    ("written", "entry", "runner"),
    [
        (LISTED, "accelerator_type: H100", "runner V2"),
        (LISTED, OWN, "runner V1, as VLLM_USE_V2_MODEL_RUNNER says"),
        ("", OWN, "runner V1, as VLLM_USE_V2_MODEL_RUNNER says"),
        (LISTED, OWN.replace("VLLM_USE_V2_MODEL_RUNNER", "OTHER"), "runner V2"),
        ("", OWN.replace("VLLM_USE_V2_MODEL_RUNNER", "OTHER"), "runner V2, its default"),
    ],
)
def test_an_applications_variables_reach_replicas_as_serve_hands_them_down(written: str, entry: str, runner: str) -> None:
    above = "runtime_env: {env_vars: {VLLM_USE_V2_MODEL_RUNNER: '1'}}"
    assert runner in described(beside_args(f"{written}{above}", replaced("accelerator_type: H100", entry)))


@pytest.mark.parametrize(
    "wrong", ["runtime_env: 5", "runtime_env: {env_vars: [A]}", "runtime_env: {env_vars: 5}", "deployments: 5"]
)
def test_what_has_the_wrong_form_beside_args_breaks_no_rule(wrong: str) -> None:
    assert check_text(beside_args(wrong, replaced("max_num_seqs: 64", "max_num_seqs: 5000"))).findings


def model_folder(folder: Path, *, layers: int, **more: object) -> Path:
    folder.mkdir()
    config = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, **more}
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [layers, 1 << 20], "data_offsets": [0, layers << 21]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def test_weights_kv_and_lent_blocks_are_counted_from_local_folders(tmp_path: Path) -> None:
    target, draft = model_folder(tmp_path / "target", layers=8), model_folder(tmp_path / "draft", layers=2)
    text = replaced("someone/target", str(target)).replace("someone/draft", str(draft))
    text = text.replace("max_num_seqs: 64", "kv_cache_memory_bytes: 1_310_720").replace("tensor_parallel_size: 2", "block_size: 16")
    (model,) = check_text(text).models
    memory = model.memory
    assert memory.target is not None
    assert memory.draft is not None
    assert (memory.target.weight_bytes, memory.draft.weight_bytes) == (16 << 20, 4 << 20)
    assert (memory.target.kv_bytes_per_token, memory.draft.kv_bytes_per_token) == (2 * 8 * 2 * 16 * 2, 2 * 2 * 2 * 16 * 2)
    assert memory.base_blocks == 1_310_720 // (16 * (1024 + 256))
    assert memory.lent_blocks == ((4 << 20) + 64 * 16 * 256) // (16 * 1024)
    assert "would lend 272 blocks" in described(text)


def test_on_a_cpu_the_room_for_kv_is_named_by_its_variable_unless_the_file_sets_it(tmp_path: Path) -> None:
    text = replaced("someone/target", str(model_folder(tmp_path / "target", layers=8))).replace(
        "accelerator_type: H100", "hung_after_s: 9"
    )
    text = text.replace("someone/draft", str(model_folder(tmp_path / "draft", layers=2)))
    assert "GiB of VLLM_CPU_KVCACHE_SPACE, " in described(text)
    assert "VLLM_CPU" not in described(text.replace("max_num_seqs: 64", "kv_cache_memory_bytes: 1_310_720"))


@pytest.mark.parametrize(
    ("asked", "scaling", "environment", "is_refused"),
    [
        (8192, {}, "", False),
        (8193, {}, "", True),
        (8193, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, "", True),
        (8193, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "", False),
        (8193, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "", False),
        (8193, {}, "runtime_env: {env_vars: {VLLM_ALLOW_LONG_MAX_MODEL_LEN: '1'}}", False),
    ],
)
def test_a_length_beyond_the_models_positions_is_an_error_where_nothing_scales_or_allows_it(
    tmp_path: Path, asked: int, scaling: dict[str, object], environment: str, is_refused: bool
) -> None:
    folder = model_folder(tmp_path / "target", layers=8, max_position_embeddings=8192, **scaling)
    text = replaced("someone/target", str(folder)).replace("max_num_seqs: 64", f"max_model_len: {asked}")
    found = errors(check_text(beside_args(environment, text) if environment else text))
    assert any("8193 is above the 8192 positions" in error for error in found) == is_refused


def test_a_model_that_is_not_here_is_not_estimated_and_said_so() -> None:
    assert "not estimated: someone/target is no folder here" in described(GOOD)


def places(values: object) -> Iterator[tuple[str | int, ...]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (key,)
        yield from ((key, *place) for place in places(value))


EMPTY_OR_NESTED = st.sampled_from(["", "x", [], {}, [1], {"a": 1}, [[1, 2]]])
WRONG_VALUES = st.none() | st.booleans() | st.integers(-9, 99) | st.floats(0, 2) | EMPTY_OR_NESTED


@given(st.sampled_from(sorted(places(yaml.safe_load(GOOD)), key=str)), WRONG_VALUES)
def test_whatever_stands_in_one_place_the_answer_is_findings(place: tuple[str | int, ...], value: object) -> None:
    values = yaml.safe_load(GOOD)
    inner = values
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    for line in check_text(yaml.safe_dump(values)).findings:
        assert line.line >= 1
        assert "\n" not in line.text("f")


def test_the_command_prints_each_file_and_fails_only_on_errors(tmp_path: Path) -> None:
    good, broken = tmp_path / "good.yaml", tmp_path / "broken.yaml"
    good.write_text(GOOD)
    broken.write_text(replaced("planner: fleet", "planner: magic"))
    runner, cli = CliRunner(), app
    passed = runner.invoke(cli, ["check", str(good)])
    assert passed.exit_code == 0
    assert "errors 0, warnings 0" in passed.output
    failed = runner.invoke(cli, ["check", str(good), str(broken), "--quiet"])
    assert failed.exit_code == 1
    assert failed.output.startswith(f"{broken}:25: error: ")
    assert runner.invoke(cli, ["check", str(tmp_path / "nowhere.yaml")]).exit_code == 1


def test_standard_input_is_a_file_named_by_a_dash() -> None:
    passed = CliRunner().invoke(app, ["check", "-"], input=GOOD)
    assert passed.exit_code == 0
    assert "-: errors 0, warnings 0" in passed.output
    assert CliRunner().invoke(app, ["check", "-q", "-"], input="- 5").output.startswith("-:1: error: ")


def test_values_of_a_chart_are_told_to_be_rendered_first() -> None:
    chart = Path(__file__).parents[3] / "helm/nightjar"
    for file in (chart / "values.yaml", *(chart / "examples").glob("*.yaml")):
        (line,) = check_text(file.read_text()).findings
        assert "values of a Helm chart; render it first" in line.text("f")


def test_checking_and_migrating_need_neither_ray_nor_vllm() -> None:
    code = (
        "import sys; import nightjar.deployments.configuration.commands; "
        "print([name for name in ('ray', 'vllm', 'torch', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == "[]"
