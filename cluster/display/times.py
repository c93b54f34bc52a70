"""Durations and points in time as people type them (90s, 2h; 10m ago, 2026-11-25T22:05:00), and as a line of output has them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
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


def parse_moment(text: str, now_s: float) -> float:
    """Seconds since the epoch of a moment: a duration before `now_s`, or an ISO time (without an offset: of this machine's zone).

    Raises ValueError naming the value and what is allowed.

    >>> parse_moment("10m", 1000.0), parse_moment("1970-01-01T00:16:40Z", 0.0)
    (400.0, 1000.0)
    """
    try:
        return now_s - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError as error:
        allowed = "a duration ago, such as 10m, or a time such as 2026-11-25T22:05:00Z"
        raise ValueError(f"time {text[:40]!r} is none; allowed are {allowed}") from error


def format_moment(time_s: float) -> str:
    """A moment for a line of output, in UTC and to the second.

    >>> format_moment(1000.0)
    '1970-01-01T00:16:40Z'
    """
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
