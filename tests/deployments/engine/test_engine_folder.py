"""What engine processes leave in the file system goes with their replica, or with the next one's start where it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.deployments.engine.engine_folder import (
    SHARED_MEMORY,
    EngineFolder,
    leave_absent_folder,
    make_engine_folder,
    remove_with_engine,
)
from nightjar.deployments.engine.process_guard import ProcessToken
from nightjar.deployments.engine.start.running_engine import RunningEngine

KILLED_REPLICA = """
import os, signal, sys
from pathlib import Path
from nightjar.deployments.engine.engine_folder import make_engine_folder
folder = make_engine_folder(Path(sys.argv[1]))
folder.note([int(sys.argv[2])])
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
ENGINE = """
import time
from multiprocessing import get_context, resource_tracker
from multiprocessing.shared_memory import SharedMemory
memory, lock = SharedMemory(create=True, size=4096), get_context("spawn").Lock()
resource_tracker.unregister(memory._name, "shared_memory")  # as if the tracker had been killed
resource_tracker.unregister(lock._semlock.name, "semaphore")
print(memory.name, "sem." + lock._semlock.name[1:], flush=True)
time.sleep(60)
"""


@pytest.fixture
def engine() -> Iterator[tuple[subprocess.Popen[str], list[Path]]]:
    """A process with shared memory and a semaphore of its own, and the files of both."""
    with subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        files = [SHARED_MEMORY / name for name in process.stdout.readline().split()]
        assert exist(files) == [True, True]
        yield process, files
        process.kill()
        for file in files:
            file.unlink(missing_ok=True)


def exist(files: Sequence[Path]) -> list[bool]:
    return [file.exists() for file in files]


def make(parent: Path) -> EngineFolder:
    folder = make_engine_folder(parent)
    assert folder is not None
    return folder


def test_the_folder_goes_with_its_sockets_and_with_the_shared_memory_of_a_killed_engine(
    tmp_path: Path, engine: tuple[subprocess.Popen[str], list[Path]]
) -> None:
    process, files = engine
    openmp = SHARED_MEMORY / f"__KMP_REGISTERED_LIB_{process.pid}_{os.getuid()}"
    openmp.touch()
    folder = make(tmp_path)
    folder.note([process.pid])
    (folder.path / "socket").touch()
    process.kill()
    process.wait()
    folder.remove()
    assert exist([folder.path, openmp, *files]) == [False] * 4


def test_shared_memory_that_a_process_still_uses_stays(tmp_path: Path, engine: tuple[subprocess.Popen[str], list[Path]]) -> None:
    process, files = engine
    folder = make(tmp_path)
    folder.note([process.pid])
    folder.remove()
    assert exist(files) == [True, True]


def test_only_what_the_noted_processes_use_is_removed(tmp_path: Path, engine: tuple[subprocess.Popen[str], list[Path]]) -> None:
    process, _ = engine
    mine = SharedMemory(create=True, size=4096)
    try:
        folder = make(tmp_path)
        folder.note([process.pid])
        process.kill()
        process.wait()
        folder.remove()
        assert (SHARED_MEMORY / mine.name).exists()
    finally:
        mine.close()
        mine.unlink()


def test_what_a_killed_replica_left_goes_when_the_next_one_starts(
    tmp_path: Path, engine: tuple[subprocess.Popen[str], list[Path]]
) -> None:
    process, files = engine
    command = [sys.executable, "-c", KILLED_REPLICA, str(tmp_path), str(process.pid)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    process.kill()
    process.wait()
    make(tmp_path)
    assert exist([left, *files]) == [False] * 3


def test_the_folder_of_a_replica_that_lives_stays_when_another_starts(tmp_path: Path) -> None:
    first = make(tmp_path)
    second = make(tmp_path)
    assert first.path != second.path
    assert first.path.is_dir()


def test_a_folder_of_which_nobody_can_read_the_notes_goes_all_the_same(tmp_path: Path) -> None:
    broken = tmp_path / "nightjar-engine-broken"
    broken.mkdir()
    (broken / "files.json").write_text("{")
    make(tmp_path)
    assert not broken.exists()


def test_a_replica_without_a_place_for_its_folder_starts_without_one(tmp_path: Path) -> None:
    assert make_engine_folder(tmp_path / "nowhere") is None


def test_a_file_that_an_engine_process_named_goes_with_the_folder(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.touch()
    folder = make(tmp_path)
    remove_with_engine(store, {"NIGHTJAR_ENGINE_FOLDER": str(folder.path)})
    folder.remove()
    assert not store.exists()


def test_an_engine_that_somebody_runs_by_hand_has_no_folder_to_name_files_in(tmp_path: Path) -> None:
    remove_with_engine(tmp_path / "store", {})
    assert list(tmp_path.iterdir()) == []


def test_a_worker_on_another_node_leaves_the_folder_that_is_not_there_and_its_sockets(tmp_path: Path) -> None:
    environ = {"NIGHTJAR_ENGINE_FOLDER": str(tmp_path / "away"), "VLLM_RPC_BASE_PATH": str(tmp_path / "away"), "OTHER": "stays"}
    leave_absent_folder(environ)
    assert environ == {"OTHER": "stays"}


def test_a_place_for_sockets_that_the_user_chose_stays_though_the_folder_is_not_there(tmp_path: Path) -> None:
    environ = {"NIGHTJAR_ENGINE_FOLDER": str(tmp_path / "away"), "VLLM_RPC_BASE_PATH": "/run/vllm"}
    leave_absent_folder(environ)
    assert environ == {"VLLM_RPC_BASE_PATH": "/run/vllm"}


def test_a_process_on_the_replicas_node_keeps_its_folder(tmp_path: Path) -> None:
    environ = {"NIGHTJAR_ENGINE_FOLDER": str(tmp_path), "VLLM_RPC_BASE_PATH": str(tmp_path)}
    leave_absent_folder(environ)
    assert environ == {"NIGHTJAR_ENGINE_FOLDER": str(tmp_path), "VLLM_RPC_BASE_PATH": str(tmp_path)}


def test_files_of_a_worker_that_ray_ends_after_the_engine_core_go_with_the_engine(
    engine: tuple[subprocess.Popen[str], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, files = engine
    folder = make_engine_folder(tmp_path)
    assert folder is not None
    (folder.path / f"process-{worker.pid}").write_text(str(ProcessToken.of(worker.pid)))
    folder.note([worker.pid])

    def worker_ends(_seconds: float) -> None:
        worker.kill()
        worker.wait()

    core: Any = SimpleNamespace(shutdown=lambda timeout: None)
    unused: Any = None
    running = RunningEngine(engine=core, arguments=unused, group=unused, load=unused, folder=folder)
    with monkeypatch.context() as patched:
        patched.setattr("time.sleep", worker_ends)
        running.shutdown(60.0)
    assert exist(files) == [False, False]
    assert not folder.path.exists()
