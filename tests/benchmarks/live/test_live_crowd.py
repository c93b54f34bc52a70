"""Closed-loop users of the live benchmark, against a server made up: who asks what, what is counted, what counts as a failure."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable

import httpx

from nightjar.loadtests.load.goodput import GoodputTarget, Timed, goodput_of
from tests.benchmarks.live.answers import Answer, goodput_between, tokens_between
from tests.benchmarks.live.chat_client import Question, ask
from tests.benchmarks.live.crowd import Crowd, Deck
from tests.benchmarks.live.playing import Window, goodput_cell

URLS = {"first": "http://one", "second": "http://two"}
PAUSE_S = 0.01


class Stream(httpx.AsyncByteStream):
    """Lines of server-sent events, a little apart."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for line in self._lines:
            await asyncio.sleep(PAUSE_S)
            yield f"{line}\n\n".encode()


def event(completion_tokens: int) -> str:
    return "data: " + json.dumps(
        {"choices": [{"delta": {"content": "word "}}], "usage": {"prompt_tokens": 9, "completion_tokens": completion_tokens}}
    )


class Server:
    """Answers two tokens at a time up to what is asked for, and remembers who asked it what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append((request.url.host, body["messages"][-1]["content"]))
        counts = range(0, body["max_tokens"] + 1, 2)
        return httpx.Response(200, stream=Stream([*map(event, counts), "data: [DONE]"]))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self))


async def until(condition: Callable[[], object]) -> None:
    """Let the others go on until it is true."""
    while not condition():  # noqa: ASYNC110 - what is waited for is counted, and nothing tells of it
        await asyncio.sleep(0.0)


def deck(*, users: int = 2, turns: float = 2, max_tokens: int = 4) -> Deck:
    return Deck("question {}".format, first=0, users=users, max_tokens=max_tokens, turns=lambda _: turns)


async def test_every_user_of_every_replica_has_its_turns_and_no_question_is_asked_twice() -> None:
    server = Server()
    async with server.client() as client, Crowd(client, URLS, deck()) as crowd:
        crowd.resize(2)
        await crowd.finished()
    assert {question for _, question in server.asked} == {f"question {number}" for number in range(8)}
    assert Counter(host for host, _ in server.asked) == {"one": 4, "two": 4}
    assert all(answer.is_whole and answer.tokens == 4 for answer in crowd.answers)


async def test_of_the_requests_that_end_in_a_window_those_within_a_target_count_and_failed_ones_do_not() -> None:
    server = Server()
    async with server.client() as client, Crowd(client, URLS, deck()) as crowd:
        crowd.resize(2)
        await crowd.finished()
    answers = [*crowd.answers, Answer("first", 99, error="refused", ended_s=crowd.answers[0].ended_s)]
    found = goodput_between(answers, 0.0, math.inf, GoodputTarget(ttft_ms=1e6, tpot_ms=1e6))
    assert (found.requests, found.kept) == (9, 8)
    assert goodput_between(answers, 0.0, math.inf, GoodputTarget(ttft_ms=1e-3)).kept == 0
    assert goodput_between(answers, math.inf, math.inf, GoodputTarget(ttft_ms=1e6)).requests == 0
    one = Window(10.0, 40, {}, 40.0, goodput_of(GoodputTarget(ttft_ms=1e6), [Timed(0.1, 0.1, 1.0, 20)], 2, 10.0))
    assert goodput_cell([one, one, Window(5.0, 0, {}, 0.0)]) == "50.0%, 2.0"


async def test_the_same_deck_asks_the_same_however_fast_answers_come() -> None:
    fast, slow = Server(), Server()
    for server, max_tokens in ((fast, 2), (slow, 8)):
        async with server.client() as client, Crowd(client, URLS, deck(max_tokens=max_tokens)) as crowd:
            crowd.resize(2)
            await crowd.finished()
    assert sorted(fast.asked) == sorted(slow.asked)


async def test_those_who_go_wait_for_their_answer_and_those_who_stay_go_on() -> None:
    server = Server()
    async with server.client() as client, Crowd(client, {"first": "http://one"}, deck(turns=math.inf)) as crowd:
        crowd.resize(2)
        await until(lambda: len(crowd.answers) == 2)
        crowd.resize(1)
        await until(lambda: sum(answer.is_whole for answer in crowd.answers) == 5)
    users = Counter(answer.question % 2 for answer in crowd.answers)
    assert users[1] == 1
    assert next(answer for answer in crowd.answers if answer.question == 1).is_whole


async def test_users_of_a_surge_ask_once_and_those_who_were_there_before_go_on() -> None:
    server = Server()
    asked = Deck("question {}".format, first=0, users=3, max_tokens=4, turns=lambda user: 5 if user < 1 else 1)
    async with server.client() as client, Crowd(client, URLS, asked) as crowd:
        crowd.resize(1)
        await crowd.answered(2)
        assert sum(answer.is_whole for answer in crowd.answers) >= 2
        crowd.resize(3)
        await crowd.finished(first_user=1)
        assert sum(answer.is_whole for answer in crowd.answers if answer.question % 6 >= 2) == 4
        await crowd.finished()
    assert Counter(host for host, _ in server.asked) == {"one": 7, "two": 7}


async def test_what_is_in_flight_at_the_end_is_cut_off_and_counts_with_what_came() -> None:
    server = Server()
    async with server.client() as client, Crowd(client, {"first": "http://one"}, deck(users=1, max_tokens=1000)) as crowd:
        crowd.resize(1)
        await until(lambda: crowd.answers[0].tokens if crowd.answers else 0)
    (answer,) = crowd.answers
    assert not answer.is_whole
    assert not answer.error
    assert 0 < answer.tokens == tokens_between([answer], 0.0, float("inf"))


async def answered(response: httpx.Response) -> Answer:
    answer = Answer("first", 0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: response)) as client:
        await ask(client, "http://one", Question("hello", 4), answer)
    return answer


async def test_a_status_an_error_event_and_an_early_end_are_failures() -> None:
    refused = await answered(httpx.Response(503, text="no replica"))
    failed = await answered(httpx.Response(200, stream=Stream([event(1), 'data: {"error": {"message": "died"}}', "data: [DONE]"])))
    ended = await answered(httpx.Response(200, stream=Stream([event(1)])))
    torn = await answered(httpx.Response(200, stream=Stream(["data: {", "data: [DONE]"])))
    assert refused.error == "HTTP 503: no replica"
    assert "died" in failed.error
    assert ended.error == "the stream ended before [DONE]"
    assert "not a JSON object" in torn.error
    assert not any(answer.is_whole for answer in (refused, failed, ended, torn))


async def test_a_connection_that_breaks_is_a_failure() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody listens", request=request)

    answer = Answer("first", 0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
        await ask(client, "http://one", Question("hello", 4), answer)
    assert answer.error == "ConnectError: nobody listens"
