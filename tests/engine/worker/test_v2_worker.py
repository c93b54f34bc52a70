"""The worker on runner V2: what it does before a step, and that a draft is loaded by the memory that can take it away."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM's dependencies deprecate at import is not ours to mend
    v2_worker: Any = importlib.import_module("nightjar.deployments.engine.worker.v2")
    draft_on_v2: Any = importlib.import_module("nightjar.deployments.engine.worker.v2")
from nightjar.deployments.engine.memory.interface import OffloadUnsupportedError
from nightjar.deployments.engine.worker.draft_work import (
    MEMORY_ATTRIBUTE,
    ROWS_ATTRIBUTE,
    SLEEP,
    WORK_ATTRIBUTE,
    MemoryMove,
    MemoryWork,
)
from nightjar.deployments.engine.worker.step_reports import StepReports


class Stock:
    """vLLM's worker, which notes when it is asked for a step."""

    said: list[object]

    def execute_model(self, scheduler_output: Any) -> str:
        self.said.append("step")
        return "output"


class Worker(v2_worker.SteeredV2Mixin, Stock):
    def __init__(self) -> None:
        self.said = []
        self.reports = StepReports(1)
        tables = SimpleNamespace(append_block_ids=lambda *given, **options: self.said.append((*given, options)))
        self.model_runner = SimpleNamespace(block_tables=tables, req_states=SimpleNamespace(req_id_to_index={"moved": 3}))

    def move_draft(self, work: MemoryWork | None) -> None:
        self.said.append(work)


def step(**attributes: Any) -> Any:
    return SimpleNamespace(kv_cache_block_copies=None, **attributes)


def test_memory_moves_and_rows_are_replaced_before_the_step_that_brings_the_orders() -> None:
    worker = Worker()
    worker.nightjar_drafter = SimpleNamespace(work=None)
    orders = {MEMORY_ATTRIBUTE: MemoryWork(MemoryMove.OFFLOAD, 0.5), WORK_ATTRIBUTE: SLEEP, ROWS_ATTRIBUTE: {"moved": ([5, 6],)}}
    assert worker.execute_model(step(**orders)) == "output"
    assert worker.said == [MemoryWork(MemoryMove.OFFLOAD, 0.5), (3, ([5, 6],), {"overwrite": True}), "step"]
    assert worker.nightjar_drafter.work is SLEEP


def test_a_step_without_orders_is_vllms() -> None:
    worker = Worker()
    worker.nightjar_drafter = SimpleNamespace(work=SLEEP)
    worker.execute_model(step())
    assert worker.said == [None, "step"]
    assert worker.nightjar_drafter.work is None


class Memory:
    """A draft's memory, which loads what it is told to."""

    def __init__(self, why_not: str = "") -> None:
        self.why_not = why_not
        self.is_offloaded = False

    def load_model(self, vllm_config: Any, *, prefix: str = "") -> Any:
        return (vllm_config, prefix)


def loading() -> Any:
    """A speculator that loads its draft as vLLM's does, by a name of its module."""
    return SimpleNamespace(load_draft_model=lambda target: draft_on_v2.standalone_ar.get_model(vllm_config=target, prefix="draft"))


def test_a_draft_is_loaded_by_its_memory_and_vllms_own_loading_is_as_before_afterwards() -> None:
    stock = draft_on_v2.standalone_ar.get_model
    speculator = loading()
    draft_on_v2.load_through(Memory(), speculator)
    assert speculator.load_draft_model("target") == ("target", "draft")
    assert draft_on_v2.standalone_ar.get_model is stock


def test_a_draft_whose_weights_cannot_be_taken_away_is_refused_in_one_line() -> None:
    speculator = loading()
    draft_on_v2.load_through(Memory("it is quantised"), speculator)
    with pytest.raises(OffloadUnsupportedError, match="draft_offload: it is quantised; set draft_offload: never"):
        speculator.load_draft_model("target")


def test_a_draft_that_is_away_runs_nothing_whatever_it_is_ordered() -> None:
    memory, drafts = Memory(), importlib.import_module("torch").ones(4, 3)
    speculator = SimpleNamespace(
        propose=lambda *_, **__: pytest.fail("it has no weights"), draft_tokens=drafts, device=drafts.device
    )
    drafter = draft_on_v2.SteeredDraftOnV2(speculator, StepReports(1), memory)
    memory.is_offloaded = True
    for options in ({"num_speculative_tokens": 3}, {"num_speculative_tokens": None, "dummy_run": True}):
        assert drafter.propose(SimpleNamespace(num_reqs=2), **options).tolist() == [[-1] * 3] * 2
