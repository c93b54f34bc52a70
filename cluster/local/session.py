"""The process that holds a local cluster, from outside: started, told to stop, and cleaned up after.

Ray installs signal handlers that abort, so it lives in a child process with a session of its own, where no Ctrl-C arrives.
The child's stdin is its lifeline: closed, or lost with this process, it stops everything and ends. Whatever of its session
outlives it (a crash, a hung engine) is killed here. A child that ends with START_AGAIN is started a second time, once.
Each child gets a temp folder as its last argument. It removes the folder itself or says that it keeps it, for the logs; of a child
that was killed because somebody asked to stop, it is removed here.
Fails closed: a second signal or STOP_TIMEOUT_S ends the session at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

STOP_TIMEOUT_S: Final = 90.0
LEFTOVER_TIMEOUT_S: Final = 10.0
KILLED_TIMEOUT_S: Final = 10.0
"""A killed process is gone once it gets processor time, which on a busy machine is not at once."""
POLL_PERIOD_S: Final = 0.2
MAX_TEMP_FOLDER_LENGTH: Final = 32
"""Ray's sockets, whose paths may have 107 bytes, lie in it."""
STOPPED_BEFORE_SERVING: Final = 75
START_AGAIN: Final = 76
"""Exit code of a child that failed for a reason that may be gone at the next start."""


def short_temp_folder() -> Path:
    """A new folder whose path leaves room for Ray's socket names: the system's temp folder, or /tmp where that is too deep."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) + len("/nightjar-abcdefgh") > MAX_TEMP_FOLDER_LENGTH:
        root = Path("/tmp")  # noqa: S108 - mkdtemp makes a private folder with a random name in it
    return Path(tempfile.mkdtemp(prefix="nightjar-", dir=root))


class LocalSession:
    """Runs a command until it ends or a signal comes."""

    def __init__(self, command: list[str], make_folder: Callable[[], Path] = short_temp_folder) -> None:
        self._command = command
        self._make_folder = make_folder
        self._signal = 0
        self._hurry = False
        self._stop_at_s = float("inf")
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Blocks until nothing of the session is left.

        Returns the exit code to end with: the child's, or 128 + signal where a signal came before the child was serving.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        code = self._run_child()
        if code == START_AGAIN and not self._signal:
            sys.stderr.write("trying a second time\n")
            code = self._run_child()
        if code == START_AGAIN:
            code = 1
        if self._signal:
            sys.stderr.write("stopped; nothing was left running\n")
        return 128 + self._signal if self._signal and code else code

    def _run_child(self) -> int:
        """Start the command, wait for its end, and end what is left of its session. Returns its exit code."""
        folder = self._make_folder()
        self._child = subprocess.Popen([*self._command, str(folder)], stdin=subprocess.PIPE, start_new_session=True)
        if self._signal:
            self._ask_to_stop()
        while self._child.poll() is None and not self._hurry and time.monotonic() < self._stop_at_s:
            time.sleep(POLL_PERIOD_S)
        self._ask_to_stop()
        end_session(self._child.pid, 0.0 if self._hurry else LEFTOVER_TIMEOUT_S)
        code = self._child.wait()
        if self._signal and code < 0:
            remove_folder(folder)
        with suppress(OSError):
            folder.rmdir()  # where it was never used
        return code

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._hurry = bool(self._signal)
        self._signal = number
        self._stop_at_s = time.monotonic() + STOP_TIMEOUT_S
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def end_session(session_id: int, patience_s: float) -> None:
    """Wait until no process of a session is left, and kill those that are after `patience_s`; returns when they are gone."""
    deadline_s = time.monotonic() + patience_s
    while session_members(session_id) and time.monotonic() < deadline_s:
        time.sleep(POLL_PERIOD_S)
    for pid in session_members(session_id):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline_s = time.monotonic() + KILLED_TIMEOUT_S
    while session_members(session_id) and time.monotonic() < deadline_s:
        time.sleep(POLL_PERIOD_S)


def remove_folder(folder: Path) -> None:
    """Remove a folder of processes that were killed just now: one that is not dead yet may write once more."""
    deadline_s = time.monotonic() + KILLED_TIMEOUT_S
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < deadline_s:
        time.sleep(POLL_PERIOD_S)
        shutil.rmtree(folder, ignore_errors=True)


def session_members(session_id: int) -> list[int]:
    """Ids of the living processes of a session; the dead that nobody has waited for do not count."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == session_id and state != "Z":
            members.append(int(entry.name))
    return members
