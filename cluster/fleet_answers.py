"""What the policy says of its fleet when it is asked: the status, and why one replica runs its K.

Reads what the service holds and changes nothing. Fails towards saying less: a replica that nobody posted settings for is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from nightjar.cluster.journal import Journal
from nightjar.cluster.memory_kills import MemoryKills
from nightjar.cluster.operator_answers import ExplainAnswer
from nightjar.cluster.recorder import Recorder
from nightjar.cluster.refusals import Refusals
from nightjar.policy.explain import InForce, UnknownReplicaError, applications_of, explain, find_replica
from nightjar.policy.fleet_status import fleet_status
from nightjar.policy.freeze import Freeze
from nightjar.policy.issuing import Slot
from nightjar.policy.modes import ModeOverride, with_planner
from nightjar.policy.state import FleetState
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.settings import Settings
from nightjar.policy.wire.status import FleetStatus, OverrideStatus, PolicyStatus


class AboutService(NamedTuple):
    """The service that answers: its process, since when it runs, when it decided, what it keeps, and what it took and refused."""

    incarnation: int
    pid: int
    node_id: str
    started_at_s: float
    decided_at_s: float
    journal: Journal
    recorder: Recorder
    reports: int
    refusals: Refusals
    memory_kills: MemoryKills
    seed_problem: str
    seed_notice: str
    not_known_before: str


class Will(Protocol):
    """What operators want: settings, what is set by hand, and a freeze."""

    @property
    def settings(self) -> OperatorSettings:
        """In force."""
        ...

    @property
    def settings_error(self) -> str:
        """Why the newest settings are not, if so."""
        ...

    @property
    def overrides(self) -> Sequence[ModeOverride]:
        """Modes set by hand."""
        ...

    @property
    def freeze(self) -> Freeze | None:
        """In force, if one is."""
        ...

    def override_statuses(self, now_s: float) -> tuple[OverrideStatus, ...]:
        """The same modes as the status tells them."""
        ...


def status_of(
    about: AboutService,
    fleet: FleetState,
    decisions: Mapping[str, Settings],
    slots: Mapping[str, Slot],
    will: Will,
    now_s: float,
) -> FleetStatus:
    """The fleet, its groups and every replica as of `now_s`."""
    groups, replicas = fleet_status(fleet, decisions, now_s)
    memory_kills, last_memory_kill = about.memory_kills.of_late(now_s)
    reporting = {slot.application for slot in slots.values()}
    return FleetStatus(
        policy=PolicyStatus(
            incarnation=about.incarnation,
            pid=about.pid,
            node_id=about.node_id,
            uptime_s=now_s - about.started_at_s,
            journal_path=about.journal.path,
            journal_holds_s=about.journal.holds_s(now_s),
            replay_holds_s=about.recorder.holds_s(now_s),
            replay_problem=about.recorder.problem,
            mode=will.settings.mode,
            planner=with_planner(will.settings, will.overrides, now_s).planner,
            decision_age_s=now_s - about.decided_at_s,
            reports=about.reports,
            refused_reports=about.refusals.count,
            last_refusal=about.refusals.last,
            memory_kills=memory_kills,
            last_memory_kill=last_memory_kill,
            settings_error=will.settings_error,
            seed_problem=about.seed_problem,
            seed_notice=about.seed_notice,
            waiting_groups=tuple(fleet.waiting),
            unknown_applications=tuple(name for name in will.settings.max_step_ms_per_application if name not in reporting),
            freeze=freeze.status(now_s) if (freeze := will.freeze) is not None else None,
            canary=canary.status(now_s) if (canary := fleet.canary) is not None else None,
            past_canaries=fleet.past_canaries,
            not_known_before=about.not_known_before,
        ),
        overrides=will.override_statuses(now_s),
        groups=groups,
        replicas=tuple(
            replica.model_copy(update={"settings_version": slot.version, "settings_confirmed": slot.is_confirmed})
            for replica in replicas
            if (slot := slots.get(replica.replica_id)) is not None
        ),
    )


def explanation_of(
    asked: str,
    fleet: FleetState,
    decisions: Mapping[str, Settings],
    slots: Mapping[str, Slot],
    will: Will,
    now_s: float,
) -> ExplainAnswer:
    """Why the K of one replica is what it is; `asked` is its id or a part of it that no other has."""
    try:
        slot = slots.get(find_replica(applications_of(fleet), asked))
        in_force = InForce(slot.version, slot.is_confirmed) if slot is not None else None
        explanation = explain(fleet, decisions, will.settings, will.overrides, asked, now_s, in_force)
    except UnknownReplicaError as error:
        return {"explanation": None, "error": str(error)}
    return {"explanation": to_plain(explanation), "error": ""}
