"""`build(args)`: one clear message for each mistake, and Serve options that do not starve the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

pytest.importorskip("ray.serve")
from nightjar.deployments.app import build, deployment_options
from nightjar.deployments.llm_config import ConfigurationError, needs_no_hub, parse_args, parse_local_mode
from nightjar.policy.wire.mode import Mode


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTJAR_MODELS", str(tmp_path))
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def args(*, draft: str = "draft", **changes: Any) -> dict[str, Any]:
    entry = {
        "model_loading_config": {"model_id": "served", "model_source": "target"},
        "engine_kwargs": {
            "max_num_seqs": 16,
            "speculative_config": {"method": "draft_model", "model": draft, "num_speculative_tokens": 4},
        },
    }
    return {"llm_configs": [entry | changes]}


def options(**deployment_config: Any) -> dict[str, Any]:
    return deployment_options(parse_args(args(deployment_config=deployment_config)))


@pytest.mark.parametrize(
    ("engine_kwargs", "models", "is_local"),
    [
        ({"max_num_seqs": 8}, ("/models/target", ""), True),
        ({"tokenizer": "/models/target", "enable_lora": False}, ("/models/target", "/models/draft"), True),
        ({}, ("/models/target", "owner/draft"), False),
        ({"tokenizer": "owner/tokenizer"}, ("/models/target",), False),
        ({"enable_lora": True}, ("/models/target",), False),
        ({"lora_modules": ["chat=owner/adapter"]}, ("/models/target",), False),
        ({"trust_remote_code": True}, ("/models/target",), False),
    ],
)
def test_the_hub_is_switched_off_only_where_nothing_can_be_named_by_its_name_there(
    engine_kwargs: dict[str, Any], models: tuple[str, ...], is_local: bool
) -> None:
    assert needs_no_hub(engine_kwargs, *models) is is_local


def test_application_builds_with_the_deployment_named_llm() -> None:
    application = build(args(deployment_config={"num_replicas": 2}))
    assert application._bound_deployment.name == "LLM"
    assert application._bound_deployment.num_replicas == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "llm_configs: a list with one model is needed"),
        ({"llm_config": []}, r"llm_config: no such field .*did you mean llm_configs\?"),
        ({"llm_configs": args()["llm_configs"] * 2}, "llm_configs: 2 models, but an application serves one"),
        (args(engine_kwarg={}), r"llm_configs\.0\.engine_kwarg: no such field .*did you mean engine_kwargs\?"),
        (args(lora_config={}), r"llm_configs\.0\.lora_config: no such field .*allowed are model_loading_config,"),
        (
            args(model_loading_config={"model_idd": "x"}),
            r"config\.model_idd: no such field .*did you mean model_id\?",
        ),
        (args(model_loading_config={"model_id": "nowhere"}), r"model_source: model 'nowhere' is not in .*nightjar models build"),
        (args(draft="nodraft"), r"engine_kwargs\.speculative_config\.model: model 'nodraft' is not in .*there: no built model"),
        (args(engine_kwargs={"model": "x"}), r"engine_kwargs\.model: 'x'; use model_loading_config\.model_source instead"),
        (args(engine_kwargs={"speculative_config": "x"}), r"speculative_config: a mapping is needed \(got 'x'\)"),
        (args(engine_kwargs={"max_num_seqs": "many"}), r"engine_kwargs\.max_num_seqs: a whole number is needed \(got 'many'\)"),
        (args(engine_kwargs={"data_parallel_size": [2]}), r"engine_kwargs\.data_parallel_size: a whole number is needed"),
        (args(deployment_config={"health_check_period_s": "soon"}), r"llm_configs\.0\.deployment_config: .*health_check_period_s"),
        (args(hung_after_s=-1), r"llm_configs\.0\.hung_after_s: Input should be greater than or equal to 0 \(got '-1'\)"),
        (args(hung_after_s=float("nan")), r"llm_configs\.0\.hung_after_s: "),
        (args(require_steering="yes"), r"llm_configs\.0\.require_steering: Input should be a valid boolean \(got 'yes'\)"),
        (args(extra_routes=["/sleep/"]), r"extra_routes: .*/sleep/ manages an engine and is never answered from outside"),
        (args(extra_routes=["metrics", "/a b"]), r"extra_routes: .*'metrics' is no path; .*'/a b' is no path"),
        (args(hung_afters=5), r"hung_afters: no such field .*did you mean hung_after_s\?"),
        (args(deployment_config={"num_replica": 1}), r"llm_configs\.0\.deployment_config: .*num_replica"),
        (
            args(deployment_config={"user_config": {"mode": "fast"}}),
            r"user_config: mode 'fast' is none of auto, shadow, off, pin=K",
        ),
        (args(deployment_config={"user_config": {"planner": "x"}}), r"user_config: allowed is mode alone"),
    ],
)
def test_each_mistake_is_one_message_that_names_it(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        build(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "seconds"), [({}, 120.0), ({"hung_after_s": 0}, 0.0), ({"hung_after_s": 600}, 600.0)])
def test_replicas_are_told_when_an_engine_counts_as_hung(changes: dict[str, Any], seconds: float) -> None:
    (model,) = build(args(**changes))._bound_deployment.init_args
    assert model.config.hung_after_s == seconds


@pytest.mark.parametrize(("changes", "required"), [({}, False), ({"require_steering": True}, True)])
def test_replicas_are_told_whether_they_may_serve_as_plain_vllm(changes: dict[str, Any], required: bool) -> None:
    (model,) = build(args(**changes))._bound_deployment.init_args
    assert model.config.require_steering is required


def test_drafter_without_a_model_needs_no_folder() -> None:
    config = parse_args(args(engine_kwargs={"speculative_config": {"method": "ngram", "model": "ngram"}}))
    assert config.draft_source == ""


def test_serve_lets_twice_the_engines_batch_through_unless_told_otherwise() -> None:
    assert options()["max_ongoing_requests"] == 32
    with capture_logs() as logs:
        assert options(max_ongoing_requests=20)["max_ongoing_requests"] == 20
    assert [entry["wanted_at_least"] for entry in logs if entry["event"] == "max_ongoing_requests_is_low"] == [32]
    with capture_logs() as logs:
        options(max_ongoing_requests=32)
    assert logs == []


def test_an_option_that_is_null_is_left_to_serve_and_to_us() -> None:
    null = build(args(deployment_config=dict.fromkeys(("max_ongoing_requests", "graceful_shutdown_timeout_s", "user_config"))))
    default = build(args())
    assert null._bound_deployment._deployment_config == default._bound_deployment._deployment_config
    assert build(args(deployment_config={"max_ongoing_requests": "64"}))._bound_deployment.max_ongoing_requests == 64


def test_cpus_are_explicit_and_an_accelerator_brings_its_gpus() -> None:
    assert options()["ray_actor_options"] == {"num_cpus": 1}
    assert options(ray_actor_options={"num_cpus": 3})["ray_actor_options"] == {"num_cpus": 3}
    gpu = parse_args(args(accelerator_type="H100", engine_kwargs={"tensor_parallel_size": 2}, runtime_env={"env_vars": {"A": "b"}}))
    assert deployment_options(gpu)["ray_actor_options"] == {
        "num_cpus": 1,
        "num_gpus": 2,
        "accelerator_type": "H100",
        "runtime_env": {"env_vars": {"A": "b"}},
    }


@pytest.mark.parametrize(
    ("user_config", "mode"),
    [(None, None), ({}, None), ({"mode": "default"}, None), ({"mode": False}, "off"), ({"mode": "pin=3"}, "pin=3")],
)
def test_kill_switch_in_user_config(user_config: object, mode: str | None) -> None:
    assert parse_local_mode(user_config) == (None if mode is None else Mode.parse(mode))
