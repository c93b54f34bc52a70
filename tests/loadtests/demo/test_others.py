"""What other programs took of the processors: the machine's time without that of a tree of processes, ended children too."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nightjar.loadtests.demo import machine as demo_machine
from nightjar.loadtests.demo.machine import Look, look, share_of_others

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def machine(proc: Path, busy_s: int, own_s: int) -> None:
    """A machine that was busy for so long, of it `own_s` in process 10, a child of it and children of that which ended."""
    proc.mkdir(exist_ok=True)
    ticks = busy_s * TICKS_PER_S
    (proc / "stat").write_text(f"cpu {ticks - 40} 10 10 99999 88888 10 5 5 0 0\ncpu0 1 1 1 1\n")
    (proc / "meminfo").write_text("MemTotal: 1 kB\n")
    for pid, parent, taken in ((10, 1, (own_s, 0, 0, 0)), (20, 10, (0, 3, 4, 5)), (40, 1, (1000, 0, 0, 0))):
        (proc / str(pid)).mkdir(exist_ok=True)
        times = " ".join(str(seconds * TICKS_PER_S) for seconds in taken)
        (proc / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} {pid} {pid} 0 -1 0 0 0 0 0 {times} 20 0")


def cores(monkeypatch: pytest.MonkeyPatch, machine_has: int, left: int) -> None:
    """A machine of so many processors, of which a quota leaves `left`."""
    monkeypatch.setattr(os, "cpu_count", lambda: machine_has)
    monkeypatch.setattr(demo_machine, "machine_facts", lambda proc: SimpleNamespace(cores=left))


def test_time_of_the_tree_is_not_time_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, machine_has=2, left=2)
    machine(tmp_path, busy_s=100, own_s=50)
    before = look(10, tmp_path, clock=lambda: 5.0)
    machine(tmp_path, busy_s=118, own_s=58)
    after = look(10, tmp_path, clock=lambda: 15.0)
    assert before == Look(5.0, 100.0, 62.0)
    assert share_of_others(before, after, cores=2) == pytest.approx(0.5)


def test_nothing_is_said_behind_a_quota_of_processors_or_where_there_is_no_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, busy_s=1, own_s=1)
    cores(monkeypatch, machine_has=64, left=2)
    assert look(10, tmp_path) is None
    cores(monkeypatch, machine_has=2, left=2)
    assert look(10, tmp_path / "absent") is None
    assert share_of_others(None, Look(1.0, 1.0, 1.0), cores=2) is None
