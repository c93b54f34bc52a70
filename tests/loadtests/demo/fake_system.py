"""A whole system in one small process, started as the demo starts `nightjar run`: a fleet of two that obeys the modes.

Every request counts as steps at the mode's K on one replica. A child process named PolicyActor stands for the policy actor: when it
is killed, another one answers with a higher incarnation. `python -m tests.loadtests.demo.fake_system run FILE --port PORT -o json`.
What it is asked for it writes, a line each, to the file that FAKE_SYSTEM_EVENTS names; at the stage that FAKE_SYSTEM_STUCK names it
goes no further.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.report import EngineLoad
from tests.loadtests.fake_server import running_fake_server, whole_answer
from tests.loadtests.recorded import fleet, replica, totals
from tests.policy.step.steering_settings import settings, table

PLANNED_LENGTH = 3
EVENTS = Path(os.environ.get("FAKE_SYSTEM_EVENTS", os.devnull))
STUCK = os.environ.get("FAKE_SYSTEM_STUCK", "")


def tell(event: str) -> None:
    with EVENTS.open("a", encoding="utf-8") as file:
        file.write(f"{event}\n")


class FakeSystem:
    """State behind the fake server's answers."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "policy-journal.jsonl"
        self.mode = Mode.parse("auto")
        self.incarnation = 0
        self.sequence = 0
        self.steps: dict[int, int] = {}
        self.lock = threading.Lock()
        self.policy = self.start_policy()

    def start_policy(self) -> subprocess.Popen[bytes]:
        self.incarnation += 1
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()  # PolicyActor"], stdin=subprocess.PIPE)
        self.decide()
        return process

    def length(self) -> int:
        return {"off": 0, "auto": PLANNED_LENGTH}.get(self.mode.kind, self.mode.num_speculative_tokens or 0)

    def decide(self) -> None:
        self.sequence += 1
        plan, mode = table((1, 16, self.length())), str(self.mode)
        issued = to_plain(settings(plan, mode=mode, sequence=self.sequence, incarnation=self.incarnation))
        with self.journal.open("a") as file:
            file.write(json.dumps({"decided": dict.fromkeys(("r1", "r2"), issued)}) + "\n")

    def answer(self, body: dict[str, Any]) -> list[dict[str, Any] | str]:
        what = "text" if body.get("logprobs") else "load"
        tell(what)
        if what == STUCK:
            threading.Event().wait()
        with self.lock:
            self.steps[self.length()] = self.steps.get(self.length(), 0) + 4
        return whole_answer(body)

    def set_mode(self, body: dict[str, Any]) -> tuple[int, bytes]:
        tell(f"{body['mode']} {body.get('learned', 'keep')}")
        if STUCK == "mode":
            return 200, b'{"override": null}'
        with self.lock:
            self.mode = Mode.parse(body["mode"])
            self.decide()
        return 200, b'{"override": null}'

    def fleet_status(self) -> bytes:
        with self.lock:
            if self.policy.poll() is not None:
                self.policy = self.start_policy()
            load = EngineLoad(decode_batch_size=1, num_running_reqs=1, num_speculative_tokens=self.length())
            counted = [totals(length, steps) for length, steps in self.steps.items()]
            names = ("r1", "r2")
            version = {"sequence": self.sequence, "incarnation": self.incarnation}
            replicas = tuple(replica(name, *counted, mode=str(self.mode), load=load, **version) for name in names)
            policy: dict[str, Any] = {"incarnation": self.incarnation, "pid": self.policy.pid, "journal_path": str(self.journal)}
            return json.dumps(to_plain(fleet(*replicas, mode=str(self.mode), **policy))).encode()


def main(arguments: list[str]) -> int:
    if arguments[:2] == ["models", "build"]:
        sys.stdout.write("models are there\n")
        sys.stdout.flush()
        if STUCK == "models":
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            threading.Event().wait()
        return 0
    port = int(arguments[arguments.index("--port") + 1])
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    if STUCK == "run":
        return stop.wait()
    with tempfile.TemporaryDirectory() as folder, running_fake_server(port) as server:
        system = FakeSystem(Path(folder))
        server.answer, server.set_mode, server.fleet_status = system.answer, system.set_mode, system.fleet_status
        assert os.environ["NIGHTJAR_API_TOKEN"], "the demo gives its system a token"
        sys.stdout.write(json.dumps({"url": server.url, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
        stop.wait()
        stop.clear()
        tell("stop")
        if STUCK == "stop":
            stop.wait()
        system.policy.kill()
        system.policy.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
