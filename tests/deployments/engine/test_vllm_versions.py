"""A version of vLLM that nobody read is served plainly, in words; one that was read is told by its number."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.engine.start.arguments import steered_engine_kwargs
from nightjar.deployments.engine.start.resolved_facts import resolve_facts
from nightjar.deployments.engine.start.vllm_versions import READ, TESTED, installed_vllm, why_unread

CONFIG: Any = SimpleNamespace(
    speculative_config=SimpleNamespace(method="ngram", num_speculative_tokens=3, draft_model_config=None),
    scheduler_config=SimpleNamespace(async_scheduling=False, max_num_seqs=8),
    model_config=SimpleNamespace(enforce_eager=True, max_model_len=512),
    parallel_config=SimpleNamespace(
        pipeline_parallel_size=1,
        data_parallel_size=1,
        decode_context_parallel_size=1,
        prefill_context_parallel_size=1,
    ),
    device_config=SimpleNamespace(device_type="cuda"),
    cache_config=SimpleNamespace(num_gpu_blocks_override=None),
    kv_transfer_config=None,
)
SERVE = """\
applications:
- name: chat
  import_path: nightjar.deployments.app:build
  args:
    llm_configs:
    - model_loading_config: {model_id: chat, model_source: someone/target}
      accelerator_type: H100
      engine_kwargs:
        monokernel: true
        speculative_config: {method: eagle3, model: someone/head, num_speculative_tokens: 3}
- name: nightjar
  import_path: nightjar.cluster.policy_app:build
  route_prefix: /nightjar
  deployments:
  - {name: Policy, user_config: {mode: auto}}
"""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says that a version of vLLM is installed."""

    def install(version: str) -> None:
        def version_of(package: str) -> str:
            if package != "vllm":
                raise importlib.metadata.PackageNotFoundError(package)
            return version

        monkeypatch.setattr(importlib.metadata, "version", version_of)

    return install


@pytest.mark.parametrize(
    ("version", "minor"),
    [("0.29.0", (0, 29)), ("0.33.0+cu130", (0, 33)), ("0.33.1rc0.dev7+gabc", (0, 33)), ("0.34.0", (0, 34)), ("main", TESTED)],
)
def test_a_version_is_its_first_two_numbers_and_one_without_them_the_tested_one(
    installed: Any, version: str, minor: tuple[int, int]
) -> None:
    installed(version)
    assert installed_vllm() == minor


@pytest.mark.parametrize("version", ["0.28.1", "0.30.0", "0.34.0", "1.0.0"])
def test_an_engine_of_a_version_that_was_not_read_gets_the_users_arguments_and_says_which_were(
    installed: Any, version: str
) -> None:
    """Whatever hooks it has: a name that stayed may mean something else. And whatever moved in its configuration."""
    installed(version)
    moved: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=8))
    user = {"model": "m", "speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}
    arguments = steered_engine_kwargs(user, resolve_facts(moved, on_cpu=False))
    assert arguments.kwargs == user
    assert arguments.layers == ()
    minor = version.rpartition(".")[0]
    assert arguments.serving_plainly == f"vLLM {minor} was not read: steered are 0.29, 0.31, 0.32 and 0.33 (docs/support.md)"


@pytest.mark.parametrize("version", READ)
def test_an_engine_of_a_version_that_was_read_is_steered(installed: Any, version: tuple[int, int]) -> None:
    installed(".".join(map(str, (*version, 0))))
    user = {"model": "m", "speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}
    assert why_unread(version) == ""
    assert steered_engine_kwargs(user, resolve_facts(CONFIG, on_cpu=False)).serving_plainly == ""


@pytest.mark.parametrize(
    ("version", "runner", "steering", "warns"),
    [
        ("0.29.0", "V1, chosen by Nightjar", "", True),
        ("0.32.0", "V2, its default in 0.32", "", True),
        ("0.33.0", "V2, its default in 0.33", "", False),
        ("0.34.0", "V2, its default in 0.34", "vLLM 0.34 was not read", False),
    ],
)
def test_check_speaks_of_the_version_that_is_installed_where_it_runs(
    installed: Any, version: str, runner: str, steering: str, *, warns: bool
) -> None:
    installed(version)
    report = check_text(SERVE)
    (model,) = report.models
    assert runner in model.outlook.runner
    assert model.outlook.arguments.serving_plainly.startswith(steering)
    assert bool(model.outlook.arguments.serving_plainly) == bool(steering)
    said = [finding.message for finding in report.findings if "ends at its start" in finding.message]
    minor = version.rpartition(".")[0]
    assert said == ([f"vLLM 0.33 has it, {minor} has not: with that a replica ends at its start"] if warns else [])
