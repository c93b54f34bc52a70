"""The demo's single steps on a running system: set a mode and see it confirmed, send the load, ask for texts, kill the policy, keep
its journal.

Every wait has an end; what did not happen in time raises DemoError with what was seen last.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from nightjar.loadtests.demo_checks import Answer
from nightjar.loadtests.demo_processes import POLL_PERIOD_S, ManagedProcess
from nightjar.loadtests.demo_sampler import Sampler, all_confirmed
from nightjar.loadtests.openai_stream import ChatRequest, Server, stream_chat
from nightjar.loadtests.service_api import ServiceApi
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.status import FleetStatus

CONFIRM_TIMEOUT_S: Final = 120.0
"""Ends the demo only where something is broken: processes of a machine that is busy with other work stall for half a minute."""
DRAIN_S: Final = 300.0
"""Longest wait for the answers after a regime: a slow machine still owes those of the surge."""
STEADY_S: Final = 4.0
LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
LOCUST_FAILED_REQUESTS: Final = 1
KILL_NOTICE: Final = (
    'now the policy actor is killed on purpose; lines of Ray that follow, such as "A worker died or was killed", are expected'
)


class DemoError(Exception):
    """The demo cannot go on. The message says why, for a person."""


def wait_for_replicas(sampler: Sampler, timeout_s: float = CONFIRM_TIMEOUT_S) -> FleetStatus:
    """The status once every replica has reported: their number has been steady for STEADY_S."""
    deadline_s, known, since_s = time.monotonic() + timeout_s, 0, time.monotonic()
    while time.monotonic() < deadline_s:
        status = sampler.sample().status
        count = len(status.replicas) if status else 0
        if count != known:
            known, since_s = count, time.monotonic()
        if status and known and time.monotonic() - since_s >= STEADY_S:
            return status
        time.sleep(0.5)
    raise DemoError(f"no steady fleet within {timeout_s:.0f} s; {known} replicas known, last answer: {_last(sampler)}")


def set_mode(api: ServiceApi, sampler: Sampler, mode: Mode, replicas: int, learned: Literal["keep", "reset"] = "keep") -> None:
    """Set the fleet's mode and return when every replica confirmed it. Samples are marked with no mode meanwhile."""
    sampler.mode = ""
    api.set_mode(mode, "the demo compares modes", learned)
    deadline_s = time.monotonic() + CONFIRM_TIMEOUT_S
    while not all_confirmed(sampler.sample().status, mode, replicas):
        if time.monotonic() > deadline_s:
            raise DemoError(
                f"mode {mode} was not confirmed by {replicas} replicas within {CONFIRM_TIMEOUT_S:.0f} s: {_last(sampler)}"
            )
        time.sleep(POLL_PERIOD_S)


def ask(server: Server, model: str, prompt: str, max_tokens: int) -> Answer:
    """The greedy answer to one prompt, with the two best logprobs at every place."""
    result = stream_chat(server, ChatRequest(model, prompt, max_tokens, top_logprobs=2))
    return Answer(prompt, result.tokens, result.error or ("" if result.tokens else "the server sent no logprobs"))


def locust_command(url: str, regime: str, seed: int, max_tokens: int, rows: Path) -> list[str]:
    """Locust without its web page, playing the regime against `url` into a file of rows."""
    options = {
        "--host": url,
        "--regime": regime,
        "--seed": str(seed),
        "--max-tokens": str(max_tokens),
        "--rows": str(rows),
        "--drain-s": f"{DRAIN_S:g}",
        "--loglevel": "WARNING",
    }
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    return command + [part for option in options.items() for part in option]


def send_load(command: list[str], log: Path, on_poll: Callable[[], None]) -> None:
    """Run Locust to its end, its output in `log`. Failed requests are in its rows; anything else raises ProcessError."""
    with log.open("w", encoding="utf-8") as file, ManagedProcess("locust", command, lambda line: print(line, file=file)) as locust:
        while locust.poll() is None:
            on_poll()
            time.sleep(POLL_PERIOD_S)
        if locust.poll() not in {0, LOCUST_FAILED_REQUESTS}:
            raise locust.failure()


class PolicyKill:
    """Kills the policy actor once, `after_s` seconds into a load, and says when a newer incarnation answers."""

    def __init__(self, after_s: float) -> None:
        self.killed_at_s: float | None = None
        self._after_s = after_s
        self._killed_incarnation = -1
        self._is_back = False

    def poll(self, status: FleetStatus | None, elapsed_s: float, say: Callable[[str], None]) -> None:
        """Call often. Raises DemoError where the actor cannot be killed."""
        if status is None or elapsed_s < self._after_s:
            return
        policy = status.policy
        if self.killed_at_s is None:
            say(KILL_NOTICE)
            self.killed_at_s = time.time()
            kill_policy(policy.pid)
            self._killed_incarnation = policy.incarnation
            say(f"killed the policy actor: process {policy.pid}, incarnation {policy.incarnation}; serving goes on")
        elif not self._is_back and policy.incarnation > self._killed_incarnation:
            self._is_back = True
            say(f"the policy is back as incarnation {policy.incarnation}, process {policy.pid}")


def kill_policy(pid: int) -> None:
    """SIGKILL the policy actor, as a crash would. Raises DemoError where `pid` is not surely the actor on this machine."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError as error:
        raise DemoError(f"the policy actor's process {pid} is not on this machine ({error})") from error
    if "PolicyActor" not in title:
        raise DemoError(f"process {pid} is {title[:60]!r}, not the policy actor; nothing was killed")
    os.kill(pid, signal.SIGKILL)


def keep_journal(status: FleetStatus | None, target: Path) -> None:
    """Copy the policy's journal, rotated files included, oldest first. An empty file where there is none to read."""
    newest = Path(status.policy.journal_path) if status and status.policy.journal_path else None
    with target.open("wb") as copy:
        for file in _journal_files(newest) if newest else ():
            with file.open("rb") as lines:
                shutil.copyfileobj(lines, copy)


def _journal_files(newest: Path) -> list[Path]:
    rotated = sorted(newest.parent.glob(f"{newest.name}.*[0-9]"), key=lambda file: int(file.suffix[1:]), reverse=True)
    return [*rotated, *([newest] if newest.exists() else [])]


def _last(sampler: Sampler) -> str:
    last = sampler.samples[-1]
    if last.status is None:
        return last.error
    return (
        ", ".join(f"{one.replica_id} mode {one.mode}, confirmed {one.settings_confirmed}" for one in last.status.replicas)
        or "no replica"
    )
