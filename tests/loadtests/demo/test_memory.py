"""The memory of a tree of processes: who belongs to it, what they hold together, and the moment of the most."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nightjar.loadtests.demo.memory import GIB, MemoryPeak, MemoryWatch, ProcessMemory, memory_of, tree


def process(proc: Path, pid: int, parent: int, session: int, *command: str, kib: int | None = 1024) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(f"{pid} (a (b) c) S {parent} {pid} {session} 0 -1")
    (folder / "cmdline").write_bytes(b"\0".join(word.encode() for word in command) + b"\0")
    if kib is not None:
        (folder / "smaps_rollup").write_text(f"1000-2000 ---p 0 [rollup]\nRss: 9999 kB\nPss:  {kib} kB\nPss_Dirty: 7 kB\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """10 started 20, that began a session in which 30 lost its parent; 40 is nobody's of these."""
    process(tmp_path, 1, 0, 1, "init", kib=5000)
    process(tmp_path, 10, 1, 1, "/usr/bin/python3", "-m", "demo")
    process(tmp_path, 20, 10, 20, "/opt/raylet")
    process(tmp_path, 30, 1, 20, "VLLM::EngineCore", kib=3 << 20)
    process(tmp_path, 31, 20, 20, "VLLM::EngineCore", kib=1 << 20)
    process(tmp_path, 40, 1, 1, "other", kib=5000)
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    return tmp_path


def test_a_tree_has_all_descendants_and_those_who_lost_their_parent_in_its_sessions(proc: Path) -> None:
    assert tree(10, proc) == {10, 20, 30, 31}
    assert tree(40, proc) == {40}


def test_processes_of_one_name_are_added_up_and_one_that_cannot_be_read_is_skipped(proc: Path) -> None:
    process(proc, 50, 10, 1, "secret", kib=None)
    found = memory_of(tree(10, proc), proc)
    assert [(part.name, part.processes, part.pss_bytes >> 20) for part in found] == [
        ("VLLM::EngineCore", 2, 4096), ("demo", 1, 1), ("raylet", 1, 1),
    ]  # fmt: skip


def test_the_peak_is_the_look_with_the_most_in_all(proc: Path) -> None:
    watch = MemoryWatch(10, proc)
    watch.look()
    assert watch.peak is not None
    assert watch.peak.pss_bytes == 4 * GIB + (2 << 20)
    first = watch.peak
    process(proc, 30, 1, 20, "VLLM::EngineCore", kib=1)
    watch.look()
    assert watch.peak is first
    process(proc, 20, 10, 20, "/opt/raylet", kib=6 << 20)
    watch.look()
    assert watch.peak.parts[0].name == "raylet"


def test_without_what_linux_says_there_is_no_peak(tmp_path: Path) -> None:
    watch = MemoryWatch(10, tmp_path)
    watch.look()
    assert watch.peak is None


def test_a_real_child_counts() -> None:
    code = "held = b'x' * (64 << 20); print('up', flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        seen = tree(os.getpid())
        held = memory_of(frozenset({child.pid}))
        child.communicate(b"\n")
    assert child.pid in seen
    assert held[0].pss_bytes > 64 << 20


def test_a_peak_names_the_largest_and_sums_the_rest() -> None:
    sizes = (("engine", 2, 5.0), ("replica", 1, 1.0), ("raylet", 1, 0.25), ("locust", 1, 0.25), ("a", 1, 0.25), ("b", 1, 0.25))
    parts = tuple(ProcessMemory(name=name, processes=count, pss_bytes=int(size * GIB)) for name, count, size in sizes)
    peak = MemoryPeak(after_s=3.0, parts=parts)
    assert str(peak) == "7.0 GiB: engine 5.0 in 2, replica 1.0, raylet 0.2, locust 0.2, others 0.5"
