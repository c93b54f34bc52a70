"""What Nightjar does around one engine step: choose K before it, time and count it after it.

The scheduler classes call this and nothing else; it knows the shapes of vLLM's scheduler, its outputs and requests, and
imports none of vLLM. With async scheduling several steps are in flight, so what was decided for a step travels as a
note on that step's SchedulerOutput. Fails open: the first error of our own code is logged once and kept in the snapshot, and
from then on the engine runs its own K, uncounted, and none while its draft model is away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import structlog

from nightjar.cluster.telemetry.logs import log_plain_tracebacks
from nightjar.deployments.engine.scheduler.draft_slots import DraftSlots
from nightjar.deployments.engine.scheduler.drafting import Drafting
from nightjar.deployments.engine.scheduler.step_note import (
    NOTE_ATTRIBUTE,
    AdapterCounts,
    StepNote,
    Verified,
    classify,
    count_verified,
    decoding_next,
    prompts_after,
    requests_mark,
    verifies_exactly,
    verifies_fully,
)
from nightjar.deployments.engine.worker.draft_work import SLEEP, WORK_ATTRIBUTE
from nightjar.policy.planners.local import StepOutcome
from nightjar.policy.step.counters import StepCount, StepCounters
from nightjar.policy.step.drafter import OFF
from nightjar.policy.step.steering import Steering, rows_to_verify
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.report import DrafterCounters, DrafterState, EngineLoad, EngineSnapshot
from nightjar.policy.wire.settings import IssuedSettings, SettingsVersion

log = structlog.get_logger(__name__)

HEAD_RUNS: Final = "the head runs once a step at K=0, as in vLLM: a pass for its KV alone broke off ({why})"


class StepLoop:
    """One engine's steering, its clock and its counters. `clock` gives steady seconds.

    `settle_steps` is for how many steps a K must be held before a step's time belongs to it alone: a step verifies the drafts
    of the step before it, and under async scheduling its output also waits for that step's drafting.
    `drafts_every_row` is False for drafters that may find nothing to propose (ngram): there a row without drafts is a miss of the
    drafter and not a row cut short. Without `drafting` the drafter is kept in sync as vLLM does it; `why_in_sync` says why.
    Without `draft_slots` nothing is drafted to a KV cache, and no step is checked.
    """

    def __init__(
        self,
        *,
        max_num_speculative_tokens: int,
        max_num_seqs: int,
        max_model_len: int,
        settle_steps: int,
        drafts_every_row: bool,
        clock: Callable[[], float],
        engine_id: str = "",
        drafting: Drafting | None = None,
        why_in_sync: str = "",
        draft_slots: DraftSlots | None = None,
    ) -> None:
        log_plain_tracebacks()
        self._engine_id = engine_id or uuid4().hex
        self.drafting = drafting
        self._in_sync = DrafterCounters(reason=why_in_sync)
        self._draft_slots = draft_slots
        self.draft_slot_breaches = 0
        self.steering = Steering(
            max_num_speculative_tokens=max_num_speculative_tokens,
            max_num_seqs=max_num_seqs,
            seed=int(self._engine_id[:12], 16),
        )
        self.counters = StepCounters()
        self.clock = clock
        self.fault = ""
        self._max_num_speculative_tokens = max_num_speculative_tokens
        self._max_model_len = max_model_len
        self._settle_steps = settle_steps
        self._drafts_every_row = drafts_every_row
        self._num_speculative_tokens = max_num_speculative_tokens
        self._decoding: Sequence[str] = ()
        self._context_tokens = 0
        self._held_steps = 0
        self._steps_since_prefill = 0
        self._decode_batch_size = 0
        self._previous_output_s: float | None = None
        self._step_microseconds = 0
        self._capped: dict[str, int] = {}
        self._most_of_requests: int | None = None
        """The last step's K, where its requests took no more."""
        self._adapters = AdapterCounts()

    def adopt(self, issued: IssuedSettings) -> str:
        """Take settings into force, or confirm those that are. Returns "" or why they were refused."""
        now_s = self.clock()
        is_confirmation = issued.version == self.steering.settings_version
        refused = self.steering.adopt(issued, now_s)
        if self.drafting is not None and not refused:
            if is_confirmation:
                self.drafting.life.confirm(now_s)
            else:
                self.drafting.life.adopt(issued.settings, now_s)
        return refused

    def confirm(self, version: SettingsVersion) -> None:
        """The policy was heard and said that `version` of the settings still holds."""
        now_s = self.clock()
        if version == self.steering.settings_version:
            self.steering.confirm(version, now_s)
            if self.drafting is not None:
                self.drafting.life.confirm(now_s)

    def add_request(self, request: Any, most_drafts: int | None) -> None:
        """A request has arrived whose client wants `most_drafts` draft tokens at most (None: as the plan says)."""
        if most_drafts is not None:
            self._capped[request.request_id] = most_drafts
        if most_drafts == 0 and self.drafting is not None:
            self.drafting.opted_out.add(request.request_id)
        self._adapters.add_request(request)

    def leave(self, request: Any) -> None:
        """The request is about to give its blocks back: it has finished, or is preempted and comes again."""
        if self._draft_slots is not None:
            self._draft_slots.leave(request.request_id)
        if self._capped and request.is_finished():
            self._capped.pop(request.request_id, None)
            if self.drafting is not None:
                self.drafting.opted_out.discard(request.request_id)
        self._adapters.leave(request)
        if self.drafting is not None and not self.fault:
            try:
                self.drafting.ledger.leave(request)
            except Exception as error:  # noqa: BLE001 - no error of ours may take the engine down
                self._fail("leave", error)

    def sleeps(self, running: Sequence[Any], num_waiting: int) -> bool:
        """Whether the drafter sleeps through the step about to be scheduled, which then needs no slots for drafts.

        vLLM reserves them before anyone knows the step's rows: of those that run, the ones whose prompts are read will decode.
        A request whose prompt takes several steps does not count before its prompt is read: else the drafter would sleep through
        these steps, whatever the plan says of the rows that decode, and would have to catch up with the prompt. Where no request
        waits that could begin with this step, a drafter that waits for permission sleeps on. `before_step` holds to the answer.
        """
        drafting = self.drafting
        if drafting is None:
            return False
        if not self.fault:
            try:
                now_s = self.clock()
                rows = len(running) if self._steps_since_prefill else decoding_next(running)
                most = self.steering.most(rows or 1, now_s)
                return most is not None and (most == 0 or drafting.stays_asleep(now_s, same_rows=not num_waiting))
            except Exception as error:  # noqa: BLE001 - no error of ours may take the engine down
                self._fail("sleeps", error)
        return self._is_away

    def draft_limits(self, requests: Mapping[str, Any]) -> dict[str, int]:
        """How many of its drafts a row may verify, for rows that may not verify all."""
        limits = {request_id: cap for request_id, cap in self._capped.items() if request_id in requests} if self._capped else {}
        if self.drafting is not None and not self.fault:
            try:
                if without := self.drafting.rows_without_drafts(requests):
                    limits |= dict.fromkeys(without, 0)
            except Exception as error:  # noqa: BLE001 - no error of ours may take the engine down
                self._fail("draft_limits", error)
        return limits

    def before_step(self, scheduler_output: Any, requests: dict[str, Any], sleeps: bool, *, has_left_out: bool = False) -> None:
        """Write the step's K into `num_spec_tokens_to_schedule` and note what the step is.

        `requests` are vLLM's, with num_computed_tokens as before the step; `sleeps` is the answer that it was scheduled with, and
        `has_left_out` says whether requests wait only because the step is full.
        """
        if self.fault:
            # The engine's own K needs its own slots: a step that got none, before the fault, drafts none.
            if sleeps:
                self._sleep(scheduler_output)
            return
        if not scheduler_output.num_scheduled_tokens:
            return
        try:
            setattr(scheduler_output, NOTE_ATTRIBUTE, self._choose(scheduler_output, requests, sleeps, has_left_out))
        except Exception as error:  # noqa: BLE001 - no error of ours may take the engine down
            self._fail("before_step", error)
            self._sleep(scheduler_output)

    def verified(self, scheduler_output: Any, model_runner_output: Any, requests: dict[str, Any]) -> Verified | None:
        """Count what the step's output verified. Call before vLLM takes it in: a stop trims sampled tokens in place."""
        if self.fault:
            return None
        try:
            return self._count_verified(scheduler_output, model_runner_output, requests)
        except Exception as error:  # noqa: BLE001 - no error of ours may take the engine down
            self._fail("verified", error)
            return None

    def after_step(self, scheduler_output: Any, model_runner_output: Any, verified: Verified | None) -> None:
        """Count the step. Call after vLLM took its output in."""
        if verified is None:
            return
        try:
            self._count(scheduler_output, model_runner_output, verified)
        except Exception as error:  # noqa: BLE001 - no error of ours may take the engine down
            self._fail("after_step", error)

    def pass_failed(self, why: str) -> None:
        """A pass that only the drafter needs broke off on the worker (step_reports.py): what it was to read is missing.

        A drafter that cannot be dormant is a head, whose worker runs it as vLLM does from then on.
        """
        if self.fault:
            return
        try:
            if self.drafting is None:
                self._in_sync = self._in_sync.model_copy(update={"reason": HEAD_RUNS.format(why=why)})
            else:
                self.drafting.pass_failed(why, self.clock())
        except Exception as error:  # noqa: BLE001 - no error of ours may take the engine down
            self._fail("pass_failed", error)

    def restart_clock(self) -> None:
        """The engine was idle until now: the time until its next output is no step's."""
        self._previous_output_s = None

    def snapshot(self, load: EngineLoad, drafter_state: DrafterState, running: Iterable[Any], refused: str) -> EngineSnapshot:
        """What the engine answers on its control channel; `load` is completed with the step loop's own facts.

        `running` are the requests that a restart would catch up. A wish for a lease is made with each snapshot of an engine that
        has work: without steps it could use none.
        """
        steering = self.steering
        now_s = self.clock()
        life = None if self.drafting is None else self.drafting.life
        lag_tokens = 0 if self.drafting is None else self.drafting.lag(running)[0]
        most = self._most_of_requests
        return EngineSnapshot(
            counters=self.counters.snapshot(
                self._engine_id,
                steering.guard_holds,
                0 if life is None else life.restarts,
                0 if life is None else life.failed_probes,
                guard_trips=steering.guard_trips,
                draft_slot_breaches=self.draft_slot_breaches,
            ),
            load=load.model_copy(
                update={
                    "decode_batch_size": self._decode_batch_size if load.num_running_reqs else 0,
                    "num_speculative_tokens": self._num_speculative_tokens,
                    "planned_num_speculative_tokens": steering.planned_num_speculative_tokens,
                    "step_seconds": self._step_microseconds / 1e6,
                }
            ),
            settings_version=steering.settings_version,
            drafter_state=drafter_state,
            finished_segment_id=steering.finished_segment_id,
            finished_wish_id=0 if life is None else life.finished_wish_id,
            held_buckets=steering.held_buckets(now_s),
            restart_wish=life.wish(lag_tokens, now_s) if life is not None and load.num_running_reqs else None,
            drafter=self._in_sync if self.drafting is None else self.drafting.counters(lag_tokens, now_s),
            adapters=self._adapters.snapshot(),
            causes=steering.causes if most is None else (*steering.causes, because(Code.REQUESTS, num_speculative_tokens=most)),
            refused=refused,
            fault=self.fault,
        )

    def _choose(self, scheduler_output: Any, requests: dict[str, Any], sleeps: bool, has_left_out: bool) -> StepNote:
        decode_rows, context_tokens, prefill_tokens = self._classify(scheduler_output, requests)
        now_s = self.clock()
        lag_tokens, longest_lag_tokens = self._lag(requests) if self.steering.plans_locally else (0, 0)
        joining_rows, follows = 0, False
        if prefill_tokens:
            joining_rows, leaves_some = prompts_after(scheduler_output.num_scheduled_tokens, requests)
            follows = has_left_out or leaves_some
        chosen = self.steering.choose(
            decode_rows,
            prefill_tokens > 0,
            now_s,
            context_tokens,
            lag_tokens,
            longest_lag_tokens,
            prefill_follows=follows,
            joining_rows=joining_rows,
        )
        k, order, recomputed_tokens = scheduler_output.num_spec_tokens_to_schedule, OFF, 0
        if chosen is not None:
            k = min(chosen, self._max_num_speculative_tokens)
        self._most_of_requests = None
        if self._capped and k and (most := self._most_of_any_row(scheduler_output)) < k:
            k = self._most_of_requests = most
        runs = True
        if self.drafting is not None:
            self.drafting.enter(scheduler_output, requests)
            if sleeps:
                order, recomputed_tokens = self.drafting.sleep(scheduler_output, requests, k)
            else:
                order, recomputed_tokens = self.drafting.order(scheduler_output, requests, k, now_s, is_steered=chosen is not None)
            k, runs = order.num_speculative_tokens, getattr(scheduler_output, WORK_ATTRIBUTE).runs
        if k and getattr(scheduler_output, "skip_drafts", False):
            k = self._most_of_requests = (
                0  # vLLM 0.33, runner V2: no row can use drafts, so none are proposed. The drafter runs for its KV.
            )
        if runs and self._draft_slots is not None and (breach := self._draft_slots.breach(scheduler_output, k)):
            self.draft_slot_breaches += 1
            raise RuntimeError(breach)
        scheduler_output.num_spec_tokens_to_schedule = k
        self._held_steps = self._held_steps + 1 if k == self._num_speculative_tokens else 1
        self._steps_since_prefill = 0 if prefill_tokens else self._steps_since_prefill + 1
        self._num_speculative_tokens = k
        self._decode_batch_size = rows_to_verify(decode_rows, joining_rows)
        settled = self._held_steps >= self._settle_steps and self._steps_since_prefill >= self._settle_steps - 1
        decodes = not prefill_tokens
        uniform = settled and decodes and verifies_exactly(scheduler_output, decode_rows, k)
        return StepNote(
            k,
            decode_rows,
            context_tokens,
            prefill_tokens,
            uniform,
            uniform or (decodes and self._verifies_fully(scheduler_output, requests, k)),
            settled,
            requests_mark(requests),
            order,
            recomputed_tokens,
        )

    def _verifies_fully(self, scheduler_output: Any, requests: dict[str, Any], k: int) -> bool:
        return verifies_fully(
            scheduler_output, requests, k, max_model_len=self._max_model_len, drafts_every_row=self._drafts_every_row
        )

    def _lag(self, requests: dict[str, Any]) -> tuple[int, int]:
        """Tokens of lag of the decoding rows, and the most of one."""
        return (0, 0) if self.drafting is None else self.drafting.lag(requests.values())

    def _most_of_any_row(self, scheduler_output: Any) -> int:
        """The highest K that any row of the step may verify."""
        highest = self._max_num_speculative_tokens
        return max(self._capped.get(request_id, highest) for request_id in scheduler_output.num_scheduled_tokens)

    def _classify(self, scheduler_output: Any, requests: dict[str, Any]) -> tuple[int, int, int]:
        """Decode rows of the step, tokens in the KV cache of those rows, and prefill tokens, all as before the step.

        A row that decodes goes on doing so until it is preempted, so as long as the same rows decode the requests need not be
        looked at: their context grows by what was generated.
        """
        cached = scheduler_output.scheduled_cached_reqs
        entering = scheduler_output.scheduled_new_reqs or cached.resumed_req_ids
        if not entering and cached.req_ids == self._decoding:
            return len(self._decoding), self._context_tokens, 0
        scheduled = scheduler_output.num_scheduled_tokens
        found = classify(scheduled, requests, bool(entering))
        self._decoding = () if found[2] else list(scheduled)
        self._context_tokens = found[1]
        return found

    def _count_verified(self, scheduler_output: Any, model_runner_output: Any, requests: dict[str, Any]) -> Verified:
        output_s, note = self.clock(), getattr(scheduler_output, NOTE_ATTRIBUTE, None)
        if self._adapters.adapter_of:
            self._adapters.count(
                scheduler_output.scheduled_spec_decode_tokens,
                model_runner_output.sampled_token_ids,
                model_runner_output.req_id_to_index,
                requests,
            )
        return count_verified(note, scheduler_output, model_runner_output, requests, self._max_num_speculative_tokens, output_s)

    def _count(self, scheduler_output: Any, model_runner_output: Any, verified: Verified) -> None:
        note: StepNote | None = getattr(scheduler_output, NOTE_ATTRIBUTE, None)
        if note is None:
            self._previous_output_s = None
            return
        previous_s, self._previous_output_s = self._previous_output_s, verified.output_s
        step_microseconds = 0 if previous_s is None else max(round((verified.output_s - previous_s) * 1e6), 1)
        if step_microseconds:
            self._step_microseconds = step_microseconds
        k, decode_rows, prefill_tokens, settled = note.num_speculative_tokens, note.decode_rows, note.prefill_tokens, note.settled
        recomputed_tokens, (reached, accepted, output_s) = note.recomputed_tokens, verified
        clean = settled and note.comparable and step_microseconds > 0 and not recomputed_tokens
        sampled = model_runner_output.sampled_token_ids
        generated_tokens = sum(map(len, sampled))
        self._context_tokens += generated_tokens
        first_tokens = max(sum(map(bool, sampled)) - decode_rows, 0) if prefill_tokens else 0
        undrafted_tokens = 0
        if clean and not self._drafts_every_row:
            reached = [decode_rows if position < k else 0 for position in range(len(reached))]
            undrafted_tokens = sum(reached) - sum(verified.reached)
        self.counters.count(
            StepCount(  # by position: by name it takes twice as long
                k,
                decode_rows,
                note.context_tokens,
                prefill_tokens,
                generated_tokens,
                reached,
                accepted,
                step_microseconds,
                clean,
                not settled and not prefill_tokens,
                recomputed_tokens,
                undrafted_tokens,
                first_tokens,
            )
        )
        if self.drafting is not None:
            self.drafting.life.after_step(note.order, verified.reached, accepted, output_s)
        if clean:
            self.steering.count_clean_step(decode_rows, k, generated_tokens, step_microseconds / 1e6, output_s)
        elif prefill_tokens and step_microseconds and not recomputed_tokens:
            self.steering.count_prefill_step(decode_rows, k)
        if self.steering.plans_locally and step_microseconds and not prefill_tokens and not recomputed_tokens:
            self.steering.learn(
                StepOutcome(
                    num_speculative_tokens=k,
                    decode_rows=decode_rows,
                    context_tokens=note.context_tokens,
                    generated_tokens=generated_tokens,
                    step_seconds=step_microseconds / 1e6,
                    reached=reached,
                    accepted=accepted,
                    settled=settled,
                )
            )

    @property
    def _is_away(self) -> bool:
        """Whether the draft's weights are not there: then not even the engine's own K can be run."""
        return self.drafting is not None and self.drafting.life.is_away

    def _sleep(self, scheduler_output: Any) -> None:
        """No drafts in this step: it has no slots for them, or there is no draft model.

        A draft model that is kept in sync runs at K = 0 as well, unless our worker is told that it sleeps: without slots it must.
        """
        scheduler_output.num_spec_tokens_to_schedule = 0
        if self.drafting is not None or self.draft_slot_breaches:
            setattr(scheduler_output, WORK_ATTRIBUTE, SLEEP)

    def _fail(self, hook: str, error: Exception) -> None:
        self.fault = f"{hook}: {type(error).__name__}: {error}"[:1024]
        log.error("step_loop_failed", hook=hook, error=str(error), consequence="the engine runs its own K", exc_info=error)
