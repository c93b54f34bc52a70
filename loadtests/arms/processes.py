"""What runs beside a measurement: processes, their output shown or kept, their ends certain, and calls repeated on a thread.

Each runs in a session of its own, so a Ctrl-C in the terminal reaches only the demo, which then stops them in order. Whatever
of a process's session outlives it is killed after a patience. SIGTERM ends a command the same way, so that what it recorded is
kept. Fails with ProcessError, which holds the last lines it wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Final, Self

ENDING: Final = (signal.SIGINT, signal.SIGTERM)
STOP_TIMEOUT_S: Final = 110.0
"""Longer than `nightjar run` itself waits for Ray."""
HURRY_TIMEOUT_S: Final = 15.0
"""After a second Ctrl-C."""
KILL_TIMEOUT_S: Final = 5.0
POLL_PERIOD_S: Final = 0.1
MAX_KEPT_LINES: Final = 15
MAX_LINE_CHARACTERS: Final = 160
"""Ray explains a killed worker in one line of a thousand characters."""
ANSI_SEQUENCE: Final = re.compile(r"\x1b\[[0-9;]*m")


def as_keyboard_interrupt(_number: int, _frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt."""
    raise KeyboardInterrupt


class Repeated:
    """Calls a function every `period_s` while it is entered, on a thread of its own."""

    def __init__(self, call: Callable[[], object], period_s: float, name: str) -> None:
        self._call = call
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._call()


@contextmanager
def held_back() -> Iterator[None]:
    """Both signals come after the block: a process that is started in it is known before anything can be raised.

    They are raised as the handlers of before would. Another thread than the main one gets no signals, and nothing is done there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: arrived.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
    for number in arrived:
        signal.raise_signal(number)


class ProcessError(Exception):
    """A process ended that should not have, or with an error. The message shows its last lines."""


class ManagedProcess:
    """A child process. `on_line` is called on a thread with every line that it writes to stdout or stderr.

    `ending` is the signal that asks it to stop: SIGINT, as Ctrl-C would, but for Locust.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        on_line: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        ending: signal.Signals = signal.SIGINT,
    ) -> None:
        self.name = name
        self._ending = ending
        self._on_line = on_line
        self._kept: deque[str] = deque(maxlen=MAX_KEPT_LINES)
        try:
            with held_back():
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
                assert self._child.stdout is not None
                self._reader = threading.Thread(target=self._read, args=(self._child.stdout,), name=f"{name} output", daemon=True)
                self._reader.start()
        except KeyboardInterrupt:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._child.poll()

    def interrupt(self) -> None:
        """Ask it to stop; asked a second time, `nightjar run` hurries."""
        if self._child.poll() is None:
            self._child.send_signal(self._ending)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to stop, wait for at most `timeout_s`, then kill what is left of its process group. May be called again."""
        self.interrupt()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout_s)
        except KeyboardInterrupt:
            self.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(HURRY_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait(KILL_TIMEOUT_S)
        self._reader.join(KILL_TIMEOUT_S)

    def failure(self) -> ProcessError:
        """The error that says how it ended."""
        self._reader.join(KILL_TIMEOUT_S)
        return ProcessError(
            f"{self.name} ended with exit code {self._child.poll()}\n" + "\n".join(f"  {line}" for line in self._kept)
        )

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self._kept.append(line.rstrip())
                self._on_line(line.rstrip())


def run_to_end(name: str, command: Sequence[str], on_line: Callable[[str], None]) -> None:
    """Run a command to its end, its lines passed on. Raises ProcessError unless it ends with exit code 0."""
    with ManagedProcess(name, command, on_line) as process:
        while process.poll() is None:
            time.sleep(POLL_PERIOD_S)
        if process.poll():
            raise process.failure()


class ServedSystem(ManagedProcess):
    """`nightjar run FILE`, until it serves and then until `stop`."""

    def __init__(self, file: Path, port: int, token: str, on_line: Callable[[str], None]) -> None:
        self.url = ""
        self._say = on_line
        command = nightjar_command("run", str(file), "--port", str(port), "-o", "json")
        super().__init__("nightjar run", command, self._take_line, {"NIGHTJAR_API_TOKEN": token})

    def wait_until_ready(self, timeout_s: float) -> str:
        """Blocks until it serves; returns its URL. Raises ProcessError where it ends before or takes longer than `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while not self.url:
            if self.poll() is not None:
                raise self.failure()
            if time.monotonic() > deadline_s:
                raise ProcessError(f"nightjar run did not serve within {timeout_s:.0f} s")
            time.sleep(POLL_PERIOD_S)
        return self.url

    def _take_line(self, line: str) -> None:
        url = _ready_url(line)
        if url:
            self.url = url
        else:
            self._say(f"  {ANSI_SEQUENCE.sub('', line)[:MAX_LINE_CHARACTERS]}")


def nightjar_command(*arguments: str) -> list[str]:
    """The `nightjar` command of this very environment."""
    return [sys.executable, "-c", "from nightjar.cluster.cli import main; main()", *arguments]


def _ready_url(line: str) -> str:
    try:
        values = json.loads(line)
    except ValueError:
        return ""
    url = values.get("url") if isinstance(values, dict) else None
    return url if isinstance(url, str) else ""
