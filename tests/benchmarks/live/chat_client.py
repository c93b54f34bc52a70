"""One streamed chat request, written down as it comes. Nothing of the server raises: what went wrong is the answer's `error`.

vLLM is asked for usage with every event (`continuous_usage_stats`): only the server knows its tokens, and an event may hold
several.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import httpx

from nightjar.loadtests.load.goodput import Timed
from nightjar.loadtests.load.openai_stream import ChatRequest, StreamParser
from tests.benchmarks.engine.fixture import SYSTEM
from tests.benchmarks.live.answers import Answer, Arrival

MODEL_ID: Final = "chat"
TIMEOUT_S: Final = 180.0
"""Of a connection, and of the next event."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: greedy, until the model ends or so many tokens have come."""

    prompt: str
    max_tokens: int

    def body(self) -> dict[str, Any]:
        """As OpenAI's API names things."""
        body = ChatRequest(MODEL_ID, self.prompt, self.max_tokens).body()
        body["messages"].insert(0, {"role": "system", "content": SYSTEM})
        body["stream_options"]["continuous_usage_stats"] = True
        return body


def open_client() -> httpx.AsyncClient:
    """A client for any number of streams at once."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False)


async def ask(client: httpx.AsyncClient, url: str, question: Question, answer: Answer) -> None:
    """Fill `answer` as events come. A caller that cancels this cuts the request off."""
    parser, failure = StreamParser(time.monotonic()), ""
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=question.body()) as response:
            if response.is_error:
                text = (await response.aread()).decode(errors="replace")
                failure = f"HTTP {response.status_code}: {text}"
            else:
                async for line in response.aiter_lines():
                    _take(parser, line, answer)
    except httpx.HTTPError as error:
        failure = f"{type(error).__name__}: {error}"
    answer.ended_s = time.monotonic()
    result = parser.result(answer.ended_s, failure=failure)
    answer.error = result.error
    answer.is_whole = not result.error
    if answer.is_whole:
        answer.timed = Timed(result.ttft_s, result.tpot_s, result.e2e_s, result.completion_tokens or 0)


def _take(parser: StreamParser, line: str, answer: Answer) -> None:
    now_s = time.monotonic()
    parser.feed(line.encode(), now_s)
    tokens = parser.completion_tokens
    if tokens is not None and (tokens > answer.tokens or not answer.arrivals):
        answer.arrivals.append(Arrival(now_s, tokens))
