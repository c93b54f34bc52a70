"""The files in cluster/configs pass our check and Ray's own schema."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.drafter_kinds import STEERABLE

CONFIGS = sorted((Path(__file__).parents[3] / "cluster/configs").glob("*.yaml"))
GPU_CONFIGS = [path for path in CONFIGS if path.name != "local-cpu.yaml"]


def test_there_are_files_for_every_place_and_the_papers_pairs() -> None:
    assert {path.stem for path in CONFIGS} == {
        "local-cpu",
        "gpu-one-node",
        "gpu-many-nodes",
        "gpu-eagle3",
        "gpu-draft-model",
        "paper-7b-rtx4090",
        "paper-13b-a100",
        "paper-32b-2xl20",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_passes_the_check_and_is_steered(path: Path) -> None:
    report = check_text(path.read_text())
    assert [line.text(path.name) for line in report.findings if line.severity == "error"] == []
    assert len(report.models) == 1
    assert report.models[0].outlook.arguments.serving_plainly == ""
    assert report.models[0].outlook.facts.drafter_kind in STEERABLE


@pytest.mark.parametrize("path", GPU_CONFIGS, ids=lambda path: path.stem)
def test_a_gpu_file_has_no_warning_but_of_a_draft_that_is_not_on_this_machine_and_says_that_it_never_ran_there(path: Path) -> None:
    text = path.read_text()
    warnings = [line.message for line in check_text(text).findings if line.severity == "warning"]
    assert [message for message in warnings if not message.endswith("': no such folder")] == []
    assert len(warnings) == path.stem.startswith("paper-")
    assert "Never ran on a GPU" in text


@pytest.mark.parametrize("path", [path for path in GPU_CONFIGS if path.stem.startswith("paper-")], ids=lambda path: path.stem)
def test_in_the_papers_files_engine_and_policy_let_the_draft_leave_as_the_paper_does(path: Path) -> None:
    engine, policy = yaml.safe_load(path.read_text())["applications"]
    assert engine["args"]["llm_configs"][0]["draft_offload"] == "under_memory_pressure"
    assert policy["deployments"][0]["user_config"]["draft_offload"] == "under_memory_pressure"


def test_what_an_operator_of_gpus_copies_first_drafts_with_a_head() -> None:
    examples = sorted((CONFIGS[0].parents[2] / "helm/nightjar/examples").glob("*.yaml"))
    first = [path for path in GPU_CONFIGS if not path.stem.startswith("paper-") and path.stem != "gpu-draft-model"]
    for path in [*first, *(path for path in examples if path.stem != "cpu")]:
        assert "method: draft_model" not in path.read_text(), path.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_is_what_serve_takes(path: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert [application.import_path for application in config.applications] == [
        "nightjar.deployments.app:build",
        "nightjar.cluster.policy_app:build",
    ]
