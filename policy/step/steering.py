"""Which K the engine runs in its next step: the step loop's brain, without engine, clock or I/O.

It holds the settings in force, looks K up for the decode batch, lets an exploration segment override the table, and passes the
result through bounds, dwell and the guard, the same for every planner. A call costs a few microseconds, because it happens before
every engine step. Where a burst ends its prompts in a step, so that more rows join than decode, the step has the K of the batch
that will verify its drafts: beyond the crossover it drafts nothing, and the drafter does not read prompts that it may never need.
(With single rows that costs more than it saves: a batch flickers across the crossover, and each time the drafter would have to
catch up with a prompt of which it had read all but the end.) Fails towards off: K = 0 is always among the allowed ones and a fall
never waits; settings that nobody confirmed for `settings_max_age_s` count as K = 0 (INV-4), older settings than those in force are
refused (INV-5), and without any settings the engine keeps its own K.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.planners.local import (
    LocalContext,
    LocalOptionsError,
    LocalPlanner,
    LocalPlannerFactory,
    StepOutcome,
    StepView,
)
from nightjar.policy.step.guard import OffGuard
from nightjar.policy.step.segments import Segments
from nightjar.policy.wire.cause import Causes, Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.settings import IssuedSettings, Local, Settings, SettingsVersion, Table, TableRow, k_at


class _BuiltPlanner(NamedTuple):
    """The last planner that was built, kept while another plan is in force."""

    plan: Local
    allowed: tuple[int, ...]
    planner: LocalPlanner


class Steering:
    """Chooses K step by step. The clock is passed in as seconds of any steady clock.

    A `Local` plan names one of `local_planners`; `seed` is what such a planner draws from.
    """

    def __init__(
        self,
        *,
        max_num_speculative_tokens: int,
        max_num_seqs: int,
        local_planners: Mapping[str, LocalPlannerFactory] = LOCAL_PLANNERS,
        seed: int = 0,
    ) -> None:
        self._max_num_speculative_tokens = max_num_speculative_tokens
        self._max_num_seqs = max_num_seqs
        self._local_planners = local_planners
        self._seed = seed
        self._settings: Settings | None = None
        self._version: SettingsVersion | None = None
        self._local_mode: Mode | None = None
        self._mode: Mode | None = None
        self._heard_s = 0.0
        self._allowed: tuple[int, ...] = (0,)
        self._k_by_batch: list[int] = [0]
        self._mixed_k_by_batch: list[int] = [0]
        self._segments = Segments()
        self._off_guard = OffGuard(max_num_seqs)
        self._local: _BuiltPlanner | None = None
        self._planner: LocalPlanner | None = None
        self._current: int | None = None
        self._held_steps = 0
        self._cause = Code.NO_SETTINGS
        self.planned_num_speculative_tokens = 0
        self.guard_holds = 0

    @property
    def settings_version(self) -> SettingsVersion | None:
        """Version of the settings in force; None before the first."""
        return self._version

    @property
    def finished_segment_id(self) -> int:
        """The highest id of the segments that finished, 0 for none of this policy incarnation."""
        return self._segments.finished_segment_id

    @property
    def plans_locally(self) -> bool:
        """Whether a planner of this engine's own decides, and `learn` has somebody to tell."""
        return self._planner is not None

    @property
    def causes(self) -> Causes:
        """Why the last step's K is what it is."""
        mode = self._mode
        if mode is None:
            return (because(Code.NO_SETTINGS),)
        shadow = (Code.SHADOW,) if mode.kind == "shadow" else ()
        whose = (Code.OWN_MODE,) if self._local_mode is not None else ()
        return tuple(because(code) for code in (*shadow, self._cause, *whose))

    def adopt(self, issued: IssuedSettings, now_s: float) -> str:
        """Take issued settings into force; the very version in force again only confirms it.

        Returns "" or why they were refused. K above the engine's maximum is clamped, not refused. A `Local` plan that is in force
        already, or comes back after others were, keeps its planner and what that has learned; one whose options alone are new is
        built with that planner at hand.
        """
        in_force, version, settings = self._version, issued.version, issued.settings
        if version == in_force:
            self._heard_s = now_s
            return ""
        if not version.is_newer_than(in_force):
            return f"version {version} of the settings is older than {in_force}, which is in force; only newer ones are taken"
        plan, local = settings.plan, self._local
        allowed = allowed_ks(settings.allowed_num_speculative_tokens, self._max_num_speculative_tokens)
        if isinstance(plan, Local) and (local is None or (plan, allowed) != (local.plan, local.allowed)):
            factory = self._local_planners.get(plan.planner)
            if factory is None:
                known = ", ".join(sorted(self._local_planners))
                return f"plan.planner {plan.planner!r} is unknown to this engine; allowed are {known}"
            try:
                before = None
                if local is not None and (local.allowed, local.plan.planner) == (allowed, plan.planner):
                    before = local.planner if local.plan.anew_at_s == plan.anew_at_s else None
                context = LocalContext(self._max_num_speculative_tokens, self._max_num_seqs, allowed, self._seed, before)
                local = _BuiltPlanner(plan, allowed, factory(plan.options, context))
            except LocalOptionsError as error:
                return f"plan.planner {plan.planner!r}: {error}"
        if in_force is None or version.incarnation != in_force.incarnation:
            self._segments = Segments()
        self._settings, self._version = settings, version
        self._mode = self._effective_mode()
        self._heard_s = now_s
        self._allowed = allowed
        if isinstance(plan, Local):
            assert local is not None
            self._local, self._planner = local, local.planner
            self._segments.replace([], now_s)
            self._off_guard.adopt([0] * (self._max_num_seqs + 1), ())
        else:
            self._planner = None
            self._k_by_batch = self._by_batch_size(plan.rows)
            self._mixed_k_by_batch = self._by_batch_size(plan.mixed_rows) if plan.mixed_rows else self._k_by_batch
            self._off_guard.adopt(self._k_by_batch, plan.off_steps)
            self._segments.replace([s for s in plan.segments if s.num_speculative_tokens in allowed], now_s)
        return ""

    def confirm(self, version: SettingsVersion, now_s: float) -> None:
        """Restart the age of the settings in force: the policy was heard and said that `version` still holds."""
        if version == self._version:
            self._heard_s = now_s

    def override_mode(self, mode: Mode | None) -> None:
        """Set the replica's own kill switch, which overrides the settings' mode; None takes it away."""
        self._local_mode = mode
        self._mode = self._effective_mode()

    def choose(
        self,
        decode_batch_size: int,
        has_prefill: bool,
        now_s: float,
        context_tokens: int = 0,
        lag_tokens: int = 0,
        longest_lag_tokens: int = 0,
        prefill_tokens: int = 0,
        prefill_follows: bool = False,
        joining_rows: int = 0,
    ) -> int | None:
        """K for the step about to run, or None to leave the engine its own (shadow, or no settings).

        `decode_batch_size` counts the step's decode rows and `has_prefill` says whether it also computes prompt tokens. The step
        after it verifies its drafts: `prefill_follows` says whether that one will compute prompt tokens, as far as queue and
        unfinished prompts tell, and `joining_rows` how many rows join it, as their prompts end in this step.
        A `Local` plan looks at the rest: the decode rows' tokens in the KV cache, those whose draft KV is missing, the most of one
        row, and the prompt tokens.
        """
        mode = self._mode
        if mode is None:
            self._current = self._max_num_speculative_tokens  # the engine's own
            return None
        view = None
        if self._planner is not None:
            previous = 0 if longest_lag_tokens or self._current is None else self._current  # a lag: the drafter did not run
            view = StepView(decode_batch_size, context_tokens, previous, lag_tokens, longest_lag_tokens, now_s, prefill_tokens)
        chosen, self._cause = self._decide(mode, view, decode_batch_size, joining_rows, has_prefill, prefill_follows, now_s)
        self._held_steps = self._held_steps + 1 if chosen == self._current else 1
        self._current = self.planned_num_speculative_tokens = chosen
        return None if mode.kind == "shadow" else chosen

    def most(self, decode_batch_size: int, now_s: float) -> int | None:
        """The highest K that `choose` may give a step of so many rows, or None where the engine keeps its own. Moves nothing."""
        mode, settings = self._mode, self._settings
        if mode is None or mode.kind == "shadow":
            return None
        if mode.kind == "off":
            return 0
        if mode.kind == "pin":
            return self._pinned(mode)
        assert settings is not None
        if now_s - self._heard_s > settings.settings_max_age_s:
            return 0
        if self._planner is not None:
            return self._allowed[-1]
        segment = self._segments.at(decode_batch_size, now_s)
        size = min(decode_batch_size, self._max_num_seqs)
        planned = max(self._k_by_batch[size], self._mixed_k_by_batch[size])
        return planned if segment is None else max(planned, segment.num_speculative_tokens)

    def count_clean_step(
        self,
        decode_batch_size: int,
        num_speculative_tokens: int,
        generated_tokens: int = 0,
        step_seconds: float = 0.0,
        now_s: float = 0.0,
    ) -> None:
        """Advance the exploration segment that asked for this K at this decode batch, if there is one, and let the guard see what
        the step yielded (without `step_seconds` it sees nothing).
        """
        self._segments.count(decode_batch_size, num_speculative_tokens)
        if step_seconds:
            self._off_guard.count(decode_batch_size, num_speculative_tokens, generated_tokens, step_seconds, now_s)

    def count_prefill_step(self, decode_batch_size: int, num_speculative_tokens: int) -> None:
        """Advance the exploration segment that asked for this K at this decode batch beside prefill, if there is one."""
        self._segments.count(decode_batch_size, num_speculative_tokens, has_prefill=True)

    @property
    def guard_trips(self) -> int:
        """How often the guard found a batch bucket worse than off."""
        return self._off_guard.trips

    def held_buckets(self, now_s: float) -> tuple[int, ...]:
        """Batch buckets that the guard holds off now."""
        return self._off_guard.held_buckets(now_s) if self._off_guard.holding else ()

    def learn(self, outcome: StepOutcome) -> None:
        """Tell a `Local` plan's planner of a pure decode step that ran without catch-up; nothing where there is none."""
        if self._planner is not None:
            self._planner.learn(outcome)

    def _effective_mode(self) -> Mode | None:
        if self._local_mode is None:
            return self._settings.mode if self._settings else None
        if self._settings is None and self._local_mode.kind in {"auto", "shadow"}:
            return None
        return self._local_mode

    def _decide(
        self,
        mode: Mode,
        view: StepView | None,
        decode_batch_size: int,
        joining_rows: int,
        has_prefill: bool,
        prefill_follows: bool,
        now_s: float,
    ) -> tuple[int, Code]:
        kind, settings = mode.kind, self._settings
        if kind == "off":
            return 0, Code.OFF
        if kind == "pin" and mode is self._local_mode:
            return self._pinned(mode), Code.PIN
        assert settings is not None
        if now_s - self._heard_s > settings.settings_max_age_s:
            return 0, Code.AGED
        if kind == "pin":
            return self._pinned(mode), Code.PIN
        if view is not None:
            return self._planned_locally(view, has_prefill)
        return self._planned(settings.dwell_steps, decode_batch_size, joining_rows, has_prefill, prefill_follows, now_s)

    def _pinned(self, mode: Mode) -> int:
        assert mode.num_speculative_tokens is not None
        return min(mode.num_speculative_tokens, self._max_num_speculative_tokens)

    def _planned_locally(self, view: StepView, has_prefill: bool) -> tuple[int, Code]:
        assert self._planner is not None
        if not has_prefill or self._planner.plans_mixed_steps:
            return bound(max(self._planner.choose(view), 0), self._allowed), Code.LOCAL
        current = bound(self._current or 0, self._allowed)
        lowest = bound(max(self._planner.in_mixed_step(view), 0), self._allowed) if view.decode_batch_size else current
        return (lowest, Code.LOCAL) if lowest < current else (current, Code.MIXED)

    def _planned(
        self, dwell_steps: int, decode_batch_size: int, joining_rows: int, has_prefill: bool, prefill_follows: bool, now_s: float
    ) -> tuple[int, Code]:
        current = self._current or 0
        verifying_rows = rows_to_verify(decode_batch_size, joining_rows)
        segment = self._segments.at(decode_batch_size, now_s)
        if segment is not None and verifying_rows <= segment.last_batch_size:
            k = segment.num_speculative_tokens
            if not has_prefill or k == current or segment.beside_prefill:  # else the step would begin what it cannot measure
                return k, Code.SEGMENT
        size = min(verifying_rows, self._max_num_seqs)
        pure, mixed = self._k_by_batch[size], self._mixed_k_by_batch[size]
        proposed, cause = (mixed, Code.BESIDE_PREFILL) if prefill_follows and mixed != pure else (pure, Code.PLAN)
        if proposed and self._off_guard.holding and self._off_guard.holds(verifying_rows, now_s):
            proposed, cause = 0, Code.CHECKING if self._off_guard.checks(verifying_rows) else Code.WORSE_THAN_OFF
        if self._current is None or proposed <= current or current == min(pure, mixed) < proposed:
            return proposed, cause
        held = bound(hold(proposed, current, self._held_steps, dwell_steps), self._allowed)
        if held < proposed:
            self.guard_holds += 1
            cause = Code.DWELL
        return held, cause

    def _by_batch_size(self, rows: Sequence[TableRow]) -> list[int]:
        """Allowed K for each decode batch size from 0 to the engine's most."""
        return [bound(k_at(rows, size), self._allowed) for size in range(self._max_num_seqs + 1)]


def rows_to_verify(decode_batch_size: int, joining_rows: int) -> int:
    """The batch for which a plan's K is looked up: a step's decode rows, and those that join the next one where they are more, a
    burst.

    >>> [rows_to_verify(2, joining_rows) for joining_rows in (0, 2, 3)]
    [2, 2, 5]
    """
    return decode_batch_size + joining_rows if joining_rows > decode_batch_size else decode_batch_size


def ks_by_batch(table: Table, max_num_seqs: int) -> list[int]:
    """K of pure decode steps for each decode batch size from 0 to `max_num_seqs`, as `Table` defines it."""
    return [k_at(table.rows, size) for size in range(max_num_seqs + 1)]


def allowed_ks(wished: Sequence[int], max_num_speculative_tokens: int) -> tuple[int, ...]:
    """The K that may run, ascending: those wished that the engine can do, and 0 (off is always allowed).

    >>> allowed_ks((5, 1, 9), 5)
    (0, 1, 5)
    """
    return tuple(sorted({0, *(k for k in wished if k <= max_num_speculative_tokens)}))


def bound(num_speculative_tokens: int, allowed: Sequence[int]) -> int:
    """The highest allowed K that is not above the proposal. `allowed` ascends from 0, as `allowed_ks` gives it.

    >>> bound(4, (0, 1, 3, 5)), bound(9, (0, 1, 3, 5)), bound(0, (0, 1))
    (3, 5, 0)
    """
    return allowed[bisect_right(allowed, num_speculative_tokens) - 1]


def hold(proposed: int, current: int, held_steps: int, dwell_steps: int) -> int:
    """K after dwell: a rise waits until `current` has been held for `dwell_steps` steps, a fall happens at once.

    >>> hold(5, 0, held_steps=3, dwell_steps=4), hold(5, 0, held_steps=4, dwell_steps=4), hold(0, 5, held_steps=1, dwell_steps=4)
    (0, 5, 0)
    """
    return current if proposed > current and held_steps < dwell_steps else proposed
