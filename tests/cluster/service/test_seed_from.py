"""`seed_from`: read once, tried again while it is of no use, never in anybody's way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from nightjar.cluster.service import seed_from
from nightjar.cluster.service.seed_from import FIRST_READING_S, RETRY_S, NoPolicyThereError, SeedFrom, SeedReader, load_seed
from nightjar.cluster.storage.learned_file import MAX_FILE_BYTES, LearnedFile, LearnedFileError, to_text
from tests.cluster.seeds import some_file


class Places:
    """What lies where, and what was read."""

    def __init__(self, **found: LearnedFile | Exception) -> None:
        self.found = found
        self.reads: list[str] = []
        self.taken: list[str] = []

    async def read(self, place: str) -> LearnedFile:
        self.reads.append(place)
        found = self.found.get(place, LearnedFileError("no such file"))
        if isinstance(found, Exception):
            raise found
        return found

    def take(self, place: str, file: LearnedFile) -> None:
        assert file == self.found[place]
        self.taken.append(place)


@pytest.mark.looptime
async def test_a_place_is_read_once_and_again_only_when_another_was_named_meanwhile() -> None:
    places = Places(a=some_file(), b=some_file())
    follower = SeedFrom(places.read, places.take)
    for place in ("", "a", "a", "b", "b", "", "a"):
        follower.follow(place)
        await asyncio.sleep(200.0)
    assert places.taken == ["a", "b", "a"]
    assert follower.problem == ""


@pytest.mark.looptime
@pytest.mark.parametrize("error", [LearnedFileError("no such file"), OSError("disk on fire"), ZeroDivisionError("by zero")])
async def test_what_cannot_be_used_is_said_in_words_and_tried_again(error: Exception) -> None:
    places = Places(a=error)
    follower = SeedFrom(places.read, places.take)
    follower.follow("a")
    await asyncio.sleep(1.0)
    assert follower.problem.startswith("seed_from: a: ")
    assert str(error) in follower.problem
    assert "serves on without it" in follower.problem
    places.found["a"] = some_file()
    await asyncio.sleep(RETRY_S)
    assert (places.taken, follower.problem) == (["a"], "")


@pytest.mark.looptime
async def test_naming_a_useless_place_again_tries_it_at_once_and_naming_none_ends_the_complaint() -> None:
    places = Places()
    follower = SeedFrom(places.read, places.take)
    for _ in range(3):
        follower.follow("a")
        await asyncio.sleep(1.0)
    assert places.reads == ["a"] * 3
    follower.follow("")
    assert follower.problem == ""
    await asyncio.sleep(10 * RETRY_S)
    assert places.reads == ["a"] * 3
    await follower.stop()


SERVICE = "http://llm-serve-svc:8000/nightjar/learned"


@pytest.mark.looptime
async def test_a_service_that_nobody_serves_yet_is_no_problem_said_once_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    places = Places(**{SERVICE: NoPolicyThereError("cannot be read (ConnectError: no such name)")})
    follower = SeedFrom(places.read, places.take)
    follower.follow(SERVICE)
    await asyncio.sleep(10 * RETRY_S)
    assert follower.problem == ""
    assert follower.notice.startswith(f"seed_from: {SERVICE}: cannot be read (ConnectError: no such name); the fleet serves on")
    said = capsys.readouterr().out
    assert said.count("nothing_to_seed_from_yet") == 1
    assert "warning" not in said
    places.found[SERVICE] = some_file()
    await asyncio.sleep(RETRY_S)
    assert (places.taken, follower.problem, follower.notice) == ([SERVICE], "", "")


@pytest.mark.looptime
async def test_an_answer_of_ones_own_is_not_taken_and_asked_for_no_more_while_an_own_file_is_a_file() -> None:
    places = Places(**{SERVICE: some_file(), "/data/learned.json": some_file()})
    follower = SeedFrom(places.read, places.take, is_own=lambda _: True)
    follower.follow(SERVICE)
    await asyncio.sleep(10 * RETRY_S)
    assert (places.reads, places.taken, follower.problem, follower.notice) == ([SERVICE], [], "", "")
    follower.follow("/data/learned.json")
    await asyncio.sleep(1.0)
    assert places.taken == ["/data/learned.json"]


@pytest.mark.looptime
async def test_the_first_reading_of_a_place_ends_with_its_outcome_or_after_its_time() -> None:
    places = Places(a=some_file(), b=LearnedFileError("no such file"))
    follower = SeedFrom(places.read, places.take)
    seen = [follower.is_first_reading]
    for place in ("a", "b", "b"):  # the second try of a place is no first one
        follower.follow(place)
        seen.append(follower.is_first_reading)
        await asyncio.sleep(0.01)
        seen.append(follower.is_first_reading)
    assert seen == [False, True, False, True, False, False, False]

    async def hang(place: str) -> LearnedFile:
        await asyncio.sleep(3600.0)
        raise AssertionError(place)

    slow = SeedFrom(hang, places.take)
    slow.follow("a")
    await asyncio.sleep(FIRST_READING_S - 0.1)
    seen = [slow.is_first_reading]
    await asyncio.sleep(0.2)
    assert [*seen, slow.is_first_reading] == [True, False]
    await slow.stop()


async def test_reading_hangs_for_nobody_and_leaves_one_thread_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_from, "READ_TIMEOUT_S", 0.05)
    release, loads = threading.Event(), []

    def hang(place: str) -> LearnedFile:
        loads.append(place)
        release.wait(10.0)
        return some_file()

    reader = SeedReader(hang)
    for _ in range(3):
        with pytest.raises(LearnedFileError, match="not read within"):
            await reader("/mnt/dead/learned.json")
    assert len(loads) == 1
    release.set()
    monkeypatch.setattr(seed_from, "READ_TIMEOUT_S", 10.0)
    assert await reader("/mnt/dead/learned.json") == some_file()


def test_a_file_is_read_and_checked(tmp_path: Path) -> None:
    (tmp_path / "learned.json").write_bytes(to_text(some_file()))
    assert load_seed(str(tmp_path / "learned.json")) == some_file()


def test_what_is_no_readable_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * (MAX_FILE_BYTES + 9))
    (tmp_path / "text").write_text("swordfish")
    said = {
        "missing": "No such file",
        "": "no regular file",
        "pipe": "no regular file",
        "large": "allowed are at most",
        "text": "not JSON",
    }
    for name, part in said.items():
        with pytest.raises(LearnedFileError) as caught:
            load_seed(str(tmp_path / name))
        assert part in str(caught.value)
        assert "swordfish" not in str(caught.value)
        assert "\n" not in str(caught.value)


class Answers(BaseHTTPRequestHandler):
    """A web server with a good file, an endless one, another policy's API, one that answers the status of its path, and no more."""

    presented: ClassVar[dict[str, str | None]] = {}
    """What came as Authorization, by path."""

    def do_GET(self) -> None:
        self.presented[self.path] = self.headers.get("Authorization")
        self.path = urlsplit(self.path).path  # a proxy is asked for a whole address
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/learned.json")
            self.end_headers()
            return
        found = 200 if self.path in {"/learned.json", "/endless", "/nightjar/learned"} else 404
        status = self.path.split("/")[1]
        self.send_response(int(status) if status.isdecimal() else found)
        self.end_headers()
        if self.path in {"/learned.json", "/nightjar/learned"}:
            self.wfile.write(to_text(some_file()))
        while self.path == "/endless":
            try:
                self.wfile.write(b" " * (1 << 20))
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_another_policy_is_shown_the_read_token_and_whoever_keeps_files_is_not(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_API_READ_TOKEN", "to read")
    for path in ("/nightjar/learned", "/learned.json"):
        assert load_seed(f"{address}{path}") == some_file()
    assert Answers.presented["/nightjar/learned"] == "Bearer to read"
    assert Answers.presented["/learned.json"] is None


def test_no_proxy_of_the_environment_sees_the_read_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stands for the proxy; nobody listens at the other address, which is not known as this machine."""
    monkeypatch.setenv("NIGHTJAR_API_READ_TOKEN", "to read")
    monkeypatch.setenv("http_proxy", address)
    Answers.presented.clear()
    with pytest.raises(NoPolicyThereError):
        load_seed("http://[::ffff:127.0.0.1]:9/nightjar/learned")
    assert Answers.presented == {}
    load_seed("http://[::ffff:127.0.0.1]:9/learned.json")
    assert list(Answers.presented.values()) == [None], "a file, for which no token is presented, may come through it"


def test_a_read_token_that_cannot_be_used_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_API_READ_TOKEN_FILE", "/no/such/file")
    with pytest.raises(LearnedFileError, match="NIGHTJAR_API_READ_TOKEN_FILE=/no/such/file"):
        load_seed(f"{address}/nightjar/learned")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on a free port, which is waited for as long as a busy machine takes."""
    monkeypatch.setattr(seed_from, "SILENCE_S", 300.0)
    monkeypatch.setattr(seed_from, "READ_TIMEOUT_S", 300.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        serving.join()


def test_an_address_is_fetched_and_followed_where_it_moved(address: str) -> None:
    assert load_seed(f"{address}/learned.json") == some_file()
    assert load_seed(f"{address}/moved") == some_file()


def test_a_slash_at_the_end_of_a_policys_address_is_not_sent(address: str) -> None:
    assert load_seed(f"{address}/nightjar/learned/") == some_file()


@pytest.mark.parametrize(("path", "said"), [("/none", "answered 404, allowed is 200"), ("/endless", "allowed are at most")])
def test_an_address_without_such_a_file_is_one_line(address: str, path: str, said: str) -> None:
    with pytest.raises(LearnedFileError, match=said):
        load_seed(address + path)


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/learned.json", "http://"])
def test_an_address_where_nobody_answers_is_one_line(place: str) -> None:
    with pytest.raises(LearnedFileError, match="cannot be read"):
        load_seed(place)


@pytest.mark.parametrize("status", [404, 503])
def test_a_service_without_a_policy_behind_it_is_nobody_and_one_that_wants_another_token_is_a_problem(
    address: str, status: int
) -> None:
    with pytest.raises(NoPolicyThereError, match=f"answered {status}, allowed is 200"):
        load_seed(f"{address}/{status}/nightjar/learned")
    for refusal in (401, 403, 500):
        with pytest.raises(LearnedFileError, match=f"answered {refusal}") as caught:
            load_seed(f"{address}/{refusal}/nightjar/learned")
        assert not isinstance(caught.value, NoPolicyThereError)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-service.invalid:8000"])
def test_a_service_that_does_not_listen_or_has_no_name_yet_is_nobody_and_such_a_file_is_a_problem(host: str) -> None:
    with pytest.raises(NoPolicyThereError, match="cannot be read"):
        load_seed(f"http://{host}/nightjar/learned")
    with pytest.raises(LearnedFileError) as caught:
        load_seed(f"http://{host}/learned.json")
    assert not isinstance(caught.value, NoPolicyThereError)
