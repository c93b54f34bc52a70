"""`nightjar check` of what ray.serve.llm serves: with Nightjar's server class, and before `nightjar migrate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nightjar.deployments.configuration.check.hosted import HOSTED_IMPORT_PATH, RAY_IMPORT_PATH, SERVER
from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.configuration.commands import app, describe_hosted
from tests.deployments.configuration.samples import SERVE_FILES
from tests.deployments.configuration.test_check import WRONG_VALUES, places

HOSTED = """\
applications:
- import_path: nightjar.deployments.serve_llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {model_id: chat}
      experimental_configs: {nightjar: {require_steering: true}}
    - model_loading_config: {model_id: code}
      engine_kwargs: {what_only_vllm_0_29_knows: 1}
  deployments: [{name: "LLMServer:chat", user_config: {mode: "off"}}, {name: OpenAiIngress, num_replicas: 2}]
- {name: nightjar, route_prefix: /nightjar, import_path: "nightjar.cluster.policy_app:build"}
"""


AUTO = """\
- name: nightjar
  route_prefix: /nightjar
  import_path: nightjar.cluster.policy_app:build
  deployments: [{name: Policy, user_config: {mode: auto}}]
"""


def test_of_a_file_that_ray_serve_llm_serves_what_another_vllm_may_know_is_left_alone() -> None:
    assert check_text(HOSTED).findings == ()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "require_steering: true",
            "require_steer: true",
            "f:6: error: applications.0.args.llm_configs.0.experimental_configs.nightjar.require_steer: no such field",
        ),
        ("require_steering: true", "hung_after_s: -1", "hung_after_s: Input should be greater than or equal to 0 (got '-1')"),
        (
            'mode: "off"',
            "mode: never",
            "f:9: error: applications.0.deployments.0.user_config: user_config: mode 'never'",
        ),
        ("engine_kwargs: {what_only_vllm_0_29_knows: 1}", "deployment_config: {user_config: {a: 1}}", "allowed is mode alone"),
        (
            "engine_kwargs: {what_only_vllm_0_29_knows: 1}",
            "server_cls: shop:Server",
            "f:8: warning: applications.0.args.llm_configs.1.server_cls: 'shop:Server' is not Nightjar's",
        ),
    ],
)
def test_a_mistake_in_them_is_told_with_its_line(before: str, after: str, message: str) -> None:
    found = [line.text("f") for line in check_text(HOSTED.replace(before, after)).findings]
    assert len(found) == 1
    assert message in found[0]


MODEL = """\
applications:
- name: llm
  import_path: {path}
  args:
    llm_configs:
    - model_loading_config: {{model_id: chat, model_source: someone/chat}}
      accelerator_type: L4
      engine_kwargs:
        tensor_parallel_size: 2
        speculative_config: {{method: draft_model, model: someone/draft, num_speculative_tokens: 5}}
      deployment_config: {{num_replicas: 3}}
"""
PATHS = pytest.mark.parametrize("path", [RAY_IMPORT_PATH, HOSTED_IMPORT_PATH])


def errors_of(text: str) -> list[str]:
    return [line.text("f") for line in check_text(text).findings if line.severity == "error"]


@PATHS
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("tensor_parallel_size: 2", "max_num_seq: 2", "f:9: error: {at}.engine_kwargs.max_num_seq: no such argument of vLLM"),
        ("tensor_parallel_size: 2", "max_num_seq: 2", "did you mean max_num_seqs?"),
        (
            "tensor_parallel_size: 2",
            'tensor_parallel_size: "2"',
            "f:9: error: {at}.engine_kwargs.tensor_parallel_size: '2' must be",
        ),
        ("method: draft_model", "method: ngrm", "f:10: error: {at}.engine_kwargs.speculative_config.method: 'ngrm' must be one of"),
        (
            "tokens: 5}",
            "tokens: 5, num_speculative_tokens_per_batch_size: [[1, 8]]}",
            "f:10: error: {at}.engine_kwargs.speculative_config.num_speculative_tokens_per_batch_size: row [1, 8] has 2 numbers",
        ),
        ("num_replicas: 3", "num_replica: 3", "f:11: error: {at}.deployment_config.num_replica: no such field"),
        (
            "accelerator_type: L4",
            "accelerator_typ: L4",
            "f:7: error: {at}.accelerator_typ: no such field of ray.serve.llm (value 'L4')",
        ),
        ("      engine_kwargs:", "      engine_kwarg:", "did you mean engine_kwargs?"),
        ("      deployment_config:", "      deployment_confg:", "did you mean deployment_config?"),
        ("- model_loading_config:", "- model_loading_confg:", "did you mean model_loading_config?"),
        ("model_source:", "model_sourc:", "f:6: error: {at}.model_loading_config.model_sourc: no such field of ray.serve.llm"),
        ("    llm_configs:", "    llm_config:", "f:5: error: applications.0.args.llm_config: no such field of ray.serve.llm"),
    ],
)
def test_a_mistake_that_no_version_takes_is_an_error_before_and_after_migrating(
    path: str, before: str, after: str, message: str
) -> None:
    (said,) = errors_of(MODEL.format(path=path).replace(before, after))
    assert message.format(at="applications.0.args.llm_configs.0") in said


@PATHS
@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("", "f:1: error: applications.0.args.llm_configs: None; a list with at least one model is needed"),
        ("llm_configs: []", "f:1: error: applications.0.args.llm_configs: []; a list with at least one model is needed"),
        (
            "llm_configs: [{model_loading_config: {model_id: a}}, {model_loading_config: {model_id: a}}]",
            "'a' is the model_id of llm_configs.0, too; requests name a model by it: change one",
        ),
    ],
)
def test_no_model_at_all_or_two_of_one_name_is_an_error(path: str, models: str, message: str) -> None:
    (said,) = errors_of(f"applications: [{{name: llm, import_path: {path}, args: {{{models}}}}}]")
    assert message in said


def test_a_name_that_is_near_none_may_be_another_versions() -> None:
    assert errors_of(MODEL.format(path=RAY_IMPORT_PATH).replace("accelerator_type: L4", "what_only_ray_2_70_knows: 1")) == []


@PATHS
def test_a_model_in_a_file_of_its_own_is_said_not_to_be_read(path: str) -> None:
    text = f"applications: [{{name: llm, import_path: {path}, args: {{llm_configs: [./models/chat.yaml]}}}}]"
    assert check_text(text).not_read[-1] == "application llm: the model that './models/chat.yaml' holds"


@PATHS
def test_an_absent_folder_is_an_error_where_the_engine_would_look_for_it_on_this_machine(path: str, tmp_path: Path) -> None:
    absent, elsewhere = tmp_path / "absent", "/models-of-the-cluster/chat"
    for source, is_here, severity in ((absent, False, "error"), (elsewhere, False, "warning"), (elsewhere, True, "error")):
        text = MODEL.format(path=path).replace("someone/chat", str(source))
        found = [line for line in check_text(text, is_served_here=is_here).findings if "no such folder" in line.message]
        assert [(finding.severity, finding.place[-1]) for finding in found] == [(severity, "model_source")]


@PATHS
def test_a_folder_that_cannot_be_looked_at_is_not_taken_for_one_of_this_machine(path: str) -> None:
    for source in (f"/{'a' * 300}/models/chat", "~nobody-of-this-name/models/chat"):
        (found,) = (
            line
            for line in check_text(MODEL.format(path=path).replace("someone/chat", source)).findings
            if "cannot be looked for" in line.message
        )
        assert found.severity == "warning"


@pytest.mark.parametrize(
    ("before", "after", "needs", "message"),
    [
        ("{num_replicas: 3}", "{num_replicas: 3}", "3; each needs GPU 2 of type L4", ""),
        (
            "{num_replicas: 3}",
            "{ray_actor_options: {num_gpus: 0}}",
            "1; each needs GPU 2 of type L4",
            "0, and each replica needs GPU 2 all the same",
        ),
        (
            "{num_replicas: 3}",
            "{ray_actor_options: {num_gpus: 1}}",
            "1; each needs GPU 3 of type L4",
            "1 is added to what ray.serve.llm takes for the engine, so that each replica needs GPU 3",
        ),
        ("accelerator_type: L4", "accelerator_config: {kind: cpu}", "3; each needs no GPU", ""),
        ("accelerator_type: L4", "placement_group_config: {bundles: [{CPU: 2}]}", "3; each needs no GPU", ""),
        ("accelerator_type: L4", "placement_group_config: {bundle_per_worker: {GPU: 0.5}}", "3; each needs GPU 1", ""),
        (
            "{num_replicas: 3}",
            "{autoscaling_config: {min_replicas: 2, max_replicas: 8}}",
            "2 to 8; each needs GPU 2 of type L4",
            "",
        ),
    ],
)
def test_what_a_replica_needs_is_told_as_ray_serve_llm_asks_for_it(before: str, after: str, needs: str, message: str) -> None:
    report = check_text(MODEL.format(path=HOSTED_IMPORT_PATH).replace(before, after))
    assert [model.replicas for model in report.hosted] == [needs]
    said = [line.message for line in report.findings if line.severity != "advice"]
    assert [message in each for each in said] == ([True] if message else [])


def test_every_model_has_its_block_and_one_without_a_drafter_is_said_to_be_served_plainly() -> None:
    two = MODEL.format(path=HOSTED_IMPORT_PATH) + "    - model_loading_config: {model_id: code}\n"
    first, second = map(describe_hosted, check_text(two).hosted)
    assert first == [
        "application llm, served by ray.serve.llm",
        "  model     someone/chat as chat",
        "  drafter   draft_model someone/draft, num_speculative_tokens 5",
        "  steering  observing: an engine that starts in shadow with graphs only observes: leaving shadow needs a new start",
        "  replicas  3; each needs GPU 2 of type L4",
    ]
    (steered, _) = check_text(two + AUTO).hosted
    assert steered.steering == "fully"
    ranks = two.replace("tensor_parallel_size: 2", "data_parallel_size: 2")
    assert check_text(ranks + AUTO).hosted[0].steering.startswith("plainly: data_parallel_size 2: ranks inside ray.serve.llm")
    block = two.replace("someone/draft", "someone/dflash-draft")
    assert "this engine has runner V1 of vLLM 0.29" in check_text(block + AUTO).hosted[0].steering
    assert second[1:4] == [
        "  model     code as code",
        "  drafter   none",
        "  steering  plainly: engine_kwargs hold no speculative_config: there is nothing to steer",
    ]
    (not_yet, _) = check_text(two.replace(HOSTED_IMPORT_PATH, RAY_IMPORT_PATH)).hosted
    assert not_yet.steering == "none: served without Nightjar; nightjar migrate shows what to change"


@pytest.mark.parametrize("name", SERVE_FILES)
def test_a_file_that_people_have_has_no_error_before_it_is_migrated(name: str) -> None:
    assert errors_of(SERVE_FILES[name]) == []


@given(
    st.sampled_from(sorted(places(yaml.safe_load(MODEL.format(path=RAY_IMPORT_PATH))), key=str)),
    WRONG_VALUES,
    st.sampled_from([RAY_IMPORT_PATH, HOSTED_IMPORT_PATH]),
)
def test_whatever_stands_in_one_place_of_it_the_answer_is_findings(place: tuple[str | int, ...], value: object, path: str) -> None:
    values = yaml.safe_load(MODEL.format(path=path))
    inner = values
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    for line in check_text(yaml.safe_dump(values)).findings:
        assert "\n" not in line.text("f")


def doors_of(text: str) -> str:
    (line,) = check_text(text).doors
    return line


DIRECT = '{RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING: "1"}'


@pytest.mark.parametrize(
    ("path", "variables", "said"),
    [
        (HOSTED_IMPORT_PATH, "{}", "the OpenAI routes; VLLM_API_KEY is not set here, so that nobody is asked for a key"),
        (HOSTED_IMPORT_PATH, "{VLLM_API_KEY: k}", "the OpenAI routes; VLLM_API_KEY is set here"),
        (HOSTED_IMPORT_PATH, "{VLLM_API_KEY: ''}", "the OpenAI routes; VLLM_API_KEY is not set here"),
        (HOSTED_IMPORT_PATH, DIRECT, "replicas answer the OpenAI routes and /health alone; VLLM_API_KEY is not set here"),
        (RAY_IMPORT_PATH, "{VLLM_API_KEY: k}", "the OpenAI routes; it asks nobody for a key, whatever VLLM_API_KEY says"),
        (RAY_IMPORT_PATH, DIRECT, "replicas answer every route of vLLM's server, /invocations without a key as well"),
    ],
)
def test_who_may_call_it_is_one_line_for_the_file_at_hand(path: str, variables: str, said: str) -> None:
    text = MODEL.format(path=path).replace("  args:\n", f"  runtime_env: {{env_vars: {variables}}}\n  args:\n")
    assert doors_of(text).startswith("application llm: ")
    assert said in doors_of(text)


def test_a_server_or_an_ingress_of_the_users_own_is_not_said_to_be_closed() -> None:
    text = MODEL.format(path=HOSTED_IMPORT_PATH).replace("  args:\n", f"  runtime_env: {{env_vars: {DIRECT}}}\n  args:\n")
    own = text.replace("accelerator_type: L4", "server_cls: shop:Server")
    assert "replicas answer every route of vLLM's server" in doors_of(own)
    ours = own.replace("shop:Server", SERVER).replace(HOSTED_IMPORT_PATH, RAY_IMPORT_PATH)
    assert "replicas answer the OpenAI routes and /health alone" in doors_of(ours)
    ingress = MODEL.format(path=HOSTED_IMPORT_PATH).replace(
        "  args:\n", "  args:\n    ingress_cls_config: {ingress_cls: shop:Door}\n"
    )
    assert "an ingress of its own, 'shop:Door', which Nightjar leaves as it is" in doors_of(ingress)


def manifest_of(path: str, head: str, *workers: str) -> str:
    """A RayService whose Ray containers have these lists of variables."""
    config = "".join(f"    {line}\n" for line in MODEL.format(path=path).splitlines())
    pods = [f"{{template: {{spec: {{containers: [{{env: {variables}}}]}}}}}}" for variables in (head, *workers)]
    cluster = f"{{headGroupSpec: {pods[0]}, workerGroupSpecs: [{', '.join(pods[1:])}]}}"
    return f"kind: RayService\nspec:\n  serveConfigV2: |\n{config}  rayClusterConfig: {cluster}\n"


def test_variables_of_a_rayservices_pods_count_as_well() -> None:
    direct = '[{name: RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING, value: "1"}]'
    assert "direct streaming: replicas answer every route" in doors_of(manifest_of(RAY_IMPORT_PATH, direct))
    assert "direct streaming: replicas answer every route" in doors_of(manifest_of(RAY_IMPORT_PATH, "[]", direct))


LITERAL = "[{name: VLLM_API_KEY, value: k}]"
OF_A_SECRET = "[{name: VLLM_API_KEY, valueFrom: {secretKeyRef: {name: vllm, key: key}}}]"
EMPTY = '[{name: VLLM_API_KEY, value: ""}]'


@pytest.mark.parametrize(
    ("pods", "said"),
    [
        ((LITERAL, OF_A_SECRET), "VLLM_API_KEY is set here"),
        ((EMPTY, "[{name: VLLM_API_KEY}]"), "VLLM_API_KEY is not set here, so that nobody is asked for a key"),
        (("[]", OF_A_SECRET), "VLLM_API_KEY is set in some pods alone, and an ingress in another asks nobody for a key"),
        ((LITERAL, LITERAL, EMPTY), "VLLM_API_KEY is set in some pods alone, and an ingress in another asks nobody for a key"),
    ],
    ids=["in every pod", "empty", "in the workers", "in one group of workers"],
)
def test_a_key_is_said_to_be_asked_for_where_every_pod_has_one(pods: tuple[str, ...], said: str) -> None:
    """The ingress may run in any pod."""
    assert f"the OpenAI routes; {said}; scripts" in doors_of(manifest_of(HOSTED_IMPORT_PATH, *pods))


def test_the_applications_own_variables_count_in_every_pod() -> None:
    text = manifest_of(HOSTED_IMPORT_PATH, "[]", LITERAL)
    for key, said in (("k", "VLLM_API_KEY is set here"), ("''", "VLLM_API_KEY is not set here")):
        own = text.replace("  args:\n", f"  runtime_env: {{env_vars: {{VLLM_API_KEY: {key}}}}}\n      args:\n")
        assert said in doors_of(own)


def test_migrating_to_it_says_who_may_call_it(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(MODEL.format(path=RAY_IMPORT_PATH))
    said = CliRunner().invoke(app, ["migrate", str(file), "--keep-ray-serve-llm"]).output
    assert "who may call application llm: ray.serve.llm's ingress answers /tokenize" in said


@PATHS
def test_a_file_for_gpus_is_an_error_where_it_is_served_without_any_and_advice_where_it_is_only_read(path: str) -> None:
    text = MODEL.format(path=path)
    for is_here, severity in ((True, "error"), (False, "advice")):
        found = [line.text("f") for line in check_text(text, is_served_here=is_here, no_gpu_here=True).findings]
        assert [
            f"f:11: {severity}: " in line for line in found if "each replica asks for GPU 2, and this machine has none" in line
        ] == [True]
    assert not any("this machine has none" in line.message for line in check_text(text).findings)
