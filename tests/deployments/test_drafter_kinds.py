"""The table of drafters against the installed vLLM's own list."""

from __future__ import annotations

from typing import get_args

import pytest

from nightjar.deployments.drafter_kinds import KINDS, STEERABLE, kind_of


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_every_method_of_the_installed_vllm_is_in_the_table_or_an_alias_of_mtp() -> None:
    config = pytest.importorskip("vllm.config.speculative")
    methods = set(get_args(config.SpeculativeMethod))
    assert {method for method in methods if kind_of(method) not in KINDS.values()} == set()
    assert set(KINDS) <= methods


def test_only_a_drafter_that_obeys_k_may_sleep_or_be_kept_in_sync() -> None:
    assert {kind.method for kind in KINDS.values() if kind.can_sleep or kind.is_head or kind.obeys_k_on_v2} <= set(STEERABLE)
    assert not any(kind.can_sleep and kind.is_head for kind in KINDS.values())
