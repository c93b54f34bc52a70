"""The bytes of a draft's weights, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch
from safetensors.torch import save_file

from nightjar.deployments.engine.memory.sizes import draft_weight_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_floats_count_in_the_type_they_are_loaded_as(folder: Path) -> None:
    _save(folder, "model", {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7, dtype=torch.float32)})
    assert draft_weight_bytes(folder, bytes_per_value=4) == (15 + 7) * 4
    assert draft_weight_bytes(folder, bytes_per_value=2) == (15 + 7) * 2


def test_integers_keep_their_own_size(folder: Path) -> None:
    _save(folder, "model", {"packed": torch.zeros(6, dtype=torch.int32), "flags": torch.zeros(6, dtype=torch.int8)})
    assert draft_weight_bytes(folder, bytes_per_value=2) == 6 * 4 + 6


def test_a_tied_output_projection_counts_once(folder: Path) -> None:
    _save(folder, "model", {"lm_head.weight": torch.zeros(10, 4), "model.embed_tokens.weight": torch.zeros(10, 4)})
    assert draft_weight_bytes(folder, bytes_per_value=4) == 320
    _configure(folder, tie_word_embeddings=True)
    assert draft_weight_bytes(folder, bytes_per_value=4) == 160


def test_a_tied_model_that_stores_only_its_output_projection_counts_it(folder: Path) -> None:
    _save(folder, "model", {"lm_head.weight": torch.zeros(10, 4), "model.norm.weight": torch.zeros(4)})
    _configure(folder, tie_word_embeddings=True)
    assert draft_weight_bytes(folder, bytes_per_value=4) == 176


def test_rotary_tables_that_vllm_skips_do_not_count(folder: Path) -> None:
    _save(folder, "model", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(32), "norm.weight": torch.zeros(4)})
    assert draft_weight_bytes(folder, bytes_per_value=4) == 16


def test_files_outside_the_index_do_not_count(folder: Path) -> None:
    _save(folder, "part-1", {"a": torch.zeros(4)})
    _save(folder, "part-2", {"b": torch.zeros(4)})
    _save(folder, "consolidated", {"a": torch.zeros(4), "b": torch.zeros(4), "c": torch.zeros(4)})
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert draft_weight_bytes(folder, bytes_per_value=4) == 32


def test_a_rank_is_credited_with_no_more_than_its_share(folder: Path) -> None:
    _save(folder, "model", {"a": torch.zeros(7)})
    assert draft_weight_bytes(folder, bytes_per_value=2, tensor_parallel_size=4) == 3


def test_a_folder_without_safetensors_files_has_no_known_size(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="size of its weights is unknown"):
        draft_weight_bytes(folder, bytes_per_value=2)


def test_a_file_that_is_no_safetensors_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.safetensors: is no safetensors file"):
        draft_weight_bytes(folder, bytes_per_value=2)


def _save(folder: Path, name: str, tensors: dict[str, Any]) -> None:
    save_file(tensors, folder / f"{name}.safetensors")


def _configure(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
