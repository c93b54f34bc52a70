"""vLLM's server in a replica: whose arguments are whose, what counts as a step, a pause, an orderly end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from nightjar.deployments.engine.engine_folder import make_engine_folder
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.engine.start.openai_server import OpenAIServer, split_kwargs
from nightjar.deployments.engine.start.running_engine import LoadObserver, observe_load
from nightjar.deployments.engine_watch import FrontEnd
from nightjar.policy.wire.report import EngineLoad, GroupKey

PLAIN = EngineArguments({}, "draft_model", 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_kwargs_are_vllms_own_engines_and_servers_alike() -> None:
    pytest.importorskip("vllm")
    engine_kwargs, frontend_kwargs = split_kwargs({"max_num_seqs": 4, "enable_auto_tool_choice": True})
    assert engine_kwargs == {"max_num_seqs": 4}
    assert frontend_kwargs == {"enable_auto_tool_choice": True}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_misspelt_kwarg_is_named_with_the_nearest_real_one() -> None:
    pytest.importorskip("vllm")
    with pytest.raises(ValueError, match=r"vLLM has no argument max_num_seq; did you mean max_num_seqs\?"):
        split_kwargs({"max_num_seq": 4})


def stats(*, running: int) -> Any:
    return SimpleNamespace(num_running_reqs=running, num_waiting_reqs=2, kv_cache_usage=0.5)


@pytest.mark.parametrize(
    ("scheduler_stats", "iteration_stats", "is_step"),
    [
        pytest.param(stats(running=1), object(), True, id="output"),
        pytest.param(stats(running=0), object(), True, id="last output"),
        pytest.param(stats(running=1), None, True, id="chunk of a prefill"),
        pytest.param(stats(running=0), None, False, id="nothing can be scheduled"),
        pytest.param(None, None, False, id="abort"),
    ],
)
def test_front_end_counts_what_was_a_step(scheduler_stats: Any, iteration_stats: object, is_step: bool) -> None:
    load = LoadObserver()
    load.record(scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0)
    assert load.num_steps == is_step


def test_the_load_of_ranks_that_are_served_plainly_is_that_of_all() -> None:
    load = LoadObserver()
    assert load.latest == EngineLoad()
    for rank, (running, usage) in enumerate([(9, 0.9), (3, 0.3), (1, 0.6)]):
        told: Any = SimpleNamespace(num_running_reqs=running, num_waiting_reqs=2, num_skipped_waiting_reqs=1, kv_cache_usage=usage)
        load.record(told, None, mm_cache_stats=None, engine_idx=rank)
    load.record(None, None, mm_cache_stats=None, engine_idx=0)
    whole = load.latest
    assert (whole.num_running_reqs, whole.num_waiting_reqs, whole.num_deferred_reqs) == (13, 9, 3)
    assert whole.kv_cache_usage == pytest.approx(0.6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_an_observer_counts_once_and_bears_all_that_vllm_tells_loggers() -> None:
    loggers = pytest.importorskip("vllm.v1.metrics.loggers")
    manager = loggers.StatLoggerManager.__new__(loggers.StatLoggerManager)  # its constructor registers Prometheus metrics
    manager.stat_loggers, manager.engine_indexes = [], [0]
    engine: Any = SimpleNamespace(logger_manager=manager, vllm_config=None)
    load = LoadObserver()
    observe_load(engine, load)
    manager.record(stats(running=1), object(), engine_idx=0)
    assert load.num_steps == 1
    told = [name for name in vars(loggers.StatLoggerManager) if not name.startswith("_") and name != "record"]
    assert {"log", "log_engine_initialized", "record_sleep_state"} <= {*told}
    arguments: dict[str, tuple[Any, ...]] = {"record_sleep_state": (1, 2), "record_admission_rejection": ("max_num_queued_reqs",)}
    for name in told:
        getattr(manager, name)(*arguments.get(name, ()))
    assert load.num_steps == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
@pytest.mark.parametrize("manager", [None, SimpleNamespace(loggers=[])], ids=["statistics are off", "vLLM has moved them"])
def test_an_engine_that_cannot_be_observed_serves_and_the_log_says_why(manager: Any) -> None:
    pytest.importorskip("vllm")
    engine: Any = SimpleNamespace(logger_manager=manager, vllm_config=None)
    with capture_logs() as logs:
        observe_load(engine, LoadObserver())
    assert [entry["event"] for entry in logs] == ["load_not_observed"]


@pytest.mark.parametrize(("seen", "num_steps"), [(7, 7), (0, None)])
def test_front_end_tells_of_requests_that_wait_for_the_engine_alone(seen: int, num_steps: int | None) -> None:
    unfinished = {"chat": SimpleNamespace(streaming_input=False), "session": SimpleNamespace(streaming_input=True)}
    engine: Any = SimpleNamespace(output_processor=SimpleNamespace(request_states=unfinished))
    load = LoadObserver()
    load.num_steps = seen
    app: Any = None
    server = OpenAIServer(engine=engine, app=app, arguments=PLAIN, group=GroupKey(target="t"), load=load)
    assert server.front_end() == FrontEnd(num_unfinished_reqs=1, num_steps=num_steps)


@pytest.mark.looptime
@pytest.mark.parametrize(("answer", "paused"), [(True, True), (False, False), (None, False)])
async def test_engine_is_paused_only_if_it_says_so(answer: bool | None, paused: bool) -> None:
    async def is_sleeping() -> bool:
        if answer is None:
            await asyncio.Event().wait()
        return bool(answer)

    engine: Any = SimpleNamespace(is_sleeping=is_sleeping)
    app: Any = None
    server = OpenAIServer(engine=engine, app=app, arguments=PLAIN, group=GroupKey(target="t"), load=LoadObserver())
    assert await server.is_paused() is paused


def test_shutdown_removes_the_engines_folder_once_its_processes_have_ended(tmp_path: Path) -> None:
    folder = make_engine_folder(tmp_path)
    assert folder is not None
    seen: list[tuple[float, bool]] = []
    engine: Any = SimpleNamespace(shutdown=lambda timeout: seen.append((timeout, folder.path.exists())))
    app: Any = None
    load = LoadObserver()
    server = OpenAIServer(engine=engine, app=app, arguments=PLAIN, group=GroupKey(target="t"), load=load, folder=folder)
    server.shutdown(5.0)
    assert seen == [(5.0, True)]
    assert not folder.path.exists()
