"""What replicas lose until they know: the seconds that they ran at another K than the best, times what that K gives less.

Speeds are those of the steady section, where all K were measured in turns: neither what the machine did in the minute of learning
nor the luck with its texts counts as a loss or a gain. Catching up is time without any gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

STEADY_SHARE: Final = 0.02
"""Of the best speed: who loses no more from some moment on is steady from then on."""


class Moment(NamedTuple):
    """Seconds since the beginning, and the tokens lost until then."""

    at_s: float
    lost_tokens: float


def lost_tokens(seconds: Mapping[int, float], catching_up_s: float, speeds: Mapping[int, float]) -> float:
    """Tokens lost in so many engine seconds at each K, of which `catching_up_s` gave nothing. `speeds` by K, one replica's.

    >>> lost_tokens({5: 4.0, 1: 10.0}, 0.5, {0: 30.0, 1: 40.0, 5: 20.0})
    100.0
    """
    best = max(speeds.values())
    return math.fsum(time_s * (best - speed_at(length, speeds)) for length, time_s in seconds.items()) + catching_up_s * best


def speed_at(length: int, speeds: Mapping[int, float]) -> float:
    """Speed at a K, also at one that was not measured: on a line between its neighbours, beyond them the last one's.

    >>> speed_at(2, {0: 30.0, 1: 40.0, 3: 36.0}), speed_at(9, {0: 30.0, 3: 36.0})
    (38.0, 36.0)
    """
    lengths = sorted(speeds)
    for shorter, longer in pairwise(lengths):
        if shorter <= length <= longer:
            share = (length - shorter) / (longer - shorter)
            return speeds[shorter] + share * (speeds[longer] - speeds[shorter])
    return speeds[lengths[-1]]


def steady_from_s(moments: Sequence[Moment], best_speed: float) -> float:
    """The first moment from which on no more than STEADY_SHARE of the best is lost; the last one where that never comes.

    >>> steady_from_s([Moment(0.0, 0.0), Moment(5.0, 50.0), Moment(10.0, 55.0), Moment(30.0, 60.0)], best_speed=40.0)
    5.0
    """
    end = moments[-1]
    for moment in moments[:-1]:
        if end.lost_tokens - moment.lost_tokens <= STEADY_SHARE * best_speed * (end.at_s - moment.at_s):
            return moment.at_s
    return end.at_s
