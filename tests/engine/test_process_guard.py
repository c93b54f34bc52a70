"""Engine processes end with their replica, however it ends and whenever it ended."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Never

import pytest
from structlog.testing import capture_logs

from nightjar.deployments.engine import process_guard
from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE, REPLICA_VARIABLE
from nightjar.deployments.engine.process_guard import ProcessToken, end_with_replica, guard_vllm_process, noted_processes, own_token

ENGINE = """
import time
from nightjar.deployments.engine.process_guard import end_with_replica
print(end_with_replica(), flush=True)
time.sleep(60)
"""
REPLICA = f"""
import os, subprocess, sys, time
from nightjar.deployments.engine.process_guard import own_token
os.environ[{REPLICA_VARIABLE!r}] = own_token()
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


@pytest.fixture
def stranger() -> Iterator[ProcessToken]:
    """A process that lives, and is no ancestor of what the test starts beside it."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield ProcessToken.of(process.pid)
        process.kill()


def run_engine(replica: ProcessToken, body: str = ENGINE.replace("time.sleep(60)", "")) -> subprocess.CompletedProcess[str]:
    """An engine process beside this one, until it ends."""
    environment = os.environ | {REPLICA_VARIABLE: str(replica)}
    return subprocess.run([sys.executable, "-c", body], env=environment, timeout=300, check=False, capture_output=True, text=True)


def test_an_engine_process_whose_replica_died_before_the_watch_ends_at_once() -> None:
    with subprocess.Popen(["sleep", "60"]) as replica:
        token = ProcessToken.of(replica.pid)
        replica.kill()
    assert run_engine(token).returncode == -signal.SIGKILL


def test_a_process_that_got_the_dead_replicas_number_is_no_replica(stranger: ProcessToken) -> None:
    assert run_engine(stranger._replace(start_ticks=stranger.start_ticks - 1)).returncode == -signal.SIGKILL


BESIDE_ITS_REPLICA = """
from nightjar.deployments.engine.process_guard import end_with_replica
import vllm.plugins
vllm.plugins.load_general_plugins()
print(end_with_replica(), flush=True)
"""


@pytest.mark.parametrize("body", [ENGINE.replace("time.sleep(60)", ""), pytest.param(BESIDE_ITS_REPLICA, marks=pytest.mark.engine)])
def test_a_worker_that_is_no_child_of_its_living_replica_is_watched_and_lives(stranger: ProcessToken, body: str) -> None:
    """So vLLM's Ray executor starts workers: by the raylet, with the replica's environment."""
    finished = run_engine(stranger, body)
    assert (finished.returncode, finished.stdout.split()[-1:]) == (0, ["True"]), finished.stderr


def test_a_worker_that_is_no_child_of_its_replica_ends_with_it(stranger: ProcessToken) -> None:
    environment = os.environ | {REPLICA_VARIABLE: str(stranger)}
    with subprocess.Popen([sys.executable, "-c", ENGINE], env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "True\n"
        os.kill(stranger.pid, signal.SIGKILL)
        assert worker.wait(timeout=120) == -signal.SIGKILL


@pytest.mark.parametrize("elsewhere", [{"pid_namespace": 1}, {"boot_id": "another-machine"}])
@pytest.mark.parametrize("start_ticks", [0, 1])
def test_a_worker_on_another_node_or_in_another_namespace_is_left_alone(
    stranger: ProcessToken, elsewhere: dict[str, int | str], start_ticks: int
) -> None:
    """Whatever process has the replica's number there."""
    token = stranger._replace(start_ticks=stranger.start_ticks + start_ticks, **elsewhere)  # type: ignore[arg-type]
    finished = run_engine(token)
    assert (finished.returncode, finished.stdout) == (0, "False\n")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_a_sandbox_without_pidfd_leaves_the_process_unwatched(
    stranger: ProcessToken, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> Never:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert end_with_replica({REPLICA_VARIABLE: str(stranger)}) is False


def test_a_sandbox_without_proc_gives_no_token_and_nothing_is_watched(
    stranger: ProcessToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Never:
        raise OSError(errno.ENOENT, "no such file")

    monkeypatch.setattr(process_guard, "_boot_id", refuse)
    assert own_token() == ""
    assert end_with_replica({REPLICA_VARIABLE: str(stranger)}) is False


def test_nothing_is_watched_without_a_replica_or_inside_it() -> None:
    assert (
        end_with_replica({})
        is end_with_replica({REPLICA_VARIABLE: ""})
        is end_with_replica({REPLICA_VARIABLE: own_token()})
        is False
    )


@pytest.mark.parametrize("text", ["replica", "41", "41:2:3", "41:2:3:boot:more", "-1:2:3:boot", "0:2:3:boot", "4x:2:3:boot", ":::"])
def test_a_variable_that_is_no_token_is_named_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=f"NIGHTJAR_REPLICA is '{text}', allowed is pid:start:namespace:boot"):
        end_with_replica({REPLICA_VARIABLE: text})


def test_processes_of_an_engine_are_found_by_its_folder_whoever_started_them(stranger: ProcessToken, tmp_path: Path) -> None:
    environment = os.environ | {REPLICA_VARIABLE: str(stranger), ENGINE_FOLDER_VARIABLE: str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", ENGINE], env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "True\n"
        assert noted_processes(tmp_path) == [worker.pid]
        worker.kill()
    assert noted_processes(tmp_path) == []


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
    subprocess.run([sys.executable, "-c", WITH_STRANGE_NAMES], timeout=300, check=True)


def test_vllm_begins_the_watch_in_each_of_its_processes() -> None:
    (found,) = entry_points(group="vllm.general_plugins", name="nightjar-process-guard")
    assert found.load() is guard_vllm_process


def test_vllm_starts_though_the_variable_is_nonsense_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPLICA_VARIABLE, "replica")
    with capture_logs() as logs:
        guard_vllm_process()
    (event,) = logs
    assert event["event"] == "process_not_guarded"
    assert "NIGHTJAR_REPLICA is 'replica'" in event["reason"]


PARENT_OF_STOPPED = """
import os, signal, subprocess, sys
from nightjar.deployments.engine.engine_processes import kill_engine
core = subprocess.Popen(
    [sys.executable, "-c", "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"],
    stdout=subprocess.PIPE,
)
worker_pid = int(core.stdout.readline())
for pid in (core.pid, worker_pid):
    os.kill(pid, signal.SIGSTOP)
pids = kill_engine()
assert set(pids) == {core.pid, worker_pid}, pids
assert core.wait(timeout=120) == -signal.SIGKILL
print(worker_pid, flush=True)
"""


def test_processes_below_this_one_are_killed_though_they_are_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as sibling:
        finished = subprocess.run([sys.executable, "-c", PARENT_OF_STOPPED], timeout=300, check=True, stdout=subprocess.PIPE)
        wait_until_gone(int(finished.stdout))
        assert sibling.poll() is None
        sibling.kill()
