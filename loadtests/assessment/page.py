"""Findings as one page of HTML, light and dark."""

from __future__ import annotations

from typing import NamedTuple

from nightjar.loadtests.assessment.findings import BatchRow, Findings
from nightjar.loadtests.assessment.table import acceptance, cells, columns, facts, headline, shipped_profile
from nightjar.loadtests.page import render
from nightjar.policy.planners.base import batch_range


class _Bar(NamedTuple):
    """A batch's hours, and the parts of its bar as percent of the widest."""

    batch: str
    hours: float
    drafted: float
    off: float


def render_page(found: Findings) -> str:
    """The page."""
    heads = columns(found)
    return render(
        "assess.html",
        found=found,
        headline=headline(found),
        facts=facts(found),
        acceptance=acceptance(found),
        bars=[_bar(row, max(row.hours for row in found.batches)) for row in found.batches],
        heads=heads,
        rows=[cells(row, len(heads)) for row in found.batches],
        profiles=[shipped_profile(profile) for profile in found.shipped],
    )


def _bar(row: BatchRow, most_hours: float) -> _Bar:
    width = 100.0 * row.hours / most_hours
    off = sum(one.share for one in row.ran if one.num_speculative_tokens == 0)
    batch = batch_range(row.first_batch_size, row.last_batch_size)
    return _Bar(batch, row.hours, width * (1.0 - off), width * off)
