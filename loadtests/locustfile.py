"""Locust against any OpenAI-compatible server: `locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8000`.

`--host` alone is enough. Locust's users are closed loops and its shapes tick once a second, both too coarse for arrivals that
must not wait for answers. So each load process plays its share of the regime once (load_driver.py), and has one user that waits
for the end of it; the user count that Locust shows is the number of load processes. A process that was too busy for a while to
answer the master, so that Locust moved its user away and back, goes on with its share all the same. Works with `--processes N`
and with `--master` / `--worker`.
Requests show in Locust's statistics as LLM ttft, tpot and e2e (milliseconds); exact rows go to `--rows`.
Fails within seconds, with one message and exit code 2, where the regime, the prompts or the host are unusable. Exit code 1
if a request failed.
"""

from __future__ import annotations

import logging
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import gevent
from gevent import Greenlet
from gevent.event import Event
from locust import LoadTestShape, User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from nightjar.loadtests.load_driver import WHOLE, LoadDriver, LoadPlan, Shard
from nightjar.loadtests.openai_stream import AddressError, ChatRequest, Server, first_model, stream_chat
from nightjar.loadtests.prompts import BUILT_IN_PROMPTS, PromptsError, read_prompts, shuffled
from nightjar.loadtests.regimes import NAMED_REGIMES, TEXT_FORM, RegimeError, parse_regime
from nightjar.loadtests.rows import RequestRow, RowWriter

EXIT_CODE_UNUSABLE: Final = 2
API_KEY_VARIABLE: Final = "OPENAI_API_KEY"
FINISHED_MESSAGE: Final = "nightjar-driver-finished"
SHAPE_GRACE_S: Final = 15.0
"""The shape stops so long after the drivers should have ended by themselves: a worker may be gone, which is a failure."""

logger = logging.getLogger(__name__)


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Options of this load test, shown by --help and in Locust's web page."""
    group = parser.add_argument_group("Nightjar load regimes")
    group.add_argument(
        "--regime",
        type=partial(_usable, parse_regime),
        default="quiet-surge-quiet",
        help=f"{', '.join(sorted(NAMED_REGIMES))}, or {TEXT_FORM}. Default: quiet-surge-quiet",
    )
    group.add_argument("--seed", type=int, default=0, help="Seed of arrival times and prompt order. Default: 0")
    group.add_argument(
        "--prompts",
        type=partial(_usable, _prompts),
        default="",
        help="JSON-lines file with 'prompt' or Spec-Bench 'turns' per line. Default: built-in prompts",
    )
    group.add_argument("--model", default="", help="Model id. Default: the first that the server lists")
    group.add_argument("--max-tokens", type=partial(_above_zero, int), default=64, help="Most tokens per answer. Default: 64")
    group.add_argument("--temperature", type=float, default=0.0, help="Sampling temperature. Default: 0, greedy")
    group.add_argument("--rows", default="", help="File that gets one JSON line per request, replaced at the start. Default: none")
    group.add_argument(
        "--drain-s",
        type=partial(_above_zero, float),
        default=60.0,
        help="Seconds to wait for answers after the regime's end. Default: 60",
    )


def _usable(parse: Callable[[str], object], text: str) -> str:
    """`text` itself, once `parse` took it: Locust ships options to its workers as plain values.

    argparse shows the message of this error only.
    """
    try:
        parse(text)
    except (RegimeError, PromptsError) as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def _prompts(text: str) -> tuple[str, ...]:
    return read_prompts(Path(text)) if text else BUILT_IN_PROMPTS


def _above_zero(parse: Callable[[str], Any], text: str) -> Any:
    value = parse(text)
    if not value > 0:
        raise ArgumentTypeError(f"{text} is not above 0")
    return value


class _Driving:
    """What this load process needs to run; set once at `init`. A worker's user may start before: the master heard of it already."""

    server: Server
    model: str
    is_ready: Final = Event()
    """Set once `server` and `model` are."""
    finished_drivers: int = 0
    has_begun: bool = False
    share: Greenlet | None = None
    """Plays this process's share of the regime, while it does."""


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Look at the host before any load: a dead one ends the run here. The first process empties the rows file."""
    options = _options(environment)
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(FINISHED_MESSAGE, _count_finished)
    try:
        if not environment.host:
            raise AddressError("no server: give --host, for example --host http://127.0.0.1:8000")
        _Driving.server = Server(environment.host, os.environ.get(API_KEY_VARIABLE, ""))
        _Driving.model = options.model or first_model(_Driving.server)
    except (AddressError, ConnectionError) as error:
        logger.error("%s", error)
        raise SystemExit(EXIT_CODE_UNUSABLE) from error
    if options.rows and not isinstance(environment.runner, WorkerRunner):
        Path(options.rows).unlink(missing_ok=True)
    _Driving.is_ready.set()


@events.test_start.add_listener
def forget_finished_drivers(**_: Any) -> None:
    """A test started again from the web page begins with no driver finished."""
    _Driving.finished_drivers = 0
    _Driving.has_begun = False


@events.test_stopping.add_listener
def cut_off(**_: Any) -> None:
    """A test that is stopped ends with a row for every request in flight."""
    if _Driving.share is not None:
        _Driving.share.kill(block=True)


def _count_finished(**_: Any) -> None:
    _Driving.finished_drivers += 1


def _options(environment: Environment) -> Namespace:
    options: Namespace | None = environment.parsed_options
    assert options is not None, "Locust parses its command line before it starts"
    return options


class RegimeUser(User):
    """Begins this process's share of the regime if nobody did, then waits to be stopped."""

    wait_time = constant(1)

    @task
    def play(self) -> None:
        """Not by this user's greenlet: Locust stops a user that it moves to another process."""
        if not _Driving.has_begun:
            _Driving.has_begun = True
            _Driving.share = gevent.spawn(self._play)

    def _play(self) -> None:
        _Driving.is_ready.wait()
        options = _options(self.environment)
        prompts = shuffled(_prompts(options.prompts), options.seed)
        plan = LoadPlan(parse_regime(options.regime), options.seed, prompts, _shard(self.environment), options.drain_s)
        writer = RowWriter(Path(options.rows)) if options.rows else None
        try:
            LoadDriver(plan, partial(self._ask, options), partial(self._record, writer)).run()
        finally:
            if writer:
                writer.close()
            _Driving.share = None
            self._report_end()

    def _report_end(self) -> None:
        if isinstance(self.environment.runner, WorkerRunner):
            self.environment.runner.send_message(FINISHED_MESSAGE)
        else:
            _count_finished()

    def _ask(self, options: Namespace, prompt: str) -> Any:
        request = ChatRequest(_Driving.model, prompt, options.max_tokens, options.temperature)
        return stream_chat(_Driving.server, request)

    def _record(self, writer: RowWriter | None, row: RequestRow) -> None:
        if writer:
            writer.write(row)
        failure = RuntimeError(row.error) if row.error else None
        times_s = {"e2e": row.e2e_s} if failure else {"ttft": row.ttft_s, "tpot": row.tpot_s, "e2e": row.e2e_s}
        for name, seconds in times_s.items():
            if seconds is not None:
                self.environment.events.request.fire(
                    request_type="LLM",
                    name=name,
                    response_time=seconds * 1e3,
                    response_length=row.completion_tokens or 0,
                    exception=failure,
                    context={"phase": row.phase},
                )


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
        if _Driving.finished_drivers >= processes:
            return None
        if self.get_run_time() > parse_regime(options.regime).duration_s + options.drain_s + SHAPE_GRACE_S:
            logger.error("%d of %d load processes did not report their end", processes - _Driving.finished_drivers, processes)
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
