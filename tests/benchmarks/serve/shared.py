"""Two `nightjar serve` under one `nightjar policy` while clients ask: a mode, a kill, a wrong token, a disk without room.

Every request of the whole time counts; a failed one misses the bar. A disk without room is a limit on the size of a file, which
gives the policy the same kind of error at the same calls. What servers and policy said of each event is kept with the rows.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from nightjar.cluster.api.access import EXCHANGE_TOKEN_VARIABLE, TOKEN_VARIABLE
from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import MODE, STATUS, OperationError
from nightjar.loadtests.arms.arm import TurnError
from nightjar.loadtests.load.openai_stream import ChatResult
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.wire.status import ReplicaStatus
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.serve.servers import OURS, RunningServer, running
from tests.ports import free_port

WORDS: Final = "s3cret"
OTHER_WORDS: Final = "another"
SERVERS: Final = 2
PINNED: Final = (2, 1)
"""K that both are told to run: first, and when the disk is full."""
WITHIN_S: Final = 240.0
FILE_BYTES: Final = 512
"""What a file may hold where the disk is full: the mark of who holds the folder, and no state."""
SAID: Final = re.compile(r"\[(?:warning|error) *\] *(\S+)")
STYLED: Final = re.compile(r"\x1b\[[0-9;]*m")

Ask = Callable[[RunningServer], ChatResult]


@dataclass(slots=True)
class PolicyProcess:
    """`nightjar policy` on one port and folder, started again and again."""

    state: Path
    port: int
    process: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where servers and operators find it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, words: str = WORDS, *, is_disk_full: bool = False) -> None:
        """Start it, and wait until it answers. Raises TurnError."""
        settings = self.state.with_suffix(".yaml")
        settings.write_text("mode: auto\n", encoding="utf-8")  # an engine that starts in shadow is never touched
        command = [sys.executable, "-m", OURS[0], "policy", "--state", str(self.state), "--port", str(self.port)]
        command += ["--settings", str(settings)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, EXCHANGE_TOKEN_VARIABLE: words, TOKEN_VARIABLE: WORDS},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if is_disk_full:  # before it has begun to run our code
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        with HttpClient(self.url) as client:
            _until(lambda: _answered(lambda: client.call(STATUS)) is not None, "the policy answers")

    def end(self, number: signal.Signals) -> None:
        """Send it a signal, and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.said += list(process.stdout)


@contextmanager
def two_servers(arguments: list[str], policy: str) -> Iterator[list[RunningServer]]:
    """Both ready, and reporting to the policy at this address."""
    with ExitStack() as stack:
        more = [*arguments, "--nightjar-policy", policy]
        yield [stack.enter_context(running(OURS, more, {EXCHANGE_TOKEN_VARIABLE: WORDS})) for _ in range(SERVERS)]


def shared(arguments: list[str], folder: Path, ask: Ask, away_s: float, tell: Tell) -> Outcome:
    """All events, one after the other, `away_s` long where the policy is away."""
    policy, over = PolicyProcess(folder / f"policy-{time.time_ns()}", free_port()), threading.Event()
    took_s: dict[str, float] = {}
    policy.start()
    try:
        with two_servers(arguments, policy.url) as servers, ThreadPoolExecutor(SERVERS) as pool:
            asking = [pool.submit(_ask_until, over, ask, server) for server in servers]
            try:
                with HttpClient(policy.url, token=SecretStr(WORDS)) as operator:
                    for name, event in _events(policy, operator, away_s):
                        began_s = time.monotonic()
                        event()
                        took_s[name] = time.monotonic() - began_s
                        tell(f"{name}: {took_s[name]:.1f} s")
            finally:
                over.set()
            results = [result for one in asking for result in one.result()]
            said = [_said((server.folder / "log").read_text(errors="replace")) for server in servers]
    finally:
        policy.end(signal.SIGTERM)
    return _found(results, took_s, {"servers": said, "policy": _said("".join(policy.said))})


def _events(policy: PolicyProcess, operator: HttpClient, away_s: float) -> Iterator[tuple[str, Callable[[], None]]]:
    def both_run(k: int) -> None:
        _until(lambda: _all(operator, lambda one: one.load is not None and one.load.num_speculative_tokens == k), f"both run K={k}")

    def pinned(k: int) -> None:
        operator.call(MODE, {"mode": f"pin={k}"})
        both_run(k)

    def away(number: signal.Signals, words: str) -> None:
        policy.end(number)
        if words:
            policy.start(words)
        time.sleep(away_s)

    def back(k: int, *, is_disk_full: bool = False) -> None:
        if policy.process is not None and policy.process.poll() is None:
            policy.end(signal.SIGTERM)
        policy.start(is_disk_full=is_disk_full)
        both_run(k)

    first, last = PINNED
    yield "both report", lambda: _until(lambda: _all(operator, lambda one: one.steering_reason == ""), "both report")
    yield f"both run K={first} after it was set", lambda: pinned(first)
    yield "policy killed with -9, away", lambda: away(signal.SIGKILL, "")
    yield f"it starts again, both run K={first}", lambda: back(first)
    yield "it starts with another token", lambda: away(signal.SIGTERM, OTHER_WORDS)
    yield f"it starts with the token and a full disk, both run K={first}", lambda: back(first, is_disk_full=True)
    yield f"both run K={last} after it was set", lambda: pinned(last)


def _all(operator: HttpClient, holds: Callable[[ReplicaStatus], bool]) -> bool:
    status = _answered(lambda: operator.call(STATUS))
    replicas = status.replicas if status is not None else ()
    return len(replicas) == SERVERS and len({one.group_id for one in replicas}) == 1 and all(map(holds, replicas))


def _answered(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OperationError:
        return None


def _until(holds: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + WITHIN_S
    while not holds():
        if time.monotonic() > ends_s:
            raise TurnError(f"{what}: not within {WITHIN_S:.0f} s")
        time.sleep(0.2)


def _ask_until(over: threading.Event, ask: Ask, server: RunningServer) -> list[ChatResult]:
    results = []
    while not over.is_set():
        results.append(ask(server))
    return results


def _said(log: str) -> dict[str, int]:
    """Warnings and errors of ours by name, with how often they were said."""
    found: dict[str, int] = {}
    for event in SAID.findall(STYLED.sub("", log)):
        found[event] = found.get(event, 0) + 1
    return found


def _found(results: list[ChatResult], took_s: Mapping[str, float], said: Mapping[str, Any]) -> Outcome:
    failed = [result.error for result in results if result.error]
    bars = [
        Bar(
            name="shared_failed",
            meaning="requests to two servers that failed while their policy was killed, refused them and had no room on its disk",
            direction="at most", limit=0.0, value=float(len(failed)), at=f"{len(results)} requests", cells=len(took_s),
        ),
    ]  # fmt: skip
    lines = [[what, f"{seconds:.1f}"] for what, seconds in took_s.items()]
    return Outcome(
        bars=bars,
        tables=[Grid("Two servers under one policy, requests all the while", ("event", "seconds"), lines)],
        rows={"events": [{"event": what, "seconds": seconds} for what, seconds in took_s.items()]},
        facts={"errors": failed[:3], "said": dict(said)},
    )
