"""Why one replica runs the K that it runs: what decided, what would have, and what every K was predicted and measured to give.

Reads the fleet's state, changes nothing. Who decides, and in which order, is in causes.py. Fails towards saying less: what
nobody predicted, measured or reported is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from nightjar.policy.evidence.cells import Cell
from nightjar.policy.operator.overrides import ModeOverride, effective_mode, with_overrides
from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.planners.base import stated_ks
from nightjar.policy.planners.estimates import ToldGain
from nightjar.policy.state import FleetState, GroupState, ReplicaState
from nightjar.policy.status.causes import Facts, InForce, planned, statements
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.explanation import Explanation, KExplanation
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.settings import Settings
from nightjar.policy.wire.status import shown_name
from nightjar.policy.words import speculation

NAMED_REPLICAS: Final = 10
"""In an error, of those that exist."""


class UnknownReplicaError(ValueError):
    """No replica, or more than one, goes by that name. The message is one line that names those that exist."""


def explain(
    state: FleetState,
    decisions: Mapping[str, Settings],
    settings: OperatorSettings,
    overrides: Sequence[ModeOverride],
    asked: str,
    now_s: float,
    in_force: InForce | None = None,
) -> Explanation:
    """Explain the replica `asked` for by its id or a part of it that no other has. `decisions` are the last ones.

    Raises UnknownReplicaError.
    """
    replica_id = find_replica(applications_of(state), asked)
    replica, decision = state.replicas[replica_id], decisions.get(replica_id)
    group = state.groups[replica.group_id]
    report, snapshot = replica.report, replica.report.snapshot
    batch, plan = snapshot.load.decode_batch_size, group.plan_of(replica)
    bucket = batch_bucket(batch)
    adaptive = report.group.adaptive_verification
    mode, _ = effective_mode(replica_id, report.application, settings.mode, overrides, now_s, adaptive_verification=adaptive)
    canary = state.canary if state.canary is not None and replica_id in state.canary.members else None
    if canary is not None and (tried := canary.override_of(replica_id, mode)) is not None:
        mode = tried.mode
    frozen = state.freeze if state.freeze is not None and state.freeze.is_live(now_s) else None
    facts = Facts(replica_id, replica, group, decision, settings, overrides, now_s, in_force, frozen, canary)
    found = tuple(statements(facts))
    answer = next(statement for statement in found if statement.decides)
    estimate = group.variant(replica).estimate
    first, last = bucket_range(bucket, report.group.max_num_seqs)
    planner, of_fleet = group.planner or settings.planner, with_overrides(settings, overrides, now_s).objective
    return Explanation(
        replica_id=replica_id,
        application=report.application,
        node_id=report.node_id,
        group_id=replica.group_id,
        at_s=now_s,
        report_age_s=max(now_s - replica.heard_at_s, 0.0),
        summary=f"{_runs(replica)}: {answer.words}",
        decided_by=answer.who,
        mode=report.local_mode or mode,
        planner=planner,
        objective=(replica.objective or of_fleet) if planner in LEARNING_PLANNERS else "",
        decode_batch_size=batch,
        first_batch_size=first,
        last_batch_size=last,
        num_speculative_tokens=snapshot.load.num_speculative_tokens,
        planned_num_speculative_tokens=planned(plan, batch),
        drafter_state=snapshot.drafter_state,
        layers=report.layers,
        generated_tokens_per_s=replica.generated_tokens_per_s,
        acceptance=group.contributions.acceptance_of(replica.report.replica_id).measured(),
        censored_acceptance=adaptive,
        settings_version=in_force.version if in_force is not None else snapshot.settings_version,
        settings_confirmed=in_force.is_confirmed if in_force is not None else None,
        estimate_age_s=_age(now_s, estimate.at_s) if estimate is not None else None,
        statements=found,
        arms=_by_k(group, replica, bucket, settings, now_s),
    )


def applications_of(state: FleetState) -> dict[str, str]:
    """The application of each replica."""
    return {replica_id: replica.report.application for replica_id, replica in state.replicas.items()}


def find_replica(applications: Mapping[str, str], asked: str) -> str:
    """The replica that goes by `asked`: its id, its name as `status` shows it, or a part of either that no other has.

    `applications` is the application of each replica. The name of rank 1 is a part of that of rank 10, and its own all the same.

    Raises UnknownReplicaError.

    >>> applications = {"abc-dp1": "chat", "abc-dp10": "chat", "xyz3": "mail"}
    >>> find_replica(applications, "chat/abc-dp1"), find_replica(applications, "c-dp10"), find_replica(applications, "mail")
    ('abc-dp1', 'abc-dp10', 'xyz3')
    """
    known = sorted(applications)
    if asked in known:
        return asked
    alike = [name for name in known if asked and (asked in name or asked in shown_name(applications[name], name))]
    exactly = [name for name in alike if asked == shown_name(applications[name], name)]
    if len(only := exactly or alike) == 1:
        return only[0]
    problem = f"{len(alike)} replicas go by {asked[:80]!r}" if alike else f"no replica {asked[:80]!r}"
    named = alike or known
    more = f" and {len(named) - NAMED_REPLICAS} more" if len(named) > NAMED_REPLICAS else ""
    raise UnknownReplicaError(f"{problem}; there are {', '.join(named[:NAMED_REPLICAS]) or 'none'}{more}")


def _runs(replica: ReplicaState) -> str:
    load = replica.report.snapshot.load
    if not load.decode_batch_size:
        return f"idle, its last step ran {speculation(load.num_speculative_tokens)}"
    return f"{speculation(load.num_speculative_tokens)} at decode batch {load.decode_batch_size}"


def _by_k(
    group: GroupState, replica: ReplicaState, bucket: int, settings: OperatorSettings, now_s: float
) -> tuple[KExplanation, ...]:
    """Every K that may run or was measured in the bucket, by what the plan in force stands on."""
    evidence, estimate = group.evidence, group.variant(replica).estimate
    ks = set(settings.runnable_ks(group.key.max_num_speculative_tokens, group.key.graph_tiers))
    ks |= {cell.num_speculative_tokens for cell in evidence.cells if cell.batch_bucket == bucket}
    predicted: dict[int, tuple[float | None, ToldGain | None]] = {}
    too_long: set[int] = set()
    if estimate is not None and bucket < len(estimate.goodput_model.rows):
        model = estimate.goodput_model
        told = stated_ks(evidence, model.ks)
        too_long = {k for index, k in enumerate(model.ks) if not model.allowed[bucket, index]}
        for index, k in enumerate(model.ks):
            if k not in told:
                continue
            goodput = _finite(np.exp(min(float(model.log_goodput[bucket, index]), 100.0)))
            over_off = estimate.told_gain(bucket, k, model.ks[0]) if index and model.ks[0] in told else None
            predicted[k] = goodput, over_off
    by_k = []
    for k in sorted(ks | predicted.keys()):
        goodput, over_off = predicted.get(k, (None, None))
        cell = evidence.cells.get(Cell(bucket, k))
        by_k.append(
            KExplanation(
                num_speculative_tokens=k,
                predicted_tokens_per_s=goodput,
                gain_over_off=math.expm1(over_off.log_gain) if over_off is not None else None,
                gain_deviation=over_off.deviation if over_off is not None else None,
                is_gain_known=over_off is None or over_off.is_known,
                measured_tokens_per_s=evidence.goodput_tokens_per_s(bucket, k),
                clean_steps=cell.steps if cell is not None else 0.0,
                measured_age_s=_age(now_s, cell.measured_at_s) if cell is not None and group.decided_at_s is not None else None,
                is_imported=Cell(bucket, k) in group.imported.cells,
                exceeds_limit=k in too_long,
                own_steps=group.contributions.steps_of(replica.report.replica_id, Cell(bucket, k), now_s),
            )
        )
    return tuple(by_k)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _age(now_s: float, then_s: float) -> float | None:
    return max(now_s - then_s, 0.0) if math.isfinite(then_s) else None
