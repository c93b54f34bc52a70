"""KubeRay's and Ray's LLM samples go through `migrate` and `check`: written and taken out byte for byte, or refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.configuration.check.source import SourceError
from nightjar.deployments.configuration.migrate.adoption import add_nightjar
from nightjar.deployments.configuration.migrate.removal import remove_nightjar

ROOT = Path(__file__).parents[3]
SAMPLES = Path(os.environ.get("NIGHTJAR_TEST_DATA") or ROOT.parent / "shared/data") / "serve_samples"
NO_LLM = "Nightjar takes the place of ray.serve.llm:build_openai_app, and none is here"
WRITTEN = ""
REFUSED = {
    # file: what migrate says, and what migrate --keep-ray-serve-llm says; nothing where it writes
    "kuberay/ray-service.custom-serve-service.yaml": (NO_LLM, NO_LLM),
    "kuberay/ray-service.high-availability.yaml": (NO_LLM, NO_LLM),
    "kuberay/ray-service.high-throughput-gemma4.yaml": (WRITTEN, WRITTEN),
    "kuberay/ray-service.high-throughput-llm.yaml": (WRITTEN, WRITTEN),
    "kuberay/ray-service.incremental-upgrade.yaml": (NO_LLM, NO_LLM),
    "kuberay/ray-service.llm-serve.yaml": (WRITTEN, WRITTEN),
    "kuberay/ray-service.sample.yaml": (NO_LLM, NO_LLM),
    "ray/custom_vllm.yaml": ("Nightjar brings its own deployment", "would go on serving, but not steered"),
    "ray/direct_streaming.yaml": (WRITTEN, WRITTEN),
    "ray/dp_gang.yaml": ("served, never steered", "served, never steered"),
    "ray/kv_router.yaml": ("none would be answered", WRITTEN),
    "ray/lora_file.yaml": ("is no mapping; write the model itself there", "is no mapping; write the model itself there"),
    "ray/no_accelerator.yaml": (WRITTEN, WRITTEN),
    "ray/s3_streamer.yaml": (WRITTEN, WRITTEN),
    "ray/two_models.yaml": ("give each its own application first", WRITTEN),
}


@pytest.fixture(params=REFUSED, ids=lambda name: Path(name).stem)
def sample(request: pytest.FixtureRequest) -> str:
    """The name of a sample below the folder."""
    if not SAMPLES.is_dir():
        pytest.skip(f"{SAMPLES} is absent: NIGHTJAR_TEST_DATA names the folder with the serve_samples of KubeRay and Ray")
    return str(request.param)


def text_of(sample: str) -> str:
    return (SAMPLES / sample).read_bytes().decode()


def test_every_sample_of_the_folder_is_among_them() -> None:
    if not SAMPLES.is_dir():
        pytest.skip(f"{SAMPLES} is absent: NIGHTJAR_TEST_DATA names the folder with the serve_samples of KubeRay and Ray")
    assert {str(path.relative_to(SAMPLES)) for path in SAMPLES.rglob("*.yaml")} == REFUSED.keys()


@pytest.mark.parametrize("keep_host", [False, True], ids=["migrate", "keep"])
def test_a_sample_is_written_and_taken_out_byte_for_byte_or_refused_in_one_line(sample: str, keep_host: bool) -> None:
    text, message = text_of(sample), REFUSED[sample][keep_host]
    if message:
        with pytest.raises(SourceError, match=message) as refused:
            add_nightjar(text, keep_host=keep_host)
        assert ("--keep-ray-serve-llm" in str(refused.value)) == (not keep_host and REFUSED[sample][True] == WRITTEN)
        assert "\n" not in str(refused.value)
        return
    after = add_nightjar(text, keep_host=keep_host)
    assert after != text
    assert remove_nightjar(after) == text
    assert remove_nightjar(text) == text


@pytest.mark.parametrize("keep_host", [False, True], ids=["migrate", "keep"])
def test_what_was_written_has_no_error_but_that_the_sample_s_image_lacks_nightjar(sample: str, keep_host: bool) -> None:
    if REFUSED[sample][keep_host]:
        return
    errors = [
        finding
        for finding in check_text(add_nightjar(text_of(sample), keep_host=keep_host)).findings
        if finding.severity == "error"
    ]
    assert [finding.message for finding in errors if "has no nightjar-serve" not in finding.message] == []
    assert bool(errors) == sample.startswith("kuberay/"), "these have pods with an image of Ray's"


def test_a_sample_has_no_error_before_it_is_migrated(sample: str) -> None:
    assert [line.text(sample) for line in check_text(text_of(sample)).findings if line.severity == "error"] == []
