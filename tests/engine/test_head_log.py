"""Writes that a head owes: none is lost, the later one counts, and no more are taken than there is room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
import torch

from nightjar.deployments.engine.head_log import NO_SLOT, OwedWrites, Writes, last_writes

MAX_TOKENS, MAX_STEPS, HIDDEN = 12, 4, 3
STEPS = st.lists(st.lists(st.integers(NO_SLOT, 5), min_size=1, max_size=MAX_TOKENS), max_size=20)


def owed_writes() -> OwedWrites:
    return OwedWrites(MAX_TOKENS, MAX_STEPS, HIDDEN, torch.float32, torch.device("cpu"))


def writes(number: int, slots: list[int]) -> Writes:
    """Those of step `number`, each told from all others by its position."""
    positions = 100 * number + torch.arange(len(slots))
    return Writes(positions.to(torch.int32), positions, positions[:, None].expand(-1, HIDDEN).float(), torch.tensor(slots))


@given(STEPS)
def test_a_cache_written_late_is_the_one_that_was_written_in_each_step(steps: list[list[int]]) -> None:
    late: dict[int, float] = {}
    each: dict[int, float] = {}
    owed = owed_writes()

    def make() -> None:
        taken = owed.take()
        made = taken.slots[taken.slots != NO_SLOT].tolist()
        assert len(made) == len(set(made)), "one pass writes no slot twice"
        assert taken.token_ids.tolist() == taken.positions.tolist()
        for slot, states in zip(taken.slots.tolist(), taken.hidden_states.tolist(), strict=True):
            if slot != NO_SLOT:
                late[slot] = states[0]

    for number, slots in enumerate(steps):
        each |= {slot: 100.0 * number + index for index, slot in enumerate(slots) if slot != NO_SLOT}
        if not owed.has_room(len(slots)):
            make()
        owed.add(writes(number, slots))
        assert owed.is_due is (owed.num_steps >= MAX_STEPS)
        if owed.is_due:
            make()
    make()
    assert late == each
    assert owed.num_tokens == owed.num_steps == 0


def test_more_than_fits_is_refused_and_nothing_is_lost() -> None:
    owed = owed_writes()
    owed.add(writes(1, [1] * 8))
    with pytest.raises(ValueError, match="5 writes beside 8 of at most 12"):
        owed.add(writes(2, [2] * 5))
    assert owed.take().slots.tolist() == [NO_SLOT] * 7 + [1]


@given(st.lists(st.integers(NO_SLOT, 4), max_size=12))
def test_of_each_slot_the_last_write_is_left(slots: list[int]) -> None:
    left = last_writes(torch.tensor(slots, dtype=torch.int64)).tolist()
    for index, slot in enumerate(slots):
        assert left[index] == (NO_SLOT if slot in slots[index + 1 :] else slot)


def test_its_bytes_are_those_of_a_token_a_position_a_slot_and_a_hidden_state() -> None:
    assert owed_writes().num_bytes == MAX_TOKENS * (4 + 8 + 8 + HIDDEN * 4)
