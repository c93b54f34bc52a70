"""What the fleet learned, as it is stored: the prior of the next policy actor.

Columns instead of a record per cell, because the store's record is at most MAX_RECORD_BYTES long. Losing it costs one
calibration and nothing else; replicas' cumulative counters bring most of it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from nightjar.policy.estimate.acceptance import AcceptanceEvidence
from nightjar.policy.estimate.catch_up import CatchUpEvidence
from nightjar.policy.estimate.evidence import CellEvidence, Evidence
from nightjar.policy.wire.record import (
    MAX_NUM_SPECULATIVE_TOKENS,
    Count,
    DecayedSum,
    NumSpeculativeTokens,
    PositiveSum,
    Record,
    SignedSum,
)
from nightjar.policy.wire.report import MAX_CELLS, GroupKey

MAX_LEARNED_CELLS: Final = 16_384
"""Of all groups together: about 60 bytes each keep the record well below MAX_RECORD_BYTES."""
MAX_LEARNED_GROUPS: Final = 512
SUMS: Final[Mapping[str, str]] = {
    "steps": "steps",
    "log_step_seconds": "log_seconds",
    "decode_rows": "rows",
    "context_tokens": "context_tokens",
    "log_step_seconds_squared": "log_seconds_squared",
}
"""Each column of sums, and the field of CellEvidence that it stores; in the order of those."""

PositionSums = Annotated[tuple[DecayedSum, ...], Field(max_length=MAX_NUM_SPECULATIVE_TOKENS)]


class LearnedGroup(Record):
    """One group's evidence: a column entry per cell, decode rows by draft position, and the price of catching up.

    Whatever was counted fits: the fleet is journalled and stored after every decision, and one absurd report must not end that.
    """

    key: GroupKey
    batch_buckets: Annotated[tuple[Annotated[int, Field(ge=0, lt=64)], ...], Field(max_length=MAX_CELLS)] = ()
    num_speculative_tokens: Annotated[tuple[NumSpeculativeTokens, ...], Field(max_length=MAX_CELLS)] = ()
    steps: Annotated[tuple[PositiveSum, ...], Field(max_length=MAX_CELLS)] = ()
    log_step_seconds: Annotated[tuple[SignedSum, ...], Field(max_length=MAX_CELLS)] = ()
    decode_rows: Annotated[tuple[DecayedSum, ...], Field(max_length=MAX_CELLS)] = ()
    context_tokens: Annotated[tuple[DecayedSum, ...], Field(max_length=MAX_CELLS)] = ()
    log_step_seconds_squared: Annotated[tuple[DecayedSum, ...], Field(max_length=MAX_CELLS)] = ()
    reached: PositionSums = ()
    accepted: PositionSums = ()
    catch_up: Annotated[tuple[SignedSum, ...], Field(min_length=5, max_length=5)] = (0.0,) * 5

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> Self:
        lengths = [len(getattr(self, name)) for name in ("batch_buckets", "num_speculative_tokens", *SUMS)]
        if len(set(lengths)) > 1 or len(self.reached) != len(self.accepted):
            raise ValueError(
                f"columns of {lengths} cells and {len(self.reached)}, {len(self.accepted)} positions; equal ones needed"
            )
        return self

    @classmethod
    def of(cls, key: GroupKey, evidence: Evidence, catch_up: CatchUpEvidence) -> LearnedGroup:
        """The stored form of a group's evidence."""
        cells = sorted(evidence.cells.items())
        return cls(
            key=key,
            batch_buckets=tuple(bucket for (bucket, _), _ in cells),
            num_speculative_tokens=tuple(length for (_, length), _ in cells),
            reached=evidence.acceptance.reached,
            accepted=evidence.acceptance.accepted,
            catch_up=astuple(catch_up),
            **{name: tuple(getattr(cell, sums) for _, cell in cells) for name, sums in SUMS.items()},
        )

    def evidence(self) -> Evidence:
        """The evidence that was stored."""
        keys = zip(self.batch_buckets, self.num_speculative_tokens, strict=True)
        cells = (CellEvidence(*sums) for sums in zip(*(getattr(self, name) for name in SUMS), strict=True))
        return Evidence(dict(zip(keys, cells, strict=True)), AcceptanceEvidence(self.reached, self.accepted))

    def catch_up_evidence(self) -> CatchUpEvidence:
        """What was stored of the price of catching up."""
        return CatchUpEvidence(*self.catch_up)


class LearnedTables(Record):
    """Everything worth keeping across a restart of the policy. An unknown version is refused, and the fleet starts cold."""

    version: Literal[1] = 1
    next_segment_id: Annotated[Count, Field(ge=1)] = 1
    groups: Annotated[tuple[LearnedGroup, ...], Field(max_length=MAX_LEARNED_GROUPS)] = ()
