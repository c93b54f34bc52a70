"""What `nightjar check` says: findings with a line, worst first to matter.

An error is a configuration that will not do what it says; a warning one that will disappoint; advice is neither, and fails nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nightjar.policy.wire.record import without_credentials

Severity = Literal["error", "warning", "advice"]
ServedOn = Literal["this machine", "pods", "unknown"]
"""Whose folders an engine will find: this machine's under `nightjar run`, its pods' own in a RayService."""
Place = tuple[str | int, ...]
"""Keys and list positions from the top of a configuration down to a value."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one place of a file. An error's names the value seen, what is allowed and the way out."""

    severity: Severity
    place: Place
    message: str


@dataclass(frozen=True, slots=True)
class FoundLine:
    """A finding with its line in the file, counted from 1."""

    line: int
    finding: Finding

    def text(self, file: str) -> str:
        """As compilers write it, so that editors jump to it."""
        place = ".".join(str(part) for part in self.finding.place)
        where = f" {place}:" if place else ""
        return f"{file}:{self.line}: {self.finding.severity}:{where} {without_credentials(self.finding.message)}"


def shown(value: object) -> str:
    """A value as messages show it: short, on one line, without the passwords of addresses."""
    text = without_credentials(" ".join(repr(value).split()))
    return text if len(text) <= 80 else f"{text[:77]}..."
