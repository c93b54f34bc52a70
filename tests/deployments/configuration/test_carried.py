"""What `nightjar migrate` carries over is what Nightjar's deployment can use; what it cannot, `nightjar check` calls an error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.configuration.check.carried import ARGUMENTS, DEPLOYMENT, LOADING, MODEL, Row
from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.configuration.check.serve_schema import DeploymentOptions
from nightjar.deployments.configuration.check.source import SourceError
from nightjar.deployments.configuration.migrate.adoption import add_nightjar
from nightjar.deployments.configuration.migrate.removal import remove_nightjar
from tests.deployments.configuration.samples import SERVE_FILES
from tests.deployments.configuration.test_check import WRONG_VALUES, places

PREFIX_ROUTER = "ray.serve.llm.request_router.PrefixCacheAffinityRouter"
MODEL_FILE = """\
applications:
- name: llm
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {model_id: chat, model_source: someone/chat}
      accelerator_type: L4
      engine_kwargs:
        tensor_parallel_size: 2
      deployment_config:
        num_replicas: 3
"""
OFFER = "; or let ray.serve.llm go on serving, steered by Nightjar: migrate --keep-ray-serve-llm"


def with_option(line: str, text: str = MODEL_FILE) -> str:
    """The file with one more line in `deployment_config`, which is line 12."""
    return f"{text}        {line}\n"


def with_field(line: str) -> str:
    """The file with one more line in the model, which is line 8."""
    return MODEL_FILE.replace("      engine_kwargs:\n", f"      {line}\n      engine_kwargs:\n")


def errors_of(text: str) -> list[str]:
    return [line.text("f") for line in check_text(text).findings if line.severity == "error"]


def test_every_field_of_rays_has_a_row_and_every_row_a_field() -> None:
    configs = pytest.importorskip("ray.serve.llm")
    schema = pytest.importorskip("ray.serve.schema")
    pairs: tuple[tuple[dict[str, Row], Any], ...] = (
        (dict(ARGUMENTS), configs.LLMServingArgs),
        (dict(MODEL), configs.LLMConfig),
        (dict(LOADING), configs.ModelLoadingConfig),
        (dict(DEPLOYMENT), schema.DeploymentSchema),
    )
    for rows, theirs in pairs:
        assert rows.keys() == theirs.model_fields.keys(), theirs
    assert DEPLOYMENT.keys() == DeploymentOptions.model_fields.keys(), "what is checked without Ray is what has a row"


def test_a_row_that_does_not_carry_its_field_says_what_there_is_in_its_place() -> None:
    for rows in (ARGUMENTS, MODEL, LOADING, DEPLOYMENT):
        assert [name for name, row in rows.items() if row.fate != "carried" and not row.why] == []


@pytest.mark.parametrize(
    "router", [PREFIX_ROUTER, PREFIX_ROUTER.replace(".Prefix", ":Prefix"), "ray.serve.llm.request_router.KVAwareRouter"]
)
def test_a_router_of_ray_serve_llm_is_refused_in_one_line_that_offers_to_keep_it(router: str) -> None:
    text = with_option(f"request_router_config: {{request_router_class: {router}}}")
    with pytest.raises(SourceError) as refused:
        add_nightjar(text)
    assert refused.value.line == 12
    assert str(refused.value).startswith(f"request_router_class: {router!r} reads the calls of ray.serve.llm's ingress")
    assert str(refused.value).endswith(OFFER)
    assert remove_nightjar(add_nightjar(text, keep_host=True)) == text


@pytest.mark.parametrize(
    ("option", "place"),
    [
        (f"request_router_config: {{request_router_class: {PREFIX_ROUTER}}}", "request_router_config.request_router_class"),
        ("deployment_actors: [{name: tree, actor_class: ray.llm._internal.serve:Tree}]", "deployment_actors.0.actor_class"),
        (
            "autoscaling_config: {policy: {policy_function: ray.serve.llm.policies:by_tokens}}",
            "autoscaling_config.policy.policy_function",
        ),
    ],
)
def test_a_file_that_names_a_class_of_ray_serve_llm_under_our_deployment_has_an_error_where_it_stands(
    option: str, place: str
) -> None:
    ours = add_nightjar(MODEL_FILE).replace("        num_replicas: 3\n", f"        {option}\n")
    (error,) = errors_of(ours)
    assert error.startswith(f"f:11: error: applications.0.args.llm_configs.0.deployment_config.{place}: 'ray.")
    assert error.endswith("; take it out, or keep ray.serve.llm as the host (docs/serve-llm.md)")


def test_such_a_class_that_stands_beside_args_is_told_there() -> None:
    beside = f"  deployments: [{{name: LLM, request_router_config: {{request_router_class: {PREFIX_ROUTER}}}}}]\n  args:\n"
    (error,) = errors_of(add_nightjar(MODEL_FILE).replace("  args:\n", beside))
    assert error.startswith("f:4: error: applications.0.deployments.0.request_router_config.request_router_class: ")


def test_serves_own_routers_are_carried_over_and_a_class_of_the_users_own_only_by_hand() -> None:
    own = "request_router_config: {request_router_class: shop.routers:Sticky}"
    serves = "request_router_config: {request_router_class: ray.serve.experimental.consistent_hash_router:ConsistentHashRouter}"
    assert errors_of(add_nightjar(with_option(serves))) == []
    with pytest.raises(SourceError, match=r"'shop\.routers:Sticky' is called with HTTP requests here"):
        add_nightjar(with_option(own))
    by_hand = add_nightjar(MODEL_FILE).replace("        num_replicas: 3\n", f"        {own}\n")
    assert errors_of(by_hand) == []
    assert [line.severity for line in check_text(by_hand).findings if "shop.routers" in line.message] == ["warning"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            with_field("server_cls: shop:Server"),
            8,
            "server_cls: 'shop:Server' cannot be carried over: Nightjar brings its own deployment",
        ),
        (
            with_field("callback_config: {callback_class: shop:Hook}"),
            8,
            "Nightjar's deployment calls no callbacks; take it out first",
        ),
        (with_field("accelerator_config: {kind: tpu, topology: 4x4}"), 8, "Nightjar knows the kinds gpu and cpu"),
        (MODEL_FILE.replace("L4", "TPU-V6E"), 7, "accelerator_type: 'TPU-V6E'; Nightjar serves on GPUs and CPUs alone"),
        (MODEL_FILE.replace("L4", "A10"), 7, "accelerator_type: 'A10'; ray.serve.llm takes it for A10G; write that first"),
        (with_field("placement_group_config: {bundles: [{TPU: 4}]}"), 8, "Nightjar serves on GPUs and CPUs alone"),
        (
            with_field("placement_group_config: {bundle_per_worker: {GPU: 0.5}}"),
            8,
            "its bundles take GPU 1, and Nightjar's .* 2 workers",
        ),
        (
            with_field("experimental_configs: {nightjar: {hung_after_s: 9}}"),
            8,
            "write what nightjar holds beside engine_kwargs first",
        ),
        (
            MODEL_FILE.replace("source: someone/chat", "source: abfss://a/b"),
            6,
            "vLLM loads from s3://, gs://, az://, and no other bucket",
        ),
        (with_option("user_config: {warm: true}"), 12, "user_config: {'warm': True}; allowed is mode alone"),
        (with_option("placement_group_bundles: [{GPU: 2}]"), 12, "a replica of Nightjar's is one actor"),
        (with_option("placement_group_bundle_label_selector: [{a: b}]"), 12, "write it as label_selector there"),
        (
            with_option("ray_actor_options: {num_gpus: 0}"),
            12,
            "num_gpus: 0; ray.serve.llm adds it to the engine's GPU 2, and in Nightjar's",
        ),
        (
            MODEL_FILE.replace("    llm_configs", "    ingress_cls_config: {ingress_cls: shop:Door}\n    llm_configs"),
            5,
            "no ingress of its own",
        ),
        (
            MODEL_FILE.replace("    llm_configs", "    ingress_deployment_config: {max_ongoing_requests: 9}\n    llm_configs"),
            5,
            "Nightjar has no ingress that max_ongoing_requests could hold for; take it out first",
        ),
    ],
)
def test_what_our_deployment_would_take_otherwise_is_refused_with_line_value_and_way_out(
    text: str, line: int, message: str
) -> None:
    with pytest.raises(SourceError, match=message) as refused:
        add_nightjar(text)
    assert refused.value.line == line


def test_a_deployments_name_becomes_a_comment_for_ours_is_found_by_its_own() -> None:
    named = with_option("name: big-chat")
    after = add_nightjar(named)
    assert "        # ray.serve.llm only: name: big-chat\n" in after
    assert remove_nightjar(after) == named
    alone = MODEL_FILE.replace("        num_replicas: 3\n", "        name: big-chat\n").replace("      accelerator_type: L4\n", "")
    after = add_nightjar(alone)
    (entry,) = yaml.safe_load(after)["applications"][0]["args"]["llm_configs"]
    assert entry["deployment_config"] == {"ray_actor_options": {"num_gpus": 2}}
    assert (errors_of(after), remove_nightjar(after)) == ([], alone)


def test_a_model_in_a_bucket_that_vllm_reads_keeps_its_address() -> None:
    after = add_nightjar(MODEL_FILE.replace("someone/chat", "s3://models/chat"))
    assert "model_source: s3://models/chat" in after
    (report,) = check_text(after).models
    assert report.config.model_source == "s3://models/chat"


@pytest.mark.parametrize("builder", ["build_pd_openai_app", "build_dp_openai_app"])
def test_applications_with_servers_of_their_own_are_said_to_be_served_and_never_steered(builder: str) -> None:
    text = SERVE_FILES["small"].replace("build_openai_app", builder)
    for keep_host in (False, True):
        with pytest.raises(SourceError, match=f"ray.serve.llm:{builder} builds servers of its own: it is served, never steered"):
            add_nightjar(text, keep_host=keep_host)
    (warning,) = list(check_text(text).findings)
    assert (warning.severity, warning.place) == ("warning", ("applications", 0, "import_path"))
    assert "it is served, never steered" in warning.message


EVERYTHING = f"""\
{MODEL_FILE}        name: big
        request_router_config: {{request_router_class: "{PREFIX_ROUTER}"}}
        ray_actor_options: {{num_gpus: 2}}
      experimental_configs: {{stream_batching_interval_ms: 0}}
      placement_group_config: {{bundles: [{{GPU: 1}}, {{GPU: 1}}]}}
    ingress_deployment_config: {{num_replicas: 2}}
    ingress_cls_config: {{ingress_cls: shop:Door}}
"""


@given(st.sampled_from(sorted(places(yaml.safe_load(EVERYTHING)), key=str)), WRONG_VALUES, st.booleans())
def test_whatever_stands_in_one_place_the_answer_is_a_file_or_a_refusal(
    place: tuple[str | int, ...], value: object, keep_host: bool
) -> None:
    values = yaml.safe_load(EVERYTHING)
    inner = values
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    text = yaml.safe_dump(values)
    with suppress(SourceError):
        assert add_nightjar(text, keep_host=keep_host) != text
    with suppress(SourceError):
        assert remove_nightjar(text) == text
