"""The machine under the demo: whether it can give what the Serve file asks for, and how much other programs took of it meanwhile.

The first is looked at before anything starts. What cannot work is an error, in one line that says what is needed. What is only slow
is a warning. What cannot be found out on a machine is not judged: the system itself then says what it lacks.

Modes run one after the other, so a program that ran beside one of them alone looks like that mode's own doing. What the machine did
is compared with what a tree of processes did (memory.tree), both in processor time. Linux only, and not behind a quota of
processors, where the machine's time says nothing of the container's share: then nothing is said.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from nightjar.loadtests.demo.memory import GIB, PROC, stat_fields, tree

NEEDED_BYTES: Final = 10 * GIB
"""Of the demo's peak, which it prints at its end (docs/evidence.md)."""
CGROUP: Final = Path("/sys/fs/cgroup")
EXACT_DTYPE: Final = "float32"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_BUSY: Final = (0, 1, 2, 5, 6, 7)
"""Of /proc/stat's first line: user, nice, system, interrupts of both kinds, stolen. Idle and waiting for a disk are not."""
_OWN: Final = slice(10, 14)
"""Of stat_fields: user and system time of the process, and of its children that ended."""


class NeedsError(Exception):
    """The demo cannot run here. The message is one line."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the Serve file says of its model.

    num_speculative_tokens  the fixed K that is compared: the greatest that the policy may choose, else the engine's own
    cores                   that its replicas claim, all together
    is_exact                whether it computes in float32, in which a batch of another shape changes no text
    """

    num_speculative_tokens: int
    replicas: int
    cores: float
    is_exact: bool


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What a machine has. None and an empty set stand for what could not be found out.

    cores     that Ray would count: the machine's, or the container's quota
    usable    of these, the cores that this process may run on
    """

    cores: int
    usable: int
    free_bytes: int | None
    architecture: str
    flags: frozenset[str]


def read_served(path: Path) -> ServedModel:
    """The first model of a Serve file. Raises NeedsError where the file has none that speculates."""
    try:
        applications = yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]
        model = next(one for app in applications for one in (app.get("args") or {}).get("llm_configs") or ())
        engine, deployment = model["engine_kwargs"], model.get("deployment_config") or {}
        own = engine["speculative_config"]["num_speculative_tokens"]
        replicas = int(deployment.get("num_replicas", 1))
        cores = replicas * float((deployment.get("ray_actor_options") or {}).get("num_cpus", 1))
        return ServedModel(max(_allowed(applications), default=int(own)), replicas, cores, engine.get("dtype") == EXACT_DTYPE)
    except (OSError, yaml.YAMLError) as error:
        raise NeedsError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise NeedsError(
            f"{path} names no model with engine_kwargs.speculative_config.num_speculative_tokens; the demo compares K with off"
        ) from error


def warnings_for(served: ServedModel, machine: MachineFacts) -> tuple[str, ...]:
    """What will be slow on this machine. Raises NeedsError for what cannot work."""
    if machine.cores < served.cores:
        raise NeedsError(f"{served.replicas} replicas need {served.cores:g} processor cores; this machine has {machine.cores}")
    if machine.free_bytes is not None and machine.free_bytes < NEEDED_BYTES:
        free = f"{machine.free_bytes / GIB:.1f} GiB are free"
        raise NeedsError(f"the demo needs {NEEDED_BYTES / GIB:.0f} GiB of free memory; {free}. End other programs first")
    slow = []
    if machine.architecture == "x86_64" and machine.flags:
        if "avx2" not in machine.flags:
            raise NeedsError("vLLM for CPU needs a processor with AVX2; this one has none")
        if "avx512f" not in machine.flags:
            slow.append("this processor has no AVX-512: steps take several times as long, and the demo may need half an hour")
    if machine.usable < served.cores:
        slow.append(f"this process may use {machine.usable} of {machine.cores} cores, which {served.replicas} replicas will share")
    return tuple(slow)


def machine_facts(proc: Path = PROC, cgroup: Path = CGROUP) -> MachineFacts:
    """What this machine has now, or leaves to this container."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = _cpu_quota(cgroup)
    cores = min(cores, quota) if quota else cores
    free = [one for one in (_available_bytes(proc), _left_in_cgroup(cgroup)) if one is not None]
    return MachineFacts(cores, min(usable, cores), min(free, default=None), platform.machine(), _flags(proc))


def _allowed(applications: Any) -> Iterator[int]:
    """The K that the policy may choose; none where it may choose any."""
    for application in applications:
        for deployment in application.get("deployments") or ():
            user_config: Mapping[str, Any] = deployment.get("user_config") or {}
            yield from map(int, user_config.get("allowed_num_speculative_tokens") or ())


def _flags(proc: Path) -> frozenset[str]:
    for line in _read(proc / "cpuinfo").splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _available_bytes(proc: Path) -> int | None:
    """Linux's own estimate: free pages, and those that it can take back."""
    found = [line.split()[1] for line in _read(proc / "meminfo").splitlines() if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _left_in_cgroup(cgroup: Path) -> int | None:
    """What a container's limit leaves; cached files can be taken back. None without a limit (cgroup v2)."""
    most, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if not most.isdigit() or not used.isdigit():
        return None
    cached = [line.split()[1] for line in _read(cgroup / "memory.stat").splitlines() if line.startswith("inactive_file ")]
    return max(int(most) - int(used) + int(cached[0] if cached else 0), 0)


def _cpu_quota(cgroup: Path) -> int | None:
    """Whole cores of a container's quota, as Ray counts them; None without one (cgroup v2)."""
    quota, _, period = _read(cgroup / "cpu.max").strip().partition(" ")
    return max(int(quota) // int(period), 1) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class Look(NamedTuple):
    """Processor time until now, in seconds: of the machine, and of the tree."""

    at_s: float
    busy_s: float
    own_s: float


def look(root: int | None = None, proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> Look | None:
    """Of this process and all that it started, or of `root`'s tree. None where that cannot be known."""
    facts = machine_facts(proc)
    if facts.cores != os.cpu_count():
        return None
    try:
        machine = [int(word) for word in (proc / "stat").read_text(encoding="ascii").partition("\n")[0].split()[1:]]
        pids = tree(os.getpid() if root is None else root, proc)
    except (OSError, ValueError):
        return None
    busy = sum(ticks for place, ticks in enumerate(machine) if place in _BUSY)
    own = sum(sum(stat_fields(proc / str(pid))[_OWN]) for pid in pids)
    return Look(clock(), busy / _TICKS_PER_S, own / _TICKS_PER_S)


def share_of_others(before: Look | None, after: Look | None, cores: int) -> float | None:
    """What others took between two looks, of all that `cores` processors could give.

    >>> share_of_others(Look(0.0, 100.0, 50.0), Look(10.0, 118.0, 58.0), cores=2)
    0.5
    """
    if before is None or after is None or after.at_s <= before.at_s:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(others_s / (cores * (after.at_s - before.at_s)), 0.0)
