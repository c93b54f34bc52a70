"""What a catch-up reads: which tokens, of which rows, and where the draft's rotary embedding has them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from nightjar.deployments.engine.worker.catch_up_input import Row, token_inputs
from nightjar.deployments.engine.worker.v1 import SteeredDraftModelProposer, with_rows

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


def row(place: int, first_token: int, num_tokens: int) -> Row:
    return Row(place, first_token, tuple(range(num_tokens)), 0, 0)


ROWS = [row(0, 4, 4), row(1, 1, 3), row(1, 6, 4)]
COUNTED = torch.tensor([4, 5, 6, 7, 1, 2, 3, 6, 7, 8, 9])


def test_tokens_are_where_the_target_counts_them_in_its_first_dimension() -> None:
    found = proposer(uses_mrope=True)._rope_positions(ROWS, COUNTED)
    assert found.tolist() == [4, 5, 6, 7, 1, 2, 2, 4, 5, 6, 7]


def test_beside_a_target_with_one_dimension_they_are_where_they_stand() -> None:
    assert proposer(uses_mrope=False)._rope_positions(ROWS, COUNTED) is COUNTED


class Copies:
    """To a device, counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return tensor.clone()


def test_each_token_is_read_at_its_place_known_ones_as_sent_and_the_last_ones_as_the_target_reads_them() -> None:
    rows = [Row(2, 7, (41, 42), 0, 2), Row(0, 0, (43,), 0, 0), Row(1, 9, (), 4, 6)]
    target_token_ids = torch.tensor([90, 91, 92, 93, 94, 95], dtype=torch.int32)
    token_ids, positions, batch_rows = token_inputs(rows, target_token_ids, Copies())
    assert token_ids.tolist() == [41, 42, 90, 91, 43, 94, 95]
    assert positions.tolist() == [7, 8, 9, 10, 0, 9, 10]
    assert batch_rows.tolist() == [2, 2, 2, 2, 0, 1, 1]


@pytest.mark.parametrize("num_rows", [1, 40])
def test_what_is_read_goes_to_the_device_in_one_copy_however_many_rows_there_are(num_rows: int) -> None:
    copies = Copies()
    token_inputs([row(place, 3, 5) for place in range(num_rows)], torch.arange(8), copies)
    assert copies.count == 1


@dataclass
class MetadataOfVLLM029(CommonAttentionMetadata):
    """With what 0.29 has besides (v1/attention/backend.py): lengths kept on the host, which FlashInfer reads."""

    _seq_lens_cpu: torch.Tensor | None = None

    @property
    def seq_lens_cpu(self) -> torch.Tensor:
        return self.seq_lens if self._seq_lens_cpu is None else self._seq_lens_cpu


def test_metadata_of_other_rows_holds_nothing_that_was_worked_out_for_the_whole_batch() -> None:
    whole = torch.tensor([5, 6, 7], dtype=torch.int32)
    start = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    of_batch = MetadataOfVLLM029(start, start, whole, 3, 3, 1, 7, torch.zeros(3, 1), torch.zeros(3), _seq_lens_cpu=whole)
    of_batch.compute_num_computed_tokens()
    rows = with_rows(of_batch, query_start_loc=start[:2], seq_lens=whole[:1], num_reqs=1)
    assert rows.seq_lens_cpu.tolist() == [5]
    assert rows.compute_num_computed_tokens().tolist() == [4]
