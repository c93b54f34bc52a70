"""The locust command as an operator runs it, against a fake server: rows, statistics, exit codes and clear messages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import IO

import psutil
import pytest

from nightjar.loadtests.regimes import arrival_times, parse_regime
from nightjar.loadtests.rows import read_rows
from tests.loadtests.fake_server import FakeServer, running_fake_server, whole_answer
from tests.ports import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running_fake_server() as fake:
        yield fake


ENVIRONMENT = {**os.environ, "OPENAI_API_KEY": "sesame"}


def command(*arguments: str) -> list[str]:
    file = str(ROOT / "loadtests/locustfile.py")
    return [sys.executable, "-m", "locust", "-f", file, "--headless", "--only-summary", *arguments]


def locust(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=40, cwd=ROOT, env=ENVIRONMENT, check=False)


def two_processes() -> tuple[str, ...]:
    """Options that start two, at a port of their own: tests run beside one another, and all masters would take the same."""
    port = str(free_port())
    return ("--processes", "2", "--master-bind-port", port, "--master-port", port)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def lines_until(part: str, stream: IO[str]) -> str:
    """What `stream` says until a line holds `part`, or to its end."""
    return "".join(takewhile(lambda line: part not in line, stream))


def test_host_alone_is_enough_to_start_and_the_regime_gives_one_row_per_arrival_under_the_seed(
    server: FakeServer, tmp_path: Path
) -> None:
    rows_path, regime = tmp_path / "rows.jsonl", "busy:0.4@60,users:0.2@2u"
    rows_path.write_text("left from an earlier run\n")
    done = locust("--host", server.url, "--regime", regime, "--seed", "3", "--rows", str(rows_path))
    assert done.returncode == 0, done.stderr
    rows = read_rows(rows_path)
    expected = list(arrival_times(parse_regime(regime), 3))
    open_loop = sorted((row for row in rows if row.phase == "busy"), key=lambda row: row.scheduled_s)
    assert [row.scheduled_s for row in open_loop] == [arrival.time_s for arrival in expected]
    assert {row.request_id.split("-")[1] for row in rows if row.phase == "users"} == {"u0", "u1"}
    assert {(row.status, row.error, row.completion_tokens) for row in rows} == {(200, "", 4)}
    assert all(f"LLM      {name}" in done.stderr for name in ("ttft", "tpot", "e2e"))
    assert server.requests[0]["model"] == "tiny"
    assert set(server.authorizations) == {"Bearer sesame"}


def test_two_processes_together_send_what_one_would(server: FakeServer, tmp_path: Path) -> None:
    rows_path, regime = tmp_path / "rows.jsonl", "busy:0.4@60"
    done = locust("--host", server.url, "--regime", regime, *two_processes(), "--rows", str(rows_path))
    assert done.returncode == 0, done.stderr
    sent = Counter(row.request_id for row in read_rows(rows_path))
    assert sent == Counter(f"busy-{arrival.number}" for arrival in arrival_times(parse_regime(regime), 0))


def test_more_processes_than_were_announced_are_told_and_nothing_is_sent_twice(server: FakeServer) -> None:
    port = str(free_port())
    shared = ("--host", server.url, "--regime", "steady:20@=2")
    workers = [subprocess.Popen(command(*shared, "--worker", "--master-port", port), env=ENVIRONMENT, cwd=ROOT) for _ in range(2)]
    try:
        done = locust(*shared, "--master", "--master-bind-port", port)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert done.returncode == 2, done.stderr
    assert "2 load processes, and --expect-workers is 1" in done.stderr


def test_a_process_that_the_master_lost_for_a_while_plays_its_share_once_and_to_its_end(server: FakeServer, tmp_path: Path) -> None:
    rows_path, regime = tmp_path / "rows.jsonl", "steady:9@=4"
    arguments = ("--host", server.url, "--regime", regime, *two_processes(), "--rows", str(rows_path))
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT) as process:
        wait_for(lambda: rows_path.exists() and rows_path.read_text().count("\n") >= 4)
        stopped = psutil.Process(process.pid).children()[0]
        stopped.suspend()
        assert process.stderr is not None
        told = lines_until("failed to send heartbeat", process.stderr)
        stopped.resume()
        told += process.stderr.read()
    assert process.returncode == 0, told
    rows = read_rows(rows_path)
    assert [row.error for row in rows if row.error] == []
    assert Counter(row.request_id for row in rows) == Counter(f"steady-{number}" for number in range(36))


def test_a_worker_that_is_told_to_start_before_it_knows_the_model_waits_until_it_does(server: FakeServer, tmp_path: Path) -> None:
    rows_path, port = tmp_path / "rows.jsonl", str(free_port())
    with running_fake_server() as slow:
        slow.may_list_models.clear()
        worker = ("--host", slow.url, "--worker", "--master-port", port)
        with subprocess.Popen(command(*worker), stderr=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT):
            master = ("--host", server.url, "--regime", "few:0.5@=8", "--rows", str(rows_path), "--master", "--expect-workers", "1")
            arguments = command(*master, "--master-bind-port", port)
            with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT) as process:
                assert process.stderr is not None
                told = lines_until("All users spawned", process.stderr)
                slow.may_list_models.set()
                told += process.stderr.read()
    assert process.returncode == 0, told
    assert [row.error for row in read_rows(rows_path)] == [""] * 4


def test_failed_requests_are_rows_with_their_error_and_exit_code_1(server: FakeServer, tmp_path: Path) -> None:
    server.answer = lambda body: whole_answer(body)[:2]
    rows_path = tmp_path / "rows.jsonl"
    done = locust("--host", server.url, "--regime", "few:0.2@=10", "--rows", str(rows_path))
    assert done.returncode == 1, done.stderr
    assert [row.error for row in read_rows(rows_path)] == ["the stream ended before [DONE]"] * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--host", "http://127.0.0.1:9"), "no server at http://127.0.0.1:9"),
        (("--host", "http://127.0.0.1:9", "--regime", "quiet:60"), "NAME:SECONDS@LOAD"),
        (("--host", "http://127.0.0.1:9", "--prompts", "missing.jsonl"), "missing.jsonl cannot be read"),
    ],
)
def test_a_dead_host_or_an_unusable_option_ends_at_once_with_one_message(arguments: tuple[str, ...], told: str) -> None:
    done = locust(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
