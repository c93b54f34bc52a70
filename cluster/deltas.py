"""What changed between two plain values, as a plain value: most of a report is what the same replica reported before.

Pure. Mappings are compared by key, lists of equal length by place; anything else that differs is replaced.
"""

from __future__ import annotations

from typing import Any, Final

_REPLACED: Final = 0
_MAPPING: Final = 1
_LIST: Final = 2


def difference(before: Any, now: Any) -> list[Any] | None:
    """What `applied` needs beside `before` to give `now`; None where both are equal.

    >>> difference({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3], "c": 4})
    [1, {'b': [2, [1], [[0, 3]]], 'c': [0, 4]}, []]
    >>> difference({"a": 1}, {"a": 1})
    """
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        changed = {
            key: difference(before[key], value) if key in before else [_REPLACED, value]
            for key, value in now.items()
            if key not in before or before[key] != value
        }
        return [_MAPPING, changed, [key for key in before if key not in now]]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        places = [place for place, value in enumerate(now) if before[place] != value]
        return [_LIST, places, [difference(before[place], now[place]) for place in places]]
    return [_REPLACED, now]


def applied(before: Any, delta: list[Any] | None) -> Any:
    """`before` with what changed since; `before` itself is left as it is.

    >>> applied({"a": 1, "b": [1, 2]}, difference({"a": 1, "b": [1, 2]}, {"b": [1, 3]}))
    {'b': [1, 3]}
    """
    if delta is None:
        return before
    if delta[0] == _REPLACED:
        return delta[1]
    if delta[0] == _MAPPING:
        _, changed, gone = delta
        kept = {key: value for key, value in before.items() if key not in gone}
        return kept | {key: applied(before.get(key), change) for key, change in changed.items()}
    _, places, changes = delta
    after = list(before)
    for place, change in zip(places, changes, strict=True):
        after[place] = applied(before[place], change)
    return after
