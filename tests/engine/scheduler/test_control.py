"""The control channel without an engine: commands in, snapshots out, and no exception whatever comes in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState, EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand, IssuedSettings, SettingsVersion

pytest.importorskip("vllm")

import torch
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.request import RequestStatus

from nightjar.deployments.engine.scheduler import control
from nightjar.deployments.engine.scheduler.control import CONTROL_METHOD, nightjar_exchange
from nightjar.deployments.engine.scheduler.steered import SteeredScheduler, drafts_every_row, why_kept_in_sync
from nightjar.deployments.engine.start.dormancy import CONTEXT_PARALLEL
from tests.engine.scheduler.scheduler_harness import make_request, make_scheduler, run_steps
from tests.policy.step import steering_settings
from tests.policy.step.steering_settings import table

SHAPE: dict[str, Any] = {"block_size": 16, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
FULL, LATENT = FullAttentionSpec(**SHAPE), MLAAttentionSpec(**SHAPE)
SLIDING = SlidingWindowSpec(**SHAPE, sliding_window=128)


def together(*specs: Any) -> Any:
    return UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={f"layer.{number}": spec for number, spec in enumerate(specs)})


def parallel_config(**changes: int) -> Any:
    sizes = {"decode_context_parallel_size": 1, "prefill_context_parallel_size": 1} | changes
    return SimpleNamespace(worker_cls="nightjar.deployments.engine.worker.cpu.SteeredCPUWorker", **sizes)


@pytest.fixture
def engine_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return SimpleNamespace(scheduler=make_scheduler(SteeredScheduler, tmp_path))


def exchange(engine_core: Any, command: EngineCommand) -> EngineSnapshot:
    return EngineSnapshot.from_wire(nightjar_exchange(engine_core, command.to_wire()))


def settings(sequence: int, mode: str = "pin=2") -> IssuedSettings:
    return steering_settings.settings(table((1, 16, 4)), mode=mode, sequence=sequence, allowed=(0, 2, 4))


def test_the_import_of_the_scheduler_module_adds_the_method_to_vllms_engine_core() -> None:
    assert getattr(EngineCore, CONTROL_METHOD) is nightjar_exchange


def test_settings_come_into_force_and_the_load_is_the_engines(engine_core: Any) -> None:
    assert exchange(engine_core, EngineCommand(issued=settings(1))).settings_version == SettingsVersion(incarnation=1, sequence=1)
    for index in range(20):
        engine_core.scheduler.add_request(make_request(f"request-{index}"))
    run_steps(engine_core.scheduler, 3)
    snapshot = exchange(engine_core, EngineCommand())
    assert snapshot.load.num_running_reqs == snapshot.load.decode_batch_size == 16
    assert snapshot.load.num_waiting_reqs == 4
    assert snapshot.load.kv_cache_usage > 0
    assert snapshot.load.num_speculative_tokens == snapshot.load.planned_num_speculative_tokens == 2
    assert snapshot.load.step_seconds > 0
    assert snapshot.counters.step_count == 3
    assert snapshot.drafter_state is DrafterState.IN_SYNC
    assert snapshot.drafter.reason == "the worker is not Nightjar's"


def waiting(number: int, *, status: str = "WAITING", **fields: Any) -> Any:
    request = make_request(f"request-{number}")
    request.status = RequestStatus[status]
    for name, value in fields.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize("status", control.WAITING_FOR_OTHERS)
def test_requests_that_no_step_can_run_yet_are_counted_by_what_they_wait_for(engine_core: Any, status: str) -> None:
    scheduler = engine_core.scheduler
    blocked = waiting(0, status=status)
    assert scheduler._is_blocked_waiting_status(blocked.status)
    for request in (blocked, waiting(1, status=status), waiting(2)):
        scheduler._enqueue_waiting_request(request)
    load = exchange(engine_core, EngineCommand()).load
    assert (load.num_waiting_reqs, load.num_deferred_reqs) == (3, 2)
    blocked.status = RequestStatus.WAITING  # what it waited for came; vLLM's set keeps it until it runs
    assert exchange(engine_core, EngineCommand()).load.num_deferred_reqs == 1


@pytest.mark.parametrize("kept_in", ["deferred_waiting", "skipped_waiting"])
@pytest.mark.parametrize(
    ("connectors", "fields", "counted"),
    [
        ({}, {}, False),
        ({"connector": object()}, {}, True),
        ({"connector": object()}, {"num_computed_tokens": 16}, False),
        ({"ec_connector": object()}, {"num_computed_tokens": 16, "mm_features": [object()]}, True),
        ({"ec_connector": object()}, {}, False),
    ],
    ids=["by a limit", "connector undecided", "KV came", "encoder output to come", "text alone"],
)
def test_a_request_that_was_not_scheduled_is_counted_where_a_connector_is_to_bring_something(
    kept_in: str, connectors: dict[str, Any], fields: dict[str, Any], counted: bool
) -> None:
    """vLLM 0.32 and 0.33 keep such requests in the first place, 0.29 in the second."""
    places: dict[str, Any] = {"connector": None, "ec_connector": None, kept_in: [waiting(0, **fields)]} | connectors
    assert control.num_deferred_reqs(SimpleNamespace(**places)) == int(counted)


@pytest.mark.parametrize("answer", [(None, False), (48, True)], ids=["undecided", "KV on its way"])
def test_vllms_scheduler_takes_no_step_while_a_connector_brings_the_kv_and_the_load_says_so(
    engine_core: Any, answer: tuple[int | None, bool]
) -> None:
    scheduler = engine_core.scheduler
    scheduler.connector = MagicMock(
        supports_divergent_local_hybrid_hits=False,
        get_num_new_matched_tokens=MagicMock(return_value=answer),
        get_loaded_kv_cache_group_ids=MagicMock(return_value=frozenset()),
        get_kv_connector_stats=MagicMock(return_value=None),
        take_events=MagicMock(return_value=()),
    )
    scheduler.add_request(make_request("request", prompt_tokens=64))
    assert [output.total_num_scheduled_tokens for output in run_steps(scheduler, 3)] == [0, 0, 0]
    snapshot = exchange(engine_core, EngineCommand())
    assert snapshot.counters.step_count == 0
    assert (snapshot.load.num_running_reqs, snapshot.load.num_waiting_reqs, snapshot.load.num_deferred_reqs) == (0, 1, 1)


def test_no_request_is_deferred_in_a_vllm_that_keeps_them_elsewhere() -> None:
    assert control.num_deferred_reqs(SimpleNamespace(waiting=[waiting(0)])) == 0


@pytest.mark.parametrize(
    ("changes", "groups", "reason"),
    [
        ({}, [FULL], ""),
        ({}, [LATENT], ""),
        ({}, [together(FULL, FULL)], ""),
        (
            {"speculative_config": SimpleNamespace(method="eagle", draft_model_config=SimpleNamespace(max_model_len=2048))},
            [FULL],
            "only a separate draft model can be dormant",
        ),
        (
            {"model_config": SimpleNamespace(enable_sleep_mode=False, max_model_len=4096)},
            [FULL],
            "the draft's max_model_len is below the target's",
        ),
        ({"speculative_config": None}, [FULL], "only a separate draft model can be dormant"),
        ({}, [FULL, FULL], "the engine has 2 KV cache groups, not one"),
        ({}, [SLIDING], "the KV cache is not full attention's (SlidingWindowSpec)"),
        ({}, [together(SLIDING, SLIDING)], "the KV cache is not full attention's (SlidingWindowSpec)"),
        ({"kv_transfer_config": SimpleNamespace()}, [FULL], "a KV connector is in use"),
        ({"model_config": SimpleNamespace(enable_sleep_mode=True, max_model_len=2048)}, [FULL], "sleep mode is on"),
        ({"parallel_config": parallel_config(decode_context_parallel_size=2)}, [FULL], CONTEXT_PARALLEL),
        ({"parallel_config": parallel_config(prefill_context_parallel_size=2)}, [FULL], CONTEXT_PARALLEL),
    ],
)
def test_a_drafter_is_kept_in_sync_where_its_cache_could_be_touched_behind_our_back(
    changes: dict[str, Any], groups: list[Any], reason: str
) -> None:
    config: dict[str, Any] = {
        "speculative_config": SimpleNamespace(method="draft_model", draft_model_config=SimpleNamespace(max_model_len=2048)),
        "parallel_config": parallel_config(),
        "kv_transfer_config": None,
        "model_config": SimpleNamespace(enable_sleep_mode=False, max_model_len=2048),
    }
    cache = SimpleNamespace(kv_cache_groups=[KVCacheGroupSpec(["layer"], spec) for spec in groups])
    assert why_kept_in_sync(SimpleNamespace(**(config | changes)), cache) == reason


@pytest.mark.parametrize(
    ("method", "runner", "every_row"),
    [("ngram", "V1", False), ("ngram", "V2", True), ("eagle", "V1", True), ("draft_model", "V1", True)],
)
def test_a_row_without_drafts_is_a_miss_only_of_ngram_on_runner_v1(method: str, runner: str, every_row: bool) -> None:
    config = SimpleNamespace(speculative_config=SimpleNamespace(method=method), use_v2_model_runner=runner == "V2")
    assert drafts_every_row(config) is every_row


def test_inv_5_older_settings_are_answered_with_a_refusal(engine_core: Any) -> None:
    exchange(engine_core, EngineCommand(issued=settings(5)))
    snapshot = exchange(engine_core, EngineCommand(issued=settings(4, "pin=4")))
    assert "older than 1.5" in snapshot.refused
    assert snapshot.settings_version == SettingsVersion(incarnation=1, sequence=5)


def test_a_mode_sent_with_refused_settings_holds(engine_core: Any) -> None:
    exchange(engine_core, EngineCommand(issued=settings(5, "pin=4")))
    assert engine_core.scheduler.nightjar.steering.choose(1, False, 0.0) == 4
    snapshot = exchange(engine_core, EngineCommand(issued=settings(4), local_mode=Mode.parse("off")))
    assert "older than 1.5" in snapshot.refused
    assert engine_core.scheduler.nightjar.steering.choose(1, False, 0.0) == 0


def test_a_confirmation_restarts_the_age_of_the_settings(engine_core: Any) -> None:
    loop = engine_core.scheduler.nightjar
    loop.clock = lambda: 1000.0
    exchange(engine_core, EngineCommand(issued=settings(1)))
    loop.clock = lambda: 1250.0
    exchange(engine_core, EngineCommand(confirmed=SettingsVersion(incarnation=1, sequence=1)))
    assert loop.steering.choose(1, False, 1500.0) == 2
    assert loop.steering.choose(1, False, 1551.0) == 0


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01\x02\x03", EngineCommand().to_wire() + b"\x00", b"\xff" * (1 << 21)])
def test_bytes_that_are_no_command_change_nothing_and_are_refused(payload: bytes, engine_core: Any) -> None:
    exchange(engine_core, EngineCommand(issued=settings(1), local_mode=Mode.parse("off")))
    snapshot = EngineSnapshot.from_wire(nightjar_exchange(engine_core, payload))
    assert "EngineCommand" in snapshot.refused
    assert engine_core.scheduler.nightjar.steering.choose(1, False, 0.0) == 0


def test_an_engine_core_without_our_scheduler_answers_why() -> None:
    assert "allowed is one of Nightjar's" in exchange(SimpleNamespace(scheduler=object()), EngineCommand()).refused


def test_an_error_of_ours_is_answered_and_not_raised() -> None:
    assert "AttributeError" in exchange(SimpleNamespace(), EngineCommand()).refused
