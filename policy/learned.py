"""What a fleet has learned, as it is stored and handed on: one record for checkpoint, journal, export and seed.

A group's cells are stored as a table, the names of its fields once and a row for each cell: what a store takes is bounded, and a
person reads rows. What a fleet stores for itself is whatever it counted, since one absurd report must not end that. A seed is
untrusted data (INV-10), a file that somebody edited, another cluster, last year: `Measurable` holds it to the limits that reports
are held to. Fails closed: a cell, a position or a price that no engine can have refuses the group, in words that name the value and
what is allowed. Losing what was stored costs one calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeGuard

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.catch_up import CatchUpEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.counting import MOST_CHUNK_TOKENS, MOST_CONTEXT_TOKENS, require
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.record import (
    LONGEST_STEP_SECONDS,
    SHORTEST_STEP_SECONDS,
    Count,
    DecayedSum,
    NumSpeculativeTokens,
    PositiveSum,
    Record,
    SignedSum,
)
from nightjar.policy.wire.report import MAX_CELLS, GroupKey
from nightjar.policy.wire.settings import Table, TableRow

MAX_LEARNED_CELLS: Final = 16_384
"""Of all groups together: about 60 bytes each keep what is stored well below MAX_RECORD_BYTES."""
MAX_LEARNED_GROUPS: Final = 512
ROUNDING: Final = 1e-6
"""Share by which sums that decayed together may contradict each other."""


class LearnedCell(NamedTuple):
    """Decayed sums over the clean steps of one batch bucket at one K, as `evidence.CellEvidence` holds them.

    `age_s`, seconds since the last of them, is for the reader of an export. `generated_tokens` are kept where acceptance by
    position is censored (evidence/ceilings.py), and 0 elsewhere.
    """

    batch_bucket: Annotated[int, Field(ge=0, lt=64)]
    num_speculative_tokens: NumSpeculativeTokens
    steps: PositiveSum
    log_step_seconds: SignedSum
    decode_rows: DecayedSum
    context_tokens: DecayedSum = 0.0
    log_step_seconds_squared: DecayedSum = 0.0
    age_s: Annotated[float, Field(ge=0.0, le=1e12)] | None = None
    generated_tokens: DecayedSum = 0.0

    @property
    def cell(self) -> Cell:
        """Batch bucket and K."""
        return Cell(self.batch_bucket, self.num_speculative_tokens)

    @property
    def step_seconds(self) -> float:
        """Geometric mean of the step time."""
        return math.exp(self.log_step_seconds / self.steps)

    def evidence(self) -> CellEvidence:
        """As evidence that is as new as it was when it was stored."""
        return CellEvidence(
            self.steps,
            self.log_step_seconds,
            self.decode_rows,
            self.context_tokens,
            self.log_step_seconds_squared,
            generated_tokens=self.generated_tokens,
        )


class LearnedMixedCell(NamedTuple):
    """Decayed sums over the steps with prefill of one batch bucket at one K, in a table of their own, which older releases do not
    look at: they would take these for clean steps."""

    batch_bucket: Annotated[int, Field(ge=0, lt=64)]
    num_speculative_tokens: NumSpeculativeTokens
    steps: PositiveSum
    seconds: PositiveSum
    decode_rows: DecayedSum
    prefill_tokens: PositiveSum
    draft_tokens: DecayedSum = 0.0

    @property
    def cell(self) -> Cell:
        """Batch bucket and K."""
        return Cell(self.batch_bucket, self.num_speculative_tokens, prefill=True)

    @property
    def step_seconds(self) -> float:
        """Of such a step, whatever its prefill."""
        return self.seconds / self.steps

    def evidence(self) -> CellEvidence:
        """As evidence; such steps do not age."""
        return CellEvidence(
            self.steps,
            rows=self.decode_rows,
            seconds=self.seconds,
            prefill_tokens=self.prefill_tokens,
            draft_tokens=self.draft_tokens,
        )


def _as_table(cells: tuple[LearnedCell, ...] | tuple[LearnedMixedCell, ...]) -> dict[str, Any]:
    """Cells as a table, without a column that says nothing."""
    kind = type(cells[0]) if cells else LearnedCell
    columns = zip(kind._fields, zip(*cells, strict=True), strict=False)
    defaults = kind._field_defaults
    told = {name: values for name, values in columns if name not in defaults or any(one != defaults[name] for one in values)}
    return {"fields": list(told), "rows": [list(row) for row in zip(*told.values(), strict=True)]}


def _by_name(cells: Any, names_known: tuple[str, ...] = LearnedCell._fields) -> Any:
    """The rows of a table as mappings of the names that this release knows; anything else as it is."""
    if isinstance(cells, Mapping):
        names, rows = cells.get("fields"), cells.get("rows")
        if not _is_list(names) or not _is_list(rows) or not all(isinstance(name, str) for name in names):
            raise ValueError("a table of `fields`, their names, and `rows` is needed")
        for number, row in enumerate(rows):
            if not _is_list(row) or len(row) != len(names):
                raise ValueError(f"row {number} has not the {len(names)} values of `fields`")
        cells = [dict(zip(names, row, strict=True)) for row in rows]
    if not _is_list(cells):
        return cells
    return [{name: one[name] for name in names_known if name in one} if isinstance(one, Mapping) else one for one in cells]


def _mixed_by_name(cells: Any) -> Any:
    return _by_name(cells, LearnedMixedCell._fields)


def _is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


class LearnedGroup(Record):
    """One group: who it is about, its cells, acceptance by position, the price of catching up, and the plan that it ran.

    `cells` are of pure decode steps, `mixed_cells` of those with prefill. How many such steps there are, replicas tell at once.
    """

    key: GroupKey
    cells: Annotated[
        tuple[LearnedCell, ...], Field(max_length=MAX_CELLS), BeforeValidator(_by_name), PlainSerializer(_as_table)
    ] = ()
    mixed_cells: Annotated[
        tuple[LearnedMixedCell, ...], Field(max_length=MAX_CELLS), BeforeValidator(_mixed_by_name), PlainSerializer(_as_table)
    ] = ()
    acceptance: Annotated[
        AcceptanceEvidence, PlainSerializer(lambda known: {"reached": known.reached, "accepted": known.accepted})
    ] = AcceptanceEvidence()
    catch_up: CatchUpEvidence = CatchUpEvidence()
    plan: Annotated[tuple[TableRow, ...], Field(max_length=256)] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_what_was_stored_before(cls, plain: Any) -> Any:
        return _as_stored_now(plain) if isinstance(plain, Mapping) else plain

    @model_validator(mode="after")
    def _positions_are_pairs(self) -> Self:
        reached, accepted = self.acceptance.reached, self.acceptance.accepted
        if len(reached) != len(accepted):
            raise ValueError(f"acceptance of {len(reached)} positions reached and {len(accepted)} accepted; equally many needed")
        return self

    @classmethod
    def of(
        cls,
        key: GroupKey,
        evidence: Evidence,
        catch_up: CatchUpEvidence,
        plan: tuple[TableRow, ...] = (),
        now_s: float | None = None,
    ) -> LearnedGroup:
        """The stored form of a group's evidence, which is the fleet's own and not checked. With `now_s` its cells have ages."""
        cells = tuple(
            LearnedCell(
                cell.batch_bucket,
                cell.num_speculative_tokens,
                known.steps,
                known.log_seconds,
                known.rows,
                known.context_tokens,
                known.log_seconds_squared,
                round(max(now_s - known.measured_at_s, 0.0), 1) if now_s is not None else None,
                known.generated_tokens,
            )
            for cell, known in sorted(evidence.cells.items())
        )
        mixed_cells = tuple(
            LearnedMixedCell(
                cell.batch_bucket,
                cell.num_speculative_tokens,
                known.steps,
                known.seconds,
                known.rows,
                known.prefill_tokens,
                known.draft_tokens,
            )
            for cell, known in sorted(evidence.mixed_cells.items())
        )
        acceptance = AcceptanceEvidence(evidence.acceptance.reached, evidence.acceptance.accepted)
        return cls.model_construct(
            key=key, cells=cells, mixed_cells=mixed_cells, acceptance=acceptance, catch_up=catch_up, plan=plan
        )

    def evidence(self) -> Evidence:
        """The evidence that was stored."""
        cells, mixed_cells = ({one.cell: one.evidence() for one in kind} for kind in (self.cells, self.mixed_cells))
        return Evidence(cells, self.acceptance, mixed_cells)


class LearnedTables(Record):
    """Everything worth keeping across a restart of the policy. An unknown version is refused, and the fleet starts cold."""

    version: Literal[2] = 2
    next_segment_id: Annotated[Count, Field(ge=1)] = 1
    groups: Annotated[tuple[LearnedGroup, ...], Field(max_length=MAX_LEARNED_GROUPS)] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, plain: Any) -> Any:
        """For one release: its groups were stored otherwise, which each of them reads."""
        return {**plain, "version": 2} if isinstance(plain, Mapping) and plain.get("version", 1) == 1 else plain


def could_be_measured(one: LearnedCell | LearnedMixedCell, key: GroupKey) -> bool:
    """Whether an engine of that group could have measured the cell."""
    return _holds(lambda: _check_cell(one, key))


def could_be_priced(sums: CatchUpEvidence) -> bool:
    """Whether an engine could have caught up like that."""
    return _holds(lambda: _check_catch_up(sums))


def measurable(group: LearnedGroup) -> LearnedGroup:
    """The group, of which engines could have measured everything. Raises ValueError for any other."""
    seen: set[Cell] = set()
    every: tuple[LearnedCell | LearnedMixedCell, ...] = (*group.cells, *group.mixed_cells)
    for one in every:
        require(one.cell not in seen, one.cell, "given twice, allowed is once")
        seen.add(one.cell)
        _check_cell(one, group.key)
    _check_acceptance(group.acceptance, group.key)
    _check_catch_up(group.catch_up)
    _check_plan(group.plan, group.key)
    return group


Measurable = Annotated[LearnedGroup, AfterValidator(measurable)]
"""A group that comes from elsewhere."""


def _holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except ValueError:
        return False
    return True


def _check_cell(one: LearnedCell | LearnedMixedCell, key: GroupKey) -> None:
    bucket, k, _ = one.cell
    highest = batch_bucket(key.max_num_seqs)
    require(k <= key.max_num_speculative_tokens, one.cell, f"K above the group's {key.max_num_speculative_tokens}")
    require(bucket <= highest, one.cell, f"a bucket above {highest}, the last of max_num_seqs {key.max_num_seqs}")
    rows = one.decode_rows / one.steps
    first, last = bucket_range(bucket, key.max_num_seqs)
    require(
        first * (1.0 - ROUNDING) <= rows <= last * (1.0 + ROUNDING),
        one.cell,
        f"{rows:.6g} rows a step, allowed are {first} to {last}",
    )
    if isinstance(one, LearnedCell):
        _check_clean(one, key)
    else:
        _check_mixed(one, key)


def _check_mixed(one: LearnedMixedCell, key: GroupKey) -> None:
    more, mean_s = 1.0 + ROUNDING, one.step_seconds
    require(
        mean_s * more >= SHORTEST_STEP_SECONDS and mean_s <= LONGEST_STEP_SECONDS * more,
        one.cell,
        f"{mean_s:.4g} s a step, allowed are {SHORTEST_STEP_SECONDS:g} to {LONGEST_STEP_SECONDS:g} s",
    )
    prefill = one.prefill_tokens / one.steps
    require(
        prefill * more >= 1.0 and prefill <= MOST_CHUNK_TOKENS * more,
        one.cell,
        f"{prefill:.6g} prompt tokens a step, allowed are 1 to {MOST_CHUNK_TOKENS}",
    )
    most_drafts = one.decode_rows * key.max_num_speculative_tokens
    require(
        one.draft_tokens <= most_drafts * more,
        one.cell,
        f"{one.draft_tokens:.6g} drafts verified, allowed are 0 to {most_drafts:.6g}",
    )


def _check_clean(one: LearnedCell, key: GroupKey) -> None:
    mean_log = one.log_step_seconds / one.steps
    require(
        math.log(SHORTEST_STEP_SECONDS) <= mean_log <= math.log(LONGEST_STEP_SECONDS),
        one.cell,
        f"e^{mean_log:.4g} s a step, allowed are {SHORTEST_STEP_SECONDS:g} to {LONGEST_STEP_SECONDS:g} s",
    )
    most_context = one.decode_rows * MOST_CONTEXT_TOKENS
    require(
        one.context_tokens <= most_context,
        one.cell,
        f"{one.context_tokens:.4g} context tokens, allowed are 0 to {most_context:.4g}",
    )
    most_tokens = one.decode_rows * (1 + one.num_speculative_tokens) * key.adaptive_verification
    require(
        one.generated_tokens <= most_tokens * (1.0 + ROUNDING),
        one.cell,
        f"{one.generated_tokens:.4g} generated tokens, allowed are 0 to {most_tokens:.4g}"
        + ("" if key.adaptive_verification else ": they are kept under adaptive verification alone"),
    )


def _check_acceptance(acceptance: AcceptanceEvidence, key: GroupKey) -> None:
    if len(acceptance.reached) > key.max_num_speculative_tokens:
        allowed = f"allowed are at most {key.max_num_speculative_tokens}"
        raise ValueError(f"acceptance of {len(acceptance.reached)} positions, {allowed}")
    for number, (reached, accepted) in enumerate(zip(acceptance.reached, acceptance.accepted, strict=True), start=1):
        if accepted > reached * (1.0 + ROUNDING):
            raise ValueError(f"acceptance of position {number}: {accepted:g} rows accepted, allowed are 0 to {reached:g}")


def _check_catch_up(sums: CatchUpEvidence) -> None:
    tokens, squared, more = sums.tokens, sums.tokens_squared, 1.0 + ROUNDING
    if not (
        min(sums.steps, tokens, squared) >= 0.0
        and sums.steps <= tokens * more
        and tokens <= squared * more
        and tokens * tokens <= sums.steps * squared * more
        and squared <= MOST_CHUNK_TOKENS * tokens * more
    ):
        raise ValueError(
            f"catch_up: {tokens:g} tokens and {squared:g} squared ones in {sums.steps:g} steps, "
            f"allowed are 1 to {MOST_CHUNK_TOKENS} tokens a step"
        )
    most_s = LONGEST_STEP_SECONDS * sums.steps
    if abs(sums.seconds) > most_s or abs(sums.token_seconds) > most_s * MOST_CHUNK_TOKENS:
        raise ValueError(
            f"catch_up: {sums.seconds:g} s in {sums.steps:g} steps, allowed are at most {LONGEST_STEP_SECONDS:g} s a step"
        )


def _check_plan(rows: tuple[TableRow, ...], key: GroupKey) -> None:
    if not rows:
        return
    Table(rows=rows)
    highest = max(row.num_speculative_tokens for row in rows)
    if highest > key.max_num_speculative_tokens:
        raise ValueError(f"plan: K={highest}, allowed are 0 to {key.max_num_speculative_tokens}")


_COLUMNS_BEFORE: Final[Mapping[str, str]] = {
    name: "batch_buckets" if name == "batch_bucket" else name
    for name in LearnedCell._fields
    if name not in {"age_s", "generated_tokens"}
}


def _as_stored_now(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """For one release: the two forms of before. Checkpoint and journal had a column for each field of the cells beside the key, and
    the price of catching up as a list; an export, and a seed that waited, had each position by its names (and each cell, which is
    read as ever)."""
    now = dict(plain)
    if "batch_buckets" in now:
        columns = {name: now.pop(stored, ()) for name, stored in _COLUMNS_BEFORE.items()}
        if not all(_is_list(values) for values in columns.values()):
            raise ValueError("a column of cells that is no list; lists of equal length needed")
        lengths = [len(values) for values in columns.values()]
        if len(set(lengths)) > 1:
            raise ValueError(f"columns of {lengths} cells; equal ones needed")
        now["cells"] = {"fields": list(columns), "rows": list(zip(*columns.values(), strict=True))}
        now["acceptance"] = {"reached": now.pop("reached", ()), "accepted": now.pop("accepted", ())}
        if _is_list(now.get("catch_up")):
            names = [field.name for field in fields(CatchUpEvidence)]
            now["catch_up"] = dict(zip(names, now["catch_up"], strict=True))
    positions = now.get("acceptance")
    if _is_list(positions) and all(isinstance(one, Mapping) for one in positions):
        now["acceptance"] = {name: [one.get(name) for one in positions] for name in ("reached", "accepted")}
    return now
