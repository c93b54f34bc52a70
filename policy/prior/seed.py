"""What one fleet hands another: a group's knowledge as records that a person can read, and what an engine could have measured.

A seed comes from a stranger (INV-10): a file that somebody edited, another cluster, last year. So it is held to the limits that
reports are held to, and whoever plants it (policy.seeding) gives it little weight. Fails closed: a cell, a position or a price that
no engine can have refuses the group, in words that name the value and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from nightjar.policy.estimate.acceptance import AcceptanceEvidence
from nightjar.policy.estimate.catch_up import CatchUpEvidence
from nightjar.policy.estimate.counting import MOST_CHUNK_TOKENS, MOST_CONTEXT_TOKENS
from nightjar.policy.estimate.evidence import Cell, CellEvidence
from nightjar.policy.estimate.implausible import LONGEST_STEP_SECONDS, SHORTEST_STEP_SECONDS, require
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.record import MAX_NUM_SPECULATIVE_TOKENS, DecayedSum, NumSpeculativeTokens, PositiveSum, Record, SignedSum
from nightjar.policy.wire.report import MAX_CELLS, GroupKey
from nightjar.policy.wire.settings import Table, TableRow

ROUNDING: Final = 1e-6
"""Share by which sums that decayed together may contradict each other."""


class SeedCell(Record):
    """Decayed sums over the clean steps of one batch bucket at one K, as `evidence.CellEvidence` holds them.

    How much single steps scattered is left out: it is measured within seconds. `age_s` is for the reader.
    """

    batch_bucket: Annotated[int, Field(ge=0, lt=64)]
    num_speculative_tokens: NumSpeculativeTokens
    steps: PositiveSum
    log_step_seconds: SignedSum
    decode_rows: DecayedSum
    context_tokens: DecayedSum = 0.0
    age_s: Annotated[float, Field(ge=0.0, le=1e12)] | None = None

    @property
    def cell(self) -> Cell:
        """Batch bucket and K."""
        return self.batch_bucket, self.num_speculative_tokens

    @property
    def step_seconds(self) -> float:
        """Geometric mean of the step time."""
        return math.exp(self.log_step_seconds / self.steps)

    def evidence(self, most_steps: float, now_s: float) -> CellEvidence:
        """As evidence heard at `now_s`, whose weight is at most `most_steps` clean steps.

        >>> SeedCell(batch_bucket=0, num_speculative_tokens=3, steps=96, log_step_seconds=-384, decode_rows=96).evidence(24.0, 5.0)
        CellEvidence(steps=24.0, log_seconds=-96.0, rows=24.0, context_tokens=0.0, log_seconds_squared=0.0, measured_at_s=5.0)
        """
        share = min(1.0, most_steps / self.steps)
        return CellEvidence(
            min(self.steps, most_steps),
            self.log_step_seconds * share,
            self.decode_rows * share,
            self.context_tokens * share,
            measured_at_s=now_s,
        )


class SeedPosition(Record):
    """Decayed rows of one draft position: how many verified it, and how many of them accepted it."""

    reached: DecayedSum
    accepted: DecayedSum


class SeedCatchUp(Record):
    """Decayed sums over steps that recomputed draft tokens, as `catch_up.CatchUpEvidence` holds them."""

    steps: DecayedSum = 0.0
    tokens: DecayedSum = 0.0
    tokens_squared: DecayedSum = 0.0
    seconds: SignedSum = 0.0
    token_seconds: SignedSum = 0.0

    def evidence(self, most_steps: float) -> CatchUpEvidence:
        """As evidence, whose weight is at most `most_steps` steps."""
        sums = CatchUpEvidence(self.steps, self.tokens, self.tokens_squared, self.seconds, self.token_seconds)
        return sums.times(most_steps / self.steps) if self.steps > most_steps else sums


class SeedGroup(Record):
    """One group: who it is about, its cells, acceptance by position, the price of catching up, and the plan that it ran."""

    key: GroupKey
    cells: Annotated[tuple[SeedCell, ...], Field(max_length=MAX_CELLS)] = ()
    acceptance: Annotated[tuple[SeedPosition, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS)] = ()
    catch_up: SeedCatchUp = SeedCatchUp()
    plan: Annotated[tuple[TableRow, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _an_engine_could_have_measured_it(self) -> Self:
        seen: set[Cell] = set()
        for one in self.cells:
            require(one.cell not in seen, one.cell, "given twice, allowed is once")
            seen.add(one.cell)
            _check_cell(one, self.key)
        _check_acceptance(self.acceptance, self.key)
        _check_catch_up(self.catch_up)
        _check_plan(self.plan, self.key)
        return self

    def cell_evidence(self, most_steps: float, now_s: float) -> dict[Cell, CellEvidence]:
        """Every cell as evidence of at most `most_steps` clean steps, heard at `now_s`."""
        return {one.cell: one.evidence(most_steps, now_s) for one in self.cells}

    def acceptance_evidence(self, most_rows: float, now_s: float) -> AcceptanceEvidence:
        """Acceptance as evidence of at most `most_rows` rows a position, seen at `now_s`."""
        shares = [min(1.0, most_rows / one.reached) if one.reached else 0.0 for one in self.acceptance]
        return AcceptanceEvidence(
            tuple(min(one.reached, most_rows) for one in self.acceptance),
            tuple(one.accepted * share for one, share in zip(self.acceptance, shares, strict=True)),
        ).at(now_s)


@dataclass(frozen=True, slots=True)
class Imported:
    """What a group holds that nobody measured here: cells; acceptance and price as the seed gave them, until something is added.

    `resting` are the cells that the seed gave as measured, which are not measured again before `rests_until_s`.
    """

    cells: tuple[Cell, ...] = ()
    acceptance: AcceptanceEvidence = field(default_factory=AcceptanceEvidence)
    catch_up: CatchUpEvidence = field(default_factory=CatchUpEvidence)
    resting: tuple[Cell, ...] = ()
    rests_until_s: float = float("-inf")


def could_be_measured(one: SeedCell, key: GroupKey) -> bool:
    """Whether an engine of that group could have measured the cell."""
    return _holds(lambda: _check_cell(one, key))


def could_be_priced(sums: SeedCatchUp) -> bool:
    """Whether an engine could have caught up like that."""
    return _holds(lambda: _check_catch_up(sums))


def _holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except ValueError:
        return False
    return True


def _check_cell(one: SeedCell, key: GroupKey) -> None:
    bucket, length = one.cell
    highest = batch_bucket(key.max_num_seqs)
    require(length <= key.max_num_speculative_tokens, one.cell, f"K above the group's {key.max_num_speculative_tokens}")
    require(bucket <= highest, one.cell, f"a bucket above {highest}, the last of max_num_seqs {key.max_num_seqs}")
    mean_log = one.log_step_seconds / one.steps
    require(
        math.log(SHORTEST_STEP_SECONDS) <= mean_log <= math.log(LONGEST_STEP_SECONDS),
        one.cell,
        f"e^{mean_log:.4g} s a step, allowed are {SHORTEST_STEP_SECONDS:g} to {LONGEST_STEP_SECONDS:g} s",
    )
    rows = one.decode_rows / one.steps
    first, last = bucket_range(bucket, key.max_num_seqs)
    require(
        first * (1.0 - ROUNDING) <= rows <= last * (1.0 + ROUNDING),
        one.cell,
        f"{rows:.6g} rows a step, allowed are {first} to {last}",
    )
    most_context = one.decode_rows * MOST_CONTEXT_TOKENS
    require(
        one.context_tokens <= most_context,
        one.cell,
        f"{one.context_tokens:.4g} context tokens, allowed are 0 to {most_context:.4g}",
    )


def _check_acceptance(positions: tuple[SeedPosition, ...], key: GroupKey) -> None:
    if len(positions) > key.max_num_speculative_tokens:
        raise ValueError(f"acceptance of {len(positions)} positions, allowed are at most {key.max_num_speculative_tokens}")
    for number, one in enumerate(positions, start=1):
        if one.accepted > one.reached * (1.0 + ROUNDING):
            raise ValueError(f"acceptance of position {number}: {one.accepted:g} rows accepted, allowed are 0 to {one.reached:g}")


def _check_catch_up(sums: SeedCatchUp) -> None:
    tokens, squared, more = sums.tokens, sums.tokens_squared, 1.0 + ROUNDING
    if not (
        sums.steps <= tokens * more
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
