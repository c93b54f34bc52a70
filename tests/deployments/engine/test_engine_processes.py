"""An engine's processes are waited for and killed whoever started them, and its memory is waited for; both within bounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nightjar.deployments.engine.engine_processes import (
    KILLED_END_WITHIN_S,
    MEMORY_SETTLES_WITHIN_S,
    PROCESSES_END_WITHIN_S,
    device_bytes_in_use,
)
from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE, REPLICA_VARIABLE
from tests.deployments.engine.nodes import Node

GIB = 1 << 30
WORKER = """
import time
from nightjar.deployments.engine.process_guard import end_with_replica
print(end_with_replica(), flush=True)
time.sleep(60)
"""
WAITING_REPLICA = """
import sys
from pathlib import Path
from nightjar.deployments.engine.engine_processes import Processes, engine_pids
from nightjar.deployments.engine.process_guard import own_token
print(own_token(), flush=True)
sys.stdin.readline()
def sleep(seconds):
    print("waits", flush=True)
    sys.stdin.readline()
Processes(pids=lambda: engine_pids(Path(sys.argv[1])), clock=lambda: 0.0, sleep=sleep).wait_for_end(())
print("goes on", flush=True)
"""
KILLING_REPLICA = """
import sys
from pathlib import Path
from nightjar.deployments.engine.engine_processes import kill_engine
from nightjar.deployments.engine.process_guard import own_token
print(own_token(), flush=True)
sys.stdin.readline()
print(kill_engine(Path(sys.argv[1])), flush=True)
"""


class Replica:
    """A process that runs `body`, with a line to it and a line from it at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def hears(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


@contextmanager
def replica_and_worker(body: str, folder: Path) -> Iterator[tuple[Replica, subprocess.Popen[str]]]:
    """A replica, and beside it a guarded worker with its environment, as Ray starts vLLM's workers."""
    command = [sys.executable, "-c", body, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        replica = Replica(process)
        environment = os.environ | {REPLICA_VARIABLE: replica.says(), ENGINE_FOLDER_VARIABLE: str(folder)}
        with subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=subprocess.PIPE, text=True) as worker:
            try:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "True\n"
                yield replica, worker
            finally:
                worker.kill()
                process.kill()


def test_a_worker_that_is_no_child_of_its_replica_is_waited_for(tmp_path: Path) -> None:
    with replica_and_worker(WAITING_REPLICA, tmp_path) as (replica, worker):
        for _ in range(3):
            replica.hears()
            assert replica.says() == "waits"
        worker.kill()
        worker.wait()
        replica.hears()
        assert replica.says() == "goes on"


def test_a_stopped_worker_that_is_no_child_of_its_replica_is_killed_with_the_engine(tmp_path: Path) -> None:
    with replica_and_worker(KILLING_REPLICA, tmp_path) as (replica, worker):
        worker.send_signal(signal.SIGSTOP)
        replica.hears()
        assert replica.says() == f"[{worker.pid}]"
        assert worker.wait(timeout=120) == -signal.SIGKILL


def test_processes_that_outlive_their_engine_are_killed_after_a_while_and_no_others() -> None:
    node = Node(running=[(7, 9)])
    node.processes().wait_for_end((7,))
    assert node.killed == [9]
    assert node.slept_s == pytest.approx(PROCESSES_END_WITHIN_S + KILLED_END_WITHIN_S)


def test_a_killed_process_is_waited_for_until_it_has_ended() -> None:
    node = Node()
    ends_s = node.now_s + PROCESSES_END_WITHIN_S + 3.0
    node.processes(pids=lambda: (7, 9) if node.now_s < ends_s else (7,)).wait_for_end((7,))
    assert node.killed == [9]
    assert node.now_s == pytest.approx(ends_s)


def test_memory_is_waited_for_until_none_is_given_back_any_more() -> None:
    processes = Node(used_bytes=[70 * GIB, 40 * GIB, 2 * GIB, 2 * GIB]).processes()
    processes.wait_for_memory()
    assert processes.used_bytes() == 2 * GIB


def test_memory_that_falls_for_ever_is_not_waited_for() -> None:
    node = Node(used_bytes=[number * GIB for number in range(1000, 0, -1)])
    node.processes().wait_for_memory()
    assert node.slept_s == pytest.approx(MEMORY_SETTLES_WITHIN_S)


def test_without_nvidias_driver_no_memory_is_waited_for() -> None:
    pytest.importorskip("vllm")
    assert device_bytes_in_use() is None
