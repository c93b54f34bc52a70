"""Two `nightjar serve` under one `nightjar policy` while clients ask: what one learns, a mode, a kill, refusals, a full disk.

At first one server alone is asked, under auto and from nothing learned, until the plan has another K; then the other. From there
on both are asked. Every request of the whole time counts; a failed one misses the bar. A disk without room is a limit on the size
of a file, which gives the policy the same kind of error at the same calls; another protocol is the policy's, so that to it
both agents are of another one. What servers and policy said of each event is kept with the rows.
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
from dataclasses import asdict, dataclass, field
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
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.status import ReplicaStatus
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.serve.compared import steps_since
from tests.benchmarks.serve.servers import OURS, RunningServer, running
from tests.deployments.plain_vllm.nightjar_command import PROTOCOL_VARIABLE
from tests.ports import free_port

WORDS: Final = "s3cret"
OTHER_WORDS: Final = "another"
SERVERS: Final = 2
PINNED: Final = (2, 1)
"""K that both are told to run: first, and when the disk is full."""
WITHIN_S: Final = 240.0
LOOK_PERIOD_S: Final = 0.2
REPORT_PERIOD_S: Final = OperatorSettings().exchange_period_s
FIRST_REQUESTS: Final = 2
"""Of the server that learned nothing itself: how many tell what it runs."""
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

    def start(self, words: str = WORDS, *, is_disk_full: bool = False, protocol: int = PROTOCOL_VERSION) -> None:
        """Start it, and wait until it answers. Raises TurnError."""
        settings = self.state.with_suffix(".yaml")
        settings.write_text("mode: auto\n", encoding="utf-8")  # an engine that starts in shadow is never touched
        command = [sys.executable, "-m", OURS[0], "policy", "--state", str(self.state), "--port", str(self.port)]
        command += ["--settings", str(settings)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, EXCHANGE_TOKEN_VARIABLE: words, TOKEN_VARIABLE: WORDS, PROTOCOL_VARIABLE: str(protocol)},
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


@dataclass(frozen=True, slots=True)
class Learned:
    """What one server's plan came to at the other, which had not been asked before.

    `cold_k` is the plan's K for one request from nothing learned. `delay_s` is from the first look at which it was another, `k`, to
    the first at which the other server runs newer settings; `steps_by_k` are its steps for its first requests, while the plan
    learns on.
    """

    cold_k: int
    k: int
    learning_s: float
    delay_s: float
    steps_by_k: Mapping[int, int]

    @property
    def share(self) -> float:
        """Of those steps, those at another K than that of nothing learned.

        >>> Learned(3, 5, 40.0, 0.3, {3: 1, 2: 1, 5: 2}).share
        0.75
        """
        return 1.0 - self.steps_by_k.get(self.cold_k, 0) / max(sum(self.steps_by_k.values()), 1)


def shared(arguments: list[str], folder: Path, ask: Ask, away_s: float, tell: Tell) -> Outcome:
    """What one learns, then all events, one after the other, `away_s` long where the policy is away."""
    policy, over = PolicyProcess(folder / f"policy-{time.time_ns()}", free_port()), threading.Event()
    took_s: dict[str, float] = {}
    policy.start()
    try:
        with two_servers(arguments, policy.url) as (first, second), ThreadPoolExecutor(SERVERS) as pool:
            asking = [pool.submit(_ask_until, over, ask, first)]
            try:
                with HttpClient(policy.url, token=SecretStr(WORDS)) as operator:
                    _until(lambda: _all(operator, lambda one: one.steering_reason == ""), "both report")
                    learned, results = _learned(operator, second, ask)
                    tell(f"K={learned.k} learned in {learned.learning_s:.1f} s, at the other after {learned.delay_s:.1f} s")
                    asking.append(pool.submit(_ask_until, over, ask, second))
                    for name, event in _events(policy, operator, away_s):
                        began_s = time.monotonic()
                        event()
                        took_s[name] = time.monotonic() - began_s
                        tell(f"{name}: {took_s[name]:.1f} s")
            finally:
                over.set()
            results += [result for one in asking for result in one.result()]
            said = [_said((server.folder / "log").read_text(errors="replace")) for server in (first, second)]
    finally:
        policy.end(signal.SIGTERM)
    return _found(learned, results, took_s, {"servers": said, "policy": _said("".join(policy.said))})


def _learned(operator: HttpClient, second: RunningServer, ask: Ask) -> tuple[Learned, list[ChatResult]]:
    """Wait until the plan has another K for one request than before anybody was asked, and the second newer settings; then ask the
    second. Raises TurnError where that does not come in time.
    """
    port = second.url.rpartition(":")[2]

    def look() -> tuple[int, ReplicaStatus]:
        status = operator.call(STATUS)
        (group,), (other,) = status.groups, [one for one in status.replicas if one.replica_id.endswith(f":{port}")]
        return max((row.num_speculative_tokens for row in group.rows if row.first_batch_size == 1), default=0), other

    def steps(other: ReplicaStatus) -> dict[int, int]:
        return {total.num_speculative_tokens: total.steps for total in other.totals}

    began_s = time.monotonic()
    cold_k, before = look()
    known, k, planned_s = before.settings_version, cold_k, 0.0

    def has_arrived() -> bool:
        nonlocal known, k, planned_s
        planned_k, other = look()
        if k == cold_k != planned_k:
            k, planned_s = planned_k, time.monotonic()
        elif k == cold_k:
            known = other.settings_version
        version = other.settings_version
        return k != cold_k and version is not None and version.is_newer_than(known)

    _until(has_arrived, "newer settings at the other server, of a plan that was learned")
    delay_s = time.monotonic() - planned_s
    if steps(look()[1]) != steps(before):
        raise TurnError("the other server ran steps although nobody asked it")
    results = [ask(second) for _ in range(FIRST_REQUESTS)]
    time.sleep(2 * REPORT_PERIOD_S)  # until it has reported its last steps
    return Learned(cold_k, k, planned_s - began_s, delay_s, steps_since(steps(look()[1]), steps(before))), results


def _events(policy: PolicyProcess, operator: HttpClient, away_s: float) -> Iterator[tuple[str, Callable[[], None]]]:
    def both_run(k: int) -> None:
        _until(lambda: _all(operator, lambda one: one.load is not None and one.load.num_speculative_tokens == k), f"both run K={k}")

    def pinned(k: int) -> None:
        operator.call(MODE, {"mode": f"pin={k}"})
        both_run(k)

    def away(number: signal.Signals, start: Callable[[], None] | None = None) -> None:
        policy.end(number)
        if start is not None:
            start()
        time.sleep(away_s)

    def back(k: int, *, is_disk_full: bool = False) -> None:
        if policy.process is not None and policy.process.poll() is None:
            policy.end(signal.SIGTERM)
        policy.start(is_disk_full=is_disk_full)
        both_run(k)

    first, last = PINNED
    other = PROTOCOL_VERSION + 1
    yield f"both run K={first} after it was set", lambda: pinned(first)
    yield "policy killed with -9, away", lambda: away(signal.SIGKILL)
    yield f"it starts again, both run K={first}", lambda: back(first)
    yield "it starts with another token", lambda: away(signal.SIGTERM, lambda: policy.start(OTHER_WORDS))
    yield f"it starts with the token again, both run K={first}", lambda: back(first)
    yield "it starts with another protocol", lambda: away(signal.SIGTERM, lambda: policy.start(protocol=other))
    yield f"it starts with the protocol and a full disk, both run K={first}", lambda: back(first, is_disk_full=True)
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
        time.sleep(LOOK_PERIOD_S)


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


def _found(learned: Learned, results: list[ChatResult], took_s: Mapping[str, float], said: Mapping[str, Any]) -> Outcome:
    failed = [result.error for result in results if result.error]
    ran = ", ".join(f"{steps} at K={k}" for k, steps in learned.steps_by_k.items())
    bars = [
        Bar(
            name="shared_failed",
            meaning="requests to two servers that failed while their policy was killed, refused them and had no room on its disk",
            direction="at most", limit=0.0, value=float(len(failed)), at=f"{len(results)} requests", cells=len(took_s),
        ),
        Bar(
            name="learned_elsewhere_s",
            meaning="seconds from the plan's first K that one server's steps taught until the other, idle, runs newer settings; a "
            f"period, and two looks of {LOOK_PERIOD_S:g} s",
            direction="at most", limit=REPORT_PERIOD_S + 2 * LOOK_PERIOD_S, value=learned.delay_s,
            at=f"K={learned.k}, {learned.cold_k} from nothing learned, after {learned.learning_s:.1f} s", cells=1,
        ),
        Bar(
            name="learned_elsewhere_share",
            meaning="share of the other's first steps at another K than that of nothing learned",
            direction="stated", value=learned.share, at=ran, cells=1,
        ),
    ]  # fmt: skip
    lines = [[what, f"{seconds:.1f}"] for what, seconds in took_s.items()]
    told = asdict(learned) | {"steps_by_k": {str(k): steps for k, steps in learned.steps_by_k.items()}, "share": learned.share}
    return Outcome(
        bars=bars,
        tables=[Grid("Two servers under one policy, requests all the while", ("event", "seconds"), lines)],
        rows={"events": [{"event": what, "seconds": seconds} for what, seconds in took_s.items()], "learned": [told]},
        facts={"errors": failed[:3], "said": dict(said)},
    )
