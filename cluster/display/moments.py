"""Points in time as people type them: 10m (ago), or 2026-11-25T22:05:00, and as a line of output tells them."""

from __future__ import annotations

from datetime import UTC, datetime

from nightjar.cluster.display.times import parse_duration


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
