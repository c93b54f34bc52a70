"""Sends the load of one turn and leaves a file: our rows by Locust, or the result of a command of the user's.

The command is started without a shell; {url}, {result_file} and the others of PLACES in it are filled in. Fails with HarnessError,
one line with the command, how it ended and what it said last. Whatever ends this program, what it started is stopped.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nightjar.loadtests.compare.measures import WARM_UP, ResultError, read_result
from nightjar.loadtests.compare.plan import ComparePlan, Load, Turn
from nightjar.loadtests.demo_processes import POLL_PERIOD_S, ManagedProcess
from nightjar.loadtests.demo_steps import DRAIN_S, LOCUST_FAILED_REQUESTS, LOCUSTFILE
from nightjar.loadtests.regimes import parse_regime
from nightjar.loadtests.rows import RowsError, read_rows

PLACES: Final = ("url", "result_file", "result_dir", "result_name", "seed", "round", "arm")
MOST_TURN_S: Final = 3600.0
"""A turn that takes longer is stopped."""
MOST_SAID_CHARACTERS: Final = 200


class HarnessError(Exception):
    """The load was not sent as it was to be. The message is one line."""


def command_of(plan: ComparePlan, turn: Turn, url: str, path: Path) -> list[str]:
    """What sends a turn's load against `url` into `path`. Rounds differ in their seed, the arms of a round do not."""
    seed = plan.seed + turn.round
    if plan.load.command:
        values = {
            "url": url, "result_file": str(path), "result_dir": str(path.parent), "result_name": path.name,
            "seed": str(seed), "round": str(turn.round), "arm": turn.arm,
        }  # fmt: skip
        return filled(plan.load.command, values)
    return _locust_command(plan.load, url, seed, path)


def filled(command: str, values: Mapping[str, str]) -> list[str]:
    """The words of a command with its places filled in. Raises HarnessError for one that is no command.

    >>> filled("bench --base-url {url} --extra '{\\"a\\": 1}'", {"url": "http://h"})
    ['bench', '--base-url', 'http://h', '--extra', '{"a": 1}']
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise HarnessError(f"command {command[:80]!r} cannot be read as words: {error}") from error
    if not words:
        raise HarnessError("command: it has no word; for example 'vllm bench serve --base-url {url} ...'")
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return words


def play(plan: ComparePlan, turn: Turn, url: str, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
    """Send the load of a turn; when this returns the file is there and can be read. Raises HarnessError."""
    path.unlink(missing_ok=True)
    command = command_of(plan, turn, url, path)
    said: deque[str] = deque(maxlen=1)
    where = f"round {turn.round}, arm {turn.arm}"
    name = shlex.join(command)[:MOST_SAID_CHARACTERS] if plan.load.command else "the load generator"
    try:
        with path.with_suffix(".log").open("w", encoding="utf-8") as log:

            def take(line: str) -> None:
                print(line, file=log)
                said.extend([line] if line.strip() else [])

            with ManagedProcess("harness", command, take) as process:
                _wait(process, clock, where, name)
                code = process.poll()
    except OSError as error:
        raise HarnessError(f"{where}: {name} cannot be started: {error.strerror}") from error
    expected = {0} if plan.load.command else {0, LOCUST_FAILED_REQUESTS}
    if code not in expected:
        words = f"; it said last: {said[-1].strip()[:MOST_SAID_CHARACTERS]}" if said else ""
        raise HarnessError(f"{where}: {name} ended with exit code {code}{words}")
    check_file(plan.load, path, where)


def check_file(load: Load, path: Path, where: str) -> None:
    """Whether a turn left what can be compared. Raises HarnessError."""
    try:
        if load.command:
            figures = read_result(path).figures()
            requests, failed, first = figures.requests, figures.failed, ""
        else:
            rows = read_rows(path)
            errors = [row.error for row in rows if row.error]
            requests, failed, first = len(rows), len(errors), next(iter(errors), "")
    except (ResultError, RowsError, OSError) as error:
        raise HarnessError(f"{where}: the harness left nothing to read: {error}".splitlines()[0]) from error
    if not requests or failed == requests:
        problem = f"the first: {first[:MOST_SAID_CHARACTERS]}" if first else "see its log beside the results"
        raise HarnessError(f"{where}: {failed} of {requests} requests failed, so there is nothing to compare; {problem}")


def regime_with_warm_up(text: str, warm_up_s: float) -> str:
    """A regime after so many seconds of its own first load, which are not counted.

    >>> regime_with_warm_up("quiet:60@0.2,surge:60@2", 5.0)
    'warm-up:5@0.2,quiet:60@0.2,surge:60@2'
    """
    regime = parse_regime(text)
    if not warm_up_s:
        return str(regime)
    return f"{WARM_UP}:{warm_up_s:g}@{str(regime.phases[0]).rpartition('@')[2]},{regime}"


def _locust_command(load: Load, url: str, seed: int, rows: Path) -> list[str]:
    options = {"--host": url, "--seed": str(seed), "--rows": str(rows), "--drain-s": f"{DRAIN_S:g}", "--loglevel": "WARNING"}
    if load.trace:
        options |= {"--trace": load.trace, "--time-scale": f"{load.time_scale:g}", "--trace-s": f"{load.trace_s:g}"}
        options |= {"--tokenizer": load.tokenizer} if load.tokenizer else {}
    else:
        options |= {"--regime": regime_with_warm_up(load.regime, load.warm_up_s), "--max-tokens": str(load.max_tokens)}
    options |= {"--prompts": load.prompts} if load.prompts else {}
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    return command + [part for option in options.items() for part in option]


def _wait(process: ManagedProcess, clock: Callable[[], float], where: str, name: str) -> None:
    deadline_s = clock() + MOST_TURN_S
    while process.poll() is None:
        if clock() > deadline_s:
            raise HarnessError(f"{where}: {name} took more than {MOST_TURN_S:g} s and was stopped")
        time.sleep(POLL_PERIOD_S)
