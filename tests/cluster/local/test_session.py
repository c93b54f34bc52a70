"""The process that holds a cluster: told to stop by its lifeline, swept away with all of its session."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nightjar.cluster.local import cluster as local_cluster
from nightjar.cluster.local import session as local_session
from nightjar.cluster.local.cluster import NODE_TIMED_OUT, ClusterError, LocalCluster, NodeTooSlowError
from nightjar.cluster.local.ports import PortError, choose_port, free_port
from nightjar.cluster.local.progress import MAX_SILENCE_S, Progress
from nightjar.cluster.local.session import START_AGAIN, LocalSession, end_session, session_members
from nightjar.cluster.serve_config import ServeFile

STOPS_WHEN_ITS_LIFELINE_CLOSES = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("up", flush=True)
sys.stdin.read()
sys.exit({code})
"""
STOPS_FOR_NOTHING = """
import signal, sys, time
print("up", flush=True)
time.sleep(600)
"""
SUPERVISOR = """
import sys
from nightjar.cluster.local import cluster as local_cluster, session as local_session
local_session.LEFTOVER_TIMEOUT_S = 0.2
sys.exit(local_session.LocalSession([sys.executable, "-c", sys.argv[1]]).run())
"""


@pytest.fixture(autouse=True)
def _keep_signal_handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def supervise(program: str) -> tuple[subprocess.Popen[str], int]:
    """A supervisor with its child up, and the child's session."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, program], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == "up\n"
    children = subprocess.run(["ps", "--ppid", str(supervisor.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    return supervisor, int(children.stdout.split()[0])


IN_A_SESSION_OF_ITS_OWN = """
import os
from pathlib import Path
from nightjar.cluster.local.cluster import AUTOGROUP, make_session_nicer
print(make_session_nicer(), AUTOGROUP.read_text())
"""


def own_autogroup() -> str:
    """`nice 0`; empty where the kernel has no autogroups."""
    return local_cluster.AUTOGROUP.read_text().partition(" ")[2].strip() if local_cluster.AUTOGROUP.exists() else ""


@pytest.mark.skipif(not local_cluster.AUTOGROUP.exists(), reason="this kernel has no autogroups")
@pytest.mark.parametrize(
    ("is_own_session", "niceness", "told"),
    [(True, None, ("True", "nice 5")), (True, "0", ("False", "nice 0")), (False, None, ("False", own_autogroup()))],
    ids=["its own session", "the user set the workers' niceness", "a terminal's session"],
)
def test_other_sessions_go_before_that_of_a_cluster_unless_the_user_says_otherwise(
    is_own_session: bool, niceness: str | None, told: tuple[str, str]
) -> None:
    before = own_autogroup()
    environment = {name: value for name, value in os.environ.items() if name != local_cluster.NICENESS_VARIABLE}
    if niceness is not None:
        environment[local_cluster.NICENESS_VARIABLE] = niceness
    ran = subprocess.run(
        [sys.executable, "-c", IN_A_SESSION_OF_ITS_OWN],
        env=environment, start_new_session=is_own_session, capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    done, _, autogroup = ran.stdout.strip().partition(" ")
    assert (done, autogroup.partition(" ")[2]) == told
    assert own_autogroup() == before


def test_a_kernel_without_autogroups_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(local_cluster.NICENESS_VARIABLE, raising=False)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    assert not local_cluster.make_session_nicer(tmp_path / "absent" / "autogroup")
    assert local_cluster.make_session_nicer(tmp_path / "autogroup")
    assert (tmp_path / "autogroup").read_text() == str(local_cluster.SESSION_NICENESS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("child_code", "signalled"), [(0, False), (75, True)])
def test_a_signal_closes_the_lifeline_and_what_outlives_the_child_is_killed(
    number: signal.Signals, child_code: int, signalled: bool
) -> None:
    supervisor, session = supervise(STOPS_WHEN_ITS_LIFELINE_CLOSES.format(code=child_code))
    assert len(session_members(session)) == 2
    supervisor.send_signal(number)
    supervisor.communicate(timeout=300)
    assert supervisor.returncode == (128 + number if signalled else 0)
    assert session_members(session) == []


def test_a_second_signal_waits_for_nothing() -> None:
    supervisor, session = supervise(STOPS_FOR_NOTHING)
    supervisor.send_signal(signal.SIGTERM)
    while supervisor.poll() is None:
        supervisor.send_signal(signal.SIGINT)
        try:
            supervisor.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
    supervisor.communicate(timeout=300)
    ended_by_the_last_one = -signal.SIGINT  # it may come when the interpreter has given its handlers back
    assert supervisor.returncode in {128 + signal.SIGINT, 128 + signal.SIGTERM, ended_by_the_last_one}
    assert session_members(session) == []


def test_a_killed_supervisor_takes_its_child_with_it_through_the_lifeline() -> None:
    supervisor, session = supervise(STOPS_WHEN_ITS_LIFELINE_CLOSES.format(code=0))
    supervisor.kill()
    supervisor.wait(timeout=300)
    assert wait_for_end(session)
    end_session(session, 0.0)
    supervisor.communicate(timeout=300)


def wait_for_end(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    for _ in range(100):
        if pid not in session_members(pid):
            return True
        threading.Event().wait(0.1)
    return False


def test_a_child_that_fails_on_its_own_gives_its_code() -> None:
    assert LocalSession([sys.executable, "-c", "raise SystemExit(3)"]).run() == 3


ASKS_ITS_PARENT_TO_STOP_TWICE = """
import os, pathlib, signal, sys, time
pathlib.Path(sys.argv[1], "log").touch()
os.kill(os.getppid(), signal.SIGTERM)
os.kill(os.getppid(), signal.SIGINT)
time.sleep(600)
"""


def temp_folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "of-the-session").mkdir()
    return folder


def test_a_child_that_a_second_signal_kills_leaves_no_folder(tmp_path: Path) -> None:
    session = LocalSession([sys.executable, "-c", ASKS_ITS_PARENT_TO_STOP_TWICE], partial(temp_folder, tmp_path))
    assert session.run() in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_ends_by_itself_keeps_its_logs_and_an_unused_folder_goes(tmp_path: Path) -> None:
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1], 'log').touch(); sys.exit(3)"
    assert LocalSession([sys.executable, "-c", writes], partial(temp_folder, tmp_path)).run() == 3
    assert (tmp_path / "of-the-session" / "log").exists()
    (unused := tmp_path / "unused").mkdir()
    assert LocalSession([sys.executable, "-c", "raise SystemExit(3)"], partial(temp_folder, unused)).run() == 3
    assert list(unused.iterdir()) == []


SUCCEEDS_AT_ITS_LAST_START = """
import os, pathlib, subprocess, sys
folder, starts = pathlib.Path({folder!r}), {starts}
(folder / str(os.getpid())).touch()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
sys.exit(0 if len(list(folder.iterdir())) >= starts else {again})
"""


@pytest.mark.parametrize(("starts_that_it_takes", "code"), [(1, 0), (2, 0), (3, 1)])
def test_a_child_that_asks_for_another_start_gets_one_and_only_one(
    starts_that_it_takes: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_session, "LEFTOVER_TIMEOUT_S", 0.2)
    (folder := tmp_path / "starts").mkdir()
    program = SUCCEEDS_AT_ITS_LAST_START.format(folder=str(folder), starts=starts_that_it_takes, again=START_AGAIN)
    assert LocalSession([sys.executable, "-c", program]).run() == code
    sessions = [int(file.name) for file in folder.iterdir()]
    assert len(sessions) == min(2, starts_that_it_takes)
    assert [session_members(session) for session in sessions] == [[]] * len(sessions)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (f"{NODE_TIMED_OUT}. This could happen because some of the raylet failed to startup.", NodeTooSlowError),
        ("out of memory", ClusterError),
    ],
)
def test_a_node_that_ray_found_too_slow_is_told_from_other_failures(
    words: str, kind: type[ClusterError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: LocalCluster) -> None:
        raise Exception(words)

    monkeypatch.setattr(LocalCluster, "_start", fail)
    monkeypatch.setattr(LocalCluster, "_shut_down", lambda _: None)
    serve_file = ServeFile(tmp_path / "serve.yaml", {}, (), "127.0.0.1", 8000)
    cluster = LocalCluster(serve_file, 8000, tmp_path, Progress(lambda _: None), threading.Event())
    with pytest.raises(ClusterError, match=f"Ray: Exception: {words}") as raised:
        cluster.serve(lambda: None)
    assert type(raised.value) is kind


def test_a_port_that_was_asked_for_and_is_taken_is_refused_by_name() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(PortError, match=f"port: {port} on 127.0.0.1 is in use; give another --port"):
            choose_port("127.0.0.1", port, 8000)


def test_a_listener_that_shares_its_port_counts_as_taken() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortError, match="is in use"):
            choose_port("0.0.0.0", other.getsockname()[1], 8000)


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_out_of_range_is_refused_by_name(port: int) -> None:
    with pytest.raises(PortError, match=f"port: {port} is not from 1 to 65535"):
        choose_port("127.0.0.1", port, 8000)


def test_without_a_wish_the_files_port_is_taken_or_a_free_one() -> None:
    free = free_port("127.0.0.1")
    assert choose_port("127.0.0.1", None, free) == free
    with socket.socket() as other:
        other.bind(("127.0.0.1", free))
        assert choose_port("127.0.0.1", None, free) != free


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machines_is_refused_by_name(host: str) -> None:
    with pytest.raises(PortError, match=f"port: 8000 on {host} cannot be bound .*; mend http_options"):
        choose_port(host, None, 8000)


def test_progress_says_news_at_once_and_repeats_what_is_pending_after_a_silence() -> None:
    now_s = 0.0
    lines: list[str] = []
    progress = Progress(lines.append, clock=lambda: now_s)
    progress.wait_for("starting Ray")
    progress.wait_for("starting Ray")
    now_s = MAX_SILENCE_S - 1
    progress.heartbeat()
    now_s = MAX_SILENCE_S + 1
    progress.heartbeat()
    progress.wait_for("")
    now_s = 100.0
    progress.heartbeat()
    assert lines == ["[   0 s] starting Ray", "[  10 s] still starting Ray"]
