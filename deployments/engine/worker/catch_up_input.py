"""What a catch-up reads, as tensors: the tokens that the scheduler sent, then those of the step's own input, row by row.

Shared by the draft models of both of vLLM's model runners (v1.py, v2.py). One copy to the device carries all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from nightjar.deployments.engine.worker.draft_work import Recompute


class Row(NamedTuple):
    """What is read of one request: known token ids, then the tokens `own_first` to `own_last` of the target's own input."""

    row: int
    first_token: int
    token_ids: tuple[int, ...]
    own_first: int
    own_last: int

    @property
    def num_tokens(self) -> int:
        """That are read."""
        return len(self.token_ids) + self.own_last - self.own_first


def row_of(portion: Recompute, row: int, query_start: Sequence[int]) -> Row:
    """Of a portion whose request is row `row` of the batch; `query_start` says where each row's own input begins."""
    own = (query_start[row], query_start[row + 1]) if portion.own_tokens else (0, 0)
    return Row(row, portion.first_token, portion.token_ids, *own)


def batches_of(rows: Sequence[Row], max_num_tokens: int) -> list[list[Row]]:
    """The rows in batches of at most `max_num_tokens`; a longer row is cut, its beginning first.

    >>> rows = [Row(0, 5, (1, 2, 3), 0, 2), Row(1, 0, (4,), 0, 0)]
    >>> [[(row.row, row.first_token, row.num_tokens) for row in batch] for batch in batches_of(rows, 4)]
    [[(0, 5, 4)], [(0, 9, 1), (1, 0, 1)]]
    """
    batches: list[list[Row]] = [[]]
    left = max_num_tokens
    for row in rows:
        remaining = row
        while remaining.num_tokens > left:
            if left:
                head, remaining = _cut(remaining, left)
                batches[-1].append(head)
            batches.append([])
            left = max_num_tokens
        if remaining.num_tokens:
            batches[-1].append(remaining)
            left -= remaining.num_tokens
    return [batch for batch in batches if batch]


def _cut(row: Row, num_tokens: int) -> tuple[Row, Row]:
    known = min(num_tokens, len(row.token_ids))
    own = row.own_first + num_tokens - known
    head = row._replace(token_ids=row.token_ids[:known], own_last=own)
    return head, row._replace(first_token=row.first_token + num_tokens, token_ids=row.token_ids[known:], own_first=own)


def token_inputs(
    rows: Sequence[Row], own_token_ids: torch.Tensor, on_device: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each token that is read, in one copy to the device: its id, its position and its row of the batch, shape [tokens].

    `own_token_ids` is what the target reads in the step, on the device, where alone it is known.
    """
    known = [token_id for row in rows for token_id in row.token_ids]
    parts = []
    first_known = 0
    for row in rows:
        last_known = first_known + len(row.token_ids)
        source = torch.cat([torch.arange(first_known, last_known), len(known) + torch.arange(row.own_first, row.own_last)])
        parts.append(torch.stack([source, row.first_token + torch.arange(row.num_tokens), torch.full((row.num_tokens,), row.row)]))
        first_known = last_known
    packed = on_device(torch.cat([torch.cat(parts, dim=1).flatten(), torch.tensor(known, dtype=torch.int64)]))
    source, positions, batch_rows = packed[: len(packed) - len(known)].view(3, -1)
    # Ids that the scheduler sent stand before those of the target's own input, which only the device knows.
    ids = torch.cat([packed[len(packed) - len(known) :], own_token_ids.to(torch.int64)])
    return ids[source], positions, batch_rows


def copy_to(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Copies that do not wait for the device's work."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    return copy
