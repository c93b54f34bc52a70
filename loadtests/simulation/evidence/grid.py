"""A table as text cells, and how numbers are written in it; the terminal and the HTML page draw the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DASH: Final = "-"
"""What was not run."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: title, what to know when reading it, column heads, and rows of text as wide as the heads."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def has_text(self) -> tuple[bool, ...]:
        """Of each column: whether its cells are words, in one row at least, and no numbers."""
        return tuple(any(row[place][:1].isalpha() for row in self.rows) for place in range(len(self.columns)))


def ratio(value: float | None) -> str:
    """Three decimals.

    >>> ratio(1.2345), ratio(None)
    ('1.234', '-')
    """
    return DASH if value is None else f"{value:.3f}"


def share(value: float | None) -> str:
    """Whole percent."""
    return DASH if value is None else f"{value:.0%}"


def number(value: float | None) -> str:
    """Three digits, or all before the point.

    >>> number(0.01234), number(12345.6)
    ('0.0123', '12,346')
    """
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
