"""Nightjar's scheduler classes: vLLM's own, with K chosen before each step and every step counted.

vLLM imports this module inside the engine-core process, because `scheduler_cls` names it; that import also adds the
control method to EngineCore and ties the process to its Serve replica. The classes override a few methods and decide
nothing themselves (step_loop.py). `schedule()` reserves the look-ahead slots and draft slots that vLLM reserves, unless the drafter
sleeps in that very step: then the step is scheduled as by an engine without a drafter. It ends in `_update_after_schedule`, where
what we write to `num_spec_tokens_to_schedule` is what the worker drafts. AsyncScheduler's own override sizes its placeholders from
that field, so ours writes before it. Fails open: see StepLoop.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.engine.memory.offload_config import USERS_TABLE, OffloadConfig, entry_of, why_not_followed
from nightjar.deployments.engine.process_guard import guard_vllm_process
from nightjar.deployments.engine.scheduler.control import register_control_method
from nightjar.deployments.engine.scheduler.draft_lending import DraftLending
from nightjar.deployments.engine.scheduler.draft_slots import DraftSlots
from nightjar.deployments.engine.scheduler.drafting import Drafting
from nightjar.deployments.engine.scheduler.kv_pool import ElasticKVPool
from nightjar.deployments.engine.scheduler.lag_ledger import LagLedger
from nightjar.deployments.engine.scheduler.step_loop import StepLoop
from nightjar.deployments.engine.start.arguments import OBEDIENT_WORKERS
from nightjar.deployments.engine.start.dormancy import sleep_facts, why_never_asleep
from nightjar.deployments.engine.start.graph_tiers import from_table
from nightjar.deployments.engine.worker.draft_work import DRAFTER_FAILURE_ATTRIBUTE, RELOAD_FAILURE_ATTRIBUTE
from nightjar.policy.step.drafter import DrafterLife

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
    from vllm.v1.request import Request

SETTLE_STEPS: Final = 2
"""A step verifies what the step before it drafted, so from the second step on its time belongs to one K."""
ASYNC_SETTLE_STEPS: Final = 3
"""Under async scheduling a step's output also waits for the drafting of the step before it."""
OPT_OUT: Final = "num_speculative_tokens"
"""A request's extra argument (`vllm_xargs` in the OpenAI API): it is given at most so many draft tokens, none for 0."""


class SteeredScheduler(Scheduler):
    """For engines without async scheduling (always so on CPU)."""

    settle_steps = SETTLE_STEPS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config: VllmConfig = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        engine_id = uuid4().hex
        why_in_sync = why_kept_in_sync(config, self.kv_cache_config)
        self.nightjar = StepLoop(
            max_num_speculative_tokens=self.num_spec_tokens,
            max_num_seqs=self.max_num_running_reqs,
            max_model_len=self.max_model_len,
            settle_steps=self.settle_steps,
            drafts_every_row=drafts_every_row(config),
            clock=time.monotonic,
            engine_id=engine_id,
            drafting=None if why_in_sync else self._drafting(engine_id),
            why_in_sync=why_in_sync,
            draft_slots=DraftSlots.of(config, self.kv_cache_manager.coordinator.single_type_managers),
        )
        self._sleeps = False
        self._lending = None if self.nightjar.drafting is None else self.nightjar.drafting.lending
        self._with_drafter, self._lookahead_tokens = config, config.num_lookahead_tokens
        self._without_drafter = copy.copy(config)
        self._without_drafter.speculative_config = None
        if table := entry_of(config).get(USERS_TABLE):  # what runs while it is not steered; the workers' graphs are the other's
            self.dynamic_sd_lookup = [0, *from_table(table, self.max_num_running_reqs, self.num_spec_tokens)]

    def add_request(self, request: Request) -> None:
        """As vLLM's; a request that finds the engine without work starts the step clock anew."""
        if not self.has_unfinished_requests():
            self.nightjar.restart_clock()
        self.nightjar.add_request(request, most_drafts_of(request))
        super().add_request(request)

    def set_pause_state(self, pause_state: PauseState) -> None:
        """As vLLM's; the time in which an engine is paused is no step's."""
        super().set_pause_state(pause_state)
        self.nightjar.restart_clock()

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """As vLLM's; a step in which the drafter sleeps is scheduled as by an engine without one."""
        lending = self._lending
        if lending is None:
            return self._schedule(*args, **kwargs)
        if self.nightjar.fault:
            output = self._schedule(*args, **kwargs)
            lending.after_schedule(output, num_waiting=self._num_waiting, now_s=self.nightjar.clock())
            return output
        now_s = self.nightjar.clock()
        lending.before_schedule(self._by_urgency(), may_move=self._may_move, preempt=self._preempt, now_s=now_s)
        self._hold_back(lending.pool)
        output = self._schedule(*args, **kwargs)
        lending.after_schedule(output, num_waiting=self._num_waiting, now_s=now_s)
        return output

    @property
    def _num_waiting(self) -> int:
        """Requests that would run if there were room."""
        waiting: int = self.get_request_counts()[1] - self.num_waiting_for_streaming_input
        return waiting

    def _schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._sleeps = self.nightjar.sleeps(self.running, self.get_request_counts()[1])
        if not self._sleeps:
            return super().schedule(*args, **kwargs)
        # Of `vllm_config` vLLM reads in schedule() what drafts take of the step's tokens, and nothing else (0.29, 0.32 and 0.33).
        self.vllm_config, self.num_lookahead_tokens = self._without_drafter, 0
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self.vllm_config, self.num_lookahead_tokens = self._with_drafter, self._lookahead_tokens

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """As vLLM's, but for rows whose drafts stand on missing KV or whose client wants fewer."""
        super().update_draft_token_ids(draft_token_ids)
        self._limit_drafts()

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """As vLLM's; counts what the step verified before stop conditions trim it, and the step itself afterwards."""
        verified = self.nightjar.verified(scheduler_output, model_runner_output, self.requests)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self.nightjar.after_step(scheduler_output, model_runner_output, verified)
        if pass_failure := getattr(model_runner_output, DRAFTER_FAILURE_ATTRIBUTE, ""):
            self.nightjar.pass_failed(pass_failure)
        if self._lending is not None:
            reload_failure = getattr(model_runner_output, RELOAD_FAILURE_ATTRIBUTE, "")
            self._lending.step_done(scheduler_output, self.nightjar.clock(), reload_failure)
        return outputs

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        is_full = scheduler_output.total_num_scheduled_tokens >= self.max_num_scheduled_tokens
        self.nightjar.before_step(scheduler_output, self.requests, self._sleeps, has_left_out=is_full and bool(self.waiting))
        super()._update_after_schedule(scheduler_output)

    def _free_request_blocks(self, request: Request) -> None:
        self.nightjar.leave(request)
        super()._free_request_blocks(request)

    def _limit_drafts(self) -> None:
        for request_id, most in self.nightjar.draft_limits(self.requests).items():
            request = self.requests[request_id]
            if len(request.spec_token_ids) > most:
                request.spec_token_ids = request.spec_token_ids[:most]

    def _hold_back(self, pool: ElasticKVPool) -> None:
        """Keep rows out of this step that a contraction wants to move and cannot yet."""

    def _may_move(self, request: Request) -> bool:
        """Whether the request's row can be rewritten.

        Runner V1 wants its tokens with it, and with output in flight the newest has no id yet. V2 is given block ids alone, and
        copies blocks after the step in flight has written them.
        """
        return is_runner_v2(self.vllm_config) or bool(request.num_in_flight_tokens == 0)

    def _by_urgency(self) -> Sequence[Request]:
        """Running requests, last whom vLLM would preempt first."""
        if self.policy.name == "PRIORITY":
            return sorted(self.running, key=lambda request: (request.priority, request.arrival_time))
        running: Sequence[Request] = self.running
        return running

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())

    def _drafting(self, engine_id: str) -> Drafting:
        (manager,) = self.kv_cache_manager.coordinator.single_type_managers
        ledger = LagLedger(
            num_blocks=len(self.kv_cache_manager.block_pool.blocks),
            block_size=manager.block_size,
            blocks=lambda request_id: manager.req_to_blocks.get(request_id, ()),
        )
        life = DrafterLife(can_be_dormant=True, first_wish_id=1 + int(engine_id[:12], 16))
        offload = OffloadConfig.of(self.vllm_config)
        if offload is None:
            return Drafting(life, ledger)
        pool = ElasticKVPool(
            self.kv_cache_manager,
            len(self.kv_cache_manager.block_pool.blocks) - offload.base_blocks_of(self.kv_cache_config),
            on_move=ledger.copied,
            runner_is_v2=is_runner_v2(self.vllm_config),
        )
        return Drafting(
            life, ledger, DraftLending(life, ledger, pool, offload.draft_weight_bytes, offload.moved_bytes(self.kv_cache_config))
        )


class SteeredAsyncScheduler(SteeredScheduler, AsyncScheduler):
    """For engines with async scheduling (the default on GPU)."""

    settle_steps = ASYNC_SETTLE_STEPS

    def _hold_back(self, pool: ElasticKVPool) -> None:
        """On runner V1 a row with output in flight cannot move, and here each row always has some: leave borrowers out of one step.

        vLLM 0.32, Scheduler.schedule: a row waits while `current_step`, which the call raises by one, is below its
        `next_decode_eligible_step`.
        """
        for request in pool.borrowers_to_move(self.running):
            if not self._may_move(request):
                request.next_decode_eligible_step = max(request.next_decode_eligible_step, self.current_step + 2)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        self._limit_drafts()


def why_kept_in_sync(config: VllmConfig, kv_cache_config: KVCacheConfig) -> str:
    """Why this engine's drafter cannot be dormant, so that K = 0 runs it as vLLM does; empty where it can."""
    if reason := why_never_asleep(sleep_facts(config)):
        return reason
    if not str(config.parallel_config.worker_cls).startswith(tuple(OBEDIENT_WORKERS)):
        return "the worker is not Nightjar's"
    return why_not_followed(kv_cache_config.kv_cache_groups)


def drafts_every_row(config: VllmConfig) -> bool:
    """Whether a row without drafts was cut short; else the drafter may have found nothing for it. Runner V2 fills misses in."""
    speculative = config.speculative_config
    return speculative is None or is_runner_v2(config) or not kind_of(speculative.method).skips_rows_on_v1


def is_runner_v2(config: VllmConfig) -> bool:
    """Of a configuration as vLLM resolved it; 0.29 has no such word where only V1 exists."""
    return bool(getattr(config, "use_v2_model_runner", False))


def most_drafts_of(request: Request) -> int | None:
    """What the client set with OPT_OUT; None where it set nothing, or nothing that is a count."""
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    most = extra.get(OPT_OUT)
    return most if isinstance(most, int) and most >= 0 else None


register_control_method()
guard_vllm_process()
