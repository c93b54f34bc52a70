"""Engine processes end with their replica, however it ends and whenever it ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from nightjar.deployments.engine.environment import REPLICA_PID_VARIABLE
from nightjar.deployments.engine.process_guard import end_with_replica, guard_vllm_process

ENGINE = """
import time
from nightjar.deployments.engine.process_guard import end_with_replica
print(end_with_replica(), flush=True)
time.sleep(60)
"""
REPLICA = f"""
import os, subprocess, sys, time
os.environ[{REPLICA_PID_VARIABLE!r}] = str(os.getpid())
engine = subprocess.Popen([sys.executable, "-c", {ENGINE!r}], stdout=subprocess.PIPE)
print(engine.stdout.readline().decode().strip(), engine.pid, flush=True)
time.sleep(60)
"""


def wait_until_gone(pid: int) -> None:
    """Block until process `pid` has ended; a hang is the test's failure."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(20_000), f"process {pid} is still there"
    os.close(descriptor)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_process_ends_when_its_replica_is_killed(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", REPLICA], stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdout is not None
        watched, engine_pid = replica.stdout.readline().split()
        assert watched == "True"
        replica.send_signal(how)
        wait_until_gone(int(engine_pid))


def test_an_engine_process_whose_replica_died_before_the_watch_ends_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as replica:
        replica.wait()
    environment = os.environ | {REPLICA_PID_VARIABLE: str(replica.pid)}
    finished = subprocess.run([sys.executable, "-c", ENGINE], env=environment, timeout=20, check=False, capture_output=True)
    assert finished.returncode == -signal.SIGKILL


def test_a_process_that_got_the_dead_replicas_number_is_no_replica() -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        environment = os.environ | {REPLICA_PID_VARIABLE: str(stranger.pid)}
        finished = subprocess.run([sys.executable, "-c", ENGINE], env=environment, timeout=20, check=False, capture_output=True)
        stranger.kill()
    assert finished.returncode == -signal.SIGKILL


@pytest.mark.parametrize("environment", [{}, {REPLICA_PID_VARIABLE: ""}, {REPLICA_PID_VARIABLE: str(os.getpid())}])
def test_nothing_is_watched_without_a_replica_or_inside_it(environment: dict[str, str]) -> None:
    assert end_with_replica(environment) is False


def test_a_variable_that_is_no_process_id_is_named() -> None:
    with pytest.raises(ValueError, match="NIGHTJAR_REPLICA_PID is 'replica'"):
        end_with_replica({REPLICA_PID_VARIABLE: "replica"})


def test_an_engine_process_that_is_stopped_ends_with_its_replica() -> None:
    """SIGSTOP keeps its watching thread from running; a native call that holds the interpreter does the same."""
    with subprocess.Popen([sys.executable, "-c", REPLICA], stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdout is not None
        _, engine_pid = replica.stdout.readline().split()
        os.kill(int(engine_pid), signal.SIGSTOP)
        replica.kill()
        wait_until_gone(int(engine_pid))


WITH_STRANGE_NAMES = """
import ctypes, subprocess, sys
from nightjar.deployments.engine.process_guard import descendants
PR_SET_NAME = 15
name = "a\\u65e5\\u672c\\u8a9e\\u65e5\\u672c\\u8a9e".encode()  # the kernel keeps 15 bytes, and so a part of the last character
child = f"import ctypes, time; ctypes.CDLL(None).prctl({PR_SET_NAME}, {name!r}); print(1, flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
found = descendants()
process.kill()
assert found == [process.pid], found
"""


def test_a_process_whose_name_is_no_text_is_found_as_any_other() -> None:
    subprocess.run([sys.executable, "-c", WITH_STRANGE_NAMES], timeout=40, check=True)


def test_vllm_begins_the_watch_in_each_of_its_processes() -> None:
    (found,) = entry_points(group="vllm.general_plugins", name="nightjar-process-guard")
    assert found.load() is guard_vllm_process


def test_vllm_starts_though_the_variable_is_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPLICA_PID_VARIABLE, "replica")
    guard_vllm_process()


PARENT_OF_STOPPED = """
import os, signal, subprocess, sys
from nightjar.deployments.engine.process_guard import kill_descendants
core = subprocess.Popen(
    [sys.executable, "-c", "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"],
    stdout=subprocess.PIPE,
)
worker_pid = int(core.stdout.readline())
for pid in (core.pid, worker_pid):
    os.kill(pid, signal.SIGSTOP)
pids = kill_descendants()
assert set(pids) == {core.pid, worker_pid}, pids
assert core.wait(timeout=20) == -signal.SIGKILL
print(worker_pid, flush=True)
"""


def test_processes_below_this_one_are_killed_though_they_are_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as sibling:
        finished = subprocess.run([sys.executable, "-c", PARENT_OF_STOPPED], timeout=40, check=True, stdout=subprocess.PIPE)
        wait_until_gone(int(finished.stdout))
        assert sibling.poll() is None
        sibling.kill()
