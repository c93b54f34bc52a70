"""A server that is another one, slower by a known share: what it plants, `nightjar compare` has to find.

`python -m tests.loadtests.compare.slow_proxy http://127.0.0.1:8000 --port 8001 --slowdown 0.1` hands every request on and gives
each piece of the answer so much later than it came, counted from the request's begin. It reads on while a piece waits, so the
server behind it is asked no slower.
"""

from __future__ import annotations

import argparse
import http.client
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

READ_BYTES = 65_536


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    behind: str
    slowdown: float


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._hand_on(None)

    def do_POST(self) -> None:
        self._hand_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _hand_on(self, body: bytes | None) -> None:
        began_s = time.monotonic()
        connection = http.client.HTTPConnection(urlsplit(self.server.behind).netloc, timeout=300)
        headers = {name: self.headers[name] for name in ("Content-Type", "Authorization") if name in self.headers}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            while True:
                piece = answer.read1(READ_BYTES)
                pieces.put((time.monotonic(), piece))
                if not piece:
                    return

        threading.Thread(target=read, daemon=True).start()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            came_s, piece = pieces.get()
            due_s = began_s + (1.0 + self.server.slowdown) * (came_s - began_s)
            time.sleep(max(due_s - time.monotonic(), 0.0))
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            if not piece:
                connection.close()
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behind", help="address of the server to slow down")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slowdown", type=float, default=0.1, help="share of the time, 0.1 is ten percent")
    options = parser.parse_args()
    server = _Proxy(("127.0.0.1", options.port), _Handler)
    server.behind, server.slowdown = options.behind, options.slowdown
    server.serve_forever()


if __name__ == "__main__":
    main()
