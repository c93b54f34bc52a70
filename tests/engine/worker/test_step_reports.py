"""What a worker says with a step's output of work that the engine can do without, and after which errors it must end."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from nightjar.deployments.engine.worker.draft_work import DRAFTER_FAILURE_ATTRIBUTE
from nightjar.deployments.engine.worker.step_reports import StepReports, is_fatal_to_device

OUTPUT = ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0}, sampled_token_ids=[[1]])


class LateOutput(AsyncModelRunnerOutput):
    """As of asynchronous scheduling, and of runner V2."""

    def get_output(self) -> ModelRunnerOutput:
        return OUTPUT


def broken(error: Exception, num_ranks: int = 1) -> StepReports:
    reports = StepReports(num_ranks)
    reports.survive(error, DRAFTER_FAILURE_ATTRIBUTE, what="catch-up", consequence="the draft sleeps")
    return reports


@pytest.mark.parametrize("output", [OUTPUT, LateOutput()], ids=["at once", "later"])
def test_the_scheduler_finds_the_reason_on_the_output_of_that_step_alone_also_from_another_process(output: Any) -> None:
    reports = broken(ValueError("an unknown shape"))
    answers = [reports.attached(copy.copy(output)), reports.attached(copy.copy(output))]
    first, second = (each.get_output() if isinstance(each, AsyncModelRunnerOutput) else each for each in answers)
    assert getattr(pickle.loads(pickle.dumps(first)), DRAFTER_FAILURE_ATTRIBUTE) == "ValueError: an unknown shape"
    assert first.sampled_token_ids == [[1]]
    assert not hasattr(second, DRAFTER_FAILURE_ATTRIBUTE)


def test_a_step_whose_output_is_still_to_come_keeps_the_reason_for_it() -> None:
    reports = broken(ValueError("an unknown shape"))
    assert reports.attached(None) is None
    assert hasattr(reports.attached(OUTPUT), DRAFTER_FAILURE_ATTRIBUTE)


@pytest.mark.parametrize(
    ("error", "is_fatal"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (MemoryError(), False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("HIP error: invalid device function"), True),
    ],
    ids=lambda value: str(value)[:24],
)
def test_only_an_error_after_which_the_device_is_unusable_ends_an_engine_of_one_rank(error: Exception, *, is_fatal: bool) -> None:
    assert is_fatal_to_device(error) is is_fatal
    wrapped = RuntimeError("in the draft's forward")
    wrapped.__cause__ = error
    assert is_fatal_to_device(wrapped) is is_fatal


def test_with_several_ranks_every_error_ends_the_engine() -> None:
    with pytest.raises(ValueError, match="an unknown shape"):
        broken(ValueError("an unknown shape"), num_ranks=2)
