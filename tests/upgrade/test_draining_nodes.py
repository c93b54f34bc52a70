"""A Ray node that is told to end, as a pod of the chart is: its streams come to their end. Real Ray on one machine, no engine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nightjar.cluster.local.cluster import QUIET_ENVIRONMENT
from nightjar.cluster.local.session import end_session
from tests.cluster.nightjar_run import wait_until
from tests.ports import free_port

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 600.0
DRAIN_S = "60"
"""What the chart sets from the time that a pod has to end; more than the 30 s that the replica has for its requests."""
PIECES = 60
"""Of the stream, five a second."""
RAY = str(Path(sys.executable).parent / "ray")


class Nodes:
    """A Ray cluster of processes that `ray start --block` runs, each in a session of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = f"127.0.0.1:{free_port()}"
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NIGHTJAR_"))}
        (folder / "token").write_text("0" * 64)
        self._environment = ours | QUIET_ENVIRONMENT | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": DRAIN_S,
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.started: list[subprocess.Popen[bytes]] = []

    def start_head(self) -> None:
        """Without room for a replica, with Serve's controller and proxy."""
        port = self._address.rpartition(":")[2]
        self._start("--head", "--port", port, "--temp-dir", str(self._folder), "--include-dashboard", "false")
        wait_until(self._head_listens, START_TIMEOUT_S)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A node with room for one replica."""
        return self._start("--address", self._address, "--resources", '{"worker": 1}')

    def deploy(self, port: int) -> None:
        """The streaming application."""
        command = [sys.executable, "-m", "tests.upgrade.streaming_app", self._address, str(port)]
        done = subprocess.run(
            command, env=self._environment, cwd=ROOT, check=False, timeout=START_TIMEOUT_S, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + self._words()

    def _words(self) -> str:
        return "".join(log.read_text() for log in sorted(self._folder.glob("node-*.log")))

    def _head_listens(self) -> bool:
        host, _, port = self._address.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [RAY, "start", "--block", "--num-cpus", "1", "--object-store-memory", str(128 << 20), *options]
        with (self._folder / f"node-{len(self.started)}.log").open("w") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)
        self.started.append(process)
        return process


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="nj-", dir="/tmp"))  # short: Ray's socket names must fit 107 bytes
    running = Nodes(folder)
    try:
        yield running
    finally:
        for process in reversed(running.started):
            process.kill()
            end_session(process.pid, 30.0)
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


class Stream(threading.Thread):
    """A client that reads one stream to its end."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.pieces: list[str] = []
        self.error = ""
        self._url = url
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("GET", self._url, params={"pieces": PIECES}, timeout=60.0) as response:
                response.raise_for_status()
                self.pieces.extend(response.iter_lines())
        except httpx.HTTPError as error:
            self.error = repr(error)


def test_a_stream_on_a_node_that_is_told_to_end_comes_to_its_end_and_no_request_fails_meanwhile(nodes: Nodes) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    nodes.start_head()
    first = nodes.start_worker()
    nodes.deploy(port)
    old_node = httpx.get(url, timeout=30.0).text
    stream = Stream(url)
    nodes.start_worker()
    wait_until(lambda: bool(stream.pieces), START_TIMEOUT_S)
    first.send_signal(signal.SIGTERM)
    answers = [httpx.get(url, timeout=30.0).raise_for_status().text]
    while stream.is_alive() or answers[-1] == old_node:
        answers.append(httpx.get(url, timeout=30.0).raise_for_status().text)
        assert len(answers) < 5000, "no other node answers"
        time.sleep(0.05)
    assert stream.error == ""
    assert stream.pieces == [old_node] * PIECES
    assert set(answers) == {old_node, answers[-1]}
    first.wait(timeout=float(DRAIN_S))
    assert httpx.get(url, timeout=30.0).raise_for_status().text == answers[-1]
