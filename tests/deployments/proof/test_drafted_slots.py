"""Slots that a drafter writes, held against its requests' blocks, on tensors and records made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from nightjar.deployments.engine.worker.draft_work import RUN, WORK_ATTRIBUTE, DraftWork, Recompute
from nightjar.deployments.proof.drafted_slots import DraftedSlots

BLOCK_TOKENS = 16


class Drafter:
    """Of runner V2, with a layer in the second of two KV cache groups."""

    draft_attn_layer_names = frozenset({"draft"})

    def _run_model(self, input_ids: Any, attn_metadata: Any, slot_mappings: Any) -> str:
        return "hidden states"


class Batch:
    """Two requests, `a` with blocks 4 and 5 and `b` with block 6, in the order b, a."""

    def __init__(self) -> None:
        groups = [
            SimpleNamespace(layer_names=names, kv_cache_spec=SimpleNamespace(block_size=size))
            for names, size in ((["target"], 8), (["draft"], BLOCK_TOKENS))
        ]
        rows = SimpleNamespace(input_batch=SimpleNamespace(req_ids=["b", "a"]))
        runner = SimpleNamespace(kv_cache_config=SimpleNamespace(kv_cache_groups=groups), execute_model_state=rows)
        self.drafter = Drafter()
        self.slots = DraftedSlots(runner, self.drafter)
        self.step([("a", ([1], [4, 5])), ("b", ([2], [6]))])

    def step(
        self, new: Any = (), cached: Any = (), resumed: Any = (), finished: Any = (), work: DraftWork = RUN, **options: Any
    ) -> None:
        output = SimpleNamespace(
            finished_req_ids=set(finished),
            scheduled_new_reqs=[SimpleNamespace(req_id=name, block_ids=blocks) for name, blocks in new],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[name for name, _ in cached], new_block_ids=[blocks for _, blocks in cached], resumed_req_ids=set(resumed)
            ),
            num_scheduled_tokens={"a": 1, "b": 1},
            **options,
        )
        setattr(output, WORK_ATTRIBUTE, work)
        self.slots.step(output)
        self.slots.ran()

    def wrong(self, starts: list[int], slots: list[int]) -> str:
        metadata = {"draft": SimpleNamespace(query_start_loc=torch.tensor(starts))}
        found = self.drafter._run_model(None, attn_metadata=metadata, slot_mappings={"draft": torch.tensor(slots)})
        assert found == "hidden states"
        return self.slots.taken()


def slot(block: int, offset: int = 0) -> int:
    return block * BLOCK_TOKENS + offset


def test_slots_in_the_blocks_of_each_row_are_right_and_padding_is_none() -> None:
    batch = Batch()
    assert batch.wrong([0, 1, 3, 3], [slot(6, 15), slot(4, 15), slot(5), -1]) == ""
    assert batch.wrong([0, 1, 2], [-1, slot(5)]) == ""


@pytest.mark.parametrize("stray", [slot(5), slot(7), slot(0)], ids=["another_request", "nobody", "null_block"])
def test_a_slot_in_another_block_is_told_once(stray: int) -> None:
    batch = Batch()
    assert batch.wrong([0, 1, 2], [stray, slot(4)]).startswith(f"row 0 (b): slots [{stray}] are not all in blocks [[6]]")
    assert batch.wrong([0, 1, 2], [slot(6), slot(4)]) == ""


def test_blocks_come_with_later_steps_and_go_with_a_resumption_or_a_move() -> None:
    batch = Batch()
    batch.step(cached=[("a", None), ("b", ([], [7]))])
    assert batch.wrong([0, 2, 3], [slot(6, 15), slot(7), slot(5)]) == ""
    batch.step(cached=[("b", ([3], [8]))], resumed=["b"])
    assert batch.wrong([0, 1, 2], [slot(7), slot(5)])
    batch.step(cached=[("a", None)], nightjar_block_ids={"a": ([1], [4, 9])})
    assert batch.wrong([0, 1, 2], [slot(8), slot(9)]) == ""
    assert batch.wrong([0, 1, 2], [slot(8), slot(5)])


def test_a_step_that_catches_up_has_rows_in_any_order_each_of_one_request() -> None:
    batch = Batch()
    batch.step(cached=[("a", None), ("b", None)], work=DraftWork(False, (Recompute("a", 0, (1, 2), False),)))
    assert batch.wrong([0, 2], [slot(4), slot(5)]) == ""
    assert batch.wrong([0, 2], [slot(4), slot(6)])


def test_a_pass_without_attention_is_no_draft() -> None:
    batch = Batch()
    batch.drafter._run_model(None, None, {"draft": torch.tensor([slot(99)])})
    assert batch.slots.taken() == ""
