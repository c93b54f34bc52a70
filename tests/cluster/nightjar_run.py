"""`nightjar run` as a process of a test's own: a Ray cluster with Serve, its output in files, its end waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
START_TIMEOUT_S: Final = 600.0


class Run:
    """A `nightjar run -o json` of our own, its output in files."""

    def __init__(self, folder: Path, values: dict[str, Any], *options: str, **environment: str) -> None:
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(values))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTJAR_", "RAY_"))}
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from nightjar.cluster.cli import main; main()", "run", str(file), "-o", "json", *options],
                env={**inherited, "RAY_ADDRESS": "127.0.0.1:1", **environment},
                cwd=ROOT,
                stdout=out,
                stderr=err,
            )

    @property
    def session(self) -> int:
        """The session of the cluster's process, which has said something by now."""
        wait_until(lambda: self.err.read_text() != "", START_TIMEOUT_S)
        command = ["ps", "--ppid", str(self.process.pid), "-o", "pid="]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])

    def wait_until_it_says(self, words: str) -> None:
        """Wait for words on stderr. Fails with what it did say where it ends, or takes too long, without them."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while words not in (said := self.err.read_text()):
            waiting = self.process.poll() is None and time.monotonic() < deadline_s
            assert waiting, f"never said {words!r}: {said}"
            time.sleep(0.2)

    def ready(self, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        wait_until(lambda: self.out.read_text() != "" or self.process.poll() is not None, timeout_s)
        assert self.process.poll() is None, self.err.read_text()
        announced: dict[str, Any] = json.loads(self.out.read_text())
        return announced

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(START_TIMEOUT_S)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.2)
