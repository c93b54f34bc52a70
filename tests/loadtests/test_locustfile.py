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
from typing import IO, Any

import psutil
import pytest

from nightjar.loadtests.load.figures import LoadSummary
from nightjar.loadtests.load.regimes import arrival_times, parse_regime
from nightjar.loadtests.load.rows import read_rows
from nightjar.loadtests.load.trace_join import JoinedRequest
from tests.loadtests.fake_server import FakeServer, chunk, running_fake_server, usage, whole_answer
from tests.loadtests.load.trace_files import write_trace_files
from tests.ports import free_port

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]


SAME_S = 0.001
"""So far a span of the wall clock and the same span of the monotonic one may be apart."""
ENVIRONMENT = {**os.environ, "OPENAI_API_KEY": "sesame"}


LOCUSTFILE = ROOT / "loadtests/locustfile.py"


def command(*arguments: str, file: Path = LOCUSTFILE, summary: str = "--only-summary") -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(file), "--headless", summary, *arguments]


def locust(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, cwd=ROOT, env=ENVIRONMENT, check=False)


def two_processes() -> tuple[str, ...]:
    """Options that start two, at a port of their own: tests run beside one another, and all masters would take the same."""
    port = str(free_port())
    return ("--processes", "2", "--master-bind-port", port, "--master-port", port)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 300
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
    def lost_for_a_while(process: subprocess.Popen[str]) -> str:
        stopped = psutil.Process(process.pid).children()[0]
        stopped.suspend()
        assert process.stderr is not None
        told = lines_until("failed to send heartbeat", process.stderr)
        stopped.resume()
        return told

    assert_whole_though(lost_for_a_while, command(*steady(server, tmp_path), file=impatient(tmp_path)), tmp_path)


def test_all_processes_may_be_silent_for_as_long_as_locust_would_end_the_run_and_no_request_is_cut_off(
    server: FakeServer, tmp_path: Path
) -> None:
    def silent_for_a_while(process: subprocess.Popen[str]) -> str:
        silent = psutil.Process(process.pid).children()
        assert len(silent) == 2
        for one in silent:
            one.suspend()
        assert process.stderr is not None
        told = "".join(lines_until("Aggregated", process.stderr) for _ in range(8))  # 2 s each; some may have been said before
        for one in silent:
            one.resume()
        return told

    assert_whole_though(silent_for_a_while, command(*steady(server, tmp_path), summary="--print-stats"), tmp_path)


def test_a_run_whose_processes_all_died_is_no_success(server: FakeServer, tmp_path: Path) -> None:
    arguments = command(*steady(server, tmp_path), file=impatient(tmp_path))
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT) as process:
        wait_for((tmp_path / "rows.jsonl").exists)
        for one in psutil.Process(process.pid).children():
            one.kill()
        assert process.stderr is not None
        told = process.stderr.read()
    assert process.returncode == 2, told
    assert "2 of 2 load processes are lost" in told


def impatient(folder: Path) -> Path:
    """The same file, whose first process counts a load process as lost as soon as Locust itself would."""
    file = folder / "locustfile.py"
    file.write_text("from locust import runners\nfrom nightjar.loadtests.locustfile import *\nrunners.HEARTBEAT_LIVENESS = 3\n")
    return file


def steady(server: FakeServer, folder: Path) -> tuple[str, ...]:
    return ("--host", server.url, "--regime", "steady:9@=4", *two_processes(), "--rows", str(folder / "rows.jsonl"))


def assert_whole_though(happens: Callable[[subprocess.Popen[str]], str], arguments: list[str], folder: Path) -> None:
    """All requests of `steady` are answered, each once, though that happens when some have been."""
    rows_path = folder / "rows.jsonl"
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT) as process:
        wait_for(lambda: rows_path.exists() and rows_path.read_text().count("\n") >= 4)
        told = happens(process)
        assert process.stderr is not None
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
        (("--host", "http://127.0.0.1:9", "--model", "tiny"), "no server at http://127.0.0.1:9"),
        (("--host", "http://127.0.0.1:9", "--trace", "missing.csv"), "trace missing.csv cannot be read"),
        (("--host", "http://127.0.0.1:9", "--tokenizer", "missing"), "allowed is a tokenizer.json"),
        (("--host", "http://127.0.0.1:9", "--goodput", "ttft:fast"), "goodput 'ttft:fast': allowed are"),
    ],
)
def test_a_dead_host_or_an_unusable_option_ends_at_once_with_one_message(arguments: tuple[str, ...], told: str) -> None:
    done = locust(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def asked_prompt(request: dict[str, Any]) -> str:
    return str(request["messages"][0]["content"])


def test_a_trace_joined_with_texts_is_played_by_two_processes_each_request_exactly_once(server: FakeServer, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    options = ("--ignore-eos", "--goodput", "ttft:60000", "tpot:60000", "--runs", str(runs), *two_processes())
    done = locust("--host", server.url, *write_trace_files(tmp_path).options, *options)
    assert done.returncode == 0, done.stderr
    join = [JoinedRequest.model_validate_json(line) for line in (runs / "latest/join.jsonl").read_text().splitlines()]
    rows = {row.request_id: row for row in read_rows(runs / "latest/requests.jsonl")}
    assert Counter(map(asked_prompt, server.requests)) == Counter(request.prompt for request in join)
    assert sorted(rows) == sorted(f"trace-{number}" for number in range(30))
    assert [rows[f"trace-{one.number}"].scheduled_s for one in join] == [one.due_s for one in join] == [n / 30.0 for n in range(30)]
    assert {(request["max_tokens"], request["ignore_eos"]) for request in server.requests} == {(4, True)}
    summary = LoadSummary.model_validate_json((runs / "latest/load.json").read_bytes())
    assert (summary.figures.processes, summary.figures.requests, summary.figures.failed) == (2, 30, 0)
    assert summary.shares is not None
    for told in ("sent late ms", "estimated at 4 characters a token", "stretched by further ones", "100.0% of 30 requests within"):
        assert told in done.stderr
    assert "late" in done.stderr


def test_a_worker_that_is_told_nothing_but_the_host_plays_its_share_of_the_masters_trace(
    server: FakeServer, tmp_path: Path
) -> None:
    port, runs = str(free_port()), tmp_path / "runs"
    worker = command("--host", server.url, "--worker", "--master-port", port)
    with subprocess.Popen(worker, stderr=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT):
        master = ("--host", server.url, "--master", "--master-bind-port", port, "--expect-workers", "1", "--runs", str(runs))
        done = locust(*master, *write_trace_files(tmp_path, requests=9).options)
    assert done.returncode == 0, done.stderr
    assert sorted(row.request_id for row in read_rows(runs / "latest/requests.jsonl")) == [f"trace-{number}" for number in range(9)]


def test_a_trace_is_fitted_to_the_context_that_the_server_says_and_to_the_options(server: FakeServer, tmp_path: Path) -> None:
    server.models = b'{"data": [{"id": "tiny", "max_model_len": 200}]}'
    trace = write_trace_files(tmp_path, requests=20, output_tokens=190)
    options = ("--time-scale", "0.5", "--trace-s", "0.2", "--max-prompt-tokens", "12", "--runs", str(tmp_path / "runs"))
    done = locust("--host", server.url, *trace.options, *options)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "runs/latest/requests.jsonl")
    assert sorted(row.scheduled_s for row in rows) == [number / 60 for number in range(12)]
    assert {row.asked_output_tokens for row in rows} == {100}
    assert max(row.asked_prompt_tokens or 0 for row in rows) == 12
    summary = LoadSummary.model_validate_json((tmp_path / "runs/latest/load.json").read_bytes())
    assert summary.shares is not None
    assert summary.shares.clipped_prompts == pytest.approx(4 / 12)
    assert summary.shares.clipped_outputs == 1.0


def test_a_trace_with_a_bad_row_ends_at_once_with_its_line(server: FakeServer, tmp_path: Path) -> None:
    trace = write_trace_files(tmp_path)
    trace.trace.write_text("time,prompt_tokens,output_tokens\n0,5,4\n1,five,4\n")
    done = locust("--host", server.url, *trace.options)
    assert done.returncode == 2
    assert f"trace {trace.trace}:3: '1,five,4' is no row like" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.requests == []


def test_a_worker_whose_files_differ_sends_nothing_and_the_run_ends_with_one_message(server: FakeServer, tmp_path: Path) -> None:
    trace, port = write_trace_files(tmp_path), str(free_port())
    (tmp_path / "elsewhere").mkdir()
    other = write_trace_files(tmp_path / "elsewhere", requests=7)
    shared = ("--host", server.url, "--trace", "trace.csv", "--prompts", "prompts.jsonl")
    worker_command = command(*shared, "--worker", "--master-port", port)
    with subprocess.Popen(worker_command, cwd=other.trace.parent, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as worker:
        master = command(*shared, "--master", "--master-bind-port", port, "--expect-workers", "1")
        done = subprocess.run(
            master, cwd=trace.trace.parent, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
        )
        worker.kill()
    assert done.returncode == 2, done.stderr
    assert "trace.csv and prompts.jsonl differ between the load processes' machines" in done.stderr
    assert server.requests == []


def test_no_time_is_shorter_than_the_servers_own_records_allow(server: FakeServer, tmp_path: Path) -> None:
    """A request is sent before the server has it, and a text arrives after it was sent.

    How much longer a time is says how busy the machine is: `make bench-load` measures that, and test_openai_stream.py holds the
    times of a stream against a clock.
    """

    def answer(body: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
        yield chunk(role="assistant")
        time.sleep(0.02)
        for _ in range(body["max_tokens"]):
            yield chunk("bee")
            time.sleep(0.008)
        yield chunk(finish_reason="length")
        yield usage(completion_tokens=body["max_tokens"])
        yield "[DONE]"

    server.answer = answer
    done = locust(
        "--host", server.url, *write_trace_files(tmp_path, 25, 12.0, output_tokens=6).options, "--runs", str(tmp_path / "runs")
    )
    assert done.returncode == 0, done.stderr
    rows = {row.request_id: row for row in read_rows(tmp_path / "runs/latest/requests.jsonl")}
    assert len(rows) == len(server.served) == 25
    for served in server.served:
        row = rows[f"trace-{int(asked_prompt(served.body).partition('.')[0]) - 1}"]
        assert row.ttft_s is not None
        assert row.tpot_s is not None
        assert row.start_s <= served.received_s
        assert row.ttft_s >= served.sent_s[1] - served.received_s - SAME_S
        assert row.ttft_s + 5 * row.tpot_s >= served.sent_s[6] - served.received_s - SAME_S
