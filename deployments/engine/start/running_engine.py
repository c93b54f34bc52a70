"""One engine that runs inside a replica, as whatever host started it hands it to the replica's control.

The load of an engine whose scheduler is not ours is known from vLLM's own statistics alone; they also count its steps.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from nightjar.deployments.engine.engine_folder import EngineFolder
from nightjar.deployments.engine.engine_processes import kill_engine
from nightjar.deployments.engine.process_guard import noted_processes
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.engine_watch import FrontEnd
from nightjar.policy.wire.report import EngineLoad, GroupKey

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.stats import SchedulerStats

log = structlog.get_logger(__name__)

LOOK_PERIOD_S: Final = 0.05
PAUSE_ANSWER_TIMEOUT_S: Final = 1.0
"""Far below the time that Serve gives a health check; an engine that hangs does not answer at all."""


class LoadObserver:
    """Keeps vLLM's newest scheduler statistics of each rank, the load of an engine whose scheduler is not ours, and counts steps.

    Has a stat logger's methods.
    """

    def __init__(self) -> None:
        self._by_rank: dict[int, SchedulerStats] = {}
        self.num_steps = 0

    @property
    def latest(self) -> EngineLoad:
        """Of all ranks of data parallelism together: their requests, and the mean share of their KV caches."""
        stats = [*self._by_rank.values()]
        deferred = sum(each.num_skipped_waiting_reqs for each in stats)  # vLLM counts them apart
        return EngineLoad(
            num_running_reqs=sum(each.num_running_reqs for each in stats),
            num_waiting_reqs=sum(each.num_waiting_reqs for each in stats) + deferred,
            num_deferred_reqs=deferred,
            kv_cache_usage=sum(min(max(each.kv_cache_usage, 0.0), 1.0) for each in stats) / max(len(stats), 1),
        )

    def record(
        self, scheduler_stats: SchedulerStats | None, iteration_stats: object, *, engine_idx: int = 0, **_rest: object
    ) -> None:
        """Called by vLLM after each step of a rank; without scheduler statistics where only requests were aborted.

        A pass over requests that can not be scheduled is recorded as well: it has no output and nothing runs, so it is no step.
        """
        if scheduler_stats is not None:
            self._by_rank[engine_idx] = scheduler_stats
        if iteration_stats is not None or (scheduler_stats is not None and scheduler_stats.num_running_reqs):
            self.num_steps += 1

    def log(self) -> None:
        """Called by vLLM every few seconds; this one writes nothing."""

    def log_engine_initialized(self) -> None:
        """Called by vLLM once."""


def observe_load(engine: AsyncLLM, load: LoadObserver) -> None:
    """Have a started engine tell `load` of each step, where its host takes no logger of ours for it.

    The observer is added as vLLM adds one that it is started with, wrapped in its own adapter: a bare one lacks what vLLM calls
    when an engine is put to sleep or a request is turned away. An entry point `vllm.stat_logger_plugins` would be no way: once
    installed, whatever it does, it switches statistics on in each vLLM of the environment whose user switched them off (0.29 to
    0.33, AsyncLLM.__init__).
    Fails open: an engine without statistics, or whose loggers moved, is not observed, and the log says so.
    """
    reason = "vLLM's statistics are off (disable_log_stats)"
    try:
        from vllm.v1.metrics.loggers import PerEngineStatLoggerAdapter

        if (manager := engine.logger_manager) is not None:
            adapter = PerEngineStatLoggerAdapter(engine.vllm_config, manager.engine_indexes, lambda _config, _index: load)
            manager.stat_loggers.append(adapter)
            return
    except (ImportError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    log.warning("load_not_observed", reason=reason, consequence="served plainly, the engine's load and steps are not known")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine, what it was started with, and the group that it reports for."""

    engine: AsyncLLM
    arguments: EngineArguments
    group: GroupKey
    load: LoadObserver
    folder: EngineFolder | None = None

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """Ranks of data parallelism, each an engine core to steer; a lone None where there is one core, or it is served plainly."""
        if self.arguments.serving_plainly or self.group.data_parallel_size == 1:
            return (None,)
        return tuple(self.engine.engine_core.engine_ranks_managed)

    def shutdown(self, timeout_s: float) -> None:
        """End the engine's processes within `timeout_s` and leave no file of theirs behind.

        Ray ends its workers a moment after the engine core, and what a living process uses is not removed: the end of those on
        this node is waited for, for `timeout_s` more at most.
        """
        try:
            self.engine.shutdown(timeout=timeout_s)
        finally:
            if self.folder is not None:
                deadline_s = time.monotonic() + timeout_s
                while noted_processes(self.folder.path) and time.monotonic() < deadline_s:
                    time.sleep(LOOK_PERIOD_S)
                self.folder.remove()

    def kill(self) -> list[int]:
        """Kill the engine's processes on this node; return their pids. Ray ends its workers on other nodes with the core."""
        return kill_engine(None if self.folder is None else self.folder.path)

    def front_end(self) -> FrontEnd:
        """What the front end knows now. A session whose client is still to send (streaming input) is no unfinished request."""
        requests = self.engine.output_processor.request_states.values()
        return FrontEnd(
            num_unfinished_reqs=sum(not getattr(request, "streaming_input", False) for request in requests),
            num_steps=self.load.num_steps or None,
        )

    async def is_paused(self) -> bool:
        """Whether an operator paused the engine or put it to sleep. False where it does not answer."""
        try:
            async with asyncio.timeout(PAUSE_ANSWER_TIMEOUT_S):
                return bool(await self.engine.is_sleeping())
        except Exception:  # noqa: BLE001 - whatever it is, it is no pause
            return False
