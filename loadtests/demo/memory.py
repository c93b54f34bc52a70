"""How much memory a process and all that it started hold together: the proportional set size, in which a page that several
processes share counts once.

A tree is followed by parents, and by the sessions that its processes began: what lost its parent stays in its session. Processes
that cannot be read, or that ended meanwhile, are skipped, so the sum is at least what is said. Linux only: elsewhere no peak is
found.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Final, NamedTuple

from nightjar.loadtests.arms.processes import Repeated
from nightjar.policy.wire.record import Record

PERIOD_S: Final = 3.0
"""A worker's pages are counted in 10 to 30 ms, so that a look at all of them takes less than 1 % of a core."""
PROC: Final = Path("/proc")
GIB: Final = 1 << 30
MOST_NAMED: Final = 4
_PSS: Final = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


class ProcessMemory(Record):
    """Processes of one name, and what they hold together."""

    name: str
    processes: int
    pss_bytes: int


class MemoryPeak(Record):
    """The moment at which a tree held most: so many seconds after the first look, and by whom, most first."""

    after_s: float
    parts: tuple[ProcessMemory, ...]

    @property
    def pss_bytes(self) -> int:
        """Of all together."""
        return sum(part.pss_bytes for part in self.parts)

    def __str__(self) -> str:
        named = [
            f"{part.name} {part.pss_bytes / GIB:.1f}{f' in {part.processes}' if part.processes > 1 else ''}"
            for part in self.parts[:MOST_NAMED]
        ]
        rest = sum(part.pss_bytes for part in self.parts[MOST_NAMED:])
        return f"{self.pss_bytes / GIB:.1f} GiB: {', '.join(named)}{f', others {rest / GIB:.1f}' if rest else ''}"


class MemoryWatch(Repeated):
    """Looks every few seconds while it is entered, on a thread of its own. `peak` is None until something could be read."""

    def __init__(self, root: int | None = None, proc: Path = PROC) -> None:
        """Of the process `root`: this one, where it is None."""
        super().__init__(self.look, PERIOD_S, "memory")
        self.peak: MemoryPeak | None = None
        self._root = os.getpid() if root is None else root
        self._proc = proc
        self._began_s = time.monotonic()

    def look(self) -> None:
        """Look now, and keep what is seen if it is the most so far."""
        parts = memory_of(tree(self._root, self._proc), self._proc)
        seen = MemoryPeak(after_s=round(time.monotonic() - self._began_s, 1), parts=parts)
        if seen.pss_bytes > (self.peak.pss_bytes if self.peak else 0):
            self.peak = seen


class _Stat(NamedTuple):
    pid: int
    parent: int
    session: int


def tree(root: int, proc: Path = PROC) -> frozenset[int]:
    """Ids of a process, of all that descend from it, and of those that share a session which one of these began."""
    stats = [stat for entry in proc.iterdir() if entry.name.isdigit() and (stat := _stat(entry)) is not None]
    found = {root}
    while True:
        began = found - {root}
        more = {one.pid for one in stats if one.parent in found or one.session in began} - found
        if not more:
            return frozenset(found)
        found |= more


def memory_of(pids: frozenset[int], proc: Path = PROC) -> tuple[ProcessMemory, ...]:
    """What these processes hold by name, most first."""
    held: dict[str, list[int]] = {}
    for pid in sorted(pids):
        try:
            rollup = (proc / str(pid) / "smaps_rollup").read_text(encoding="utf-8")
            words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if found := _PSS.search(rollup):
            held.setdefault(process_name(words), []).append(int(found[1]) * 1024)
    parts = [ProcessMemory(name=name, processes=len(sizes), pss_bytes=sum(sizes)) for name, sizes in held.items()]
    return tuple(sorted(parts, key=lambda part: -part.pss_bytes))


def process_name(words: list[str]) -> str:
    """What people call a process by its command line.

    >>> process_name(["ray::ServeReplica:smollm2:LLM.handle_request"]), process_name(["/opt/raylet/raylet", "--port=1"])
    ('ray::ServeReplica:smollm2:LLM', 'raylet')
    >>> process_name(["/usr/bin/python3.11", "-u", "/opt/dashboard/agent.py"]), process_name(["python", "-m", "locust", "-f", "x"])
    ('agent.py', 'locust')
    """
    first, *rest = [word for word in words if word] or ["?"]
    if "::" in first:
        return first.split()[0].partition(".")[0][:40]
    name = Path(first).name
    if not name.startswith("python"):
        return name[:40]
    for place, word in enumerate(rest):
        if word == "-m" and place + 1 < len(rest):
            return rest[place + 1].rpartition(".")[2][:40]
        if word == "-c":
            return "nightjar" if "nightjar" in rest[place + 1] else name
        if not word.startswith("-"):
            return Path(word).name[:40]
    return name


def stat_fields(entry: Path) -> list[int]:
    """The numbers of `/proc/PID/stat` behind the name and the state, from the parent on; none where it cannot be read."""
    try:
        return [int(word) for word in (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1:]]
    except (OSError, ValueError):
        return []


def _stat(entry: Path) -> _Stat | None:
    fields = stat_fields(entry)
    return _Stat(int(entry.name), fields[0], fields[2]) if len(fields) > 2 else None
