"""A TCP forwarder in the place of a Kubernetes service: a new connection goes to the cluster that it points at now.

As there, nobody listens until it points somewhere, and a connection that is open stays with its cluster. It notes how many are open
to each, and keeps what was answered to those that asked for what was learned.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final, Self

from tests.ports import free_port

CHUNK_BYTES: Final = 1 << 16
WATCHED: Final = b"GET /nightjar/learned "


class Forwarder:
    """Runs in a thread of its own while it is entered."""

    def __init__(self) -> None:
        self.port = free_port()
        self.learned: list[tuple[int, bytes]] = []
        """Port of the cluster that was asked, and its whole answer, head and body, of each such request that ended."""
        self._open: Counter[int] = Counter()
        self._target = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="forwarder", daemon=True)
        self._server: asyncio.Server | None = None
        self._forwarding: set[asyncio.Task[Any] | None] = set()  # asyncio forgets a task whose client has hung up

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._run(self._stop(self._server))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """Where the service is."""
        return f"http://127.0.0.1:{self.port}"

    def point_at(self, port: int) -> None:
        """New connections go to this port of the loopback address."""
        self._target = port
        if self._server is None:
            self._server = self._run(asyncio.start_server(self._forward, "127.0.0.1", self.port))

    def open_to(self, port: int) -> int:
        """Connections that are open to this port."""
        return self._open[port]

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30.0)

    @staticmethod
    async def _stop(server: asyncio.Server) -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port, answer, myself = self._target, bytearray(), asyncio.current_task()
        self._forwarding.add(myself)
        self._open[port] += 1
        try:
            there = await asyncio.open_connection("127.0.0.1", port)
            try:
                asked = await reader.read(CHUNK_BYTES)
                there[1].write(asked)
                is_watched = asked.startswith(WATCHED)
                up = asyncio.create_task(self._pump(reader, there[1]))
                await self._pump(there[0], writer, answer if is_watched else None)
                up.cancel()
                if is_watched:
                    self.learned.append((port, bytes(answer)))
            finally:
                there[1].close()
        except OSError:
            pass  # whoever asked sees it: the connection ends
        finally:
            self._open[port] -= 1
            writer.close()
            self._forwarding.discard(myself)

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None = None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if kept is not None:
                    kept += data
                writer.write(data)
                await writer.drain()
            writer.write_eof()
