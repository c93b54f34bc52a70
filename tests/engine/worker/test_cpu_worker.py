"""The CPU worker's sampler repair, against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm")

import torch

from nightjar.deployments.engine.worker.cpu import expand_batch_to_tokens

ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.integers(0, 5)), min_size=1, max_size=8)


@settings(deadline=None)  # the first tensors of a process take longer than any deadline
@given(ROWS, st.sampled_from([0, 1]), st.sampled_from([0, 1]))
def test_each_requests_value_is_repeated_for_each_of_its_tokens(
    rows: list[tuple[float, int]], replace_from: int, replace_to: int
) -> None:
    values = [value for value, _ in rows]
    totals = torch.tensor([count for _, count in rows], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    expanded = expand_batch_to_tokens(torch.tensor(values), totals, int(totals[-1]), replace_from, replace_to)
    expected = [value for value, count in rows for _ in range(count)]
    assert expanded.tolist() == pytest.approx([replace_to if value == replace_from else value for value in expected])
    assert expanded.dtype == torch.float32


def test_top_k_stays_an_integer() -> None:
    expanded = expand_batch_to_tokens(torch.tensor([3, 5], dtype=torch.int32), torch.tensor([1, 3], dtype=torch.int32), 3)
    assert expanded.tolist() == [3, 5, 5]
    assert expanded.dtype == torch.int32
