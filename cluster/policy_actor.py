"""The policy actor: one per cluster, created by whoever needs it first, pinned to the head node like Serve's controller.

A thin Ray wrapper around `policy_service`: name and options, the GCS store, the journal file, metrics, the clock. Ray restarts
it for ever, on the same handle; a restarted one reads its state back and raises the incarnation. Where no report came for ten
minutes it leaves for good, and the next replica creates another. Nothing waits for it (INV-4).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import ray
import structlog

from nightjar.cluster.api.operations import OPERATIONS, Operation, OperationError
from nightjar.cluster.service.fleet_answers import ActorIdentity
from nightjar.cluster.service.garbage import collect_seldom
from nightjar.cluster.service.memory_kills import DeadActor, MemoryKills
from nightjar.cluster.service.other_versions import ACTOR_NAME_PREFIX, OtherVersions
from nightjar.cluster.service.policy_service import PolicyService, epoch_clock
from nightjar.cluster.service.seed_from import SeedReader
from nightjar.cluster.storage.gcs_store import GcsStore
from nightjar.cluster.storage.handover import has_fault_tolerance, service_of
from nightjar.cluster.storage.journal import JournalFile
from nightjar.cluster.storage.recorder import Recorder, recorded_replicas
from nightjar.cluster.storage.recording import RecordingFile
from nightjar.cluster.storage.rotated_lines import chosen_file_bytes
from nightjar.cluster.telemetry.metrics import Exporter
from nightjar.cluster.telemetry.policy_metrics import POLICY_METRICS
from nightjar.cluster.telemetry.ray_backend import RayBackend
from nightjar.policy.wire.record import PROTOCOL_VERSION

ACTOR_NAME: Final = f"{ACTOR_NAME_PREFIX}{PROTOCOL_VERSION}"
NAMESPACE: Final = "nightjar"
JOURNAL_DIR_VARIABLE: Final = "NIGHTJAR_JOURNAL_DIR"
HEAD_NODE_RESOURCE: Final = "node:__internal_head__"  # ray._common.constants.HEAD_NODE_RESOURCE_NAME, which is private

ACTOR_OPTIONS: Final[dict[str, Any]] = {
    "name": ACTOR_NAME,
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": 0,  # a repeated exchange is the client's business: it has a newer report by then
    "num_cpus": 0,
    "resources": {HEAD_NODE_RESOURCE: 0.001},
    "scheduling_strategy": "DEFAULT",  # not in the placement group of the replica that creates it
    "max_concurrency": 20_000,  # parked calls, one a replica
    "enable_task_events": False,  # two calls a second and replica would crowd out everybody else's events
}

log = structlog.get_logger(__name__)


class PolicyActor:
    """What Ray runs: `exchange`, and a method for each of OPERATIONS.

    Every method answers in plain types or bytes, so that neighbouring versions understand each other.
    """

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits the constructor of an async actor
        collect_seldom()
        exporter = Exporter(POLICY_METRICS, RayBackend({}))
        folder, file_bytes = journal_folder(), chosen_file_bytes()
        self._service = PolicyService(
            store=GcsStore(),
            journal=JournalFile(folder, max_file_bytes=file_bytes),
            clock=epoch_clock(),
            identity=ActorIdentity(
                pid=os.getpid(),
                node_id=ray.get_runtime_context().get_node_id(),
                service=service_of(),
                has_fault_tolerance=has_fault_tolerance(),
            ),
            retire=_leave_for_good,
            publish=lambda seen: exporter.publish(seen, source="this process"),
            read_seed=SeedReader(),
            recorder=Recorder(RecordingFile(folder, max_file_bytes=file_bytes), recorded_replicas()),
            other_policies=OtherVersions(_names_of_actors),
            memory_kills=MemoryKills(_killed_for_memory),
        )
        await self._service.start()

    async def exchange(self, payload: bytes) -> bytes:
        """LoadReport in, ExchangeReply out; parked for up to the exchange period."""
        return (await self._service.exchange(payload)).to_wire()


def _method(operation: Operation[..., Any]) -> Callable[..., Awaitable[object]]:
    """What was refused is answered under `error`, never an exception over the wire."""

    async def method(self: PolicyActor, *arguments: object) -> object:
        try:
            return operation.to_wire(await self._service.call(operation, *arguments))
        except OperationError as error:
            return {"error": str(error)}

    method.__name__ = operation.name
    return method


for _operation in OPERATIONS:
    setattr(PolicyActor, _operation.name, _method(_operation))


def journal_folder() -> Path:
    """$NIGHTJAR_JOURNAL_DIR, else `nightjar/` beside Ray's logs, else a temporary folder where Ray does not tell them."""
    chosen = os.environ.get(JOURNAL_DIR_VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        return Path(ray._private.worker._global_node.get_logs_dir_path()) / "nightjar"
    except AttributeError:
        folder = Path(tempfile.mkdtemp(prefix="nightjar-journal-"))
        log.warning("journal_beside_ray_logs_impossible", folder=str(folder))
        return folder


async def _names_of_actors() -> list[str]:
    """Of all that live, or are about to, in our namespace. Asked in a thread: the call blocks. May raise anything of Ray's."""
    named = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
    return [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]


async def _killed_for_memory() -> list[DeadActor]:
    """Actors of any namespace that Ray's memory monitor killed and that its GCS remembers. Asked in a thread: the call blocks."""
    dead = await asyncio.to_thread(ray._private.state.actors, actor_state_name="DEAD")
    return [
        DeadActor(actor["Name"], actor["EndTime"] / 1000.0, actor["DeathCause"].oom_context.error_message)
        for actor in dead.values()
        if actor["DeathCause"].HasField("oom_context")
    ]


def _leave_for_good() -> None:
    myself = ray.get_runtime_context().current_actor
    asyncio.get_running_loop().run_in_executor(None, lambda: ray.kill(myself, no_restart=True))
