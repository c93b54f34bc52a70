"""What the policy says of its fleet when it is asked: the status, and why one replica runs its K.

Reads what the service holds and changes nothing. Fails towards saying less: a replica that nobody posted settings for is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import structlog

from nightjar.cluster.api.operations import EXPLAIN, OperationError
from nightjar.cluster.operator.overrides import override_status
from nightjar.cluster.service.memory_kills import MemoryKills
from nightjar.cluster.storage.journal import Journal
from nightjar.cluster.storage.recorder import Recorder
from nightjar.policy.controller import Controller
from nightjar.policy.operator.overrides import live_overrides, with_overrides
from nightjar.policy.status.causes import InForce
from nightjar.policy.status.explanation import UnknownReplicaError, applications_of, explain, find_replica
from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.explanation import Explanation
from nightjar.policy.wire.status import FleetStatus, PolicyStatus

LOG_PERIOD_S: Final = 10.0
"""Between two refused reports that are logged."""
MAX_PROBLEM_CHARACTERS: Final = 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """The process that the service runs in, and what is known of its cluster (handover.service_of, has_fault_tolerance).

    `state_folder` is where a policy without a cluster keeps what it stores; whether that `outlives_process`.
    """

    pid: int
    node_id: str = ""
    service: str = ""
    has_fault_tolerance: bool = False
    state_folder: str = ""
    outlives_process: bool = True


class Refusals:
    """Reports that were refused: counted, the last one remembered, and logged without flooding the log. Constant memory (INV-8)."""

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        self._logged_at_s = float("-inf")

    def note(self, problem: str, now_s: float) -> str:
        """Count one refusal, and log it unless another was logged less than LOG_PERIOD_S ago. Returns the words for the reply."""
        self.count += 1
        self.last = problem[:MAX_PROBLEM_CHARACTERS]
        if now_s - self._logged_at_s >= LOG_PERIOD_S:
            self._logged_at_s = now_s
            log.warning("report_refused", problem=self.last, refused_reports=self.count)
        return self.last


@dataclass(slots=True)
class AboutService:
    """The service that answers: its process, since when it runs, when it last decided, what it keeps, took and refused."""

    identity: ActorIdentity
    started_at_s: float
    decided_at_s: float
    journal: Journal
    recorder: Recorder
    memory_kills: MemoryKills
    refusals: Refusals = field(default_factory=Refusals)
    reports: int = 0


def status_of(
    about: AboutService,
    controller: Controller,
    now_s: float,
    *,
    settings_error: str,
    seed_problem: str,
    seed_notice: str,
    not_known_before: str,
) -> FleetStatus:
    """The fleet, its groups and every replica as of `now_s`."""
    fleet, settings, slots = controller.state, controller.settings, controller.issuer.slots
    groups, replicas = fleet_status(fleet, controller.decisions, now_s)
    memory_kills, last_memory_kill = about.memory_kills.of_late(now_s)
    reporting = {slot.application for slot in slots.values()}
    return FleetStatus(
        policy=PolicyStatus(
            incarnation=controller.issuer.incarnation,
            pid=about.identity.pid,
            node_id=about.identity.node_id,
            uptime_s=now_s - about.started_at_s,
            journal_path=about.journal.path,
            journal_holds_s=about.journal.holds_s(now_s),
            replay_holds_s=about.recorder.holds_s(now_s),
            replay_problem=about.recorder.problem,
            mode=settings.mode,
            planner=with_overrides(settings, controller.overrides, now_s).planner,
            decision_age_s=now_s - about.decided_at_s,
            reports=about.reports,
            refused_reports=about.refusals.count,
            last_refusal=about.refusals.last,
            memory_kills=memory_kills,
            last_memory_kill=last_memory_kill,
            settings_error=settings_error,
            seed_problem=seed_problem,
            seed_notice=seed_notice,
            waiting_groups=tuple(fleet.waiting),
            unknown_applications=tuple(name for name in settings.named_applications if name not in reporting),
            freeze=freeze.status(now_s) if (freeze := fleet.freeze) is not None else None,
            canary=canary.status(now_s) if (canary := fleet.canary) is not None else None,
            past_canaries=fleet.past_canaries,
            not_known_before=not_known_before,
        ),
        overrides=tuple(override_status(override, now_s) for override in live_overrides(controller.overrides, now_s)),
        groups=groups,
        replicas=tuple(
            replica.model_copy(update={"settings_version": slot.version, "settings_confirmed": slot.is_confirmed})
            for replica in replicas
            if (slot := slots.get(replica.replica_id)) is not None
        ),
    )


def explanation_of(asked: str, controller: Controller, now_s: float) -> Explanation:
    """Why the K of one replica is what it is; `asked` is its id or a part of it that no other has. Raises OperationError."""
    try:
        slot = controller.issuer.slots.get(find_replica(applications_of(controller.state), asked))
        in_force = InForce(slot.version, slot.is_confirmed) if slot is not None else None
        return explain(controller.state, controller.decisions, controller.settings, controller.overrides, asked, now_s, in_force)
    except UnknownReplicaError as error:
        raise OperationError(EXPLAIN.refused_as, str(error)) from error
