"""Users that ask a service one request after the other, half of them for streams, each over a connection of its own."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import uuid4

TIMEOUT_S: Final = 120.0
PAUSE_AFTER_FAILURE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it began and ended (seconds of the crowd's clock), and who answered it, or what went wrong."""

    began_s: float
    ended_s: float
    is_stream: bool
    cluster: str = ""
    failure: str = ""
    request: str = ""
    """Its name, which whoever answers is told."""


class Crowd:
    """So many users, asking while it is entered."""

    def __init__(self, port: int, users: int, tokens: int, clock: Callable[[], float] = time.time) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._tokens = tokens
        self._clock = clock
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(bool(user % 2),), daemon=True) for user in range(users)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def answered_by(self, cluster: str) -> list[Answer]:
        """What this cluster answered so far."""
        return [answer for answer in tuple(self.answers) if answer.cluster == cluster]

    @property
    def failures(self) -> list[Answer]:
        """What went wrong so far."""
        return [answer for answer in tuple(self.answers) if answer.failure]

    def _ask(self, is_stream: bool) -> None:
        while not self._ends.is_set():
            began_s, request = self._clock(), uuid4().hex
            try:
                cluster, failure = self._answer(is_stream, request), ""
            except Exception as error:  # noqa: BLE001 - whatever a user may see is a failed request
                cluster, failure = "", f"{type(error).__name__}: {error}"
                time.sleep(PAUSE_AFTER_FAILURE_S)
            self.answers.append(Answer(began_s, self._clock(), is_stream, cluster, failure, request))

    def _answer(self, is_stream: bool, request: str) -> str:
        """Who answered. Raises for any status but 200, and for an answer that is not whole."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        try:
            body = json.dumps({"max_tokens": self._tokens, "stream": is_stream, "request": request})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", "Connection": "close"})
            response = connection.getresponse()
            content = response.read().decode()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ValueError(f"status {response.status}: {content[:200]}")
        last: dict[str, Any] = json.loads(content) if not is_stream else _last_event(content)
        if last["tokens"] != self._tokens:
            raise ValueError(f"{last['tokens']} tokens of {self._tokens}")
        return str(last["cluster"])


def _last_event(content: str) -> dict[str, Any]:
    *_, last, done = [line.removeprefix("data: ") for line in content.splitlines() if line]
    if done != "[DONE]":
        raise ValueError(f"a stream that ends with {done[:80]!r}")
    event: dict[str, Any] = json.loads(last)
    return event
