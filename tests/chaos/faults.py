"""Each fault, brought about for real, and the proof that it happened.

A function here returns when its fault is over and proven; whether the system recovers is looked at by whoever called it. It raises
AssertionError where the proof never comes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import ray

from nightjar.cluster.client import get_or_create_policy_actor
from nightjar.cluster.storage import journal, recording
from nightjar.cluster.storage.journal import read_journal
from nightjar.policy.wire.settings import ExchangeReply
from tests.chaos.events import EventKind
from tests.chaos.network import Conditions
from tests.chaos.schedule import Fault, FaultKind
from tests.chaos.system import LONGEST_LEASE_S, ChaosSystem, count, kill, stopped, until
from tests.chaos.verdict import Proof
from tests.chaos.wall_clock import step_clock
from tests.deployments import serving

SILENT_S: Final = LONGEST_LEASE_S + 1.0
"""Longer than any lease lives."""
LEAST_TOUCHED: Final = 8
LEAST_STALE: Final = 4
LEAST_CUT: Final = 3
FLOOD_CALLS: Final = 3000
GARBAGE: Final = b"\xc1" * 4096
CLOCK_WITHIN_S: Final = 60.0
NO_SPACE: Final = "No space left on device"
WRITES_AGAIN: Final = "journal_written_again"


def bring_about(system: ChaosSystem, fault: Fault) -> Proof:
    """Make it happen."""
    return _FAULTS[fault.kind](system, fault)


def _policy_killed(system: ChaosSystem, fault: Fault) -> Proof:
    before = system.policy()
    kill(before.pid)
    until(lambda: serving.fleet_status().policy.incarnation > before.incarnation, "another policy answers")
    after = system.policy()
    assert after.pid != before.pid
    return Proof(f"pid {before.pid}, then {after.pid}; incarnation {before.incarnation}, then {after.incarnation}")


def _controller_killed(system: ChaosSystem, fault: Fault) -> Proof:
    before = system.controller_pid()
    kill(before)
    after = until(lambda: (pid := system.controller_pid()) != before and pid, "another controller answers")
    return Proof(f"pid {before}, then {after}")


def _replica_killed(system: ChaosSystem, fault: Fault) -> Proof:
    known = system.reporting()
    victim = system.chosen_replica(fault.pick)
    system.kill_replicas(victim)
    new = until(lambda: sorted(system.reporting().keys() - known.keys()), "another replica reports")
    return Proof(f"{victim.replica_id} (pid {victim.pid}) gone, {', '.join(new)} came", (victim.replica_id,))


def _node_killed(system: ChaosSystem, fault: Fault) -> Proof:
    node_id = system.chosen_replica(fault.pick).node_id
    killed = system.kill_node(node_id)
    until(lambda: not next(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id), "Ray counts the node as dead")
    system.add_node()
    return Proof(f"Ray counts node {node_id[:8]} as dead, and with it {', '.join(killed)}", killed)


def _policy_stopped(system: ChaosSystem, fault: Fault) -> Proof:
    before = system.policy()
    began_s = time.monotonic()
    with stopped(before.pid):
        time.sleep(SILENT_S)
    seconds = time.monotonic() - began_s
    after = system.policy()
    assert (after.pid, after.incarnation) == (before.pid, before.incarnation), "the same one goes on"
    return Proof(f"pid {before.pid} in state T for {seconds:.1f} s, a lease lives {LONGEST_LEASE_S:g} s; it goes on")


def _replica_stopped(system: ChaosSystem, fault: Fault) -> Proof:
    victim = system.restarting_replica()

    def silent_for_s() -> float:
        ages = {replica.replica_id: replica.report_age_s for replica in serving.fleet_status().replicas}
        return ages.get(victim.replica_id, math.inf)

    began_s = time.monotonic()
    with stopped(victim.pid):
        time.sleep(SILENT_S)
        until(lambda: silent_for_s() > SILENT_S, "the policy missed the replica for longer than a lease")
    seconds = time.monotonic() - began_s
    until(lambda: victim.replica_id in system.reporting(), "the replica reports again")
    return Proof(f"{victim.replica_id} in state T for {seconds:.1f} s, a lease lives {LONGEST_LEASE_S:g} s; it reports again")


def _touched(kind: EventKind, word: str, least_stale: int) -> Callable[[ChaosSystem, Fault], Proof]:
    def bad_network(system: ChaosSystem, fault: Fault) -> Proof:
        def numbers() -> tuple[int, int]:
            events = system.events()
            return count(events, kind, fault.number), count(events, EventKind.STALE, fault.number)

        def has_come() -> bool:
            system.configure()
            touched, stale = numbers()
            return touched >= LEAST_TOUCHED and stale >= least_stale

        with _network(system, Conditions(fault.number, fault.kind, fault.share)):
            until(has_come, f"enough messages are {word}")
        touched, stale = numbers()
        return Proof(f"{touched} messages {word}" + (f", {stale} older answers delivered" if least_stale else ""))

    return bad_network


def _partition(system: ChaosSystem, fault: Fault) -> Proof:
    def is_over() -> bool:
        cut = [event for event in system.events() if event.kind is EventKind.CUT and event.fault == fault.number]
        began_s = [event.at_s for event in cut if event.in_restart]
        return len(cut) >= LEAST_CUT and bool(began_s) and time.monotonic() > max(began_s) + SILENT_S

    with _network(system, Conditions(fault.number, fault.kind, cut_s=SILENT_S)):
        until(is_over, "a replica was cut off in mid restart")
    cut = [event for event in system.events() if event.kind is EventKind.CUT and event.fault == fault.number]
    replicas = sorted({event.replica_id for event in cut if event.in_restart})
    return Proof(f"{', '.join(replicas)} cut off in mid restart for {SILENT_S:g} s: {len(cut)} calls failed")


def _updated(system: ChaosSystem, fault: Fault) -> Proof:
    before, old = system.reporting(), system.version
    system.update()
    after = system.reporting()
    assert not before.keys() & after.keys()
    versions = {started.application_version for started in after.values()}
    assert versions == {system.version}
    return Proof(f"{len(before)} replicas of version {old} replaced by {len(after)} of version {system.version}")


def _flooded(system: ChaosSystem, fault: Fault) -> Proof:
    before = system.policy().refused_reports
    actor = get_or_create_policy_actor()
    calls = [actor.exchange.remote(GARBAGE) for _ in range(FLOOD_CALLS)]
    refused = sum(bool(ExchangeReply.from_wire(reply).refused) for reply in ray.get(calls, timeout=600.0))
    counted = system.policy().refused_reports - before
    assert refused == FLOOD_CALLS
    assert counted >= FLOOD_CALLS
    return Proof(f"{refused} calls of {len(GARBAGE)} bytes at once, all refused; the policy counts {counted} more")


def _disk_full(system: ChaosSystem, fault: Fault) -> Proof:
    pid = system.policy().pid

    def said(words: str) -> int:
        return system.log_of(pid).count(words)

    refused, resumed = said(NO_SPACE), said(WRITES_AGAIN)

    def have(words: str, before: int) -> bool:
        """Both files, whatever else there is to write."""
        system.configure()
        return said(words) >= before + 2

    with _full(system.journal / journal.FILE_NAME), _full(system.journal / recording.FILE_NAME):
        until(lambda: have(NO_SPACE, refused), "the policy's writes fail")
    until(lambda: have(WRITES_AGAIN, resumed), "the policy writes again")
    return Proof(f"ENOSPC from the kernel for {said(NO_SPACE) - refused} files; then it writes them again")


def _clock_stepped(system: ChaosSystem, fault: Fault) -> Proof:
    step_clock(system.folder, fault.clock_step_s)
    seen_s: float = system.ask_policy_process(time.time) - time.time()
    assert abs(seen_s - fault.clock_step_s) < CLOCK_WITHIN_S
    killed = _policy_killed(system, fault)
    incarnation = system.policy().incarnation

    def its_clock_s() -> float | None:
        times = [entry.time_s for entry in read_journal(system.journal / journal.FILE_NAME) if entry.incarnation == incarnation]
        return times[-1] if times else None

    entered_s = until(its_clock_s, "the new policy writes into the journal") - time.time()
    assert abs(entered_s - fault.clock_step_s) < CLOCK_WITHIN_S
    return Proof(
        f"time.time() {seen_s:+.0f} s in the policy's process; its successor's journal is {entered_s:+.0f} s off ({killed.words})"
    )


_FAULTS: Final[Mapping[FaultKind, Callable[[ChaosSystem, Fault], Proof]]] = {
    FaultKind.POLICY_KILLED: _policy_killed,
    FaultKind.CONTROLLER_KILLED: _controller_killed,
    FaultKind.REPLICA_KILLED: _replica_killed,
    FaultKind.NODE_KILLED: _node_killed,
    FaultKind.POLICY_STOPPED: _policy_stopped,
    FaultKind.REPLICA_STOPPED: _replica_stopped,
    FaultKind.DELAYED: _touched(EventKind.DELAYED, "delayed", LEAST_STALE),
    FaultKind.DROPPED: _touched(EventKind.DROPPED, "dropped", 0),
    FaultKind.DOUBLED: _touched(EventKind.DOUBLED, "doubled", LEAST_STALE),
    FaultKind.PARTITION: _partition,
    FaultKind.UPDATED: _updated,
    FaultKind.FLOODED: _flooded,
    FaultKind.DISK_FULL: _disk_full,
    FaultKind.CLOCK_STEPPED: _clock_stepped,
}


@contextmanager
def _network(system: ChaosSystem, conditions: Conditions) -> Iterator[None]:
    system.set_network(conditions)
    try:
        yield
    finally:
        system.set_network(Conditions())


@contextmanager
def _full(file: Path) -> Iterator[None]:
    """A file that the kernel takes nothing more for: /dev/full in its place, and the file itself put back afterwards."""
    kept, link = file.with_suffix(".kept"), file.with_suffix(".full")
    os.link(file, kept)
    link.symlink_to("/dev/full")
    link.replace(file)
    try:
        yield
    finally:
        kept.replace(file)
