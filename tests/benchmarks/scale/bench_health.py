"""`make bench-health`: how long an operator's write takes while others ask for health and status, with a thousand replicas.

A Ray cluster of this machine's own with Serve, the policy's application and its actor. A process of coarse engines reports for
all replicas, in twenty groups. Writes (`POST /mode`) are sent every two seconds: first with nothing beside them, then while health
is asked 50 times a second and status twice. What is timed is what an operator waits for: from sending a request to the end of its
answer. `--only http` has the same replicas report to a `nightjar policy` over HTTP, one connection each, and says what that process
takes. A missed bar fails the bench with --strict only; a write that is answered with an error always.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import psutil
import ray
import typer
from ray import serve

from nightjar.cluster.api.exchange_client import HttpPolicy
from nightjar.cluster.api.http_client import ROUTE_PREFIX
from nightjar.cluster.api.operations import CONFIGURE, OperationError
from nightjar.cluster.client import PolicyClient
from nightjar.cluster.policy_app import build
from nightjar.loadtests.report.machine import Effort
from nightjar.loadtests.simulation.evidence.bars import Bar, StrictOption
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.wire.report import LoadReport
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.run import BenchRun, sections_to_run
from tests.benchmarks.scale.bench_scale import make_fleet
from tests.ports import free_port

OUTPUT: Final = Path("runs/health/latest")
SECTIONS: Final = ("writes", "http")
REPLICAS: Final = 1000
GROUPS: Final = 20
SECONDS: Final = 30.0
HEALTH_PER_S: Final = 50.0
STATUS_PER_S: Final = 2.0
WRITES_PER_S: Final = 0.5
WRITE_WITHIN_S: Final = 1.0
PERIOD_S: Final = 2.0
"""Of reports: 500 a second, of about 1,000 that one actor takes."""
PARKED_S: Final = 10.0
"""The same over HTTP, where calls that wait are what is asked for: every replica has one all the time."""
PATIENCE_S: Final = 120.0
TOKEN: Final = "bench"


class Crowd:
    """Coarse engines that report as agents do, one parked call each: a Ray actor, or over HTTP to `url`."""

    def __init__(self, replicas: int, groups: int, period_s: float, seed: int, url: str = "") -> None:
        self._engines = make_fleet(replicas, groups, seed).engines
        self._period_s = period_s
        self._rng = random.Random(seed)
        context = ssl.create_default_context() if url else None
        over_http = [HttpPolicy(url, transport=httpx.AsyncHTTPTransport(verify=context)) for _ in self._engines if context]
        self._clients: list[HttpPolicy] | list[PolicyClient] = over_http or [PolicyClient()] * replicas
        self.failures = Counter[str]()
        self._steered: set[int] = set()
        self._running: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to report, spread over one period."""
        self._running = [asyncio.create_task(self._report(number)) for number in range(len(self._engines))]

    async def steered(self) -> int:
        """How many have got settings."""
        return len(self._steered)

    async def stop(self) -> None:
        """End every call."""
        for reporting in self._running:
            reporting.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _report(self, number: int) -> None:
        engine, version = self._engines[number], None
        await asyncio.sleep(self._rng.uniform(0.0, self._period_s))
        while True:
            engine.run(self._period_s)
            report: LoadReport = engine.report()
            snapshot = report.snapshot.model_copy(update={"settings_version": version})
            try:
                reply = await self._clients[number].exchange(report.model_copy(update={"snapshot": snapshot}), PATIENCE_S)
            except OperationError as error:
                self.failures[str(error)] += 1
                await asyncio.sleep(1.0)
                continue
            if reply.issued is not None:
                version = reply.issued.version
                engine.adopt(reply.issued.settings)
                self._steered.add(number)


@dataclass(slots=True)
class Asked:
    """Answers of one kind: seconds of each, and the HTTP statuses other than 200."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)


def main(
    replicas: Annotated[int, typer.Option(help="Replicas that report.", min=20)] = REPLICAS,
    seconds: Annotated[float, typer.Option(help="Seconds of each of the two parts.", min=4.0)] = SECONDS,
    only: Annotated[list[str] | None, typer.Option(help=f"Sections to run: {', '.join(SECTIONS)}.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise and acceptance.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for summary.json.")] = OUTPUT,
    strict: StrictOption = False,
) -> None:
    """Time an operator's writes beside many who ask. With fewer replicas or seconds it is no whole run."""
    sections = sections_to_run(only, SECTIONS, {})
    is_whole = replicas >= REPLICAS and seconds >= SECONDS and sections == SECTIONS
    subject = f"the policy's actor and API under Ray Serve, and `nightjar policy`; {replicas} coarse replicas in {GROUPS} groups"
    effort: Effort = "whole" if is_whole else "partial"
    run = BenchRun("health", seeds=[seed], sections=sections, output=output, effort=effort, subject=subject)
    failed: list[int] = []
    if "writes" in sections:
        failed += writes(run, replicas, seconds, seed)
    if "http" in sections:
        with policy_process() as (url, process):
            run.found("http", judge_http(asyncio.run(report_over_http(url, process, replicas, seconds, seed)), replicas, seconds))
    raise typer.Exit(run.end(strict=strict) or int(bool(failed)))


def writes(run: BenchRun, replicas: int, seconds: float, seed: int) -> list[int]:
    """Writes alone, and beside those who ask; the HTTP statuses other than 200 that they were answered with."""
    with policy_application() as url:
        crowd = ray.remote(Crowd).options(num_cpus=0).remote(replicas, GROUPS, PERIOD_S, seed)
        ray.get(crowd.start.remote())
        until(lambda: ray.get(crowd.steered.remote()) >= replicas, "every replica has settings")
        run.tell("every replica has settings")
        alone = asyncio.run(ask(url, seconds, {"write": WRITES_PER_S}))
        run.tell("writes alone: done")
        beside = asyncio.run(ask(url, seconds, {"write": WRITES_PER_S, "health": HEALTH_PER_S, "status": STATUS_PER_S}))
    run.found("writes", judge(alone, beside, replicas))
    return alone["write"].wrong + beside["write"].wrong


@contextmanager
def policy_process() -> Iterator[tuple[str, psutil.Process]]:
    """The address of a `nightjar policy` of this checkout, and its process. It ends with the block."""
    with tempfile.TemporaryDirectory(prefix="nj-bh-") as folder:
        settings, port = Path(folder) / "settings.yaml", free_port()
        settings.write_text(f"mode: auto\nexchange_period_s: {PARKED_S}\n")
        command = [sys.executable, "-m", "tests.deployments.plain_vllm.nightjar_command", "policy"]
        command += ["--state", f"{folder}/state", "--settings", str(settings), "--port", str(port)]
        os.environ["NIGHTJAR_API_TOKEN"] = TOKEN
        process = subprocess.Popen(command)
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: _answers(f"{url}{ROUTE_PREFIX}/health"), "the policy answers")
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False


async def report_over_http(url: str, process: psutil.Process, replicas: int, seconds: float, seed: int) -> dict[str, Any]:
    """What the process takes before there are reports and with a parked call of each replica, and how soon a write is answered."""
    before_mib = process.memory_info().rss / 2**20
    crowd = Crowd(replicas, GROUPS, PARKED_S, seed, url)
    await crowd.start()
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:

        async def reports() -> int:
            status = (await client.get(f"{url}{ROUTE_PREFIX}/status")).json()
            return int(status["policy"]["reports"])

        ends_s = time.monotonic() + PATIENCE_S
        while await crowd.steered() < replicas:
            if time.monotonic() > ends_s:
                raise RuntimeError(f"{await crowd.steered()} replicas have settings, not {replicas}: {crowd.failures}")
            await asyncio.sleep(0.2)
        crowd.failures.clear()
        began_s, taken, used_s = time.monotonic(), await reports(), sum(process.cpu_times()[:2])
        asked = await ask(f"{url}{ROUTE_PREFIX}", seconds, {"write": WRITES_PER_S})
        took_s = time.monotonic() - began_s
        found = {
            "reports_per_s": (await reports() - taken) / took_s,
            "processor_share": (sum(process.cpu_times()[:2]) - used_s) / took_s,
            "connections": len([one for one in process.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]),
            "mib": process.memory_info().rss / 2**20,
            "mib_before": before_mib,
            "write_s_median": statistics.median(asked["write"].seconds),
            "write_s_worst": max(asked["write"].seconds),
            "failed_reports": dict(crowd.failures),
        }
    await crowd.stop()
    return found


def judge_http(found: Mapping[str, Any], replicas: int, seconds: float) -> Outcome:
    """Stated: what one process holds. The bar is that no report failed."""
    bar = Bar(
        name="http_failed_reports",
        meaning="reports over HTTP that brought no answer, one connection and one parked call a replica",
        direction="at most",
        limit=0.0,
        value=float(sum(found["failed_reports"].values())),
        at=f"{replicas} replicas, {seconds:g} s",
        cells=replicas,
    )
    names = ("connections", "reports_per_s", "processor_share", "mib_before", "mib", "write_s_median", "write_s_worst")
    heading = ("connections", "reports a second", "of a processor", "MiB before", "MiB", "a write, median s", "worst s")
    lines = [[f"{found[name]:.3g}" if found[name] < 100 else f"{found[name]:.0f}" for name in names]]
    return Outcome(bars=[bar], facts=dict(found), tables=[Grid("One `nightjar policy` over HTTP", heading, lines)])


@contextmanager
def policy_application() -> Iterator[str]:
    """The address of the policy's API on a cluster that ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="nj-bh-", dir="/tmp"))  # short: Ray's socket names must fit 107 bytes
    os.environ |= {"NIGHTJAR_API_TOKEN": TOKEN, "RAY_worker_niceness": "0", "NIGHTJAR_JOURNAL_DIR": str(folder / "journal")}
    os.environ.pop("RAY_ADDRESS", None)
    port = free_port()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 << 20,
        _temp_dir=str(folder),
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({}), name="nightjar", route_prefix=ROUTE_PREFIX)
        asyncio.run(PolicyClient().call(CONFIGURE, {"mode": "auto", "exchange_period_s": PERIOD_S}))
        yield f"http://127.0.0.1:{port}{ROUTE_PREFIX}"
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


async def ask(url: str, seconds: float, per_s: Mapping[str, float]) -> dict[str, Asked]:
    """Send each kind so often for a while, whether or not the one before was answered."""
    asked = {kind: Asked() for kind in per_s}
    async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:

        async def one(kind: str, number: int) -> None:
            began_s = time.monotonic()
            if kind == "write":
                body = {"mode": "auto", "reason": f"write {number}"}
                answer = await client.post(f"{url}/mode", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
            else:
                answer = await client.get(f"{url}/{kind}")
            asked[kind].seconds.append(time.monotonic() - began_s)
            if answer.status_code != httpx.codes.OK:
                asked[kind].wrong.append(answer.status_code)

        async def keep_asking(kind: str, rate: float) -> None:
            began_s, sent = time.monotonic(), list[asyncio.Task[None]]()
            for number in range(int(seconds * rate)):
                await asyncio.sleep(began_s + number / rate - time.monotonic())
                sent.append(asyncio.create_task(one(kind, number)))
            await asyncio.gather(*sent)

        await asyncio.gather(*(keep_asking(kind, rate) for kind, rate in per_s.items()))
    return asked


def judge(alone: Mapping[str, Asked], beside: Mapping[str, Asked], replicas: int) -> Outcome:
    """The bar is of the longest write beside the others; the rest is told."""
    writes = beside["write"].seconds
    bar = Bar(
        name="write_s_worst",
        meaning="seconds until a write is answered, the longest of all, while health is asked 50 times a second and status twice",
        direction="at most",
        limit=WRITE_WITHIN_S,
        value=max(writes),
        at=f"{replicas} replicas, {len(writes)} writes",
        cells=len(writes),
    )
    rows = [("writes alone", alone["write"]), *((f"{kind} beside the others", asked) for kind, asked in beside.items())]
    lines = [[name, *told(asked)] for name, asked in rows]
    facts: dict[str, Any] = {name.replace(" ", "_"): {"median_s": statistics.median(asked.seconds)} for name, asked in rows}
    heading = ("asked", "times", "median, s", "99th of 100, s", "worst, s", "not 200")
    return Outcome(bars=[bar], facts=facts, tables=[Grid("Seconds until the answer", heading, lines)])


def told(asked: Asked) -> Sequence[str]:
    """How often, median, 99th of a hundred, worst, and how many were no success."""
    ordered = sorted(asked.seconds)
    high = ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)]
    return [
        str(len(ordered)),
        *(f"{value:.3f}" for value in (statistics.median(ordered), high, ordered[-1])),
        str(len(asked.wrong)),
    ]


def until(holds: Any, what: str) -> None:
    """Look five times a second."""
    ends_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > ends_s:
            raise RuntimeError(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    typer.run(main)
