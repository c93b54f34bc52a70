"""Sends the load of one turn and leaves a file: our rows by Locust, or the result of a command of the user's.

The command is started without a shell; {url}, {result_file} and the others of PLACES in it are filled in. Fails with TurnError, one
line with the command, how it ended and what it said last. Whatever ends this program, what it started is stopped.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from nightjar.loadtests.arms.arm import TurnError
from nightjar.loadtests.arms.measures import WARM_UP, ResultError, read_result
from nightjar.loadtests.arms.processes import POLL_PERIOD_S, ManagedProcess
from nightjar.loadtests.load.regimes import parse_regime
from nightjar.loadtests.load.rows import RowsError, read_rows
from nightjar.policy.wire.record import Record

PLACES: Final = ("url", "result_file", "result_dir", "result_name", "seed", "round", "arm")
LOCUSTFILE: Final = Path(__file__).parents[1] / "locustfile.py"
LOCUST_FAILED_REQUESTS: Final = 1
"""Locust's exit code where requests failed; they are in its rows."""
DRAIN_S: Final = 300.0
"""Longest wait for the answers after a regime: a slow machine still owes those of the surge."""
MOST_TURN_S: Final = 3600.0
"""A turn that takes longer is stopped."""
MOST_SAID_CHARACTERS: Final = 200


class Load(Record):
    """What every turn sends: a regime, a trace joined with texts, or whatever `command` does.

    warm_up_s  at the beginning of a turn, not counted; a command's turns are counted whole
    """

    regime: str = ""
    trace: str = ""
    prompts: str = ""
    tokenizer: str = ""
    time_scale: float = 1.0
    trace_s: float = 0.0
    max_tokens: Annotated[int, Field(ge=2)] = 32
    command: str = ""
    warm_up_s: Annotated[float, Field(ge=0.0)] = 0.0

    def __str__(self) -> str:
        return self.command or (f"the trace {self.trace}" if self.trace else self.regime)

    def sender(self, url: str, seed: int, path: Path, places: Mapping[str, str]) -> list[str]:
        """What sends it against `url` into `path`. `places` are further values of a command of the user's. Raises TurnError."""
        if not self.command:
            return locust_command(url, self._options(seed, path))
        files = {"result_file": str(path), "result_dir": str(path.parent), "result_name": path.name}
        return filled(self.command, {"url": url, "seed": str(seed), **files, **places})

    @property
    def ending(self) -> signal.Signals:
        """What asks the sender to stop. SIGINT is lost where it meets one of Locust's own greenlets (stats.stats_printer, 2.47)."""
        return signal.SIGINT if self.command else signal.SIGTERM

    def _options(self, seed: int, rows: Path) -> dict[str, str]:
        options = {"--seed": str(seed), "--rows": str(rows), "--drain-s": f"{DRAIN_S:g}", "--loglevel": "WARNING"}
        if self.trace:
            options |= {"--trace": self.trace, "--time-scale": f"{self.time_scale:g}", "--trace-s": f"{self.trace_s:g}"}
            options |= {"--tokenizer": self.tokenizer} if self.tokenizer else {}
        else:
            options |= {"--regime": regime_with_warm_up(self.regime, self.warm_up_s), "--max-tokens": str(self.max_tokens)}
        return options | ({"--prompts": self.prompts} if self.prompts else {})


def locust_command(url: str, options: Mapping[str, str], *flags: str) -> list[str]:
    """Locust with our file and without its web page, against `url`."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--host", url]
    return [*command, *(part for option in options.items() for part in option), *flags]


def filled(command: str, values: Mapping[str, str]) -> list[str]:
    """The words of a command with its places filled in. Raises TurnError for one that is no command.

    >>> filled("bench --base-url {url} --extra '{\\"a\\": 1}'", {"url": "http://h"})
    ['bench', '--base-url', 'http://h', '--extra', '{"a": 1}']
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise TurnError(f"command {command[:80]!r} cannot be read as words: {error}") from error
    if not words:
        raise TurnError("command: it has no word; for example 'vllm bench serve --base-url {url} ...'")
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return words


def send(
    load: Load,
    url: str,
    seed: int,
    path: Path,
    where: str,
    *,
    log: Path | None = None,
    places: Mapping[str, str] | None = None,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Send a load to its end; failed requests are in the file. Raises TurnError, which `where` begins.

    log      what the load generator says; beside the file where none is named
    on_poll  is called ten times a second meanwhile
    """
    path.unlink(missing_ok=True)
    command = load.sender(url, seed, path, places or {})
    said: deque[str] = deque(maxlen=1)
    name = shlex.join(command)[:MOST_SAID_CHARACTERS] if load.command else "the load generator"
    deadline_s = time.monotonic() + MOST_TURN_S
    try:
        opened = (log or path.with_suffix(".log")).open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise TurnError(f"{where}: its log cannot be written: {error.filename}: {error.strerror}") from error
    with opened as file:

        def take(line: str) -> None:
            print(line, file=file)
            said.extend([line] if line.strip() else [])

        try:
            process = ManagedProcess("harness", command, take, ending=load.ending)
        except OSError as error:
            raise TurnError(f"{where}: {name} cannot be started: {error.strerror}") from error
        with process:
            while (code := process.poll()) is None:
                if time.monotonic() > deadline_s:
                    raise TurnError(f"{where}: {name} took more than {MOST_TURN_S:g} s and was stopped")
                on_poll()
                time.sleep(POLL_PERIOD_S)
    if code not in ({0} if load.command else {0, LOCUST_FAILED_REQUESTS}):
        words = f"; it said last: {said[-1].strip()[:MOST_SAID_CHARACTERS]}" if said else ""
        raise TurnError(f"{where}: {name} ended with exit code {code}{words}")


def check_file(load: Load, path: Path, where: str) -> None:
    """Whether a turn left what can be compared. Raises TurnError."""
    try:
        if load.command:
            figures = read_result(path).figures()
            requests, failed, first = figures.requests, figures.failed, ""
        else:
            rows = read_rows(path)
            errors = [row.error for row in rows if row.error]
            requests, failed, first = len(rows), len(errors), next(iter(errors), "")
    except (ResultError, RowsError, OSError) as error:
        raise TurnError(f"{where}: the harness left nothing to read: {error}".splitlines()[0]) from error
    if not requests or failed == requests:
        problem = f"the first: {first[:MOST_SAID_CHARACTERS]}" if first else "see its log beside the results"
        raise TurnError(f"{where}: {failed} of {requests} requests failed, so there is nothing to compare; {problem}")


def regime_with_warm_up(text: str, warm_up_s: float) -> str:
    """A regime after so many seconds of its own first load, which are not counted.

    >>> regime_with_warm_up("quiet:60@0.2,surge:60@2", 5.0)
    'warm-up:5@0.2,quiet:60@0.2,surge:60@2'
    """
    regime = parse_regime(text)
    if not warm_up_s:
        return str(regime)
    return f"{WARM_UP}:{warm_up_s:g}@{str(regime.phases[0]).rpartition('@')[2]},{regime}"
