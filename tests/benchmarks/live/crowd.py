"""Closed-loop users of several replicas: each asks again as soon as it was answered, as often as its deck says.

Who asks what depends on the user's number, the turn and the replica alone, never on how fast anybody was answered: all arms that
play the same round get the same prompts in the same order, and the luck with texts is theirs in common.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

from tests.benchmarks.live.answers import Answer
from tests.benchmarks.live.chat_client import Question, ask

FAILURE_PAUSE_S: Final = 1.0
"""After a request that failed, so that a dead server is not asked thousands of times a second."""


def _without_end(user: int) -> float:
    return math.inf


@dataclass(frozen=True, slots=True)
class Deck:
    """The questions of one round, dealt to users."""

    prompt_of: Callable[[int], str]
    first: int
    """Number of its first question."""
    users: int
    """Of one replica, at most."""
    max_tokens: int
    is_staggered: bool = False
    """Whether first answers are cut short, each user's at another length: else all end at once, and begin at once again."""
    turns: Callable[[int], float] = _without_end
    """Questions of a user, by its number."""

    def question(self, place: int, places: int, user: int, turn: int) -> tuple[int, Question]:
        """Number and words of what a user asks at a turn; `place` is its replica's among `places`.

        >>> deck = Deck("question {}".format, first=100, users=4, max_tokens=64, is_staggered=True)
        >>> deck.question(1, 2, 0, 0), deck.question(1, 2, 0, 1)[0]
        ((101, Question(prompt='question 101', max_tokens=16)), 109)
        """
        number = self.first + (turn * self.users + user) * places + place
        is_short = self.is_staggered and turn == 0
        max_tokens = max(self.max_tokens * (user + 1) // self.users, 1) if is_short else self.max_tokens
        return number, Question(self.prompt_of(number), max_tokens)


class Crowd:
    """Users while it is entered; what is in flight at its end is cut off. `urls` are those of the replicas, by name."""

    def __init__(self, client: httpx.AsyncClient, urls: Mapping[str, str], deck: Deck) -> None:
        self.answers: list[Answer] = []
        self._client = client
        self._urls = urls
        self._deck = deck
        self._wanted = 0
        self._answer_ended = asyncio.Condition()
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks.values():
            task.cancel()
        ended = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        broken = [one for one in ended if isinstance(one, Exception)]
        if broken and error is None:
            raise broken[0]

    def resize(self, users: int) -> None:
        """So many users at each replica from now on. Those who go wait for their answer first."""
        self._wanted = users
        for (place, (replica, url)), user in itertools.product(enumerate(self._urls.items()), range(users)):
            task = self._tasks.get((replica, user))
            if task is None or task.done():
                self._tasks[replica, user] = asyncio.create_task(self._use(place, replica, url, user))

    async def answered(self, count: int) -> None:
        """Until so many answers of all users have ended, however they did."""
        async with self._answer_ended:
            await self._answer_ended.wait_for(lambda: sum(answer.has_ended for answer in self.answers) >= count)

    async def finished(self, first_user: int = 0) -> None:
        """Until all users from this one on have had their turns."""
        await asyncio.gather(*(task for (_, user), task in self._tasks.items() if user >= first_user))

    async def _use(self, place: int, replica: str, url: str, user: int) -> None:
        for turn in itertools.count():
            if user >= self._wanted or turn >= self._deck.turns(user):
                return
            number, question = self._deck.question(place, len(self._urls), user, turn)
            answer = Answer(replica, number)
            self.answers.append(answer)
            await ask(self._client, url, question, answer)
            async with self._answer_ended:
                self._answer_ended.notify_all()
            if answer.error:
                await asyncio.sleep(FAILURE_PAUSE_S)
