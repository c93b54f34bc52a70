"""What an engine counts of its steps, cumulative since it started: the only evidence that leaves it.

Sums are plain integers (microseconds for time), because this runs after every engine step and a float sum of weeks would lose
small steps. Nothing is ever reset, so a report that is lost, doubled or late does no harm. A step that is neither clean nor
computes prompt tokens only moves the totals: the cells, from which the fleet learns, hold what is comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from operator import add
from typing import Final, NamedTuple, TypeVar

from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.report import CatchUpCounters, CellCounters, Counters, StepTotals

OFF_MEMORY: Final = 1.0 / 16.0
"""Weight of the newest K=0 step in its bucket's mean: contexts grow, so only the last few dozen tell what a step takes now."""


class StepCount(NamedTuple):
    """One finished engine step, as the step loop saw it. A tuple, because one is made after every step."""

    num_speculative_tokens: int
    """K that the step drafted with."""
    decode_rows: int
    context_tokens: int
    """Sum over the decode rows of their tokens in the KV cache before the step."""
    prefill_tokens: int
    generated_tokens: int
    """Tokens that the step delivered."""
    reached: Sequence[int]
    """reached[i]: decode rows that verified more than i draft tokens."""
    accepted: Sequence[int]
    """accepted[i]: decode rows of which more than i draft tokens were accepted."""
    step_microseconds: int
    """Time since the previous output of the busy engine; 0 where the engine had been idle."""
    clean: bool
    """Whether it belongs in a cell without prefill (report.CellCounters says what clean means)."""
    in_transition: bool
    """A pure decode step that is not clean only because K had just changed."""
    catch_up_tokens: int = 0
    """Draft tokens that the step recomputed besides; such a step is not clean."""
    undrafted_tokens: int = 0
    """What `reached` counts for rows that had no drafts: a drafter may skip rows, and the step is still one at this K."""
    first_tokens: int = 0
    """Of `generated_tokens`, those of prompts that it computed to their end: each begins an answer."""


class _Timed:
    """Sums that are reported by the names of their attributes, their time in seconds."""

    __slots__ = ()
    steps: int
    step_microseconds: int

    @property
    def step_seconds(self) -> float:
        return self.step_microseconds / 1e6


@dataclass(slots=True)
class _Totals(_Timed):
    num_speculative_tokens: int
    steps: int = 0
    step_microseconds: int = 0
    decode_rows: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    first_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(slots=True)
class _Cell(_Timed):
    """What report.CellCounters says, which says too what is counted of which kind of steps."""

    batch_bucket: int
    num_speculative_tokens: int
    prefill: bool
    reached: list[int]
    accepted: list[int]
    steps: int = 0
    step_microseconds: int = 0
    log_step_seconds: float = 0.0
    log_step_seconds_squared: float = 0.0
    decode_rows: int = 0
    context_tokens: int = 0
    prefill_tokens: int = 0
    draft_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class _CatchUp:
    steps: int = 0
    tokens: int = 0
    tokens_squared: int = 0
    microseconds: float = 0.0
    token_microseconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.microseconds / 1e6

    @property
    def token_seconds(self) -> float:
        return self.token_microseconds / 1e6


_Key = tuple[int, int, bool]
"""Batch bucket, K, whether with prefill."""


@dataclass(slots=True)
class StepCounters:
    """Accumulates steps; `snapshot` gives the record that is reported."""

    step_count: int = 0
    busy_microseconds: int = 0
    transition_steps: int = 0
    _catch_up: _CatchUp = field(default_factory=_CatchUp)
    _off_microseconds: dict[int, float] = field(default_factory=dict)
    _totals: dict[int, _Totals] = field(default_factory=dict)
    _cells: dict[_Key, _Cell] = field(default_factory=dict)
    _reported_totals: dict[int, StepTotals] = field(default_factory=dict)
    _reported_cells: dict[_Key, CellCounters] = field(default_factory=dict)

    def count(self, step: StepCount) -> None:
        """Add one step to the totals of its K and, if it is clean, to its cell."""
        k, step_microseconds, prefill_tokens = step.num_speculative_tokens, step.step_microseconds, step.prefill_tokens
        self.step_count += 1
        self.busy_microseconds += step_microseconds
        self.transition_steps += step.in_transition
        totals = self._totals.get(k)
        if totals is None:
            totals = self._totals[k] = _Totals(k)
        totals.steps += 1
        totals.step_microseconds += step_microseconds
        totals.decode_rows += step.decode_rows
        totals.prefill_tokens += prefill_tokens
        totals.generated_tokens += step.generated_tokens
        totals.first_tokens += step.first_tokens
        totals.draft_tokens += sum(step.reached) - step.undrafted_tokens
        totals.accepted_tokens += sum(step.accepted)
        if step.clean:
            self._count_cell(step)
        elif prefill_tokens and step.decode_rows and step_microseconds and not step.catch_up_tokens:
            self._count_prefill_cell(step)
        elif step.catch_up_tokens and step_microseconds and not prefill_tokens and not step.in_transition:
            self._count_catch_up(step)

    def snapshot(
        self,
        engine_id: str,
        guard_holds: int = 0,
        restarts: int = 0,
        failed_probes: int = 0,
        guard_trips: int = 0,
        draft_slot_breaches: int = 0,
    ) -> Counters:
        """The record of everything counted so far, and of what Steering (guard), DrafterLife (restarts, probes) and the step loop
        (breaches) counted."""
        return Counters(
            engine_id=engine_id,
            step_count=self.step_count,
            busy_seconds=self.busy_microseconds / 1e6,
            transition_steps=self.transition_steps,
            guard_holds=guard_holds,
            catch_up=CatchUpCounters.model_validate(self._catch_up, from_attributes=True),
            restarts=restarts,
            failed_probes=failed_probes,
            guard_trips=guard_trips,
            draft_slot_breaches=draft_slot_breaches,
            totals=_renewed(self._totals, self._reported_totals, StepTotals),
            cells=_renewed(self._cells, self._reported_cells, CellCounters),
        )

    def _count_cell(self, step: StepCount) -> None:
        k, decode_rows, step_microseconds = step.num_speculative_tokens, step.decode_rows, step.step_microseconds
        key = (batch_bucket(decode_rows), k, False)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell(*key, reached=[0] * k, accepted=[0] * k)
        log_seconds = log(max(step_microseconds, 1) / 1e6)
        cell.steps += 1
        cell.step_microseconds += step_microseconds
        cell.log_step_seconds += log_seconds
        cell.log_step_seconds_squared += log_seconds * log_seconds
        cell.decode_rows += decode_rows
        cell.context_tokens += step.context_tokens
        cell.generated_tokens += step.generated_tokens
        cell.reached = list(map(add, cell.reached, step.reached))
        cell.accepted = list(map(add, cell.accepted, step.accepted))
        if not k:
            before = self._off_microseconds.get(key[0], step_microseconds)
            self._off_microseconds[key[0]] = before + OFF_MEMORY * (step_microseconds - before)

    def _count_prefill_cell(self, step: StepCount) -> None:
        key = (batch_bucket(step.decode_rows), step.num_speculative_tokens, True)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell(*key, reached=[0] * key[1], accepted=[0] * key[1])
        cell.steps += 1
        cell.step_microseconds += step.step_microseconds
        cell.decode_rows += step.decode_rows
        cell.prefill_tokens += step.prefill_tokens
        cell.draft_tokens += sum(step.reached) - step.undrafted_tokens
        k = step.num_speculative_tokens
        if len(step.reached) >= k and not any(step.reached[k:]):  # else the step verified the drafts of another K
            cell.reached = list(map(add, cell.reached, step.reached))
            cell.accepted = list(map(add, cell.accepted, step.accepted))

    def _count_catch_up(self, step: StepCount) -> None:
        """How much longer the step took than K=0 steps of its bucket of late; nothing where there were none."""
        off_microseconds = self._off_microseconds.get(batch_bucket(step.decode_rows))
        if off_microseconds is None or step.num_speculative_tokens:
            return
        sums, tokens = self._catch_up, step.catch_up_tokens
        longer = step.step_microseconds - off_microseconds
        sums.steps += 1
        sums.tokens += tokens
        sums.tokens_squared += tokens * tokens
        sums.microseconds += longer
        sums.token_microseconds += tokens * longer


Key = TypeVar("Key", int, _Key)
Record = TypeVar("Record", StepTotals, CellCounters)


def _renewed(sums: Mapping[Key, _Timed], records: dict[Key, Record], kind: type[Record]) -> tuple[Record, ...]:
    """The records of these sums, in the order of their keys: between two reports most stay as they are, and so do their records."""
    for key, counted in sums.items():
        if key not in records or records[key].steps != counted.steps:
            records[key] = kind.model_validate(counted, from_attributes=True)
    return tuple(records[key] for key in sorted(records))
