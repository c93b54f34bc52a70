"""Where the draft's rotary embedding has the tokens of a catch-up, beside a target that uses M-RoPE and one that does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from nightjar.deployments.engine.drafter import SteeredDraftModelProposer, _Row

PROMPT = torch.tensor([[0, 1, 2, 2, 2, 2, 4, 5], [0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 2, 3, 2, 3, 4, 5]])
"""Of two words, an image of four tokens in two rows of two, and two words: the text after it is two positions earlier."""
TEXT = torch.arange(6).repeat(3, 1)


def proposer(*, uses_mrope: bool) -> Any:
    drafter: Any = object.__new__(SteeredDraftModelProposer)
    drafter.vllm_config = SimpleNamespace(model_config=SimpleNamespace(uses_mrope=uses_mrope))
    requests = {
        "image": SimpleNamespace(mrope_positions=PROMPT, mrope_position_delta=-2),
        "text": SimpleNamespace(mrope_positions=TEXT, mrope_position_delta=0),
    }
    drafter.runner = SimpleNamespace(requests=requests, input_batch=SimpleNamespace(req_ids=["text", "image"]))
    return drafter


def row(place: int, first_token: int, num_tokens: int) -> _Row:
    return _Row(place, first_token, tuple(range(num_tokens)), 0, 0)


ROWS = [row(0, 4, 4), row(1, 1, 3), row(1, 6, 4)]
COUNTED = torch.tensor([4, 5, 6, 7, 1, 2, 3, 6, 7, 8, 9])


def test_tokens_are_where_the_target_counts_them_in_its_first_dimension() -> None:
    found = proposer(uses_mrope=True)._rope_positions(ROWS, COUNTED)
    assert found.tolist() == [4, 5, 6, 7, 1, 2, 2, 4, 5, 6, 7]


def test_beside_a_target_with_one_dimension_they_are_where_they_stand() -> None:
    assert proposer(uses_mrope=False)._rope_positions(ROWS, COUNTED) is COUNTED
