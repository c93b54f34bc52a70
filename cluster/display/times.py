"""Durations as people type them: 90s, 30m, 2h, 1d."""

from __future__ import annotations

import re
from typing import Final

SECONDS_PER_UNIT: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
MAX_DURATION_S: Final = 30 * 86_400.0


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `30m`, `1.5h` or `2d`.

    Raises ValueError naming the value and what is allowed: a positive number with its unit, at most 30 days.

    >>> parse_duration("90s"), parse_duration("1.5h")
    (90.0, 5400.0)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text.strip())
    if match is None:
        raise ValueError(f"duration {text[:40]!r} is not a number with a unit, such as 90s, 30m, 2h or 1d")
    seconds = float(match[1]) * SECONDS_PER_UNIT[match[2]]
    if not 0 < seconds <= MAX_DURATION_S:
        raise ValueError(f"duration {text[:40]!r} is not above zero and at most 30d")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration for a table: its two largest units, whole ones.

    >>> format_duration(4.2), format_duration(90), format_duration(7300), format_duration(86_400)
    ('4s', '1m30s', '2h1m', '1d')
    """
    rest_s = int(seconds)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, rest_s = divmod(rest_s, int(SECONDS_PER_UNIT[unit]))
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return "".join(parts[:2]) or "0s"
