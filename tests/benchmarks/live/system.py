"""The system under test while it runs, and what an operator does to it: set a mode, start engines anew, make the policy forget.

Everything goes the way that it goes in production: modes over the policy's HTTP API, applications through Serve. Only forgetting
has no such way, for nobody wants it but a benchmark: the policy actor is killed and what it stored is removed. Every wait has an
end and raises RuntimeError, or of an arm TurnError, with what was seen last.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

import psutil

from nightjar.cluster.api.access import TOKEN_VARIABLE
from nightjar.cluster.api.http_client import HttpClient
from nightjar.cluster.api.operations import CONFIGURE, STATUS, OperationError
from nightjar.cluster.client import get_or_create_policy_actor
from nightjar.cluster.storage.gcs_store import NAMESPACE
from nightjar.loadtests.arms.processes import as_keyboard_interrupt
from nightjar.loadtests.arms.session import Session, service_api
from nightjar.loadtests.arms.stock_table import TableRows
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.status import FleetStatus, ReplicaStatus
from tests.benchmarks.live.applications import (
    OURS,
    POLICY_SETTINGS,
    STOCK,
    cores,
    our_replica,
    policy_application,
    stock_replica,
)
from tests.benchmarks.live.arms import ARMS, AUTO, PAPER, length_of
from tests.deployments.serving import ServeCluster, ask_policy, replica_pid, serve_cluster

STARTS_WITHIN_S: Final = 480.0
OBEYS_WITHIN_S: Final = 60.0
POLL_PERIOD_S: Final = 0.25
ALMOST: Final = 8
"""One of so many rows may still read its prompt."""
LATEST_REPORT_S: Final = 8.0
"""A report that is older says nothing of now. An engine reports between its steps, and the longest may take three seconds."""
RAY_VARIABLES: Final = {"RAY_memory_monitor_refresh_ms": "0"}
"""Without Ray's memory monitor: it kills where 95 % is in use, and four engines with float32 weights use 96 % of 24 GiB."""
COLD_LEASE_TTL_S: Final = 5.0
"""A new policy waits for the leases of its predecessor. Here there is none, and in a cluster that starts the wait is over before
the first engine has loaded."""
BUSY_DRAFTER: Final = frozenset(
    {DrafterState.CATCHING_UP, DrafterState.PROBING, DrafterState.CONTRACTING, DrafterState.RELOADING, DrafterState.OFFLOADED}
)

T = TypeVar("T")


class LiveSystem:
    """Ray Serve with the policy's API and two replicas of ours; later two stock ones beside them, which take turns with ours."""

    def __init__(self, cluster: ServeCluster, models: Mapping[str, str], api: HttpClient) -> None:
        self._cluster = cluster
        self._models = models
        self._api = api
        self._starts = dict.fromkeys(OURS, 0)
        self._latest: FleetStatus | None = None
        self._session = Session(api, "the benchmark compares modes", look=self._ours_alone, replicas=len(OURS))
        self._stock_table: TableRows | None = None

    def deploy(self) -> None:
        """Make what is wanted run: what runs as wanted is left alone."""
        ours = [our_replica(name, core, self._models, self._starts[name]) for name, core in zip(OURS, cores(), strict=True)]
        stock = []
        if self._stock_table is not None:
            pairs = zip(STOCK, cores(), strict=True)
            stock = [stock_replica(name, core, self._models, self._stock_table) for name, core in pairs]
        self._cluster.deploy(policy_application(), *ours, *stock, within_s=STARTS_WITHIN_S)
        self._wait(self._all_report, STARTS_WITHIN_S, "every replica reports to the policy")

    def renew(self, *names: str) -> None:
        """Start replicas of ours anew, with engines that have counted nothing."""
        before = {replica.replica_id for replica in self.ours() if replica.application in names}
        for name in names:
            self._starts[name] += 1
        self.deploy()
        self._wait(lambda: not before & {one.replica_id for one in self.ours()}, STARTS_WITHIN_S, f"{', '.join(names)} are new")

    def add_stock(self, table: TableRows) -> None:
        """Start the stock replicas."""
        self._stock_table = table
        self.deploy()

    def forget(self) -> None:
        """A new policy that knows nothing. What engines counted they tell it again: `renew` those that worked before."""
        import ray
        from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_list

        for key in _internal_kv_list(b"policy-", namespace=NAMESPACE):
            _internal_kv_del(key, namespace=NAMESPACE)
        ray.kill(get_or_create_policy_actor(), no_restart=True)
        self.set_policy(POLICY_SETTINGS | {"max_lease_ttl_s": COLD_LEASE_TTL_S})
        self._wait(self._all_report, OBEYS_WITHIN_S, "every replica reports to the new policy")
        if known := [cell for group in self.status().groups for cell in group.cells if cell.clean_steps]:
            raise RuntimeError(f"the new policy is not cold: it knows {known[0]}")

    def set_policy(self, settings: Mapping[str, object]) -> None:
        """The operator's settings as a whole, as a change of `user_config` would bring them."""
        self._wait(lambda: ask_policy(CONFIGURE, settings), OBEYS_WITHIN_S, "the policy answers")

    def run_arm(self, arm: str) -> None:
        """Have every replica of ours run an arm; returns when each says so. All are idle then, and no drafter has to catch up."""
        self.until_idle()
        self._session.run(ARMS[arm])

    def until_idle(self) -> None:
        """Until no replica of ours has a request."""
        self._wait(self._is_idle, OBEYS_WITHIN_S, "our replicas have no request")

    def is_settled(self, arm: str, rows: int) -> bool:
        """Whether every replica of ours decodes (nearly) all of its `rows` at the arm's K, and no drafter is catching up.

        Nearly: answers end all the time, and the next ones' prompts are read meanwhile.
        """
        decoding = rows - max(rows // ALMOST, 1)
        ours = self.ours()
        return len(ours) == len(OURS) and all(
            replica.load.num_running_reqs and replica.load.decode_batch_size >= decoding and _runs(replica, arm) for replica in ours
        )

    def ours(self) -> tuple[ReplicaStatus, ...]:
        """Our replicas as the policy sees them now, those alone that are there."""
        return self._ours_alone().replicas

    def status(self) -> FleetStatus:
        """What the policy's API says. Raises OperationError."""
        self._latest = self._api.call(STATUS)
        return self._latest

    def urls(self, names: Iterable[str]) -> dict[str, str]:
        """Where replicas answer, by name."""
        return {name: f"{self._cluster.url}/{name}" for name in names}

    def cpu_seconds(self, names: Iterable[str]) -> float:
        """Processor time that replicas and their engines have taken so far."""
        wanted = set(names)
        there = [replica for replica in self.status().replicas if replica.application in wanted and _is_there(replica)]
        pids = [replica_pid(replica.application, replica.replica_id) for replica in there]
        roots = [psutil.Process(pid) for pid in pids]
        times = [process.cpu_times() for root in roots for process in (root, *root.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def _is_idle(self) -> bool:
        loads = [replica.load for replica in self.ours()]
        return len(loads) == len(OURS) and not any(load.num_running_reqs or load.num_waiting_reqs for load in loads)

    def _ours_alone(self) -> FleetStatus:
        """The fleet without the stock replicas, which run no arm of ours, and without those that went."""
        status = self.status()
        ours = tuple(replica for replica in status.replicas if replica.application in OURS and _is_there(replica))
        return status.model_copy(update={"replicas": ours})

    def _all_report(self) -> bool:
        wanted = {*OURS, *(STOCK if self._stock_table is not None else ())}
        return {replica.application for replica in self.status().replicas if _is_there(replica)} == wanted

    def _wait(self, condition: Callable[[], T], within_s: float, what: str) -> T:
        """What `condition` gives as soon as it is true; a policy that does not answer says nothing yet."""
        deadline_s, problem = time.monotonic() + within_s, ""
        while True:
            try:
                if value := condition():
                    return value
            except OperationError as error:
                problem = str(error)
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{what}: not within {within_s:g} s; last seen: {self.seen()}; {problem}")
            time.sleep(POLL_PERIOD_S)

    def seen(self) -> str:
        """Replicas as last seen, for people."""
        replicas = self._latest.replicas if self._latest is not None else ()
        return ", ".join(
            f"{one.application} in mode {one.mode} at K={one.load.num_speculative_tokens}, {one.load.num_running_reqs} requests, "
            f"drafter {one.drafter_state}, heard {one.report_age_s:.1f} s ago"
            for one in replicas
        )


@contextlib.contextmanager
def live_system(models: Mapping[str, str]) -> Iterator[LiveSystem]:
    """The system, started with two replicas of ours; at the end nothing of it is left."""
    token = secrets.token_urlsafe(24)
    os.environ[TOKEN_VARIABLE] = token
    with serve_cluster(variables=RAY_VARIABLES) as cluster, service_api(cluster.url, token) as api:
        signal.signal(signal.SIGTERM, as_keyboard_interrupt)  # not before: Ray, as it starts, sets one that stops nothing
        system = LiveSystem(cluster, models, api)
        system.deploy()
        yield system


def _is_there(replica: ReplicaStatus) -> bool:
    return replica.report_age_s < LATEST_REPORT_S


def _runs(replica: ReplicaStatus, arm: str) -> bool:
    if arm == PAPER:  # it may restart at any step
        return True
    if replica.drafter_state in BUSY_DRAFTER:
        return False
    return arm == AUTO or replica.load.num_speculative_tokens == length_of(arm)
