"""KV writes that a head owes: kept while it is off, and made in one pass every few steps or when it comes back.

Where launches of kernels decide what a step costs (small batches), a pass every sixteenth step is cheaper than one in every step
(kv_only_head.py). What is owed is a flat list, in the order in which vLLM would have written: slot, token, position, hidden state.
Of two writes to one slot the later counts. So rejected tokens, aborts, preemption and blocks handed on need no bookkeeping. The
memory is allocated when the model is loaded, so that vLLM's profile counts it. Fails closed: more than fits is not taken
(`has_room`), and nothing here waits for the device.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

NO_SLOT: Final = -1
"""vLLM's PAD_SLOT_ID: a write to it is left out."""


class Writes(NamedTuple):
    """Inputs of a head, a row for each position, and the slots that their KV goes to."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    hidden_states: torch.Tensor
    """[tokens, hidden size]"""
    slots: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Rows."""
        return int(self.slots.shape[0])


class OwedWrites:
    """Room for `max_tokens` writes, and for those of `max_steps` steps at most."""

    def __init__(self, max_tokens: int, max_steps: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_tokens = self.num_steps = 0
        self.max_tokens = max_tokens
        self._max_steps = max_steps
        self._kept = Writes(
            torch.zeros(max_tokens, dtype=torch.int32, device=device),
            torch.zeros(max_tokens, dtype=torch.int64, device=device),
            torch.zeros(max_tokens, hidden_size, dtype=dtype, device=device),
            torch.full((max_tokens,), NO_SLOT, dtype=torch.int64, device=device),
        )

    @property
    def num_bytes(self) -> int:
        """Of the device's memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._kept)

    @property
    def is_due(self) -> bool:
        """Whether as many steps are owed as may be."""
        return self.num_steps >= self._max_steps

    def has_room(self, num_tokens: int) -> bool:
        """For so many more."""
        return self.num_tokens + num_tokens <= self.max_tokens

    def add(self, writes: Writes) -> None:
        """Those of one more step. Raises ValueError where they do not fit."""
        if not self.has_room(writes.num_tokens):
            raise ValueError(f"{writes.num_tokens} writes beside {self.num_tokens} of at most {self.max_tokens}: take these first")
        place = slice(self.num_tokens, self.num_tokens + writes.num_tokens)
        for kept, new in zip(self._kept, writes, strict=True):
            kept[place].copy_(new)
        self.num_tokens += writes.num_tokens
        self.num_steps += 1

    def take(self) -> Writes:
        """All of them, and owe nothing. Views, good until the next `add`; a slot that is written again later is NO_SLOT."""
        owed = Writes(*(kept[: self.num_tokens] for kept in self._kept))
        self.num_tokens = self.num_steps = 0
        return owed._replace(slots=last_writes(owed.slots))


def last_writes(slots: torch.Tensor) -> torch.Tensor:
    """`slots`, with NO_SLOT wherever the same slot comes again further on. No order is promised within one pass of the device.

    >>> last_writes(torch.tensor([4, 7, 4, -1, 7])).tolist()
    [-1, -1, 4, -1, 7]
    """
    in_order, place = torch.sort(slots, stable=True)
    comes_again = torch.zeros_like(slots, dtype=torch.bool)
    comes_again[place[:-1]] = in_order[:-1] == in_order[1:]
    return torch.where(comes_again, NO_SLOT, slots)
