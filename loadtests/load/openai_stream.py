"""One streamed chat completion against any OpenAI-compatible server, timed on the stream.

Time to first token is honest only where each event is seen when it arrives: clients that fill a buffer first (Locust's
`iter_lines`, 1,024 bytes) hold back early tokens. Here lines are read one by one off the response. The parser knows no
socket: it takes lines with the time they came, and is tested without a server.
Nothing raises: a refused connection, an error status, an error event or a stream that ends early all become a `ChatResult`
whose `error` says so.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from nightjar.loadtests.load.connections import Connections, new_connection

READ_TIMEOUT_S: Final = 120.0
"""Longest wait for a connection, and for the next byte of a stream that has begun."""
MAX_ERROR_CHARACTERS: Final = 300


class AddressError(ValueError):
    """A server address that is no http(s) URL."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where chat completions are asked for: `http(s)://host[:port][/prefix]`, without `/v1`. The key stays out of reprs."""

    url: str
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise AddressError(
                f"server address {self.url!r}: allowed is http(s)://host[:port][/prefix], for example http://127.0.0.1:8000"
            )


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked. `top_logprobs` > 0 asks for the logprobs of so many best tokens at each place.

    `ignore_eos` has the answer go on to `max_tokens`: vLLM's word, which OpenAI's own service refuses.
    """

    model: str
    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_logprobs: int = 0
    ignore_eos: bool = False

    def body(self) -> dict[str, Any]:
        """The JSON body, as OpenAI's API names things. Usage is asked for: only the server knows its token counts."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the logprobs of the best candidates at its place, best first."""

    text: str
    top_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ChatResult:
    """What came back. Times are seconds; None where there was no token to time.

    ttft_s  from sending to the first text
    tpot_s  from the first text to the last, over the tokens after the first (usage's count): speculation brings several
            tokens in one event, so gaps between events are not times per token
    e2e_s   from sending to the end of the stream, or to the failure
    status  HTTP status, 0 where no response came; `error` is empty exactly when the answer is whole
    """

    status: int
    error: str
    e2e_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    text: str = ""
    finish_reason: str = ""
    tokens: tuple[Token, ...] = ()


class StreamParser:
    """Server-sent events of one chat completion, line by line. Feed lines until `done`, then take `result`."""

    def __init__(self, sent_s: float) -> None:
        self.done = False
        self._sent_s = sent_s
        self._data: list[str] = []
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._texts: list[str] = []
        self._tokens: list[Token] = []
        self._usage: dict[str, Any] = {}
        self._finish_reason = ""
        self._error = ""

    def feed(self, line: bytes, now_s: float) -> None:
        """Take one line (its line end included) that arrived at `now_s`, on the clock of `sent_s`."""
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        if text.startswith("data:"):
            self._data.append(text[5:].removeprefix(" "))
        elif not text:
            self._end_event(now_s)

    @property
    def completion_tokens(self) -> int | None:
        """Tokens of the answer so far, where the server says them with every event (vLLM: `continuous_usage_stats`)."""
        return self._count("completion_tokens")

    def result(self, end_s: float, status: int = 200, failure: str = "") -> ChatResult:
        """The completion as far as it came. `failure` is what the transport saw; without one, a stream without end is one."""
        self._end_event(end_s)
        error = self._error or failure or ("" if self.done else "the stream ended before [DONE]")
        if not error and self._finish_reason == "" and not self._texts:
            error = "the stream held no completion"
        completion_tokens = self.completion_tokens
        return ChatResult(
            status=status,
            error=error[:MAX_ERROR_CHARACTERS],
            e2e_s=end_s - self._sent_s,
            ttft_s=None if self._first_s is None else self._first_s - self._sent_s,
            tpot_s=self._tpot_s(completion_tokens),
            prompt_tokens=self._count("prompt_tokens"),
            completion_tokens=completion_tokens,
            text="".join(self._texts),
            finish_reason=self._finish_reason,
            tokens=tuple(self._tokens),
        )

    def _end_event(self, now_s: float) -> None:
        data, self._data = "\n".join(self._data), []
        if not data or self.done:
            return
        if data.strip() == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self._fail(f"an event that is not a JSON object: {data[:80]!r}")
        elif event.get("error"):
            self._fail(_error_text(event))
        else:
            try:
                self._take(event, now_s)
            except (AttributeError, TypeError, ValueError):
                self._fail(f"an event of another form than the OpenAI API's: {data[:80]!r}")

    def _take(self, event: dict[str, Any], now_s: float) -> None:
        usage = event.get("usage") or self._usage
        if not isinstance(usage, dict):
            raise TypeError("usage is no object")
        self._usage = usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            text = (delta.get("reasoning_content") or delta.get("reasoning") or "") + (delta.get("content") or "")
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            self._tokens.extend(_tokens(choice))
            if text or (choice.get("finish_reason") and self._first_s is None):
                self._texts.append(text)
                self._first_s = now_s if self._first_s is None else self._first_s
                self._last_s = now_s

    def _fail(self, error: str) -> None:
        self._error = self._error or error
        self.done = True

    def _count(self, name: str) -> int | None:
        value = self._usage.get(name)
        return value if isinstance(value, int) else None

    def _tpot_s(self, completion_tokens: int | None) -> float | None:
        if self._first_s is None or self._last_s is None or completion_tokens is None or completion_tokens < 2:
            return None
        return (self._last_s - self._first_s) / (completion_tokens - 1)


def stream_chat(
    server: Server,
    request: ChatRequest,
    clock: Callable[[], float] = time.perf_counter,
    read_timeout_s: float = READ_TIMEOUT_S,
    connections: Connections | None = None,
) -> ChatResult:
    """Send `request` and read its stream to the end. TTFT includes connecting, which only `connections` spare.

    Blocks the calling thread, or only the greenlet where gevent has patched sockets (Locust does).
    """
    parser, status, failure, response = StreamParser(clock()), 0, "", None
    connection = connections.take() if connections else new_connection(server.url, read_timeout_s)
    try:
        response = _send(connection, server, "POST", "/v1/chat/completions", request.body(), keep_alive=connections is not None)
        status = response.status
        if status != http.client.OK:
            failure = f"HTTP {status}: {_body_error(response.read(64_000))}"
        else:
            for line in _lines(response):
                parser.feed(line, clock())
                if parser.done:
                    break
    except (OSError, http.client.HTTPException) as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        end_s = clock()
        if connections and response and parser.done:
            connections.give_back(connection, response)
        else:
            connection.close()
    return parser.result(end_s, status, failure)


class ServedModel(NamedTuple):
    """A model of a server's list. `max_model_len` is the longest prompt and answer together; vLLM tells it, others do not."""

    model_id: str
    max_model_len: int | None


def first_model(server: Server, read_timeout_s: float = 5.0) -> str:
    """Id of the first model that the server lists. Raises ConnectionError with one clear message where there is none."""
    return served_model(server, read_timeout_s=read_timeout_s).model_id


def served_model(server: Server, model_id: str = "", read_timeout_s: float = 5.0) -> ServedModel:
    """The model of this id, or the first that the server lists. Raises ConnectionError with one clear message.

    A server that answers, but lists no such model or none at all, may still know one that was named.
    """
    status, body = _get_models(server, read_timeout_s)
    try:
        if status != http.client.OK:
            raise ConnectionError(f"{server.url}/v1/models answered HTTP {status}: {_body_error(body)}")
        listed = [_served(entry) for entry in json.loads(body)["data"]]
        named = [model for model in listed if model_id in {"", model.model_id}]
        return named[0] if named or not model_id else ServedModel(model_id, None)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ConnectionError) as error:
        if model_id:
            return ServedModel(model_id, None)
        if isinstance(error, ConnectionError):
            raise
        raise ConnectionError(
            f"{server.url}/v1/models did not answer with a list of models: is it an OpenAI-compatible server?"
        ) from error


def _served(entry: dict[str, Any]) -> ServedModel:
    length = entry.get("max_model_len")
    return ServedModel(str(entry["id"]), length if isinstance(length, int) and length > 0 else None)


def _get_models(server: Server, read_timeout_s: float) -> tuple[int, bytes]:
    """Status and body of the list of models. Raises ConnectionError where nothing answers."""
    connection = new_connection(server.url, read_timeout_s)
    try:
        response = _send(connection, server, "GET", "/v1/models", None)
        return response.status, response.read(1_000_000)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{server.url} does not speak HTTP ({type(error).__name__})") from error
    except OSError as error:
        raise ConnectionError(f"no server at {server.url} ({error}): start one, or name another with --host") from error
    finally:
        connection.close()


def _send(
    connection: http.client.HTTPConnection,
    server: Server,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    *,
    keep_alive: bool = False,
) -> http.client.HTTPResponse:
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    if not keep_alive:
        headers["Connection"] = "close"
    if server.api_key:
        headers["Authorization"] = f"Bearer {server.api_key}"
    payload = None if body is None else json.dumps(body).encode()
    connection.request(method, urlsplit(server.url).path.rstrip("/") + path, body=payload, headers=headers)
    return connection.getresponse()


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while line := response.readline():
        yield line


def _tokens(choice: dict[str, Any]) -> Iterator[Token]:
    for entry in (choice.get("logprobs") or {}).get("content") or ():
        best = sorted((float(candidate["logprob"]) for candidate in entry.get("top_logprobs") or ()), reverse=True)
        yield Token(str(entry.get("token", "")), tuple(best))


def _error_text(event: dict[str, Any]) -> str:
    error = event["error"]
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def _body_error(body: bytes) -> str:
    """What an error body says: its OpenAI `error.message` or `message`, or its first words."""
    text = body.decode("utf-8", errors="replace").strip()
    try:
        event = json.loads(text)
    except ValueError:
        return text[:200] or "(empty body)"
    if isinstance(event, dict) and event.get("error"):
        return _error_text(event)
    return str(event.get("message") or text[:200]) if isinstance(event, dict) else text[:200]
