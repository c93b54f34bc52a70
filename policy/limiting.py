"""Which replicas of a group have a limit of a step that not all of it have: an application's, or one by hand.

Neither loosens the fleet's `max_step_ms`, which the group's plan keeps already. Fails closed: where no planner learns, no limit
applies, and nothing says that one did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from nightjar.policy.modes import ModeOverride, limit_of
from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.state import ReplicaState
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings


def with_limits(
    members: Mapping[str, ReplicaState],
    modes: Mapping[str, tuple[Mode, str]],
    settings: OperatorSettings,
    overrides: Sequence[ModeOverride],
    now_s: float,
    tried: Mapping[str, ModeOverride] = MappingProxyType({}),
) -> dict[str, ReplicaState]:
    """The members whose limit has come, changed or gone. `tried` is what a canary has some of them run.

    None has a replica whose mode plans nothing, that cannot be steered, or whose planner does not learn.
    """
    by_hand = any(override.max_step_ms is not None for override in (*overrides, *tried.values()))
    there_are = settings.planner in LEARNING_PLANNERS and (by_hand or bool(settings.max_step_ms_per_application))
    changed = {}
    for replica_id, replica in members.items():
        limit = None
        if there_are and replica.can_be_steered and modes[replica_id][0].kind in {"auto", "shadow"}:
            said = (tried[replica_id], *overrides) if replica_id in tried else overrides
            limit = limit_of(replica_id, replica.report.application, settings, said, now_s)
        if limit != replica.limit:
            changed[replica_id] = replace(replica, limit=limit)
    return changed
