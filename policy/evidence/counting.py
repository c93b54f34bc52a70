"""From cumulative counters to what is new: the difference to what was counted last, checked for what an engine can do.

A report is untrusted data (INV-10). Counters that fall, that hold more steps than the time allowed, or that
contradict themselves raise `ImplausibleCountersError`; the caller then keeps its old baseline, so that an honest report held
up on its way loses nothing: the next one brings its counts along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.catch_up import CatchUpEvidence, NewRestarts
from nightjar.policy.evidence.cells import Cell, CellEvidence
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.record import LONGEST_STEP_SECONDS, SHORTEST_STEP_SECONDS
from nightjar.policy.wire.report import CatchUpCounters, CellCounters, Counters, GroupKey

MOST_CONTEXT_TOKENS: Final = 1 << 24
"""Of one request: beyond any model."""
CLOCK_SLACK_SHARE: Final = 0.05
CLOCK_SLACK_SECONDS: Final = 1.0
"""Clocks of two machines and the way of a report: an engine may seem to work this much longer than the time that passed."""

MOST_CHUNK_TOKENS: Final = 1 << 20
"""No engine recomputes more in one step, nor computes more of prompts: vLLM's max_num_batched_tokens is a hundred times less."""
MOST_LOG: Final = max(-math.log(SHORTEST_STEP_SECONDS), math.log(LONGEST_STEP_SECONDS))
"""Of the logarithm of a step's seconds, either way."""


class ImplausibleCountersError(ValueError):
    """Counters no engine can have. The message names the count, the value seen and what is allowed."""


def require(holds: bool, key: Cell, problem: str) -> None:
    """Raise ImplausibleCountersError with the problem of a cell unless it `holds`."""
    if not holds:
        kind = ", with prefill" if key.prefill else ""
        raise ImplausibleCountersError(f"cell (bucket {key.batch_bucket}, K={key.num_speculative_tokens}{kind}): {problem}")


def check_steps(key: Cell, group: GroupKey, steps: int, step_seconds: float, decode_rows: int) -> None:
    """Raise ImplausibleCountersError unless a cell of the group can have so many steps more."""
    bucket, k, _ = key
    require(k <= group.max_num_speculative_tokens, key, f"K above the group's {group.max_num_speculative_tokens}")
    require(bucket <= batch_bucket(group.max_num_seqs), key, f"a bucket above max_num_seqs {group.max_num_seqs}")
    require(steps > 0, key, f"{steps} steps more than before")
    mean_s = step_seconds / steps
    allowed = f"{SHORTEST_STEP_SECONDS:g} to {LONGEST_STEP_SECONDS:g}"
    require(SHORTEST_STEP_SECONDS <= mean_s <= LONGEST_STEP_SECONDS, key, f"{mean_s:.3g} s a step, allowed are {allowed}")
    first, last = bucket_range(bucket, group.max_num_seqs)
    require(first * steps <= decode_rows <= last * steps, key, f"{decode_rows} rows in {steps} steps of {first} to {last} rows")


class CountedCell(NamedTuple):
    """Cumulative sums of one cell as last counted, or what a report adds to them; a twentieth of the record's memory (INV-8)."""

    steps: int
    step_seconds: float
    log_step_seconds: float
    log_step_seconds_squared: float
    decode_rows: int
    context_tokens: int
    prefill_tokens: int
    draft_tokens: int
    generated_tokens: int
    reached: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CountedEngine:
    """What was counted of one engine so far: the baseline of the next difference."""

    engine_id: str
    step_count: int = 0
    generated_tokens: int = 0
    prefill_tokens: int = 0
    cells: Mapping[Cell, CountedCell] | None = None
    catch_up: CatchUpCounters = field(default_factory=CatchUpCounters)
    restarts: int = 0
    failed_probes: int = 0
    busy_seconds: float = 0.0
    decode_rows: int = 0
    first_tokens: int = 0


@dataclass(frozen=True, slots=True)
class NewSteps:
    """What one report adds. `acceptance` is of clean steps, `mixed_acceptance` of those with prefill; `all_steps`, `busy_seconds`
    and `decode_rows` are of every step, clean or not.
    """

    cells: Mapping[Cell, CellEvidence]
    acceptance: AcceptanceEvidence
    mixed_acceptance: AcceptanceEvidence
    generated_tokens: int
    prefill_tokens: int
    restarts: NewRestarts
    all_steps: int
    busy_seconds: float
    decode_rows: int
    first_tokens: int


def count(counters: Counters, baseline: CountedEngine, elapsed_s: float, group: GroupKey) -> tuple[NewSteps, CountedEngine]:
    """What `counters` adds to `baseline`, and the next baseline.

    `elapsed_s` is the time since the baseline was taken (infinite for an engine's first report). Raises ImplausibleCountersError.
    """
    before = baseline.cells or {}
    now: dict[Cell, CountedCell] = {}
    new_cells: dict[Cell, CellEvidence] = {}
    acceptance = mixed_acceptance = AcceptanceEvidence()
    seconds, steps = 0.0, 0
    for counted in counters.cells:
        cell = Cell(counted.batch_bucket, counted.num_speculative_tokens, counted.prefill)
        last = before.get(cell)
        if last is not None and last.steps == counted.steps:
            now[cell] = last
            continue
        now[cell] = _counted(counted)
        added = _difference(now[cell], last)
        _check_cell(cell, added, group)
        new_cells[cell] = _evidence(cell, added, is_censored=group.adaptive_verification)
        its_acceptance = AcceptanceEvidence(added.reached, added.accepted)
        if cell.prefill:
            mixed_acceptance = mixed_acceptance.sum(its_acceptance)
        else:
            acceptance = acceptance.sum(its_acceptance)
        seconds += added.step_seconds
        steps += added.steps
    if len(now) != len(counters.cells):
        raise ImplausibleCountersError(f"{len(counters.cells)} cells, of which only {len(now)} differ")
    missing = before.keys() - now.keys()
    require(not missing, min(missing, default=Cell(0, 0)), "counted before and missing now")
    _check_time(seconds, steps, counters.step_count - baseline.step_count, elapsed_s)
    restarts = _restarts(counters, baseline, elapsed_s)
    generated_tokens = sum(total.generated_tokens for total in counters.totals)
    prefill_tokens = sum(total.prefill_tokens for total in counters.totals)
    decode_rows = sum(total.decode_rows for total in counters.totals)
    first_tokens = sum(total.first_tokens for total in counters.totals)
    new = NewSteps(
        new_cells,
        acceptance,
        mixed_acceptance,
        max(generated_tokens - baseline.generated_tokens, 0),
        max(prefill_tokens - baseline.prefill_tokens, 0),
        restarts,
        max(counters.step_count - baseline.step_count, 0),
        min(max(counters.busy_seconds - baseline.busy_seconds, 0.0), _allowed_s(elapsed_s)),
        max(decode_rows - baseline.decode_rows, 0),
        max(first_tokens - baseline.first_tokens, 0),
    )
    return new, CountedEngine(
        counters.engine_id,
        counters.step_count,
        generated_tokens,
        prefill_tokens,
        now,
        counters.catch_up,
        counters.restarts,
        counters.failed_probes,
        counters.busy_seconds,
        decode_rows,
        first_tokens,
    )


def _counted(cell: CellCounters) -> CountedCell:
    return CountedCell(
        cell.steps,
        cell.step_seconds,
        cell.log_step_seconds,
        cell.log_step_seconds_squared,
        cell.decode_rows,
        cell.context_tokens,
        cell.prefill_tokens,
        cell.draft_tokens,
        cell.generated_tokens,
        cell.reached[: cell.num_speculative_tokens],
        cell.accepted[: cell.num_speculative_tokens],
    )


def _difference(now: CountedCell, before: CountedCell | None) -> CountedCell:
    if before is None:
        return now
    return CountedCell(
        now.steps - before.steps,
        now.step_seconds - before.step_seconds,
        now.log_step_seconds - before.log_step_seconds,
        now.log_step_seconds_squared - before.log_step_seconds_squared,
        now.decode_rows - before.decode_rows,
        now.context_tokens - before.context_tokens,
        now.prefill_tokens - before.prefill_tokens,
        now.draft_tokens - before.draft_tokens,
        now.generated_tokens - before.generated_tokens,
        _subtract(now.reached, before.reached),
        _subtract(now.accepted, before.accepted),
    )


def _evidence(cell: Cell, added: CountedCell, *, is_censored: bool) -> CellEvidence:
    """The sums that the fleet learns from: tokens where acceptance by position is censored. Squares smaller than their mean allows
    are none.

    An older engine counts none, and those of a single step are a difference of large sums, which rounding takes below it every
    other time. So groups with slow engines know less of their scatter than there is, and believe their cells more; counting all of
    it made their plans worse (docs/notebook.md).
    """
    if cell.prefill:
        return CellEvidence(
            added.steps,
            rows=added.decode_rows,
            seconds=added.step_seconds,
            prefill_tokens=added.prefill_tokens,
            draft_tokens=added.draft_tokens,
        )
    least = added.log_step_seconds**2 / added.steps
    squares = added.log_step_seconds_squared if added.log_step_seconds_squared >= least else 0.0
    squares = min(squares, MOST_LOG**2 * added.steps)
    return CellEvidence(
        added.steps,
        added.log_step_seconds,
        added.decode_rows,
        added.context_tokens,
        squares,
        seconds=added.step_seconds,
        generated_tokens=float(added.generated_tokens) if is_censored else 0.0,
    )


def _subtract(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    padded = before + (0,) * (len(now) - len(before))
    return tuple(new - old for new, old in zip(now, padded, strict=False))


def _check_cell(key: Cell, added: CountedCell, group: GroupKey) -> None:
    check_steps(key, group, added.steps, added.step_seconds, added.decode_rows)
    if key.prefill:
        _check_prefill(key, added, group)
    else:
        _check_clean(key, added)


def _check_prefill(key: Cell, added: CountedCell, group: GroupKey) -> None:
    require(
        added.steps <= added.prefill_tokens <= MOST_CHUNK_TOKENS * added.steps,
        key,
        f"{added.prefill_tokens} prompt tokens in {added.steps} steps, allowed are 1 to {MOST_CHUNK_TOKENS} a step",
    )
    most_drafts = added.decode_rows * group.max_num_speculative_tokens
    require(
        0 <= added.draft_tokens <= most_drafts,
        key,
        f"{added.draft_tokens} drafts verified, allowed are 0 to {most_drafts}",
    )
    _check_positions(key, added)


def _check_clean(key: Cell, added: CountedCell) -> None:
    mean_s = added.step_seconds / added.steps
    mean_log = added.log_step_seconds / added.steps
    require(
        math.log(SHORTEST_STEP_SECONDS) <= mean_log <= math.log(mean_s) + 1e-3,
        key,
        f"mean log step time {mean_log:.3g} does not fit {mean_s:.3g} s a step",
    )
    most_context = added.decode_rows * MOST_CONTEXT_TOKENS
    require(
        0 <= added.context_tokens <= most_context,
        key,
        f"{added.context_tokens} context tokens, allowed are 0 to {most_context}",
    )
    most_tokens = added.decode_rows * (key.num_speculative_tokens + 1)
    require(
        0 <= added.generated_tokens <= most_tokens,
        key,
        f"{added.generated_tokens} generated tokens, allowed are 0 to {most_tokens}",
    )
    _check_positions(key, added)


def _check_positions(key: Cell, added: CountedCell) -> None:
    require(
        len(added.reached) == len(added.accepted), key, f"{len(added.reached)} positions reached, {len(added.accepted)} accepted"
    )
    rows_before, kept_before = added.decode_rows, added.decode_rows
    for rows, kept in zip(added.reached, added.accepted, strict=True):
        require(
            0 <= kept <= min(rows, kept_before) and rows <= rows_before,
            key,
            f"{kept} accepted of {rows} reached where {kept_before} of {rows_before} came before",
        )
        rows_before, kept_before = rows, kept


def _check_time(seconds: float, steps: int, all_steps: int, elapsed_s: float) -> None:
    if steps > all_steps:
        raise ImplausibleCountersError(f"{steps} new steps in cells among {all_steps} new steps")
    _check_clock(seconds, "step", elapsed_s)
    if all_steps * SHORTEST_STEP_SECONDS > _allowed_s(elapsed_s):
        raise ImplausibleCountersError(
            f"{all_steps} new steps in {elapsed_s:.3g} s, allowed are {SHORTEST_STEP_SECONDS:g} s a step"
        )


def _restarts(counters: Counters, baseline: CountedEngine, elapsed_s: float) -> NewRestarts:
    now, before = counters.catch_up, baseline.catch_up
    steps, tokens = now.steps - before.steps, now.tokens - before.tokens
    squared = now.tokens_squared - before.tokens_squared
    seconds, token_seconds = now.seconds - before.seconds, now.token_seconds - before.token_seconds
    restarts, failed = counters.restarts - baseline.restarts, counters.failed_probes - baseline.failed_probes
    if min(steps, restarts, failed) < 0 or failed > restarts + 1:
        raise ImplausibleCountersError(
            f"{steps} steps with catch-up, {restarts} restarts and {failed} failed probes more than before"
        )
    if not steps <= tokens <= squared <= MOST_CHUNK_TOKENS * tokens or tokens * tokens > steps * squared:
        raise ImplausibleCountersError(f"{tokens} tokens and {squared} squared ones caught up in {steps} steps")
    _check_clock(abs(seconds), "catch-up", elapsed_s)
    _check_clock(abs(token_seconds) / MOST_CHUNK_TOKENS, "catch-up", elapsed_s)
    evidence = CatchUpEvidence(float(steps), float(tokens), float(squared), seconds, token_seconds)
    return NewRestarts(evidence, restarts, failed)


def _check_clock(seconds: float, kind: str, elapsed_s: float) -> None:
    allowed_s = _allowed_s(elapsed_s)
    if seconds > allowed_s:
        raise ImplausibleCountersError(
            f"{seconds:.3g} new {kind} seconds, allowed are {allowed_s:.3g} since the last counted report"
        )


def _allowed_s(elapsed_s: float) -> float:
    return elapsed_s * (1.0 + CLOCK_SLACK_SHARE) + CLOCK_SLACK_SECONDS
