"""The fleet's decisions as a function of values: a state goes in, a decision for every replica and the state after it come out.

`decide` drops silent replicas, lets every group decide for its own (group.py), and joins what came of it. The controller alone
calls it, with the caller's clock and random numbers. Fails towards off: what a group does not know, it does not speculate on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from nightjar.policy.decision.canary import after_decision, with_canary
from nightjar.policy.decision.group import Context, GroupOutcome, Shared, decide_group
from nightjar.policy.decision.restarts import MayGrant
from nightjar.policy.intake import MAX_RETIRED_ENGINES
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.persistent_map import PersistentMap
from nightjar.policy.priors import with_waiting_priors
from nightjar.policy.state import MAX_REPLICAS, FleetState, ReplicaState
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.settings import Settings

MOST_REPLANS: Final = 40
"""Re-plans in one decision, of groups and of replicas, the longest waiting first: 60 ms, however many there are."""


def decide(
    state: FleetState, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float, rng: random.Random
) -> tuple[dict[str, Settings], FleetState]:
    """The settings of every live replica, by replica id, and the state after it.

    Replicas unheard of for `replica_timeout_s` are dropped with what they had not yet merged. Groups stay with what they learned.
    Where a group with a seed has a replica, the seed becomes its prior first; while the fleet is frozen seeds wait. Groups decide
    one after the other, the longest unplanned first, and share what `Shared` holds.
    """
    context = Context.of(state, settings, overrides, now_s)
    if context.freeze is None:
        state = with_waiting_priors(state, now_s, settings.calibration_clean_steps)
    live = {
        replica_id: replica
        for replica_id, replica in sorted(state.replicas.items())
        if now_s - replica.heard_at_s <= settings.replica_timeout_s
    }
    members: dict[str, dict[str, ReplicaState]] = {group_id: {} for group_id in state.groups}
    for replica_id, replica in live.items():
        members[replica.group_id][replica_id] = replica
    shared = Shared(MOST_REPLANS, state.next_segment_id, MayGrant.of(state, context.settings, now_s))
    outcomes: dict[str, GroupOutcome] = {}
    for group_id, group in sorted(state.groups.items(), key=lambda entry: entry[1].estimated_at_s):
        if members[group_id] or not group.evidence.is_empty or group.restarts.open_leases:
            outcomes[group_id] = decide_group(group_id, group, members[group_id], context, shared, rng)
            shared = outcomes[group_id].shared
    for outcome in outcomes.values():
        live |= outcome.replicas
    live |= {name: replace(replica, new_work={}) for name, replica in live.items() if replica.new_work}
    after = replace(
        state,
        replicas=PersistentMap(live),
        groups={group_id: outcomes[group_id].group for group_id in state.groups if group_id in outcomes},
        next_segment_id=shared.next_segment_id,
        departed=_departed(state, live),
    )
    tried = [outcome.tried for outcome in outcomes.values()]
    canary = after_decision(state.canary, tried, context.settings, now_s, frozen=context.freeze is not None)
    decisions = {replica_id: decided for outcome in outcomes.values() for replica_id, decided in outcome.decisions.items()}
    return decisions, with_canary(after, canary)


def _departed(state: FleetState, live: Mapping[str, ReplicaState]) -> Mapping[str, tuple[str, ...]]:
    """The replicas that departed and the engines that were counted of each; no more than there may be replicas (INV-8)."""
    gone: dict[str, tuple[str, ...]] = {}
    for replica_id, replica in state.replicas.items():
        if replica_id not in live:
            engine_ids = (*state.departed.get(replica_id, ()), *replica.retired_engine_ids, replica.counted.engine_id)
            gone[replica_id] = tuple(dict.fromkeys(engine_ids))[-MAX_RETIRED_ENGINES:]
    if not gone:
        return state.departed
    kept = {replica_id: engine_ids for replica_id, engine_ids in state.departed.items() if replica_id not in gone} | gone
    return dict(list(kept.items())[-MAX_REPLICAS:])
