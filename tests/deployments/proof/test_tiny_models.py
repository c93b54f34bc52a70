"""The rig's models: made once, the same each time, and drafters that are neither perfect nor useless."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
from safetensors.torch import load_file

from nightjar.deployments.proof.model_names import ADAPTER, DFLASH, DRAFT, DSPARK, EAGLE, EAGLE3, MIMO, SLIDING, TARGET
from nightjar.deployments.proof.tiny_models import build_tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_models(tmp_path_factory.mktemp("rig") / "models")


def test_all_models_are_there_and_a_second_call_leaves_them(models: Path) -> None:
    made = {TARGET, SLIDING, DRAFT, EAGLE, EAGLE3, DFLASH, DSPARK, MIMO, ADAPTER}
    assert {folder.name for folder in models.iterdir()} == made
    before = {file: file.stat().st_mtime_ns for file in models.rglob("*")}
    build_tiny_models(models)
    assert before == {file: file.stat().st_mtime_ns for file in models.rglob("*")}
    assert [path.name for path in models.parent.iterdir()] == [models.name]


def test_every_run_makes_the_same_files(models: Path, tmp_path: Path) -> None:
    again = build_tiny_models(tmp_path / "models")
    for file in sorted(models.rglob("*.safetensors")):
        assert file.read_bytes() == (again / file.relative_to(models)).read_bytes()


def test_a_blocks_keys_have_norms_without_weights_since_a_cpu_takes_the_first_layers_for_all(models: Path) -> None:
    weights = load_file(models / DFLASH / "model.safetensors")
    norms = [value for name, value in weights.items() if name.endswith("k_norm.weight")]
    assert len(norms) == 2
    assert all(bool((norm == 1.0).all()) for norm in norms)


def test_the_draft_is_the_target_with_noise(models: Path) -> None:
    target, draft = (load_file(models / name / "model.safetensors") for name in (TARGET, DRAFT))
    for name, weights in target.items():
        noise = (draft[name] - weights).std() / weights.std() if "norm" not in name else (draft[name] - weights).abs().max()
        assert noise == (0 if "norm" in name else pytest.approx(0.07, rel=0.1))
