"""The table of drafters against the installed vLLM's own list."""

from __future__ import annotations

from typing import get_args

import pytest

from nightjar.deployments.drafter_kinds import KINDS, STEERABLE, drafter_of, kind_of


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_every_method_of_the_installed_vllm_is_in_the_table_or_an_alias_of_mtp() -> None:
    config = pytest.importorskip("vllm.config.speculative")
    methods = set(get_args(config.SpeculativeMethod))
    assert {method for method in methods if kind_of(method) not in KINDS.values()} == set()
    assert {kind.variant_of or kind.method for kind in KINDS.values()} <= methods


def test_only_a_drafter_that_obeys_k_may_sleep_or_be_kept_in_sync() -> None:
    assert {kind.method for kind in KINDS.values() if kind.can_sleep or kind.is_head or kind.obeys_k_on_v2} <= set(STEERABLE)
    assert not any(kind.can_sleep and kind.is_head for kind in KINDS.values())


def test_a_drafter_that_drafts_a_block_is_steered_on_runner_v2_alone() -> None:
    blocks = {kind.method for kind in KINDS.values() if kind.drafts_a_block}
    assert blocks == {kind.method for kind in KINDS.values() if kind.obeys_k and not kind.obeys_k_on_v1} == {"dflash", "dspark"}


@pytest.mark.parametrize(
    ("architecture", "drafter"),
    [
        ("DFlashDraftModel", "dflash"),
        ("DFlashLagunaForCausalLM", "dflash"),
        ("DFlash2DraftModel", "dflash2"),
        ("DFlash2BeamDraftModel", "dflash2"),
        ("LiLiCorrDraftModel", "lilicorr"),
        ("Qwen3XPressModel", "xpress"),
        ("DFlashQwen3XPressModel", "xpress"),
    ],
)
def test_a_draft_that_vllm_runs_by_a_speculator_of_its_own_has_a_name_of_its_own(architecture: str, drafter: str) -> None:
    assert drafter_of("dflash", [architecture]) == drafter
    assert drafter_of("eagle3", [architecture]) == "eagle3"
