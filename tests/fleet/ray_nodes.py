"""A Ray cluster of several nodes on this machine, of a test's own.

At the end no process of it is left, also where a test or the start of a node failed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from nightjar.cluster.local.cluster import QUIET_ENVIRONMENT
from nightjar.cluster.policy_actor import JOURNAL_DIR_VARIABLE

OBJECT_STORE_BYTES: Final = 80 << 20
"""The least that Ray takes, for each node: nothing is stored there."""
NODE_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class RayNodes:
    """The nodes of a running cluster, the head first, and the folder of its files, the journal's among them."""

    cluster: Cluster
    folder: Path

    @property
    def journal(self) -> Path:
        """Where the policy writes."""
        return self.folder / "journal"

    def add(self, **resources: float) -> Any:
        """Start one more node; the first is the head.

        Tried again where it failed, for about five minutes: Ray gives a node 30 s and its agents 15, which their imports exceed on
        a machine that is busy enough. What a failed try started is killed, or it would join as one node more.
        """
        for tries_left in reversed(range(NODE_TRIES)):
            before = set(psutil.Process().children())
            try:
                return self.cluster.add_node(
                    num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, resources=resources
                )
            except Exception:
                for started in set(psutil.Process().children()) - before:
                    _kill_with_children(started)
                if not tries_left:
                    raise
        raise AssertionError("unreachable")


@contextlib.contextmanager
def ray_nodes(worker_nodes: int, **resources: float) -> Iterator[RayNodes]:
    """Start a head node and worker nodes, each of these with `resources`, and connect to them."""
    before = set(psutil.Process().children(recursive=True))
    folder = Path(tempfile.mkdtemp(prefix="nj-", dir="/tmp"))  # short: Ray's socket names must fit 107 bytes
    (folder / "token").write_text("0" * 64)
    nodes = RayNodes(Cluster(), folder)
    with pytest.MonkeyPatch.context() as variables:
        variables.delenv("RAY_ADDRESS", raising=False)
        variables.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        variables.setenv("RAY_TMPDIR", str(folder))  # where a cluster leaves its address for `ray.init()` without one
        for name, value in QUIET_ENVIRONMENT.items():
            variables.setenv(name, value)
        variables.setenv(JOURNAL_DIR_VARIABLE, str(nodes.journal))
        variables.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        variables.setenv("RAY_worker_niceness", "0")  # Ray's 15 starves a host whose core another process keeps busy
        try:
            nodes.add()
            for _ in range(worker_nodes):
                nodes.add(**resources)
            ray.init(address=nodes.cluster.address, log_to_driver=False)
            yield nodes
        finally:
            started = set(psutil.Process().children(recursive=True)) - before
            ray.shutdown()
            nodes.cluster.shutdown()
            _, left = psutil.wait_procs(started, timeout=30)
            for process in left:  # of a node that failed to start: the cluster does not know it
                process.kill()
            psutil.wait_procs(left, timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


def _kill_with_children(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
