"""Why one replica runs the K that it runs: what decided, what would have, and what every K was predicted and measured to give.

Reads the fleet's state, changes nothing. The statements are in order of authority, so that the first that decides is the answer:
what serves plainly is not steered, a kill switch beats an override, an override beats the plan, and the plan proposes while
guard, drafter and dwell dispose. Fails towards saying less: what nobody predicted, measured or reported is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from nightjar.policy.canary.trial import Trial
from nightjar.policy.engine.steering import Cause
from nightjar.policy.freeze import Freeze
from nightjar.policy.modes import ModeOverride, effective_mode, override_of
from nightjar.policy.planners.base import GroupPlan, batch_range, speculation, told_arms
from nightjar.policy.state import FleetState, GroupState, ReplicaState
from nightjar.policy.trials import in_words as segments_in_words
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.explanation import ArmExplanation, Explanation, Statement
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Settings, SettingsVersion
from nightjar.policy.wire.status import NO_NEW, shown_name

OLD_REPORT_S: Final = 5.0
"""A report older than this is said to be old."""
NAMED_REPLICAS: Final = 10
_DRAFTER_DOWN: Final = frozenset(
    {DrafterState.DORMANT, DrafterState.OFFLOADED, DrafterState.CONTRACTING, DrafterState.RELOADING, DrafterState.CATCHING_UP}
)


class UnknownReplicaError(ValueError):
    """No replica, or more than one, goes by that name. The message is one line that names those that exist."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The settings that the policy has in force for a replica, and whether it runs them by its own last report."""

    version: SettingsVersion | None
    is_confirmed: bool


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
    mode, _ = effective_mode(replica_id, report.application, settings.mode, overrides, now_s)
    canary = state.canary if state.canary is not None and replica_id in state.canary.members else None
    if canary is not None and (tried := canary.override_of(replica_id, mode)) is not None:
        mode = tried.mode
    frozen = state.freeze if state.freeze is not None and state.freeze.is_live(now_s) else None
    facts = _Facts(replica_id, replica, group, decision, settings, overrides, now_s, in_force, frozen, canary)
    statements = tuple(_statements(facts))
    answer = next(statement for statement in statements if statement.decides)
    estimate = group.variant(replica).estimate
    first, last = bucket_range(bucket, report.group.max_num_seqs)
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
        planner=group.planner or settings.planner,
        decode_batch_size=batch,
        first_batch_size=first,
        last_batch_size=last,
        num_speculative_tokens=snapshot.load.num_speculative_tokens,
        planned_num_speculative_tokens=_planned(plan, batch),
        drafter_state=snapshot.drafter_state,
        layers=report.layers,
        generated_tokens_per_s=replica.generated_tokens_per_s,
        acceptance=group.contributions.acceptance_of(replica.report.replica_id).measured(),
        settings_version=in_force.version if in_force is not None else snapshot.settings_version,
        settings_confirmed=in_force.is_confirmed if in_force is not None else None,
        estimate_age_s=_age(now_s, estimate.at_s) if estimate is not None else None,
        statements=statements,
        arms=_arms(group, replica, bucket, settings, now_s),
    )


def applications_of(state: FleetState) -> dict[str, str]:
    """The application of each replica."""
    return {replica_id: replica.report.application for replica_id, replica in state.replicas.items()}


def find_replica(applications: Mapping[str, str], asked: str) -> str:
    """The replica that goes by `asked`: its id, its name as `status` shows it, or a part of either that no other has.

    `applications` is the application of each replica.

    Raises UnknownReplicaError.

    >>> applications = {"abc1": "chat", "abc2": "chat", "xyz3": "mail"}
    >>> find_replica(applications, "chat/abc1"), find_replica(applications, "c2"), find_replica(applications, "mail")
    ('abc1', 'abc2', 'xyz3')
    """
    known = sorted(applications)
    if asked in known:
        return asked
    alike = [name for name in known if asked and (asked in name or asked in shown_name(applications[name], name))]
    if len(alike) == 1:
        return alike[0]
    problem = f"{len(alike)} replicas go by {asked[:80]!r}" if alike else f"no replica {asked[:80]!r}"
    named = alike or known
    more = f" and {len(named) - NAMED_REPLICAS} more" if len(named) > NAMED_REPLICAS else ""
    raise UnknownReplicaError(f"{problem}; there are {', '.join(named[:NAMED_REPLICAS]) or 'none'}{more}")


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the statements are about."""

    replica_id: str
    replica: ReplicaState
    group: GroupState
    decision: Settings | None
    settings: OperatorSettings
    overrides: Sequence[ModeOverride]
    now_s: float
    in_force: InForce | None
    frozen: Freeze | None
    canary: Trial | None


def _statements(facts: _Facts) -> Iterator[Statement]:
    """Everybody's say, in order of authority; the plan's comes last of those that decide, so that there is always one."""
    replica = facts.replica
    report, snapshot = replica.report, replica.report.snapshot
    said = snapshot.decision_reason
    if report.serving_plainly:
        yield Statement(who="engine", words=f"served plainly, not steered: {report.serving_plainly}", decides=True)
    if snapshot.fault:
        yield Statement(who="engine", words=snapshot.fault_in_words, decides=True)
    if report.local_mode is not None:
        words = f"mode {report.local_mode} is set in the replica's own user_config, which no policy overrides"
        yield Statement(who="kill switch", words=words, decides=report.local_mode.kind != "auto")
    if Cause.AGED in said:
        age_s = facts.settings.settings_max_age_s
        words = f"its settings are older than {age_s:g} s and nobody confirmed them, so that only off may run"
        yield Statement(who="settings", words=words, decides=True)
    yield from _mode(facts)
    yield from _settings(facts)
    yield from _guard(facts)
    yield from _measurement(facts)
    yield from _drafter(facts)
    yield from _last_step(facts, said)
    yield from _limit(facts)
    if facts.canary is not None:
        yield Statement(who="canary", words=facts.canary.in_words())
    if facts.frozen is not None:
        yield Statement(who="freeze", words=f"{facts.frozen.status(facts.now_s).in_words()}: {NO_NEW}")
    yield _plan_statement(facts)
    if said:
        yield Statement(who="engine", words=f"of its last step: {said}")
    if report.notice:
        yield Statement(who="replica", words=report.notice)
    silent_s = facts.now_s - replica.heard_at_s
    if silent_s > OLD_REPORT_S:
        yield Statement(who="report", words=f"the last report is {silent_s:.0f} s old: all of this is as of then")


def _last_step(facts: _Facts, said: str) -> Iterator[Statement]:
    """What in the engine's own rules made the last step's K another than the plan's for pure decode steps."""
    if Cause.DWELL in said:
        words = f"a rise waits until the present K was held for {facts.settings.dwell_steps} steps"
        yield Statement(who="dwell", words=words, decides=True)
    if Cause.BESIDE_PREFILL in said:
        length = facts.replica.report.snapshot.load.num_speculative_tokens
        words = f"the step after its last one also computes prompts, for which the plan has K={length}"
        yield Statement(who="prefill", words=words, decides=True)
    if Cause.MIXED in said:
        words = "its last step also computed prompts: such steps never raise an engine's own K"
        yield Statement(who="prefill", words=words, decides=True)


def _mode(facts: _Facts) -> Iterator[Statement]:
    report = facts.replica.report
    mode, who = effective_mode(facts.replica_id, report.application, facts.settings.mode, facts.overrides, facts.now_s)
    override = override_of(facts.replica_id, report.application, facts.overrides, facts.now_s)
    tried = facts.canary.override_of(facts.replica_id, mode) if facts.canary is not None else None
    if tried is not None:
        mode, who, override = tried.mode, "the canary", None
    words = f"mode {mode} set by {who}"
    if override is not None:
        ends_s = override.expires_at_s
        words += f", for {ends_s - facts.now_s:.0f} s more" if ends_s is not None else ", until taken back"
    if slower := mode.why_slow(report.group.graph_tiers):
        words += f"; {slower}"
    if mode.kind == "shadow":
        planned = _planned(facts.group.plan_of(facts.replica), report.snapshot.load.decode_batch_size)
        would_run = f"the plan would run {speculation(planned)}" if planned is not None else ""
        told = ", ".join(filter(None, (would_run, facts.group.not_known(facts.replica, mode))))
        words += "; nothing is touched" + (f", {told}" if told else "")
    yield Statement(who="mode", words=words, decides=mode.kind != "auto" and report.local_mode is None)


def _settings(facts: _Facts) -> Iterator[Statement]:
    snapshot = facts.replica.report.snapshot
    if snapshot.refused:
        yield Statement(who="settings", words=f"the engine refused the newest settings: {snapshot.refused}", decides=True)
    if facts.in_force is not None and not facts.in_force.is_confirmed and facts.in_force.version is not None:
        runs = snapshot.settings_version or "none"
        yield Statement(
            who="settings", words=f"it runs settings {runs}, in force are {facts.in_force.version}: they are on their way"
        )


def _guard(facts: _Facts) -> Iterator[Statement]:
    report = facts.replica.report
    held = report.snapshot.held_buckets
    if not held:
        return
    ranges = ", ".join(batch_range(*bucket_range(bucket, report.group.max_num_seqs)) for bucket in held)
    here = batch_bucket(report.snapshot.load.decode_batch_size) in held
    words = f"the guard holds batch {ranges} off: speculation measured worse than off there"
    yield Statement(who="guard", words=words, decides=here and bool(_wanted(facts)))


def _measurement(facts: _Facts) -> Iterator[Statement]:
    mine = [held.segment for held in facts.group.exploration.segments if held.replica_id == facts.replica_id]
    if mine:
        words = f"{segments_in_words(mine)}, so that its group learns what it gives"
        yield Statement(who="measurement", words=words, decides=Cause.SEGMENT in facts.replica.report.snapshot.decision_reason)


def _drafter(facts: _Facts) -> Iterator[Statement]:
    """Why drafts do not run though somebody wants them: asleep, moved out, catching up, or waiting for a lease."""
    snapshot, waits = facts.replica.report.snapshot, facts.decision.restarts.reason if facts.decision is not None else ""
    state, drafter = snapshot.drafter_state, snapshot.drafter
    parts = []
    if state in _DRAFTER_DOWN:
        parts.append(f"the drafter is {state.value.replace('_', ' ')}")
    if drafter.borrowed_blocks:
        parts.append(f"under memory pressure {drafter.borrowed_blocks} KV blocks of its memory are lent to requests")
    if drafter.reason:
        parts.append(drafter.reason)
    if waits and waits != drafter.reason:
        parts.append(waits)
    if snapshot.restart_wish is not None:
        since_s = facts.group.restarts.waiting_since_s.get(facts.replica_id)
        waited = f", for {facts.now_s - since_s:.0f} s" if since_s is not None else ""
        parts.append(f"it wishes to restart over {snapshot.restart_wish.lag_tokens} tokens that its draft missed{waited}")
    elif drafter.lag_tokens and state in _DRAFTER_DOWN:
        parts.append(f"its draft missed {drafter.lag_tokens} tokens")
    if parts:
        is_off = not snapshot.load.num_speculative_tokens
        yield Statement(who="drafter", words="; ".join(parts), decides=is_off and state in _DRAFTER_DOWN and bool(_wanted(facts)))


def _limit(facts: _Facts) -> Iterator[Statement]:
    """A limit of a step that not all of its group have; the fleet's is in the planner's own words."""
    group, replica, batch = facts.group, facts.replica, facts.replica.report.snapshot.load.decode_batch_size
    if replica.limit is None:
        return
    words = f"{replica.limit}: no K runs whose steps may take longer"
    decides = group.limit_decides(replica)
    if decides:
        plan, without = group.plan_of(replica), replica.own.plan if replica.own is not None else group.plan
        runs, else_runs = (speculation(_planned(one, batch) or 0) for one in (plan, without))
        words = f"{replica.limit} allows {runs} where {else_runs} would run" + (
            f": {plan.reason(batch)}" if plan is not None else ""
        )
    yield Statement(who="step limit", words=words, decides=decides)


def _plan_statement(facts: _Facts) -> Statement:
    plan, planner = facts.group.plan_of(facts.replica), facts.group.planner or facts.settings.planner
    if facts.decision is None or plan is None:
        return Statement(who="policy", words="heard of since the last decision; settings come with the next one", decides=True)
    batch = facts.replica.report.snapshot.load.decode_batch_size
    own = " (from its own evidence, which differs from its group's)" if facts.replica.own is not None else ""
    return Statement(who=f"planner {planner}", words=(plan.reason(batch) if batch else plan.summary) + own, decides=True)


def _wanted(facts: _Facts) -> int:
    """K that would run if nobody disposed otherwise: what the engine says it planned, or the plan's."""
    load = facts.replica.report.snapshot.load
    return load.planned_num_speculative_tokens or _planned(facts.group.plan_of(facts.replica), load.decode_batch_size) or 0


def _planned(plan: GroupPlan | None, batch: int) -> int | None:
    return plan.num_speculative_tokens(batch) if plan is not None and plan.local is None else None


def _runs(replica: ReplicaState) -> str:
    load = replica.report.snapshot.load
    if not load.decode_batch_size:
        return f"idle, its last step ran {speculation(load.num_speculative_tokens)}"
    return f"{speculation(load.num_speculative_tokens)} at decode batch {load.decode_batch_size}"


def _arms(
    group: GroupState, replica: ReplicaState, bucket: int, settings: OperatorSettings, now_s: float
) -> tuple[ArmExplanation, ...]:
    """Every K that may run or was measured in the bucket, by what the plan in force stands on."""
    evidence, estimate = group.evidence, group.variant(replica).estimate
    lengths = set(settings.arms(group.key.max_num_speculative_tokens, group.key.graph_tiers))
    lengths |= {length for cell_bucket, length in evidence.cells if cell_bucket == bucket}
    predicted: dict[int, tuple[float | None, float | None, float | None]] = {}
    too_long: set[int] = set()
    if estimate is not None and bucket < len(estimate.goodput_model.rows):
        model = estimate.goodput_model
        told = told_arms(evidence, model.arms)
        gain, deviation = model.gain(np.zeros(len(model.rows), dtype=np.int64))
        too_long = {length for index, length in enumerate(model.arms) if not model.allowed[bucket, index]}
        for index, length in enumerate(model.arms):
            if length not in told:
                continue
            goodput = _finite(np.exp(min(float(model.log_goodput[bucket, index]), 100.0)))
            is_gain_told = bool(index) and model.arms[0] in told
            above = _finite(np.expm1(min(float(gain[bucket, index]), 100.0))) if is_gain_told else None
            doubt = _finite(deviation[bucket, index]) if is_gain_told else None
            predicted[length] = goodput, above, doubt
    arms = []
    for length in sorted(lengths | predicted.keys()):
        goodput, above, doubt = predicted.get(length, (None, None, None))
        cell = evidence.cells.get((bucket, length))
        arms.append(
            ArmExplanation(
                num_speculative_tokens=length,
                predicted_tokens_per_s=goodput,
                gain_over_off=above,
                gain_deviation=doubt,
                measured_tokens_per_s=evidence.goodput_tokens_per_s(bucket, length),
                clean_steps=cell.steps if cell is not None else 0.0,
                measured_age_s=_age(now_s, cell.measured_at_s) if cell is not None and group.decided_at_s is not None else None,
                is_imported=(bucket, length) in group.imported.cells,
                exceeds_limit=length in too_long,
                own_steps=group.contributions.steps_of(replica.report.replica_id, (bucket, length), now_s),
            )
        )
    return tuple(arms)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _age(now_s: float, then_s: float) -> float | None:
    return max(now_s - then_s, 0.0) if math.isfinite(then_s) else None
