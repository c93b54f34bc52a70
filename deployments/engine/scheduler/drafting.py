"""The draft model's part of every step: whether it runs, what it reads again, and which rows get no drafts.

Joins the drafter's life (policy.step.drafter), the ledger of what its KV holds and the plan of what to recompute, and writes the
result on the step's SchedulerOutput for the workers. Only for separate draft models; drafters that are kept in sync run as vLLM
runs them. Knows vLLM's requests and outputs by shape and imports none of vLLM. Errors are the step loop's to catch: an engine that
failed open sends no orders, unless its draft is away, and workers without orders draft as vLLM would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from nightjar.deployments.engine.scheduler.catch_up_plan import (
    Candidate,
    Portion,
    expected_tokens,
    most_expected_tokens,
    plan_catch_up,
)
from nightjar.deployments.engine.scheduler.draft_lending import DraftLending
from nightjar.deployments.engine.scheduler.lag_ledger import LagLedger, known_tokens
from nightjar.deployments.engine.worker.draft_work import RUN, SLEEP, WORK_ATTRIBUTE, DraftWork, Recompute
from nightjar.policy.step.drafter import RUNS, DrafterLife, Order
from nightjar.policy.wire.report import DrafterCounters, DrafterState

LAG_AGE_STEPS: Final = 16
"""Steps for which a drafter that waits for a lease goes by the lag it knows: adding it up takes as long as all else together."""


class Missing(NamedTuple):
    """What a restart would find."""

    tokens: int
    """To recompute at once, of rows for which it pays."""
    later_tokens: int
    """Of rows for which it does not pay yet: they have generated too little for their context."""
    can_draft: bool
    """Whether any row would be drafted for with the first recomputed."""

    @property
    def priced_tokens(self) -> int:
        """What a restart has to be permitted for; 0 where it would bring nothing."""
        return self.tokens + self.later_tokens if self.can_draft else 0


NOTHING: Final = Missing(0, 0, True)


class Drafting:
    """One engine's draft model, as its scheduler sees it."""

    def __init__(self, life: DrafterLife, ledger: LagLedger, lending: DraftLending | None = None) -> None:
        self.life = life
        self.ledger = ledger
        self.lending = lending
        self.opted_out: set[str] = set()
        """Requests whose clients want no drafts: never caught up, and no part of what a restart costs or brings."""
        self.recomputed_tokens = 0
        self._missing = NOTHING
        self._missing_age_steps = LAG_AGE_STEPS
        self._entered: list[tuple[str, int]] = []

    def enter(self, scheduler_output: Any, requests: Mapping[str, Any]) -> None:
        """Note the requests that begin or resume with this step, and the blocks that it copies."""
        ledger, cached = self.ledger, scheduler_output.scheduled_cached_reqs
        if copies := scheduler_output.kv_cache_block_copies:
            for copy in copies:
                ledger.copied(copy.src_block_id, copy.dst_block_id)
        if not scheduler_output.scheduled_new_reqs and not cached.resumed_req_ids:
            self._entered = []
            return
        self._entered = [(new.req_id, new.num_computed_tokens) for new in scheduler_output.scheduled_new_reqs]
        if cached.resumed_req_ids:
            self._entered += [
                (request_id, num_computed_tokens)
                for request_id, num_computed_tokens in zip(cached.req_ids, cached.num_computed_tokens, strict=True)
                if request_id in cached.resumed_req_ids and not ledger.knows(request_id)
            ]
        # All of them before any is looked up: one may have found blocks that another was given for this very step.
        for request_id, num_computed_tokens in self._entered:
            ledger.clear_new_blocks(request_id, num_computed_tokens)
        for request_id, num_computed_tokens in self._entered:
            ledger.enter(request_id, num_computed_tokens, requests.values())

    def stays_asleep(self, now_s: float, *, same_rows: bool) -> bool:
        """Whether the step about to be scheduled drafts nothing, whatever the plan proposes: it then needs no room for drafts.

        With `same_rows` no request begins with it. One that does may miss nothing, and then the drafter runs at once.
        """
        if self.life.state in RUNS:
            return False
        is_known = same_rows and self._missing_age_steps < LAG_AGE_STEPS
        return self.life.is_away or (is_known and self.life.waits(self._missing.priced_tokens, now_s))

    def sleep(self, scheduler_output: Any, requests: Mapping[str, Any], proposed: int) -> tuple[Order, int]:
        """The step that was scheduled without slots for drafts."""
        self._missing_age_steps += 1
        self.ledger.draft_sleeps(requests.values())
        setattr(scheduler_output, WORK_ATTRIBUTE, SLEEP)
        return self.life.sleep(proposed), 0

    def order(
        self, scheduler_output: Any, requests: Mapping[str, Any], proposed: int, now_s: float, *, is_steered: bool
    ) -> tuple[Order, int]:
        """What the step does where the plan proposes K = `proposed`, and how many tokens of lag it recomputes.

        While the engine is not steered (shadow, no settings) it runs as vLLM would run it, lagging rows catching up beside.
        """
        life, ledger = self.life, self.ledger
        lagging: list[Candidate] = []
        missing = NOTHING
        if (proposed or not is_steered) and ledger.behind:
            lagging = self._lagging(scheduler_output, requests)
            in_sync = scheduler_output.num_scheduled_tokens.keys() - ledger.behind.keys() - self.opted_out
            missing = self._missing = _missing_of(lagging, any_in_sync=bool(in_sync))
            self._missing_age_steps = 0
        if is_steered:
            order = life.before_step(
                proposed, missing.tokens, now_s, later_tokens=missing.later_tokens, can_draft=missing.can_draft
            )
        else:
            order = life.runs_freely(proposed, missing.tokens, now_s)
        runs = order.num_speculative_tokens > 0 or (not is_steered and life.state is DrafterState.ACTIVE)
        if not runs and not order.catch_up_tokens:
            ledger.draft_sleeps(requests.values())
            setattr(scheduler_output, WORK_ATTRIBUTE, SLEEP)
            return order, 0
        if not runs:
            ledger.draft_sleeps(requests.values())
            lagging = self._lagging(scheduler_output, requests)
        recompute = self._caught_up(scheduler_output, requests, lagging, order, runs=runs) if order.catch_up_tokens else ()
        if runs:
            ledger.draft_runs(requests)
            if self._entered and ledger.behind:
                ledger.read_together(self._entered, requests, scheduler_output.num_scheduled_tokens)
        if not recompute:
            setattr(scheduler_output, WORK_ATTRIBUTE, RUN)
            return order, 0
        setattr(scheduler_output, WORK_ATTRIBUTE, DraftWork(runs, recompute))
        recomputed_tokens = sum(len(portion.token_ids) for portion in recompute)
        self.recomputed_tokens += recomputed_tokens
        return order, recomputed_tokens

    def pass_failed(self, why: str, now_s: float) -> None:
        """A catch-up broke off on the worker. What it was to read may have been counted for other rows and blocks meanwhile, under
        asynchronous scheduling for steps that are in flight: nothing is believed any more, and the drafter sleeps for a while.
        """
        self.ledger.forget()
        self._missing, self._missing_age_steps = NOTHING, LAG_AGE_STEPS
        self.life.pass_failed(why, now_s)

    def lag(self, requests: Iterable[Any]) -> tuple[int, int]:
        """Tokens that a restart now would recompute for the requests that decode, and the most of one request.

        Those of requests that are not worth it yet count as well, since they will be; without any that is, nothing counts.
        """
        if not self.ledger.behind:
            return 0, 0
        decoding = [
            request
            for request in requests
            if request.num_computed_tokens and _decodes(request) and request.request_id not in self.opted_out
        ]
        rows = [row for row in (self._candidate(request, 0) for request in decoding) if row is not None]
        missing = _missing_of(rows, any_in_sync=len(rows) < len(decoding))
        return missing.priced_tokens, max((row.lag_tokens for row in rows if row.is_worthwhile), default=0)

    def counters(self, lag_tokens: int, now_s: float) -> DrafterCounters:
        """What the drafter's life did so far."""
        life, lending = self.life, self.lending
        counters = DrafterCounters(
            lag_tokens=lag_tokens,
            recomputed_tokens=self.recomputed_tokens,
            micro_restarts=life.micro_restarts,
            probes=life.probes,
            reason=life.reason(now_s),
        )
        if lending is None:
            return counters
        return counters.model_copy(
            update={
                "offloads": lending.offloads,
                "reloads": lending.reloads,
                "moved_bytes": lending.moved_bytes,
                "moving_seconds": lending.moving_seconds,
                "borrowed_blocks": lending.pool.borrowed_blocks_in_use,
                "relocated_blocks": lending.pool.relocated_blocks,
                "preempted_requests": lending.pool.preempted_requests,
            }
        )

    def rows_without_drafts(self, requests: Mapping[str, Any]) -> list[str]:
        """Requests whose drafts would stand on missing KV."""
        ledger = self.ledger
        if not ledger.behind:
            return []
        return [request_id for request_id in ledger.behind if request_id in requests and ledger.is_behind(requests[request_id])]

    def _caught_up(
        self, scheduler_output: Any, requests: Mapping[str, Any], lagging: Sequence[Candidate], order: Order, *, runs: bool
    ) -> tuple[Recompute, ...]:
        """What the step recomputes of rows that lag; from then on the ledger counts it as read."""
        worthwhile = [row for row in lagging if row.is_worthwhile]
        own_tokens = 0 if runs else sum(row.own_tokens for row in worthwhile)
        portions = plan_catch_up(worthwhile, order.catch_up_tokens + own_tokens, reads_own_tokens=not runs)
        recompute = tuple(_recompute(portion, requests[portion.request_id]) for portion in portions)
        for portion in portions:
            own = scheduler_output.num_scheduled_tokens[portion.request_id] if portion.own_tokens else 0
            self.ledger.recomputed(portion.request_id, portion.last_token_exclusive + own)
        return recompute

    def _lagging(self, scheduler_output: Any, requests: Mapping[str, Any]) -> list[Candidate]:
        """Scheduled rows that are behind or may be: those that decode, and prompts of which nothing is missing so far."""
        rows = []
        drafts = scheduler_output.scheduled_spec_decode_tokens
        for request_id, num_scheduled_tokens in scheduler_output.num_scheduled_tokens.items():
            candidate = self._candidate(requests[request_id], 0 if drafts.get(request_id) else num_scheduled_tokens)
            if candidate is not None and (not candidate.lag_tokens or _decodes(requests[request_id])):
                rows.append(candidate)
        return rows

    def _candidate(self, request: Any, own_tokens: int) -> Candidate | None:
        valid = self.ledger.behind.get(request.request_id)
        if valid is None or request.request_id in self.opted_out:
            return None
        known = known_tokens(request)
        # Under async scheduling tokens of steps in flight may stand between those that are known and those of this step.
        own_tokens = own_tokens if known == request.num_computed_tokens else 0
        return Candidate(
            request.request_id,
            min(valid, known),
            max(known - valid, 0),
            own_tokens,
            expected_tokens(request.num_output_tokens, request.max_tokens),
            most_expected_tokens(request.num_output_tokens, request.max_tokens),
        )


def _missing_of(rows: Sequence[Candidate], *, any_in_sync: bool) -> Missing:
    """Of rows that are behind, where `any_in_sync` says whether there are others."""
    now = [row for row in rows if row.is_worthwhile]
    later = sum(row.lag_tokens for row in rows if not row.is_worthwhile and row.may_become_worthwhile)
    return Missing(sum(row.lag_tokens for row in now), later, any_in_sync or bool(now))


def _decodes(request: Any) -> bool:
    return bool(request.num_computed_tokens >= request.num_tokens - 1)


def _recompute(portion: Portion, request: Any) -> Recompute:
    token_ids = request.all_token_ids[portion.first_token : portion.last_token_exclusive]
    return Recompute(portion.request_id, portion.first_token, tuple(token_ids), portion.own_tokens)
