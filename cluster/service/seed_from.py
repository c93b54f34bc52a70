"""The operator's setting `seed_from`: a file or an address, read beside the policy's event loop and handed to the fleet as a seed.

The first settings of a fleet that knows nothing wait for the first reading, FIRST_READING_S at most; nothing else waits. Fails
open: a place that is missing, slow, too long or no learned file is a problem in words for `status`, tried again every RETRY_S until
it can be used or the operator names another. An address of a policy that nobody serves now is no problem and said once in the log:
a first install finds its own service so. Nor is one where this very fleet answers: nothing of its own is taken. Nothing is raised.
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

from nightjar.cluster.api.access import READ_TOKEN_VARIABLE, TokenError, configured_token
from nightjar.cluster.api.http_client import LOOPBACK_HOSTS, ROUTE_PREFIX
from nightjar.cluster.storage.learned_file import MAX_FILE_BYTES, LearnedFile, LearnedFileError, parse_learned_file

RETRY_S: Final = 60.0
FIRST_READING_S: Final = 10.0
"""So long the first settings of a fleet that knows nothing wait for the first reading of a place."""
READ_TIMEOUT_S: Final = 20.0
SILENCE_S: Final = 5.0
"""Longest wait for a connection, and between two pieces of an answer."""
HEED_PERIOD_S: Final = 10.0
"""A predecessor whose word still counts is read so often, until the address leads to this very fleet."""
MAX_REDIRECTS: Final = 3
CHUNK_BYTES: Final = 1 << 16

NO_POLICY_THERE: Final = frozenset({httpx.codes.NOT_FOUND, httpx.codes.SERVICE_UNAVAILABLE})
"""What a service answers whose policy application is not deployed, or whose policy is away."""

ReadSeed = Callable[[str], Awaitable[LearnedFile]]
"""Reads a place (an absolute path or an http(s) address). Raises LearnedFileError."""

log = structlog.get_logger(__name__)


class NoPolicyThereError(LearnedFileError):
    """Nobody serves a policy at this address now. No fault of whoever named it: a first install names its own service, too."""


class SeedFrom:
    """Follows the setting: each new place is read once, and handed to `take` with what it holds. Runs on one event loop.

    `is_own` says of a file whether this very fleet wrote it. As the answer of a policy it is not taken: the address is one's own.
    `heed` is shown every answer of another policy, None where it did not answer again, and says whether it is to be read again.
    """

    def __init__(
        self,
        read: ReadSeed,
        take: Callable[[str, LearnedFile], None],
        is_own: Callable[[LearnedFile], bool] = lambda _: False,
        heed: Callable[[str, LearnedFile | None], bool] = lambda *_: False,
    ) -> None:
        self._read = read
        self._take = take
        self._is_own = is_own
        self._heed = heed
        self._heeds = False
        self._place = ""
        self._problem = ""
        self._notice = ""
        self._first_until_s = float("-inf")
        self._task: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str:
        """Why the fleet has nothing from the place that the operator named; empty where it has, or where none is named."""
        return self._in_words(self._problem)

    @property
    def notice(self) -> str:
        """The same where nothing is wrong: nobody serves a policy there now."""
        return self._in_words(self._notice)

    @property
    def is_first_reading(self) -> bool:
        """Whether a place was named less than FIRST_READING_S ago and nothing has come of it yet."""
        return asyncio.get_running_loop().time() < self._first_until_s

    def follow(self, place: str) -> None:
        """Read `place` from now on, empty for none. The place that is followed already is read again only if it was of no use."""
        if place == self._place and not (self._problem or self._notice):
            return
        if self._task is not None:
            self._task.cancel()
        if place and place != self._place:
            self._first_until_s = asyncio.get_running_loop().time() + FIRST_READING_S
        self._place, self._problem, self._notice = place, "", ""
        self._task = asyncio.create_task(self._keep_reading(place)) if place else None

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_reading(self, place: str) -> None:
        is_said = False
        while not await self._is_settled(place):
            self._first_until_s = float("-inf")
            if self._notice and not is_said:
                log.info("nothing_to_seed_from_yet", place=place, found=self._notice, retry_s=RETRY_S)
                is_said = True
            await asyncio.sleep(RETRY_S)
        self._first_until_s = float("-inf")
        while self._heeds:
            await asyncio.sleep(HEED_PERIOD_S)
            await self._read_again(place)

    async def _read_again(self, place: str) -> None:
        """Hear a predecessor once more. One that does not answer just then is no problem: what it said last holds."""
        file = None
        try:
            file = await self._read(place)
        except Exception as error:  # noqa: BLE001 - the address is about to lead elsewhere, or the old cluster goes
            log.info("predecessor_not_heard", place=place, found=f"{type(error).__name__}: {error}")
        is_own = file is not None and self._is_own(file)
        self._heeds = not is_own and self._heed(place, file)

    async def _is_settled(self, place: str) -> bool:
        """Read the place once, and note what is wrong. Whether there is nothing left to come from it."""
        problem = notice = ""
        self._heeds = False
        try:
            file = await self._read(place)
            if is_policy(place) and self._is_own(file):
                log.info("seed_is_own", place=place, incarnation=file.about.incarnation)
            else:
                self._take(place, file)
                self._heeds = is_policy(place) and self._heed(place, file)
        except NoPolicyThereError as absent:
            notice = str(absent)
        except LearnedFileError as error:
            problem = str(error)
        except Exception as error:
            log.exception("seed_failed", place=place)
            problem = f"{type(error).__name__}: {error}"
        if problem and problem != self._problem:
            log.warning("seed_not_used", place=place, problem=problem)
        self._problem, self._notice = problem, notice
        return not (problem or notice)

    def _in_words(self, found: str) -> str:
        if not found:
            return ""
        return f"seed_from: {self._place}: {found}; the fleet serves on without it, tried again every {RETRY_S:g} s"


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
    """Read and check a path or an address. Blocks. Raises LearnedFileError, of another policy's address that nobody serves
    NoPolicyThereError.
    """
    try:
        content = _fetched(place) if "://" in place else _file_content(Path(place))
    except httpx.ConnectError as error:  # no such name, or nobody listens
        unreachable = f"cannot be read ({type(error).__name__}: {error})"
        raise (NoPolicyThereError if is_policy(place) else LearnedFileError)(unreachable) from error
    except (OSError, httpx.HTTPError, httpx.InvalidURL, TokenError) as error:
        raise LearnedFileError(f"cannot be read ({type(error).__name__}: {error})") from error
    return parse_learned_file(content)


def _file_content(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
        raise LearnedFileError("no regular file")
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def is_policy(place: str) -> bool:
    """Whether a place is the address of a policy's API, and no file's.

    >>> is_policy("http://llm-serve-svc:8000/nightjar/learned/"), is_policy("https://store.example.com/learned.json")
    (True, False)
    """
    return "://" in place and urlsplit(place).path.rstrip("/").endswith(f"{ROUTE_PREFIX}/learned")


def _credentials(address: str) -> dict[str, str]:
    """The read token, for another policy's API alone: whoever keeps files need not know it."""
    if not is_policy(address):
        return {}
    token = configured_token(variable=READ_TOKEN_VARIABLE)
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def _fetched(address: str) -> bytes:
    ends_s = time.monotonic() + READ_TIMEOUT_S
    content = bytearray()
    credentials = _credentials(address)
    is_remote = urlsplit(address).hostname not in LOOPBACK_HOSTS
    # With a transport of its own httpx takes no proxy from the environment: one would read the token.
    with (
        httpx.Client(
            transport=httpx.HTTPTransport() if credentials else None,
            timeout=SILENCE_S,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            trust_env=is_remote,
            headers={"Accept-Encoding": "identity"} | credentials,  # what is packed small may be large
        ) as client,
        client.stream("GET", address.rstrip("/") if is_policy(address) else address) as response,
    ):
        if response.status_code != httpx.codes.OK:
            is_no_policy = is_policy(address) and response.status_code in NO_POLICY_THERE
            raise (NoPolicyThereError if is_no_policy else LearnedFileError)(f"answered {response.status_code}, allowed is 200")
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
