"""The start-up self-check: silent on a tested vLLM, and naming what moved on any other."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import platforms
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched import output, scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.sample import rejection_sampler
from vllm.v1.spec_decode import llm_base_proposer

from nightjar.deployments.engine.start import hooks
from nightjar.deployments.engine.start.hooks import HOMES, NOTHING_MISSING, Hook, missing_hooks, moved


def test_the_installed_vllm_has_every_hook() -> None:
    assert missing_hooks() == NOTHING_MISSING


def test_a_removed_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(scheduler.Scheduler, "_update_after_schedule")
    (line, *others) = missing_hooks().steering
    assert line == "vllm.v1.core.sched.scheduler.Scheduler._update_after_schedule: there is no '_update_after_schedule'"
    assert all("_update_after_schedule" in other for other in others)


def test_a_renamed_parameter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def update_from_output(self: Any, scheduler_output: Any, runner_output: Any) -> None:
        """As a later vLLM might have it."""

    monkeypatch.setattr(scheduler.Scheduler, "update_from_output", update_from_output)
    (line,) = missing_hooks().steering
    assert line == "vllm.v1.core.sched.scheduler.Scheduler.update_from_output: takes no parameter 'model_runner_output'"


def test_a_removed_field_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [
        (field.name, field.type, field)
        for field in dataclasses.fields(output.SchedulerOutput)
        if field.name != "num_spec_tokens_to_schedule"
    ]
    monkeypatch.setattr(output, "SchedulerOutput", dataclasses.make_dataclass("SchedulerOutput", kept))
    (line,) = missing_hooks().steering
    assert line == "vllm.v1.core.sched.output.SchedulerOutput: holds no 'num_spec_tokens_to_schedule'"


def test_an_attribute_that_a_constructor_no_longer_sets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def constructor(self: Any) -> None:
        self.the_scheduler = None

    monkeypatch.setattr(EngineCore, "__init__", constructor)
    (line,) = missing_hooks().steering
    assert line == "vllm.v1.engine.core.EngineCore: holds no 'scheduler'"


def test_a_moved_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "EVERYWHERE", (Hook("vllm.v1.core.moved", "Scheduler"),))
    (line,) = missing_hooks().steering
    assert line.startswith("vllm.v1.core.moved: cannot be imported")


def test_the_sampler_that_the_cpu_worker_mends_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rejection_sampler, "expand_batch_to_tokens")
    assert missing_hooks().steering == (
        "vllm.v1.sample.rejection_sampler.expand_batch_to_tokens: there is no 'expand_batch_to_tokens'",
    )


def test_on_a_gpu_a_moved_name_is_told_by_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(platforms.current_platform), "is_cpu", lambda self: False)
    monkeypatch.delattr(llm_base_proposer.SpecDecodeBaseProposer, "build_model_inputs_first_pass")
    monkeypatch.delattr(BlockPool, "move_block_hashes")
    missing = missing_hooks()
    assert missing.steering == ()
    assert [line.rpartition(" ")[2] for line in missing.sleeping] == ["'build_model_inputs_first_pass'"]
    assert [line.rpartition(" ")[2] for line in missing.lending] == ["'move_block_hashes'"]


@pytest.mark.parametrize("name", HOMES)
def test_a_name_that_vllm_moved_is_found_in_either_home_and_else_named_with_both(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = moved(name)
    other, _ = HOMES[name]
    monkeypatch.setitem(sys.modules, other, SimpleNamespace(**{name: "of another vLLM"}))
    assert moved(name) == "of another vLLM"
    assert moved(name) is not found
    for module in HOMES[name]:
        monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    with pytest.raises(ImportError, match=f"{name} is in none of {other}"):
        moved(name)
