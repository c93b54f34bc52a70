"""A node of a test's own cluster that failed to start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, cast

from tests.fleet.ray_nodes import RayNodes


class SlowCluster:
    """Its first two nodes start a process and are too slow."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def add_node(self, **_: Any) -> int:
        """The process of the node that is up."""
        self.processes.append(subprocess.Popen(["sleep", "600"]))
        if len(self.processes) < 3:
            raise TimeoutError("the node timed out")
        return self.processes[-1].pid


def test_a_node_is_tried_again_and_what_a_failed_try_started_is_gone(tmp_path: Path) -> None:
    cluster = SlowCluster()
    try:
        assert RayNodes(cast("Any", cluster), tmp_path).add() == cluster.processes[2].pid
        *failed, up = cluster.processes
        assert [process.wait(timeout=30) for process in failed] == [-9, -9]
        assert up.poll() is None
    finally:
        for process in cluster.processes:
            process.kill()
            process.wait()
