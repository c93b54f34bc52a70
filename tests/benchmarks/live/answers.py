"""What a client got and when: pure counting, over answers that ended and answers that were cut off alike.

The server says with every event how many tokens the answer has so far. A token counts in the window in which it arrived, so that
neither the requests in flight when a window begins nor those when it ends bias the count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from nightjar.loadtests.load.goodput import Goodput, GoodputTarget, Timed, goodput_of


class Arrival(NamedTuple):
    """One event of a stream, on the client's monotonic clock."""

    at_s: float
    completion_tokens: int
    """Of the answer so far."""


@dataclass(slots=True)
class Answer:
    """One request's answer while it comes and after. Neither whole nor an error: the client itself cut it off."""

    replica: str
    question: int
    arrivals: list[Arrival] = field(default_factory=list)
    is_whole: bool = False
    error: str = ""
    timed: Timed | None = None
    """What a target of goodput looks at, once it is whole."""
    ended_s: float | None = None
    """On the clock of its arrivals; None for one that was cut off."""

    @property
    def has_ended(self) -> bool:
        """Whether the server is done with it, well or badly."""
        return self.is_whole or bool(self.error)

    @property
    def tokens(self) -> int:
        """Tokens that came."""
        return self.arrivals[-1].completion_tokens if self.arrivals else 0


def tokens_between(answers: Iterable[Answer], from_s: float, to_s: float) -> int:
    """Tokens that arrived after `from_s` and not after `to_s`.

    >>> cut = Answer("first", 0, [Arrival(1.0, 1), Arrival(2.0, 4), Arrival(3.0, 6)])
    >>> tokens_between([cut], 1.0, 2.5), tokens_between([cut], 0.0, 9.0)
    (3, 6)
    """
    return sum(_tokens_until(answer.arrivals, to_s) - _tokens_until(answer.arrivals, from_s) for answer in answers)


def tokens_of_whole_steps(answers: Iterable[Answer], from_s: float, to_s: float) -> float:
    """Tokens that a window of a steady load would hold if it began and ended with a step of each engine.

    An engine's tokens come a step at a time, at a full batch dozens at once: by the clock a window of 14 steps holds one more or
    less as its ends happen to fall. So each replica is counted from its last arrival before the window to its last one in it.

    >>> steps = Answer("first", 0, [Arrival(float(second), 32 * second) for second in range(20)])
    >>> tokens_between([steps], 1.9, 9.1), round(tokens_of_whole_steps([steps], 1.9, 9.1), 1)
    (256, 230.4)
    """
    found, by_replica = 0.0, dict[str, list[Answer]]()
    for answer in answers:
        by_replica.setdefault(answer.replica, []).append(answer)
    for own in by_replica.values():
        first_s, last_s = (
            max((arrival.at_s for answer in own for arrival in answer.arrivals if arrival.at_s <= end_s), default=end_s)
            for end_s in (from_s, to_s)
        )
        if last_s > first_s:
            found += tokens_between(own, first_s, last_s) / (last_s - first_s) * (to_s - from_s)
    return found


def goodput_between(answers: Iterable[Answer], from_s: float, to_s: float, target: GoodputTarget) -> Goodput:
    """Of the requests that ended after `from_s` and not after `to_s`; one that failed kept nothing."""
    ended = [answer for answer in answers if answer.ended_s is not None and from_s < answer.ended_s <= to_s]
    return goodput_of(target, (answer.timed for answer in ended if answer.timed), len(ended), to_s - from_s)


def acceptance_seen(answers: Iterable[Answer], num_speculative_tokens: int) -> tuple[list[int], list[int]]:
    """Steps that verified more than i drafts and those in which more than i were accepted, for each i, as events tell them.

    At a fixed K an event is a step: one token of the target's and the drafts that were accepted. Left out are the first event with
    a token, which is the prompt's; the last of an answer, which a limit may have cut short; and events that hold more than a step
    can give, because two came as one.

    >>> answer = Answer("first", 0, [Arrival(0, 0), Arrival(1, 1), Arrival(2, 5), Arrival(3, 7), Arrival(4, 13), Arrival(5, 14)])
    >>> acceptance_seen([answer], 3)
    ([2, 2, 2], [2, 1, 1])
    """
    reached, accepted = [0] * num_speculative_tokens, [0] * num_speculative_tokens
    for answer in answers:
        with_tokens = [arrival.completion_tokens for arrival in answer.arrivals if arrival.completion_tokens]
        for before, after in list(pairwise(with_tokens))[:-1]:
            if not before < after <= before + num_speculative_tokens + 1:
                continue
            for position in range(num_speculative_tokens):
                reached[position] += 1
                accepted[position] += after - before - 1 > position
    return reached, accepted


def _tokens_until(arrivals: Sequence[Arrival], at_s: float) -> int:
    return max((arrival.completion_tokens for arrival in arrivals if arrival.at_s <= at_s), default=0)
