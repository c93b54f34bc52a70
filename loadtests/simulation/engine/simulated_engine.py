"""One engine in virtual time: continuous batching around the very Steering, StepCounters and DrafterLife of production.

A step verifies the drafts of the step before and drafts for the step after, as in vLLM's V1 engine (or its own drafts, and prompts
have steps of their own, where the profile says V0), and what counts as a clean step is what engine.scheduler.step_loop says.
Fails closed: a request that can never fit, or one from a busy engine's future, raises ValueError.
Numbered invariants, each with a test that names it:

SIM-1 every request that was submitted is answered once, with all its tokens, or was aborted, or is still in the engine.
SIM-2 tokens counted are tokens delivered, in the totals and in what is reported.
SIM-3 blocks held are those of the requests that run, and never more than the pool has.
SIM-4 time never goes back; busy time is the sum of the steps.
SIM-5 the same seed and the same calls give the same bytes.
SIM-6 lag is what the draft has not computed of the decoding rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from nightjar.loadtests.simulation.engine.acceptance_classes import AcceptanceClasses
from nightjar.loadtests.simulation.engine.decode_rows import DecodeRows
from nightjar.loadtests.simulation.engine.draft_budget import DraftBudget
from nightjar.loadtests.simulation.engine.draft_memory import DraftMemory, HostLink
from nightjar.loadtests.simulation.engine.leases import LeasedRestart
from nightjar.loadtests.simulation.engine.random_numbers import NoiseStream, RequestDraws, draws_of
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.scheduler import SimulatedScheduler
from nightjar.loadtests.simulation.engine.step_account import EngineTotals, StepAccount
from nightjar.loadtests.simulation.engine.truth import Truth, oracle_factory
from nightjar.loadtests.simulation.planner_names import ORACLE
from nightjar.loadtests.simulation.profiles import Mechanics, Profile
from nightjar.loadtests.simulation.rivals import DRAFTS_MORE, SELECTS
from nightjar.loadtests.simulation.step_cost import DraftRun, prepared_cost
from nightjar.policy.planners.local import LocalPlannerFactory
from nightjar.policy.step.drafter import DrafterLife, Order
from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.report import DrafterState, EngineLoad, EngineSnapshot, LoadReport
from nightjar.policy.wire.settings import IssuedSettings, Local

CATCH_UP_CHUNK_TOKENS: Final = 2048
FIRST_WISH_IDS: Final = 1 << 31


class SimulatedEngine:
    """One replica's engine. `now_s` is the end of its last step.

    `speed` divides every step time (0.5: a card half as fast). `local_planners` are those that a Local plan may name; the oracle is
    always among them. With a `host_link` a dormant draft may be offloaded. `catch_up_chunk_tokens` is the most that one step
    recomputes (None: everything at once). `leased_restarts` holds begin and end of each restart under a lease, the end infinite
    while it runs. `draws` decide which drafts requests accept (None: the seed's own). With a rival of `rivals.DRAFTS_MORE` the
    drafter runs more than the K chosen, which only says how many drafts a row are verified. With a `confidence` vLLM's adaptive
    verification runs beside the planner, whose K is its ceiling (draft_budget.py).
    """

    def __init__(
        self,
        profile: Profile,
        *,
        replica_id: str,
        mechanics: Mechanics,
        seed: int,
        local_planners: Mapping[str, LocalPlannerFactory],
        speed: float = 1.0,
        host_link: HostLink | None = None,
        node_id: str = "",
        catch_up_chunk_tokens: int | None = CATCH_UP_CHUNK_TOKENS,
        track_regret: bool = False,
        now_s: float = 0.0,
        draws: RequestDraws | None = None,
        confidence: float | None = None,
    ) -> None:
        self.now_s = now_s
        self.speed = speed
        self.totals = EngineTotals()
        self.leased_restarts: list[LeasedRestart] = []
        self._profile = profile
        self._replica_id = replica_id
        self._node_id = node_id
        self._engine_id = f"{replica_id}-{seed}"
        self._longest = profile.max_num_speculative_tokens
        off = profile.mechanics(mechanics)
        self._can_be_dormant = off is Mechanics.DORMANT
        self._prepared = prepared_cost(profile, off)
        self._noise = NoiseStream(profile.step_noise, seed)
        self._classes = AcceptanceClasses(profile)
        self._rows = DecodeRows(self._classes, draws or draws_of(seed))
        self._is_v0 = profile.steps == "v0"
        self._scheduler = SimulatedScheduler(profile.limits, self._longest, self._rows, prompts_apart=self._is_v0)
        self._truth = Truth(self._prepared, self._classes, self._rows, profile.drafter, prompts_apart=self._is_v0)
        self._steering = Steering(
            max_num_speculative_tokens=self._longest,
            max_num_seqs=profile.limits.max_num_seqs,
            local_planners={**local_planners, ORACLE: oracle_factory(self._truth)},
            seed=seed,
        )
        self._account = StepAccount(self._steering, self.totals, self._truth, tracks_regret=track_regret)
        self._life = DrafterLife(
            can_be_dormant=self._can_be_dormant,
            catch_up_chunk_tokens=catch_up_chunk_tokens,
            first_wish_id=1 + seed % FIRST_WISH_IDS,
        )
        self._memory = (
            DraftMemory(self._life, self._scheduler.pool, profile.drafter, host_link, self.totals)
            if self._can_be_dormant and host_link is not None
            else None
        )
        self._budget = DraftBudget(profile, confidence, seed) if confidence is not None else None
        self._group = profile.group.model_copy(update={"adaptive_verification": confidence is not None})
        self._report_number = 0
        self._drafted = 0
        self._more_drafts = 0
        self._selects = False
        self._is_leased = False

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self._scheduler.has_work

    @property
    def decode_batch_size(self) -> int:
        """Rows that decode now."""
        return self._rows.count

    @property
    def num_waiting(self) -> int:
        """Requests in the engine that do not run."""
        return len(self._scheduler.waiting)

    @property
    def guard_trips(self) -> int:
        """Times that the guard held speculation off."""
        return self._steering.guard_trips

    @property
    def drafter_state(self) -> DrafterState:
        """Where the drafter is in its life."""
        return self._life.state

    @property
    def tokens_in_progress(self) -> int:
        """Tokens that the requests which are not answered yet have got."""
        return self._scheduler.generated_tokens()

    def check_integrity(self) -> None:
        """Raise AssertionError where requests, blocks and sums do not add up."""
        self._scheduler.check_integrity()

    def wait_until(self, now_s: float) -> None:
        """Move an idle engine's clock on; a busy one's is moved by its steps."""
        if now_s > self.now_s and not self.has_work:
            self.now_s = now_s

    def submit(self, request: SimulatedRequest) -> None:
        """Take a request that has arrived by now; an idle engine waits until it arrives.

        Raises ValueError for a request that can never fit into the KV cache, and for one from a busy engine's future.
        """
        self.wait_until(request.arrival_s)
        if request.arrival_s > self.now_s:
            raise ValueError(f"request {request.number} arrives at {request.arrival_s}, the engine is busy at {self.now_s}")
        self._scheduler.submit(request)

    def begin_anew(self) -> Sequence[SimulatedRequest]:
        """Drop every request that is here, as if all clients had hung up after the last step; which they were. The noise of steps
        begins anew, so that engines that made different numbers of steps until now meet the same from here on."""
        self._noise.begin_anew()
        aborted = self._scheduler.abort_all()
        self._rest()
        return aborted

    def scale_acceptance(self, factor: float) -> None:
        """Conditional acceptance of all classes is `factor` times the profile's from now on."""
        self._classes.scale(factor)
        self._rows.draw_anew()
        self._truth.renew()

    def step(self) -> Sequence[SimulatedRequest]:
        """Run one engine step; what it answered in full. Does nothing without work."""
        scheduler, rows, verified = self._scheduler, self._rows, self._drafted
        if not scheduler.has_work:
            return _NOBODY
        extra_s = self._move_memory() if self._memory is not None else 0.0
        prefill_tokens = scheduler.schedule(self._longest if self._is_v0 else verified)
        self.totals.preemptions = scheduler.preemptions
        prompts_alone = self._is_v0 and prefill_tokens > 0
        count, context_tokens, lag_tokens = (0, 0, 0) if prompts_alone else (rows.count, rows.context_tokens, rows.lag_tokens)
        order = self._order(count, prefill_tokens, context_tokens, lag_tokens)
        drafted, catch_up_tokens = order
        to_verify = min(self._steering.planned_num_speculative_tokens, drafted) if self._more_drafts else drafted
        if self._is_v0:
            verified = 0 if prompts_alone else to_verify
        draft_runs = drafted > 0 or catch_up_tokens > 0 or not self._can_be_dormant
        survival = rows.survival(verified) if self._budget is not None and count and verified else None
        budget = self._budget.choose(survival, count + prefill_tokens) if self._budget and survival is not None else 0
        of_a_row = budget / count if survival is not None else verified
        if catch_up_tokens:  # one pass of the draft over the chunk, the rows' newest tokens and the step's prompts
            passed = catch_up_tokens + count + prefill_tokens
            seconds = self._prepared.cost.seconds(count, context_tokens, drafted, prefill_tokens, "dormant", passed, of_a_row)
        elif prefill_tokens or survival is not None:
            draft: DraftRun = "active" if drafted else self._prepared.off
            seconds = self._prepared.cost.seconds(count, context_tokens, drafted, prefill_tokens, draft, 0, of_a_row)
        else:
            seconds = self._prepared.decode_seconds(count, context_tokens, drafted, verified)
        seconds = self._noise.apply(seconds + extra_s) / self.speed
        self.now_s += seconds
        if catch_up_tokens:
            rows.catch_up(catch_up_tokens)
        best_of = min(verified + self._more_drafts, self._longest) if self._selects else 0
        admit = partial(self._budget.admit, survival, budget) if self._budget and survival is not None else None
        generated, accepted = rows.advance(verified, draft_runs=draft_runs, best_of=best_of, admit=admit) if count else (0, _NONE)
        finished, first_tokens, surplus = self._deliver(prefill_tokens > 0, draft_runs)
        reached = [count] * verified if count else _NONE
        self._drafted = to_verify
        self._account.count(
            to_verify,
            verified,
            count,
            context_tokens,
            prefill_tokens,
            catch_up_tokens,
            generated + first_tokens - surplus,
            first_tokens,
            reached,
            accepted,
            seconds,
            self.now_s,
            self.speed,
        )
        if self._can_be_dormant:
            self._follow_life(order, reached, accepted, self.now_s - seconds)
        if not self.has_work:
            self._rest()
        return finished

    def load(self) -> EngineLoad:
        """The engine as it is now."""
        scheduler = self._scheduler
        scheduler.book_blocks()
        return EngineLoad(
            decode_batch_size=self._rows.count,
            num_running_reqs=self._rows.count + len(scheduler.prefilling),
            num_waiting_reqs=len(scheduler.waiting),
            kv_cache_usage=scheduler.pool.held / scheduler.pool.size,
            num_speculative_tokens=self._drafted,
            planned_num_speculative_tokens=self._steering.planned_num_speculative_tokens,
            step_seconds=self._account.step_microseconds / 1e6,
        )

    def report(self) -> LoadReport:
        """What the agent would send now."""
        self._report_number += 1
        steering, life = self._steering, self._life
        return LoadReport(
            replica_id=self._replica_id,
            application="simulated",
            node_id=self._node_id,
            group=self._group,
            report_number=self._report_number,
            snapshot=EngineSnapshot(
                counters=self._account.counters.snapshot(
                    self._engine_id, steering.guard_holds, life.restarts, life.failed_probes, steering.guard_trips
                ),
                load=self.load(),
                settings_version=steering.settings_version,
                drafter_state=life.state,
                finished_segment_id=steering.finished_segment_id,
                finished_wish_id=life.finished_wish_id,
                held_buckets=steering.held_buckets(self.now_s),
                causes=steering.causes,
                restart_wish=life.wish(self._rows.lag_tokens, self.now_s) if self._can_be_dormant else None,
            ),
        )

    def adopt(self, issued: IssuedSettings) -> str:
        """Take settings into force, or confirm those that are. Returns "" or why they were refused."""
        is_confirmation, settings = issued.version == self._steering.settings_version, issued.settings
        refused = self._steering.adopt(issued, self.now_s)
        if is_confirmation:
            self._life.confirm(self.now_s)
        elif not refused:
            self._life.adopt(settings, self.now_s)
            planner = settings.plan.planner if isinstance(settings.plan, Local) else ""
            self._more_drafts, self._selects = DRAFTS_MORE.get(planner, 0), planner in SELECTS
        return refused

    def _order(self, count: int, prefill_tokens: int, context_tokens: int, lag_tokens: int) -> Order:
        steering = self._steering
        if steering.plans_locally:
            longest_lag = self._rows.longest_lag_tokens if lag_tokens else 0
            chosen = steering.choose(
                count,
                prefill_tokens > 0,
                self.now_s,
                context_tokens,
                lag_tokens,
                longest_lag,
                prefill_tokens,
            )
        else:
            joining, follows = self._scheduler.prompts_after(self._drafted) if prefill_tokens else (0, False)
            chosen = steering.choose(count, prefill_tokens > 0, self.now_s, prefill_follows=follows, joining_rows=joining)
        chosen = self._longest if chosen is None else min(chosen + self._more_drafts, self._longest)
        if self._is_v0 and prefill_tokens:  # nothing decodes: the drafter reads the prompts where it runs anyhow
            return Order(chosen if self._life.state in _AWAKE else 0, 0)
        if self._can_be_dormant:
            return self._life.before_step(chosen, lag_tokens, self.now_s)
        return Order(chosen, 0)

    def _deliver(self, has_prefill: bool, draft_runs: bool) -> tuple[Sequence[SimulatedRequest], int, int]:
        """Requests that the step answered in full, first tokens, which come from prompts, and what rows generated beyond their end,
        which is not delivered.
        """
        if not has_prefill and not self._rows.any_finished:
            return _NOBODY, 0, 0
        finished, surplus = self._rows.take_finished()
        for request in finished:
            self._scheduler.release(request)
        delivered = 0
        if has_prefill:
            delivered, answered = self._scheduler.finish_prefills(draft_runs=draft_runs, now_s=self.now_s)
            finished += answered
        for request in finished:
            request.finish_s = self.now_s
        return finished, delivered, surplus

    def _follow_life(self, order: Order, reached: Sequence[int], accepted: Sequence[int], began_s: float) -> None:
        if reached:
            self._life.after_step(order, reached, accepted, self.now_s)
        self.totals.restarts = self._life.restarts
        if self._life.is_leased != self._is_leased:
            self._note_lease(began_s)

    def _rest(self) -> None:
        self._account.rest()
        if self._is_leased and self._life.state is DrafterState.CATCHING_UP:
            self._note_lease(self.now_s)

    def _note_lease(self, at_s: float) -> None:
        """A leased restart began or ended at `at_s`. Who runs nothing catches up with nothing, though the lease may live on."""
        self._is_leased = not self._is_leased
        if self._is_leased:
            is_reload = self._life.state is not DrafterState.CATCHING_UP
            self.leased_restarts.append(LeasedRestart(at_s, math.inf, is_reload))
        else:
            self.leased_restarts[-1] = self.leased_restarts[-1]._replace(end_s=at_s)

    def _move_memory(self) -> float:
        assert self._memory is not None
        relocation_s, draft_is_gone = self._memory.step(len(self._scheduler.waiting), self.now_s)
        if draft_is_gone:
            self._scheduler.forget_draft()
        return relocation_s


_AWAKE: Final = frozenset({DrafterState.ACTIVE, DrafterState.PROBING, DrafterState.IN_SYNC})
_NONE: Final[list[int]] = []
_NOBODY: Final[list[SimulatedRequest]] = []
