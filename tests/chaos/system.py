"""The system under faults: Ray's nodes, Serve with the chaos application, the policy actor, and ways to look at and hurt them.

Everything that is waited for is waited for by polling, for as long as a busy machine may take. What does not answer in the
middle of a fault says nothing yet.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from nightjar.cluster.client import get_or_create_policy_actor
from nightjar.policy.restarts.budget import max_leases
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.status import PolicyStatus
from tests.chaos.application import APPLICATION, DEPLOYMENT, NODE_RESOURCE, REPLICAS, Build, application, create_policy_actor
from tests.chaos.events import Event, EventKind, EventReader
from tests.chaos.network import Conditions, write_conditions
from tests.chaos.surging_engine import MOST_SPECULATING_ROWS, PROFILE
from tests.deployments import serving
from tests.fleet.ray_nodes import RayNodes, ray_nodes
from tests.ports import free_port

T = TypeVar("T")

WORKER_NODES: Final = 3
REPLICAS_A_NODE: Final = 2
LONGEST_LEASE_S: Final = 5.0
SETTINGS: Final[dict[str, object]] = {
    "mode": "auto",
    "planner": "schedule",
    "num_speculative_tokens_per_batch_size": [
        [1, MOST_SPECULATING_ROWS, 1],
        [MOST_SPECULATING_ROWS + 1, PROFILE.limits.max_num_seqs, 0],
    ],
    "exchange_period_s": 0.5,
    "decision_period_s": 0.5,
    "max_lease_ttl_s": LONGEST_LEASE_S,
    "max_restart_share": 0.05,
    "replica_timeout_s": 10.0,
}
MOST_LEASES: Final = max_leases(parse_operator_settings(SETTINGS), 2 * REPLICAS)
"""One, also while an update replaces them all."""
FRESH_REPORT_S: Final = 3.0
WITHIN_S: Final = 75.0
"""Ample where nothing else runs; `serving.until` waits some times longer before it gives up."""


class ChaosSystem:
    """One cluster with one application. `died_s` says when this test killed a replica (CLOCK_MONOTONIC)."""

    def __init__(self, nodes: RayNodes) -> None:
        self.folder = nodes.folder
        self.journal = nodes.journal
        self.port = free_port()
        self.died_s: dict[str, float] = {}
        self._nodes = nodes
        self._build = Build(0, "")
        self._events = EventReader(Path())
        self._dwell_steps = 0

    def start(self) -> None:
        """The policy actor with the operator's settings, and Serve."""
        create_policy_actor()
        self.configure()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})

    def deploy(self, *, is_fenced: bool = True) -> None:
        """Replace what runs by another build, whose replicas write their events anew; return when all of it runs."""
        folder = self.folder / f"events-{self.version + 1}"
        folder.mkdir()
        self._events = EventReader(folder)
        self._run(Build(self.version + 1, str(folder), is_fenced))

    def update(self) -> None:
        """Replace what runs by the same as another version."""
        self._run(replace(self._build, version=self.version + 1))

    @property
    def version(self) -> int:
        """Of the build that was deployed last."""
        return self._build.version

    def _run(self, build: Build) -> None:
        self._build = build
        serve.run(application(build), name=APPLICATION, route_prefix="/")
        self.settle()

    def configure(self) -> None:
        """Set the operator's settings, each time with another dwell time, so that every replica is sent new ones."""
        self._dwell_steps = 3 - self._dwell_steps if self._dwell_steps else 1

        def is_taken() -> bool:
            serving.configure({**SETTINGS, "dwell_steps": self._dwell_steps})
            return True

        until(is_taken, "the operator's settings are taken")

    def set_network(self, conditions: Conditions) -> None:
        """What the network between agents and the policy actor does from now on."""
        write_conditions(self.folder, conditions)

    def events(self) -> tuple[Event, ...]:
        """What the replicas of the present folder of events wrote."""
        return self._events.read()

    def policy(self) -> PolicyStatus:
        """The policy as of now. Waits for one that answers."""
        return until(lambda: serving.fleet_status().policy, "the policy answers")

    def ask_policy_process(self, question: Callable[[], Any]) -> Any:
        """What a function says in the policy actor's process."""
        return ray.get(get_or_create_policy_actor().__ray_call__.remote(lambda _: question()), timeout=60)

    def controller_pid(self) -> int:
        """Of Serve's controller. Waits for one that answers."""

        def pid() -> int:
            controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            answer: int = ray.get(controller.__ray_call__.remote(lambda _: os.getpid()), timeout=30)
            return answer

        return until(pid, "Serve's controller answers")

    def reporting(self) -> dict[str, Event]:
        """Replicas that the policy hears from, and how each began."""
        started = self._started()
        fresh = [replica for replica in serving.fleet_status().replicas if replica.report_age_s < FRESH_REPORT_S]
        return {replica.replica_id: started[replica.replica_id] for replica in fresh if replica.replica_id in started}

    def chosen_replica(self, pick: float) -> Event:
        """One of those, by a number from 0 to 1."""
        replicas = sorted(until(self.reporting, "replicas report").values(), key=lambda started: started.replica_id)
        return replicas[int(pick * len(replicas))]

    def restarting_replica(self) -> Event:
        """One whose engine restarts under a lease right now. Waits for it."""
        return until(self._restarting, "a replica restarts under a lease")

    def settle(self) -> None:
        """Wait until as many replicas as there should be run what the present policy decided for them, and Serve is content."""
        until(self._is_settled, "all replicas run what the policy decided")

    def kill_replicas(self, *started: Event) -> None:
        """Kill these replicas' processes at once."""
        for one in started:
            kill(one.pid)
            self.died_s[one.replica_id] = time.monotonic()
        for one in started:
            wait_until_gone(one.pid)

    def kill_node(self, node_id: str) -> tuple[str, ...]:
        """Kill all processes of a worker node, as when a machine fails; the replicas that were on it."""
        (node,) = [node for node in self._nodes.cluster.worker_nodes if node.node_id == node_id]
        there = [one for one in self._started().values() if one.node_id == node_id and is_replica(one.pid)]
        for processes in node.all_processes.values():
            for process in processes:
                kill(process.process.pid)
        self.kill_replicas(*there)
        self._nodes.cluster.remove_node(node, allow_graceful=False)
        return tuple(started.replica_id for started in there)

    def add_node(self) -> None:
        """Another worker node."""
        self._nodes.add(**{NODE_RESOURCE: REPLICAS_A_NODE})

    def log_of(self, pid: int) -> str:
        """What a worker process printed."""
        return "".join(file.read_text(errors="replace") for file in self.folder.rglob(f"logs/worker-*-{pid}.*"))

    def _started(self) -> dict[str, Event]:
        return {event.replica_id: event for event in self.events() if event.kind is EventKind.STARTED}

    def _restarting(self) -> Event | None:
        now = {event.replica_id: event.kind is EventKind.RESTART_BEGAN for event in self.events() if event.kind in _RESTARTS}
        return next((started for name, started in self.reporting().items() if now.get(name)), None)

    def _is_settled(self) -> bool:
        status = serving.fleet_status()
        fresh = [replica for replica in status.replicas if replica.report_age_s < FRESH_REPORT_S]
        versions = {name: started.application_version for name, started in self._started().items()}
        return (
            len(fresh) == REPLICAS
            and all(versions.get(replica.replica_id) == self.version for replica in fresh)
            and all(replica.settings_confirmed and replica.mode.kind == "auto" for replica in fresh)
            and {replica.settings_version.incarnation for replica in fresh if replica.settings_version is not None}
            == {status.policy.incarnation}
            and serve.status().applications[APPLICATION].status.value == "RUNNING"
        )


_RESTARTS: Final = frozenset({EventKind.RESTART_BEGAN, EventKind.RESTART_ENDED})


@contextlib.contextmanager
def chaos_system() -> Iterator[ChaosSystem]:
    """Start it, without replicas; at the end nothing of it is left."""
    with ray_nodes(WORKER_NODES, **{NODE_RESOURCE: REPLICAS_A_NODE}) as nodes:
        system = ChaosSystem(nodes)
        try:
            system.start()
            yield system
        finally:
            with contextlib.suppress(Exception):
                serve.shutdown()


def until(condition: Callable[[], T | None], what: str) -> T:
    """Poll until `condition` gives something true, and return that. A part that is away just now gives nothing."""

    def look() -> T | None:
        try:
            return condition()
        except (ray.exceptions.RayError, serve.exceptions.RayServeException, ValueError, KeyError):
            return None

    found = serving.until(look, within_s=WITHIN_S, what=what)
    assert found is not None
    return found


def is_replica(pid: int) -> bool:
    """Whether this process is a replica of the application, and not another one under the id of one that is gone."""
    try:
        return f"ServeReplica:{APPLICATION}:{DEPLOYMENT}" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def kill(pid: int) -> None:
    """At once; fine where it is gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until_gone(pid: int) -> None:
    """Return when no process runs under this id."""
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, f"process {pid} is gone")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is stopped meanwhile, and goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, f"process {pid} is stopped")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def count(events: tuple[Event, ...], kind: EventKind, fault: int) -> int:
    """Events of a kind that one fault of the network made."""
    return sum(event.kind is kind and event.fault == fault for event in events)
