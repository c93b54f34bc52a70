"""Settings for tests of the step loop, short to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.settings import (
    ExplorationSegment,
    IssuedSettings,
    Local,
    Plan,
    Settings,
    SettingsVersion,
    Table,
    TableRow,
)

MAX_NUM_SPECULATIVE_TOKENS = 5
MAX_NUM_SEQS = 16


def table(*rows: tuple[int, int, int], segments: Sequence[ExplorationSegment] = ()) -> Table:
    return Table(
        rows=tuple(TableRow(first_batch_size=first, last_batch_size=last, num_speculative_tokens=k) for first, last, k in rows),
        segments=tuple(segments),
    )


def segment(
    segment_id: int,
    k: int,
    *,
    first: int = 1,
    last: int = 4,
    clean_steps: int = 3,
    time_to_live_s: float = 100.0,
    beside_prefill: bool = False,
) -> ExplorationSegment:
    return ExplorationSegment(
        segment_id=segment_id,
        first_batch_size=first,
        last_batch_size=last,
        num_speculative_tokens=k,
        clean_steps=clean_steps,
        time_to_live_s=time_to_live_s,
        beside_prefill=beside_prefill,
    )


def settings(
    plan: Plan | None = None,
    *,
    mode: str = "auto",
    sequence: int = 1,
    incarnation: int = 1,
    allowed: tuple[int, ...] = (0, 1, 3, 5),
    dwell_steps: int = 0,
    max_age_s: float = 300.0,
    **more: Any,
) -> IssuedSettings:
    """`more` are further fields of Settings."""
    told = Settings(
        mode=Mode.parse(mode),
        plan=plan or table((1, 4, 5), (5, 8, 1), (9, 16, 0)),
        allowed_num_speculative_tokens=allowed,
        dwell_steps=dwell_steps,
        settings_max_age_s=max_age_s,
        **more,
    )
    return IssuedSettings(version=SettingsVersion(incarnation=incarnation, sequence=sequence), settings=told)


def local_plan(planner: str) -> Local:
    return Local(planner=planner)
