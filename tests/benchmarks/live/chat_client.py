"""One streamed chat request, written down as it comes. Nothing of the server raises: what went wrong is the answer's `error`.

vLLM is asked for usage with every event (`continuous_usage_stats`): only the server knows its tokens, and an event may hold
several.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx

from tests.benchmarks.engine.fixture import SYSTEM
from tests.benchmarks.live.answers import Answer, Arrival

MODEL_ID: Final = "chat"
TIMEOUT_S: Final = 180.0
"""Of a connection, and of the next event."""
MAX_ERROR_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: greedy, until the model ends or so many tokens have come."""

    prompt: str
    max_tokens: int

    def body(self) -> dict[str, Any]:
        """As OpenAI's API names things."""
        return {
            "model": MODEL_ID,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }


def open_client() -> httpx.AsyncClient:
    """A client for any number of streams at once."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False)


async def ask(client: httpx.AsyncClient, url: str, question: Question, answer: Answer) -> None:
    """Fill `answer` as events come. A caller that cancels this cuts the request off."""
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=question.body()) as response:
            if response.is_error:
                text = (await response.aread()).decode(errors="replace")
                answer.error = f"HTTP {response.status_code}: {text}"[:MAX_ERROR_CHARACTERS]
                return
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    _take(line.removeprefix("data:").strip(), answer)
    except httpx.HTTPError as error:
        answer.error = answer.error or f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]
    else:
        if not answer.is_whole:
            answer.error = answer.error or "the stream ended before [DONE]"


def _take(data: str, answer: Answer) -> None:
    if data == "[DONE]":
        answer.is_whole = not answer.error
        return
    try:
        event = json.loads(data)
        error, usage = event.get("error"), event.get("usage") or {}
        tokens = int(usage.get("completion_tokens", answer.tokens))
    except (ValueError, AttributeError, TypeError):
        error, tokens = f"an event that cannot be read: {data[:80]!r}", answer.tokens
    if error:
        answer.error = answer.error or str(error)[:MAX_ERROR_CHARACTERS]
    elif tokens > answer.tokens or not answer.arrivals:
        answer.arrivals.append(Arrival(time.monotonic(), tokens))
