"""A server that speaks as much OpenAI and Nightjar API as the load room asks for, on a thread of the test process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = ("Bees", " make", " honey", ".")


def chunk(
    text: str = "", finish_reason: str | None = None, logprobs: list[float] | None = None, role: str | None = None
) -> dict[str, Any]:
    delta = ({"role": role} if role else {}) | {"content": text}
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    if logprobs:
        best = [{"token": text, "logprob": value} for value in logprobs]
        choice["logprobs"] = {"content": [{"token": text, "logprob": logprobs[0], "top_logprobs": best}]}
    return {"id": "c", "choices": [choice], "usage": None}


def usage(prompt_tokens: int = 7, completion_tokens: int = 4) -> dict[str, Any]:
    return {"id": "c", "choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}


def whole_answer(body: dict[str, Any]) -> list[dict[str, Any] | str]:
    logprobs = [-0.1, -2.5] if body.get("logprobs") else None
    tokens = [chunk(text, logprobs=logprobs) for text in TEXT]
    return [chunk(role="assistant"), *tokens, chunk(finish_reason="length"), usage(), "[DONE]"]


@dataclass
class Served:
    """When one completion was asked for and each of its events sent, on the wall clock as rows have it."""

    body: dict[str, Any]
    received_s: float
    sent_s: list[float] = field(default_factory=list)


@dataclass
class FakeServer:
    """What the server says next and what it was asked. `answer` gives the events of a completion, dicts or raw data lines."""

    url: str = ""
    status: int = 200
    error_body: bytes = b'{"error": {"message": "no room", "type": "x", "code": 503}}'
    models: bytes = b'{"object": "list", "data": [{"id": "tiny"}]}'
    may_list_models: threading.Event = field(default_factory=threading.Event)
    """Set at the start; while it is clear, who asks for the models waits."""
    answer: Callable[[dict[str, Any]], Iterable[dict[str, Any] | str]] = whole_answer
    fleet_status: Callable[[], bytes] = lambda: b"{}"
    set_mode: Callable[[dict[str, Any]], tuple[int, bytes]] = lambda body: (200, b'{"override": null}')
    requests: list[dict[str, Any]] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    client_ports: list[int] = field(default_factory=list)
    """Of the connections on which completions were asked for, in their order."""
    connections: list[socket.socket] = field(default_factory=list)

    def close_connections(self) -> None:
        """As a server does with idle ones."""
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as servers of tokens do: else each waits for the acknowledgement of the one before
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        fake = self.server.fake
        if self.path == "/v1/models":
            fake.may_list_models.wait()
            self._plain(200, fake.models)
        elif self.path == "/nightjar/status":
            self._plain(200, fake.fleet_status())
        else:
            self._plain(404, b"not found")

    def do_POST(self) -> None:
        fake, received_s = self.server.fake, time.time()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.authorizations.append(self.headers.get("Authorization"))
        if self.path == "/nightjar/mode":
            self._plain(*fake.set_mode(body))
            return
        fake.requests.append(body)
        fake.client_ports.append(self.client_address[1])
        fake.connections.append(self.connection)
        if fake.status != 200:
            self._plain(fake.status, fake.error_body)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        served = Served(body, received_s)
        fake.served.append(served)
        for event in fake.answer(body):
            served.sent_s.append(time.time())
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _plain(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # of connections that arrive together; five by default, and the rest is reset
    daemon_threads = True
    fake: FakeServer


@contextmanager
def running_fake_server(port: int = 0) -> Iterator[FakeServer]:
    server = _Server(("127.0.0.1", port), _Handler)
    server.fake = FakeServer(url=f"http://127.0.0.1:{server.server_address[1]}")
    server.fake.may_list_models.set()
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.005), daemon=True)
    thread.start()
    try:
        yield server.fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
