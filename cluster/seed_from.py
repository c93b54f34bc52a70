"""The operator's setting `seed_from`: a file or an address, read beside the policy's event loop and handed to the fleet as a seed.

The fleet serves on cold meanwhile. Fails open: a place that is missing, slow, too long or no learned file is a problem in words for
`status`, tried again every RETRY_S until it can be used or the operator names another. Nothing is raised and nothing waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import structlog

from nightjar.cluster.api_token import READ_TOKEN_VARIABLE, TokenError, configured_token
from nightjar.cluster.http_client import LOOPBACK_HOSTS, ROUTE_PREFIX
from nightjar.cluster.learned_file import MAX_FILE_BYTES, LearnedFile, LearnedFileError, parse_learned_file

RETRY_S: Final = 60.0
READ_TIMEOUT_S: Final = 20.0
SILENCE_S: Final = 5.0
"""Longest wait for a connection, and between two pieces of an answer."""
MAX_REDIRECTS: Final = 3
CHUNK_BYTES: Final = 1 << 16

ReadSeed = Callable[[str], Awaitable[LearnedFile]]
"""Reads a place (an absolute path or an http(s) address). Raises LearnedFileError."""

log = structlog.get_logger(__name__)


class SeedFrom:
    """Follows the setting: each new place is read once, and handed to `take` with what it holds. Runs on one event loop."""

    def __init__(self, read: ReadSeed, take: Callable[[str, LearnedFile], None]) -> None:
        self._read = read
        self._take = take
        self._place = ""
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str:
        """Why the fleet has nothing from the place that the operator named; empty where it has, or where none is named."""
        if not self._problem:
            return ""
        return f"seed_from: {self._place}: {self._problem}; the fleet serves on without it, tried again every {RETRY_S:g} s"

    def follow(self, place: str) -> None:
        """Read `place` from now on, empty for none. The place that is followed already is read again only if it was of no use."""
        if place == self._place and not self._problem:
            return
        if self._task is not None:
            self._task.cancel()
        self._place, self._problem = place, ""
        self._task = asyncio.create_task(self._keep_reading(place)) if place else None

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_reading(self, place: str) -> None:
        while problem := await self._problem_with(place):
            if problem != self._problem:
                log.warning("seed_not_used", place=place, problem=problem)
            self._problem = problem
            await asyncio.sleep(RETRY_S)
        self._problem = ""

    async def _problem_with(self, place: str) -> str:
        """Read the place once; "" where the fleet has it now."""
        try:
            self._take(place, await self._read(place))
        except LearnedFileError as error:
            return str(error)
        except Exception as error:
            log.exception("seed_failed", place=place)
            return f"{type(error).__name__}: {error}"
        return ""


class SeedReader:
    """The real `ReadSeed`: in a thread, within READ_TIMEOUT_S, and never a second one beside one that hangs."""

    def __init__(self, load: Callable[[str], LearnedFile] | None = None) -> None:
        self._load = load or load_seed
        self._running: asyncio.Future[LearnedFile] | None = None

    async def __call__(self, place: str) -> LearnedFile:
        """See ReadSeed."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                if self._running is not None:
                    await asyncio.wait({self._running})
                self._running = asyncio.ensure_future(asyncio.to_thread(self._load, place))
                self._running.add_done_callback(_forgotten)
                return await asyncio.shield(self._running)
        except TimeoutError as error:
            raise LearnedFileError(f"not read within {READ_TIMEOUT_S:g} s") from error


def load_seed(place: str) -> LearnedFile:
    """Read and check a path or an address. Blocks. Raises LearnedFileError."""
    try:
        content = _fetched(place) if "://" in place else _file_content(Path(place))
    except (OSError, httpx.HTTPError, httpx.InvalidURL, TokenError) as error:
        raise LearnedFileError(f"cannot be read ({type(error).__name__}: {error})") from error
    return parse_learned_file(content)


def _file_content(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
        raise LearnedFileError("no regular file")
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _credentials(address: str) -> dict[str, str]:
    """The read token, for another policy's API alone: whoever keeps files need not know it."""
    if not urlsplit(address).path.endswith(f"{ROUTE_PREFIX}/learned"):
        return {}
    token = configured_token(variable=READ_TOKEN_VARIABLE)
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def _fetched(address: str) -> bytes:
    ends_s = time.monotonic() + READ_TIMEOUT_S
    content = bytearray()
    is_remote = urlsplit(address).hostname not in LOOPBACK_HOSTS
    with (
        httpx.Client(
            timeout=SILENCE_S,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            trust_env=is_remote,
            headers={"Accept-Encoding": "identity"} | _credentials(address),  # what is packed small may be large
        ) as client,
        client.stream("GET", address) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise LearnedFileError(f"answered {response.status_code}, allowed is 200")
        for chunk in response.iter_raw(CHUNK_BYTES):
            content += chunk
            if len(content) > MAX_FILE_BYTES:
                break
            if time.monotonic() > ends_s:
                raise LearnedFileError(f"{len(content)} bytes within {READ_TIMEOUT_S:g} s, and no end")
    return bytes(content)


def _forgotten(running: asyncio.Future[LearnedFile]) -> None:
    """Nobody may be left to look at the outcome of a read that hung."""
    with contextlib.suppress(asyncio.CancelledError):
        running.exception()
