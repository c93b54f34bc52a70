"""Locust against any OpenAI-compatible server: `locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8000`.

`--host` alone is enough. Locust's users are closed loops and its shapes tick once a second, both too coarse for arrivals that
must not wait for answers. So each load process plays its share of the regime or trace once (load/driver.py), and has one user
that waits for the end of it; the user count that Locust shows is the number of load processes. A process that was too busy for a
while to answer the master, so that Locust moved its user away and back, goes on with its share all the same. Works with
`--processes N` and with `--master` / `--worker`; workers on other machines need the files of a trace at the same paths, and write
rows there.
Requests show in Locust's statistics as LLM ttft, tpot, e2e and late (milliseconds); exact rows go to `--rows` or below `--runs`.
Fails within seconds, with one message and exit code 2, where the regime, trace, prompts or host are unusable. Exit code 2 as
well where load processes were lost, 1 if a request failed.
"""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, Final

import gevent
from gevent import Greenlet
from gevent.event import Event
from locust import LoadTestShape, User, constant, events, runners, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from rich.console import Console
from rich.table import Table

from nightjar.loadtests.load.connections import Connections
from nightjar.loadtests.load.driver import WHOLE, LoadDriver, LoopWatch, Shard
from nightjar.loadtests.load.figures import LOAD_FILE, LoadSummary, ProcessReport, Seen, figures_of, lines_of, too_slow
from nightjar.loadtests.load.goodput import parse_goodput
from nightjar.loadtests.load.openai_stream import (
    READ_TIMEOUT_S,
    AddressError,
    ChatRequest,
    ChatResult,
    Server,
    served_model,
    stream_chat,
)
from nightjar.loadtests.load.options import RequestedLoad, add_load_options, check_files, requested_load
from nightjar.loadtests.load.rows import RequestRow, RowWriter, new_run_folder, regime_start_s
from nightjar.loadtests.load.trace_join import digest, write_join

EXIT_CODE_UNUSABLE: Final = 2
API_KEY_VARIABLE: Final = "OPENAI_API_KEY"
FINISHED_MESSAGE: Final = "nightjar-driver-finished"
SHAPE_GRACE_S: Final = 15.0
"""The shape stops so long after the drivers should have ended by themselves: a worker may be gone, which is a failure."""
SILENT_HEARTBEATS: Final = 30
"""Of one a second, then a load process counts as lost. Locust's own 3 pass on a busy machine, and where all processes are lost it
ends the run, requests in flight with it. The price: one that was killed counts as there for as long."""

logger = logging.getLogger(__name__)

runners.HEARTBEAT_LIVENESS = SILENT_HEARTBEATS


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Options of this load test."""
    add_load_options(parser)


class _Driving:
    """What this load process needs to run; set once at `init`. A worker's user may start before: the master heard of it already."""

    server: Server
    connections: Connections
    model: str
    is_ready: Final = Event()
    """Set once `server` and `model` are."""
    has_begun: bool = False
    share: Greenlet | None = None
    """Plays this process's share of the load, while it does."""
    finished: Final[list[ProcessReport]] = []
    """Of the load processes that came to their end, as far as this one was told."""
    problems: Final[list[str]] = []
    """Of those that could not play their share."""
    folder: Path | None = None
    """Where the first process records the run."""
    load: RequestedLoad
    """All of it, as the first process has it; again when a test starts, for its options may have changed in the web page."""


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Look at files and host before any load: an unusable one ends the run here. The first process empties the rows file."""
    options = _options(environment)
    is_worker = isinstance(environment.runner, WorkerRunner)
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(FINISHED_MESSAGE, _note_finished)
    try:
        if not is_worker:
            check_files(options)
        if not environment.host:
            raise AddressError("no server: give --host, for example --host http://127.0.0.1:8000")
        _Driving.server = Server(environment.host, os.environ.get(API_KEY_VARIABLE, ""))
        _Driving.connections = Connections(environment.host, READ_TIMEOUT_S)
        served = served_model(_Driving.server, options.model)
        _Driving.model = served.model_id
        if not is_worker:
            options.max_model_len = options.max_model_len or served.max_model_len or 0
            _Driving.load = requested_load(options, WHOLE)
    except (ValueError, ConnectionError) as error:
        logger.error("%s", error)
        raise SystemExit(EXIT_CODE_UNUSABLE) from error
    _Driving.is_ready.set()


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """A test started again from the web page begins with no driver finished, and with files of its own."""
    _Driving.finished.clear()
    _Driving.problems.clear()
    _Driving.has_begun = False
    if isinstance(environment.runner, WorkerRunner):
        return
    options = _options(environment)
    load = _Driving.load = requested_load(options, WHOLE)
    if options.runs:
        _Driving.folder = new_run_folder(Path(options.runs)).resolve()
        options.rows = str(_Driving.folder / "requests.jsonl")
        if load.join:
            write_join(_Driving.folder / "join.jsonl", load.join)
    options.join_digest = digest(load.join) if load.join else ""
    if options.rows:
        Path(options.rows).unlink(missing_ok=True)


@events.test_stopping.add_listener
def cut_off(**_: Any) -> None:
    """A test that is stopped ends with a row for every request in flight."""
    if _Driving.share is not None:
        _Driving.share.kill(block=True)


@events.test_stop.add_listener
def conclude(environment: Environment, **_: Any) -> None:
    """Write the figures; print them here where Locust's web page goes on, else last of all."""
    _tell_lost(environment)
    if not isinstance(environment.runner, WorkerRunner) and _Driving.finished:
        summary = _summary(environment)
        if _Driving.folder is not None:
            (_Driving.folder / LOAD_FILE).write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if not summary.figures.keeps_up:
            logger.warning("%s", too_slow(summary.figures))
        if _options(environment).headless:
            events.quit.add_listener(lambda **_: _print(summary))
        else:
            _print(summary)


def _tell_lost(environment: Environment) -> None:
    """Locust ends a run whose load processes are all lost, and calls it a success."""
    expected = _options(environment).expect_workers or 1
    if isinstance(environment.runner, MasterRunner) and environment.runner.clients.missing and len(_Driving.finished) < expected:
        told = "%d of %d load processes are lost: what they sent last has no rows"
        logger.error(told, len(environment.runner.clients.missing), expected)
        environment.process_exit_code = EXIT_CODE_UNUSABLE


def _summary(environment: Environment) -> LoadSummary:
    options = _options(environment)
    load = _Driving.load
    return LoadSummary(
        host=environment.host or "",
        model=_Driving.model,
        load=load.name,
        seed=options.seed,
        token_counting=load.token_counting,
        shares=load.shares,
        figures=figures_of(_Driving.finished, parse_goodput(options.goodput)),
    )


def _print(summary: LoadSummary) -> None:
    table = Table(box=None, show_header=False)
    for name, value in lines_of(summary):
        table.add_row(name, value)
    console = Console(stderr=True, highlight=False, markup=False)
    console.print(table)
    if _Driving.folder is not None:
        console.print(f"recorded in {_Driving.folder}", soft_wrap=True)


def _note_finished(msg: Any, **_: Any) -> None:
    """A worker told its end."""
    problem = msg.data.get("problem")
    if problem:
        _Driving.problems.append(str(problem))
    else:
        _Driving.finished.append(ProcessReport.from_plain(msg.data))


def _options(environment: Environment) -> Namespace:
    options: Namespace | None = environment.parsed_options
    assert options is not None, "Locust parses its command line before it starts"
    return options


class RegimeUser(User):
    """Begins this process's share of the load if nobody did, then waits to be stopped."""

    wait_time = constant(1)

    @task
    def play(self) -> None:
        """Not by this user's greenlet: Locust stops a user that it moves to another process."""
        if not _Driving.has_begun:
            _Driving.has_begun = True
            _Driving.share = gevent.spawn(self._play)

    def _play(self) -> None:
        _Driving.is_ready.wait()
        try:
            load = _checked_load(self.environment)
        except ValueError as error:
            self._tell({"problem": str(error)})
            return
        options, rows = _options(self.environment), list[RequestRow]()
        writer = RowWriter(Path(options.rows)) if options.rows else None

        def record(row: RequestRow) -> None:
            rows.append(row)
            self._record(writer, row)

        with LoopWatch() as watch:
            try:
                LoadDriver(load.plan, partial(self._ask, options), record).run()
            finally:
                if writer:
                    writer.close()
                _Driving.connections.close()
                _Driving.share = None
                report = ProcessReport(regime_start_s(rows) or 0.0, watch.delays_s, [Seen.of(row) for row in rows])
                self._tell(report.plain())

    def _tell(self, end: dict[str, Any]) -> None:
        if isinstance(self.environment.runner, WorkerRunner):
            self.environment.runner.send_message(FINISHED_MESSAGE, end)
        elif "problem" in end:
            _Driving.problems.append(end["problem"])
        else:
            _Driving.finished.append(ProcessReport.from_plain(end))

    def _ask(self, options: Namespace, prompt: str, max_tokens: int) -> ChatResult:
        request = ChatRequest(_Driving.model, prompt, max_tokens, options.temperature, ignore_eos=options.ignore_eos)
        return stream_chat(_Driving.server, request, connections=_Driving.connections)

    def _record(self, writer: RowWriter | None, row: RequestRow) -> None:
        if writer:
            writer.write(row)
        failure = RuntimeError(row.error) if row.error else None
        times_s = {"e2e": row.e2e_s} if failure else {"ttft": row.ttft_s, "tpot": row.tpot_s, "e2e": row.e2e_s}
        times_s["late"] = row.schedule_lag_s
        for name, seconds in times_s.items():
            if seconds is not None:
                self.environment.events.request.fire(
                    request_type="LLM",
                    name=name,
                    response_time=seconds * 1e3,
                    response_length=row.completion_tokens or 0,
                    exception=None if name == "late" else failure,
                    context={"phase": row.phase},
                )


def _checked_load(environment: Environment) -> RequestedLoad:
    """What this process sends. Raises ValueError where its files give another join than the first process's."""
    options = _options(environment)
    load = requested_load(options, _shard(environment))
    if load.join and digest(load.join) != options.join_digest:
        raise ValueError(f"{options.trace} and {options.prompts or 'the prompts'} differ between the load processes' machines")
    return load


def _shard(environment: Environment) -> Shard:
    runner = environment.runner
    if not isinstance(runner, WorkerRunner):
        return WHOLE
    processes = _options(environment).expect_workers or 1
    return Shard(runner.worker_index % processes, processes)


class RegimeShape(LoadTestShape):
    """One user per load process until every driver has ended."""

    def tick(self) -> tuple[int, float] | None:
        """Number of load processes, or None to stop."""
        assert self.runner is not None, "Locust sets the runner before the first tick"
        environment = self.runner.environment
        options = _options(environment)
        processes = 1
        if isinstance(environment.runner, MasterRunner):  # one that does not answer now may still be at work
            processes = max(environment.runner.worker_count, options.expect_workers or 1)
            if self._sends_too_much(environment.runner, options):
                environment.process_exit_code = EXIT_CODE_UNUSABLE
                return None
        if _Driving.problems:
            logger.error("a load process cannot play its share: %s", _Driving.problems[0])
            environment.process_exit_code = EXIT_CODE_UNUSABLE
            return None
        if len(_Driving.finished) >= processes:
            return None
        if self.get_run_time() > _Driving.load.plan.regime.duration_s + options.drain_s + SHAPE_GRACE_S:
            logger.error("%d of %d load processes did not report their end", processes - len(_Driving.finished), processes)
            environment.process_exit_code = EXIT_CODE_UNUSABLE
            return None
        return processes, 100.0

    @staticmethod
    def _sends_too_much(runner: MasterRunner, options: Namespace) -> bool:
        """More load processes than were announced: each sends the share of one that there is already."""
        expected = options.expect_workers or 1
        if runner.worker_count <= expected:
            return False
        message = "%d load processes, and --expect-workers is %d: the load would be sent more than once; give --expect-workers %d"
        logger.error(message, runner.worker_count, expected, runner.worker_count)
        return True
