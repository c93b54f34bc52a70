"""One run: the system under load, one fault after the other, each until all is well again; and what it was like."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightjar.cluster.storage.recording import RecordingReader, recording_of
from nightjar.cluster.storage.replay import Skipped, replay
from tests.chaos.faults import bring_about
from tests.chaos.schedule import Fault, FaultKind, schedule
from tests.chaos.system import MOST_LEASES, ChaosSystem, chaos_system, until
from tests.chaos.verdict import Endured, Observed, Replayed
from tests.upgrade.crowd import Crowd

Say = Callable[[str], None]
"""Told which fault is under way."""

USERS: Final = 8
TOKENS: Final = 12
STALE_MAKERS: Final = frozenset({FaultKind.DELAYED, FaultKind.DOUBLED})
"""The faults that bring older settings to an agent after newer ones."""


@dataclass(frozen=True, slots=True)
class ChaosRun:
    """One seed: the build as it is under every fault, and a build without the fence under those that matter to it."""

    seed: int
    observed: Observed
    unfenced: Observed


def chaos_run(seed: int, say: Say) -> ChaosRun:
    """Both builds on one cluster, which is gone when this returns."""
    with chaos_system() as system:
        system.deploy()
        observed = endure(system, schedule(seed), say)
        system.deploy(is_fenced=False)
        unfenced = endure(system, [fault for fault in schedule(seed) if fault.kind in STALE_MAKERS], say)
        return ChaosRun(seed, observed, unfenced)


def endure(system: ChaosSystem, faults: Iterable[Fault], say: Say) -> Observed:
    """Bring about the faults while users ask all the time."""
    with Crowd(system.port, USERS, TOKENS, clock=time.monotonic) as crowd:
        endured = tuple(_endure(system, crowd, fault, say) for fault in faults)
    return Observed(
        endured=endured,
        answers=tuple(crowd.answers),
        events=system.events(),
        died_s=dict(system.died_s),
        most_leases=MOST_LEASES,
        replayed=replayed(system.journal),
    )


def _endure(system: ChaosSystem, crowd: Crowd, fault: Fault, say: Say) -> Endured:
    time.sleep(fault.gap_s)
    say(f"{fault.number:3} {fault.kind}")
    began_s = time.monotonic()
    proof = bring_about(system, fault)
    over_s = time.monotonic()
    system.settle()
    until(
        lambda: any(answer.began_s >= over_s and not answer.failure for answer in tuple(crowd.answers)),
        "a request that came after the fault is answered",
    )
    return Endured(fault, began_s, over_s, time.monotonic(), proof)


def replayed(journal: Path) -> Replayed:
    """Decide everything again that the policies decided."""
    skipped, incarnations = Skipped(), set[int]()
    ticks = differing_ticks = 0
    for tick in replay(RecordingReader(recording_of(journal)), skipped):
        ticks += 1
        differing_ticks += bool(tick.differences)
        incarnations.add(tick.frame.incarnation)
    return Replayed(ticks, differing_ticks, skipped.before_first_key + skipped.after_a_gap, len(incarnations))
