"""The demo: one small real system, the same load under three modes, everything measured, nothing left behind.

A preset of `loadtests.arms`: off, a fixed K and auto face the same arrivals, one round in this order, switched through the HTTP API
while the replicas run. Auto begins without knowledge: what was learned is reset, and texts are compared after the load of each
mode. Once the policy actor is killed in the middle of a surge. What passes or fails are counts: no failed request, K as the
settings say, equal text, a policy that comes back. Times are shown and never judged: they depend on the machine.
Fails with TurnError or ProcessError; whatever happened, the processes that it started are stopped and what was recorded is kept.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

import nightjar
from nightjar.cluster.api.http_client import HttpClient
from nightjar.loadtests.arms.arm import Arm, TurnError, parse_arms
from nightjar.loadtests.arms.load import Load, send
from nightjar.loadtests.arms.processes import ServedSystem, nightjar_command, run_to_end
from nightjar.loadtests.arms.session import Session, service_api
from nightjar.loadtests.arms.texts import NEAR_TIE, ROUNDED_NEAR_TIE
from nightjar.loadtests.demo import checks
from nightjar.loadtests.demo.caption import sentence
from nightjar.loadtests.demo.checks import Answer
from nightjar.loadtests.demo.machine import ServedModel, look, share_of_others
from nightjar.loadtests.demo.memory import MemoryWatch
from nightjar.loadtests.demo.report import render_report
from nightjar.loadtests.demo.summary import Check, RunSummary, summarise
from nightjar.loadtests.demo.watch import Sampler, Screen, View
from nightjar.loadtests.load.openai_stream import ChatRequest, Server, first_model, stream_chat
from nightjar.loadtests.load.prompts import COMPARISON_PROMPTS
from nightjar.loadtests.load.regimes import Regime
from nightjar.loadtests.load.rows import RequestRow, RowWriter, read_rows
from nightjar.loadtests.report.machine import Effort, RunFacts
from nightjar.policy.wire.status import FleetStatus

READY_TIMEOUT_S: Final = 420.0
CONFIRM_TIMEOUT_S: Final = 120.0
"""Ends the demo only where something is broken: processes of a machine that is busy with other work stall for half a minute."""
WARM_UP_TOKENS: Final = 8
"""Per prompt, before the first mode: what is slow once, drafts included, is slow for none of them."""
LOCAL_CONFIG: Final = Path(nightjar.__path__[-1]) / "cluster" / "configs" / "local-cpu.yaml"
KILL_NOTICE: Final = (
    'now the policy actor is killed on purpose; lines of Ray that follow, such as "A worker died or was killed", are expected'
)


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the demo runs. `regime` is sent once per mode; the policy is killed in the middle of its busiest phase.

    command, effort  what a person types to run it again, and whether it counts as evidence
    """

    regime: Regime
    seed: int
    max_tokens: int
    comparison_tokens: int
    comparison_prompts: tuple[str, ...] = COMPARISON_PROMPTS
    config: Path = LOCAL_CONFIG
    command: str = "nightjar demo"
    effort: Effort = "whole"

    @property
    def kill_after_s(self) -> float:
        """Seconds from the regime's start to the kill."""
        busiest = max(
            self.regime.schedule(), key=lambda scheduled: scheduled.phase.highest_requests_per_s or scheduled.phase.users or 0
        )
        return (busiest.start_s + busiest.end_s) / 2


class Demo:
    """One run of the plan into `folder`, of the model that the plan's Serve file names."""

    def __init__(self, plan: DemoPlan, served: ServedModel, folder: Path, console: Console) -> None:
        self._plan = plan
        self._served = served
        self._arms = parse_arms(("off", f"pin={served.num_speculative_tokens}", "auto"))
        self._folder = folder
        self._screen = Screen(console, self._view)
        self._stage = "starting"
        self._sampler: Sampler | None = None
        self._rows_path: Path | None = None
        self._kill = PolicyKill(plan.kill_after_s)
        self._memory = MemoryWatch()
        self._others: dict[str, float] = {}
        self._facts = RunFacts.begun("demo", plan.command, plan.effort, self._names)
        self._began_s = time.monotonic()

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self._arms)

    @property
    def _killed_arm(self) -> Arm:
        return self._arms[-1]

    def run(self) -> RunSummary:
        """Everything, from building models to the written report.

        Raises TurnError, ProcessError, OperationError or ConnectionError.
        """
        with self._screen, self._memory:
            self._enter("building the models, if they are missing")
            run_to_end("nightjar models build", nightjar_command("models", "build"), self._screen.pass_on)
            self._enter("starting Ray Serve")
            token = secrets.token_urlsafe(24)
            with ServedSystem(self._plan.config, _free_port(), token, self._screen.pass_on) as system:
                url = system.wait_until_ready(READY_TIMEOUT_S)
                with service_api(url, token) as api, Sampler(api, self._folder / "samples.jsonl") as sampler:
                    self._sampler = sampler
                    model, answers = self._measure(Server(url), api, sampler)
                self._memory.look()
                self._enter("stopping everything")
            return self._write(model, answers)

    def _measure(self, server: Server, api: HttpClient, sampler: Sampler) -> tuple[str, dict[str, list[Answer]]]:
        """Every mode in turn. Returns the model's id and the answers of the text comparison."""
        model = first_model(server)
        session = Session(api, "the demo compares modes", look=lambda: sampler.sample().status, patience_s=CONFIRM_TIMEOUT_S)
        replicas = len(session.prepare().replicas)
        self._screen.say(f"{replicas} replicas of {model} serve at {server.url}")
        self._screen.say(f"the fleet, live, in a browser: {server.url}/nightjar")
        answers: dict[str, list[Answer]] = {}
        try:
            self._enter("warming up")
            session.run(self._arms[1])
            for prompt in self._plan.comparison_prompts:
                ask(server, model, prompt, WARM_UP_TOKENS)
            for arm in self._arms:
                self._enter(f"mode {arm.name}: waiting for every replica to confirm it")
                sampler.mode = ""
                session.run(arm, resets=arm.learns)
                sampler.mode = arm.name
                sampler.sample()
                self._send_load(server, arm, sampler)
                answers[arm.name] = [self._ask(server, model, arm, number) for number in range(len(self._plan.comparison_prompts))]
        finally:
            keep_journal(sampler.latest, self._folder / "decisions.jsonl")
        return model, answers

    def _ask(self, server: Server, model: str, arm: Arm, number: int) -> Answer:
        prompts = self._plan.comparison_prompts
        self._enter(f"mode {arm.name}: text comparison, prompt {number + 1} of {len(prompts)}", quiet=number > 0)
        return ask(server, model, prompts[number], self._plan.comparison_tokens)

    def _send_load(self, server: Server, arm: Arm, sampler: Sampler) -> None:
        self._enter(f"mode {arm.name}: load {self._plan.regime}")
        rows_path = self._rows_path = self._folder / f"requests-{arm.name}.jsonl"
        load = Load(regime=str(self._plan.regime), max_tokens=self._plan.max_tokens)
        log = self._folder / f"locust-{arm.name}.log"
        began_s, before = time.monotonic(), look()

        def on_poll() -> None:
            if arm == self._killed_arm:
                self._kill.poll(sampler.latest, time.monotonic() - began_s, self._screen.say)

        send(load, server.url, self._plan.seed, rows_path, f"mode {arm.name}", log=log, on_poll=on_poll)
        if (share := share_of_others(before, look(), os.cpu_count() or 1)) is not None:
            self._others[arm.name] = round(share, 3)
        sampler.sample()
        rows = [row.model_copy(update={"mode": arm.name}) for row in read_rows(rows_path)]
        writer = RowWriter(self._folder / "requests.jsonl")
        for row in rows:
            writer.write(row)
        writer.close()
        rows_path.unlink()
        self._rows_path = None

    def _write(self, model: str, answers: dict[str, list[Answer]]) -> RunSummary:
        """Checks, table and report from what was recorded."""
        assert self._sampler is not None
        rows, samples = read_rows(self._folder / "requests.jsonl"), self._sampler.samples
        names = self._names
        phases = summarise(self._plan.regime, names, rows, samples)
        summary = RunSummary(
            regime=str(self._plan.regime),
            seed=self._plan.seed,
            model=model,
            modes=names,
            phases=phases,
            checks=self._checks(rows, answers),
            policy_killed_at_s=self._kill.killed_at_s,
            run=self._facts.after(time.monotonic() - self._began_s, has_ended=True),
            memory=self._memory.peak,
            others=self._others,
            headline=sentence(phases, names, self._others),
        )
        (self._folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
        page = render_report(summary, self._plan.regime, rows, samples)
        (self._folder / "report.html").write_text(page, encoding="utf-8")
        return summary

    def _checks(self, rows: tuple[RequestRow, ...], answers: dict[str, list[Answer]]) -> tuple[Check, ...]:
        assert self._sampler is not None
        samples = self._sampler.samples
        sent = checks.read_decisions(self._folder / "decisions.jsonl")
        near_tie = NEAR_TIE if self._served.is_exact else ROUNDED_NEAR_TIE
        return (
            checks.check_requests(self._plan.regime, self._plan.seed, self._names, rows),
            checks.compare_texts(answers, near_tie),
            checks.check_steering(samples),
            *(checks.check_fixed_k(arm.mode, samples) for arm in self._arms if arm.mode and arm != self._killed_arm),
            checks.check_planned_k(self._killed_arm.name, samples, sent),
            checks.check_policy_restart(self._kill.killed_at_s, samples),
        )

    def _enter(self, stage: str, quiet: bool = False) -> None:
        self._stage = stage
        if not quiet:
            self._screen.say(stage)

    def _view(self) -> View:
        status: FleetStatus | None = self._sampler.latest if self._sampler else None
        requests, failed = _count_rows(self._rows_path)
        return View(self._stage, status, requests, failed)


def _count_rows(path: Path | None) -> tuple[int, int]:
    """Rows so far, and how many hold an error. The file may be missing, or gain a line meanwhile."""
    try:
        text = path.read_text(encoding="utf-8") if path else ""
    except OSError:
        return 0, 0
    return text.count("\n"), text.count("\n") - text.count('"error":""')


def _free_port() -> int:
    """Not the file's: another system may start on that at the same time, and Serve's proxies would share it in silence."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(server: Server, model: str, prompt: str, max_tokens: int) -> Answer:
    """The greedy answer to one prompt, with the two best logprobs at every place."""
    result = stream_chat(server, ChatRequest(model, prompt, max_tokens, top_logprobs=2))
    return Answer(prompt, result.tokens, result.error or ("" if result.tokens else "the server sent no logprobs"))


class PolicyKill:
    """Kills the policy actor once, `after_s` seconds into a load, and says when a newer incarnation answers."""

    def __init__(self, after_s: float) -> None:
        self.killed_at_s: float | None = None
        self._after_s = after_s
        self._killed_incarnation = -1
        self._is_back = False

    def poll(self, status: FleetStatus | None, elapsed_s: float, say: Callable[[str], None]) -> None:
        """Call often. Raises TurnError where the actor cannot be killed."""
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
    """SIGKILL the policy actor, as a crash would. Raises TurnError where `pid` is not surely the actor on this machine."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError as error:
        raise TurnError(f"the policy actor's process {pid} is not on this machine ({error})") from error
    if "PolicyActor" not in title:
        raise TurnError(f"process {pid} is {title[:60]!r}, not the policy actor; nothing was killed")
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
