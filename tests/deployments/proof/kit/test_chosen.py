"""Which models a run is about, and the one line that says why some cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nightjar.deployments.proof.kit.chosen import BUILT_IN, MADE_BY_CODE, Chosen, ChosenModelError, choose


def download(name: str) -> str:
    if name == "gated/model":
        raise OSError("401 Client Error\nmore of it")
    return f"/hub/{name}"


def chosen(
    tmp_path: Path, *, rehearsal: str = "", target: str = "", draft: str = "", head: str = "", built: list[Path] | None = None
) -> Chosen:
    return choose(
        rehearsal=rehearsal,
        seed=3,
        target=target,
        draft=draft,
        head=head,
        made=tmp_path / "made",
        download=download,
        build=(built if built is not None else []).append,
    )


def model(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("rehearsal", ["tests.rig.rehearsal", ""])
def test_without_a_target_models_are_made_by_code_with_a_draft_model_and_a_head(tmp_path: Path, rehearsal: str) -> None:
    built: list[Path] = []
    found = chosen(tmp_path, rehearsal=rehearsal, built=built)
    assert built == [tmp_path / "made"]
    assert found.drafters == ("draft", "head")
    assert (found.method("draft"), found.method("head")) == ("draft_model", "eagle")
    assert found.names["target"] == MADE_BY_CODE
    assert found.dtype == ("float32" if rehearsal else "bfloat16")
    assert found.sizes.max_num_seqs == (4 if rehearsal else 128)


def test_a_choice_survives_its_json(tmp_path: Path) -> None:
    found = chosen(tmp_path, rehearsal="tests.rig.rehearsal")
    assert Chosen.from_plain(json.loads(json.dumps(found.to_plain()))) == found


def test_folders_stand_on_the_page_by_their_last_part_and_hub_names_whole(tmp_path: Path) -> None:
    found = chosen(tmp_path, target=model(tmp_path / "big"), draft="owner/small")
    assert found.names == {"target": "big", "draft": "owner/small"}
    assert (found.target, found.draft) == (str(tmp_path / "big"), "/hub/owner/small")
    assert found.drafters == ("draft",)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "eagle3"),
        ({"architectures": ["EagleLlamaForCausalLM"]}, "eagle"),
        ({"model_type": "deepseek_mtp"}, "mtp"),
        ({"architectures": ["DFlashDraftModel"]}, "dflash"),
        ({"architectures": ["Qwen3DSparkModel"]}, "dspark"),
    ],
)
def test_a_heads_method_is_found_in_its_configuration_whatever_the_folder_above_is_called(
    tmp_path: Path, config: dict[str, object], method: str
) -> None:
    target = model(tmp_path / "target")
    (tmp_path / "eagle3-and-others").mkdir()
    head = model(tmp_path / "eagle3-and-others" / "some-head", **config)
    assert chosen(tmp_path, target=target, head=head).head_method == method
    assert chosen(tmp_path, target=target, head=BUILT_IN).head_method == BUILT_IN


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draft": "owner/small"}, "--draft needs --target"),
        ({"head": "owner/head"}, "--head needs --target"),
        ({"target": "owner/big"}, "--target needs --draft, --head or both"),
        ({"target": "/nowhere/big", "draft": "owner/small"}, "--target /nowhere/big: no such folder"),
        ({"target": "nowhere", "draft": "owner/small"}, "--target nowhere: no such folder"),
        ({"target": "gated/model", "draft": "owner/small"}, r"--target gated/model: cannot be downloaded \(401 Client Error\)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ChosenModelError, match=words) as raised:
        chosen(tmp_path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_no_models_and_a_head_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ChosenModelError, match="the folder holds no config"):
        chosen(tmp_path, target=str(tmp_path / "empty"), draft="owner/small")
    target, medusa = model(tmp_path / "target"), model(tmp_path / "other", architectures=["MedusaModel"])
    with pytest.raises(ChosenModelError, match="says eagle3, eagle, mtp, dflash, dspark, the heads"):
        chosen(tmp_path, target=target, head=medusa)
    (tmp_path / "target" / "config.json").write_text("{")
    with pytest.raises(ChosenModelError, match="cannot be read"):
        chosen(tmp_path, target=target, head=target)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 131072}, 32128),
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({}, 32128),
    ],
)
def test_off_is_measured_at_as_long_a_context_as_the_target_allows(tmp_path: Path, config: dict[str, Any], longest: int) -> None:
    target = model(tmp_path / "target", **config)
    assert chosen(tmp_path, target=target, draft=target).longest_tokens == longest
