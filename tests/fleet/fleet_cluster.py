"""A Ray cluster of several nodes on this machine, and a fleet of hosted replicas on it, driven from a test.

The head node holds the policy actor, as the first agent creates it; the hosts are spread over the worker nodes. Whatever a test
asks for is waited for by polling, for as long as a slow machine may take. At the end no process of the cluster is left, also where
a test or the start of a node failed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nightjar.cluster.policy_actor import ACTOR_NAME, HEAD_NODE_RESOURCE, NAMESPACE
from nightjar.cluster.storage.journal import JournalEntry, read_journal
from tests.deployments import serving
from tests.fleet.courses import ReplicaCourse
from tests.fleet.engine_host import EngineHost
from tests.fleet.hosted_engine import Part
from tests.fleet.ray_nodes import ray_nodes

WORKER_NODES: Final = 3
HOSTS: Final = 8
PATIENCE_S: Final = 300.0
"""Until whatever is waited for counts as never coming."""
LOOK_PERIOD_S: Final = 1.0
HEAD_START_S: Final = 1.0
"""From the word to begin until second 0, so that all hosts have heard it."""


class FleetCluster:
    """Hosts on the worker nodes of a running cluster, and what they were told."""

    def __init__(self) -> None:
        self.head_node_id = next(node["NodeID"] for node in ray.nodes() if HEAD_NODE_RESOURCE in node["Resources"])
        self.worker_node_ids = tuple(node["NodeID"] for node in ray.nodes() if node["NodeID"] != self.head_node_id)
        self._hosts = [
            ray.remote(EngineHost)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self.worker_node_ids[place % WORKER_NODES], soft=False),
            )
            .remote()
            for place in range(HOSTS)
        ]
        self._host_of: dict[str, Any] = {}
        self._began_s = math.inf

    def start(self, parts: Sequence[Part], settings: Mapping[str, object], mode: str = "auto") -> None:
        """Agents and idle engines of these parts, in turn over the hosts, until every engine runs the operator's mode."""
        self._began_s = math.inf
        self._host_of = {part.replica_id: self._hosts[place % HOSTS] for place, part in enumerate(parts)}
        self._call_all("start", [[part for part in parts if self._host_of[part.replica_id] is host] for host in self._hosts])
        serving.until(policy_actor_exists, within_s=PATIENCE_S, what="the policy actor, created by an agent")
        serving.configure(settings, timeout_s=PATIENCE_S)
        self.wait_for_settings([part.replica_id for part in parts], mode)

    def join(self, part: Part) -> None:
        """One more replica, idle until it is given users; return when its engine runs what the operator set."""
        self._host_of[part.replica_id] = host = self._hosts[len(self._host_of) % HOSTS]
        ray.get(host.join.remote([part]), timeout=PATIENCE_S)
        self.wait_for_settings([part.replica_id])

    def wait_for_settings(self, replica_ids: Sequence[str], mode: str = "auto") -> None:
        """Until the policy knows that these engines run the settings it decided, in this mode."""

        def all_confirmed() -> bool:
            steered = {
                replica.replica_id
                for replica in serving.fleet_status().replicas
                if replica.settings_confirmed and str(replica.mode) == mode
            }
            return steered.issuperset(replica_ids)

        serving.until(all_confirmed, within_s=PATIENCE_S, what=f"settings of {len(replica_ids)} replicas")

    def begin(self) -> None:
        """Second 0 is now, for all engines."""
        self._began_s = time.monotonic() + HEAD_START_S
        self._call_all("begin", [self._began_s] * HOSTS)

    @property
    def now_s(self) -> float:
        """The scenario's time."""
        return max(time.monotonic() - self._began_s, 0.0)

    def set_users(self, replica_id: str, users: int) -> None:
        """From now on the service of one replica has so many users."""
        ray.get(self._host_of[replica_id].set_users.remote(replica_id, users), timeout=PATIENCE_S)

    def until(self, holds: Callable[[Mapping[str, ReplicaCourse]], bool], what: str) -> None:
        """Look at every replica's course, by id, until `holds`."""

        def look() -> bool:
            time.sleep(LOOK_PERIOD_S)
            return holds(self.courses())

        serving.until(look, within_s=PATIENCE_S, what=what)

    def courses(self) -> dict[str, ReplicaCourse]:
        """Every replica's course until now, by id."""
        return _by_id(self._call_all("courses"))

    def end(self) -> dict[str, ReplicaCourse]:
        """End the scenario with a whole second that is to come, the same for all: every replica's course until then, by id."""
        return _by_id(self._call_all("end", [math.ceil(self.now_s) + 1.0] * HOSTS))

    def journal(self) -> list[JournalEntry]:
        """What the policy wrote so far."""
        return list(read_journal(Path(serving.fleet_status().policy.journal_path)))

    def _call_all(self, method: str, arguments: Sequence[object] = ()) -> list[Any]:
        calls = [getattr(host, method).remote(*arguments[place : place + 1]) for place, host in enumerate(self._hosts)]
        answers: list[Any] = ray.get(calls, timeout=PATIENCE_S)
        return answers


@contextlib.contextmanager
def fleet_cluster() -> Iterator[FleetCluster]:
    """Start a head node and the worker nodes; at the end nothing of them is left."""
    with ray_nodes(WORKER_NODES):
        yield FleetCluster()


def policy_actor_exists() -> bool:
    """Whether somebody has created the policy actor; asking does not."""
    try:
        ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _by_id(courses: Sequence[Sequence[ReplicaCourse]]) -> dict[str, ReplicaCourse]:
    return {course.replica_id: course for some in courses for course in some}
