"""An engine whose core and ranks have processes of their own, as in a replica: what a step is told must reach every rank alike.

Nobody outside knows before which step settings arrive, only that they arrive between two. What the ranks did is recorded by the
ranks themselves (recording_worker.py). Needs VLLM_ENABLE_V1_MULTIPROCESSING=1. Fails with vLLM's own errors.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, Final

from nightjar.cluster.local.cluster import OBJECT_STORE_BYTES, QUIET_ENVIRONMENT
from nightjar.deployments.engine.engine_folder import make_engine_folder
from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE, RAY_ADDRESS_VARIABLE, REPLICA_VARIABLE
from nightjar.deployments.engine.process_guard import descendants, noted_processes, own_token
from nightjar.deployments.engine.scheduler.control import CONTROL_METHOD
from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.deployments.proof.executed_steps import ExecutedStep
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand

RECORDING_WORKER: Final = "tests.gpu_paths.engines.recording_worker.RecordingWorker"


class SpreadEngine(DrivenEngine):
    """`arguments` are those of vLLM's LLM; their `worker_extension_cls` is ours."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__({**arguments, "worker_extension_cls": RECORDING_WORKER})
        self._core = self.engine.engine_core
        self._core.collective_rpc("record_steps")

    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Send a command through the control channel."""
        return EngineSnapshot.from_wire(self._core.call_utility(CONTROL_METHOD, command.to_wire()))

    def steps_of_ranks(self) -> list[list[ExecutedStep]]:
        """What each rank did since the last call."""
        return [[ExecutedStep(**step) for step in steps] for steps in self._core.collective_rpc("take_steps")]

    def shutdown(self) -> None:
        """End the core and its workers."""
        self._core.shutdown()


class RayEngine(SpreadEngine):
    """A spread engine whose ranks are started by Ray (vLLM's Ray executor), on a Ray of its own that gives out devices of nothing.

    Ray's processes, and so the ranks, have the environment of this process. They are bound to its life as those of a replica are,
    and their files lie in a folder of the engine: Ray kills them, so none removes its own. Raises what Ray raises.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        import ray

        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._temporary = tempfile.mkdtemp(prefix="nj-", dir="/tmp")
        self._folder = make_engine_folder()
        ray.init(
            address="local",
            num_cpus=1,
            num_gpus=arguments["tensor_parallel_size"],
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            _temp_dir=self._temporary,
        )
        os.environ[RAY_ADDRESS_VARIABLE] = ray.get_runtime_context().gcs_address
        os.environ[REPLICA_VARIABLE] = own_token()
        if self._folder is not None:
            os.environ[ENGINE_FOLDER_VARIABLE] = str(self._folder.path)
        super().__init__(arguments)
        if self._folder is not None:
            self._folder.note({*descendants(), *noted_processes(self._folder.path)})

    def shutdown(self) -> None:
        """End the core, its workers and Ray."""
        import ray

        super().shutdown()
        ray.shutdown()
        if self._folder is not None:
            self._folder.remove()
        shutil.rmtree(self._temporary, ignore_errors=True)
