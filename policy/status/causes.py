"""Who decides a replica's K, and why: every cause, built from the fleet's state. Changes nothing, and makes no sentence up.

`statements` has the order of authority, so that the first that decides is the answer: what serves plainly is not steered, a kill
switch beats an override, an override beats the plan, and the plan proposes while guard, drafter and dwell dispose. Fails towards
saying less: what nobody predicted, measured or reported is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nightjar.policy.exploration import measuring
from nightjar.policy.operator.canary.trial import Trial
from nightjar.policy.operator.freeze import Freeze
from nightjar.policy.operator.overrides import ModeOverride, effective_mode, override_of, slower
from nightjar.policy.planners.base import GroupPlan, only_k
from nightjar.policy.planners.fleet import all_reasons, causes_at
from nightjar.policy.state import GroupState, ReplicaState
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.cause import Cause, Causes, Code, because, codes, in_batches
from nightjar.policy.wire.explanation import Statement
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import DELIVERY_S, Settings, SettingsVersion, Table
from nightjar.policy.words import explained, in_words

_DRAFTER_DOWN: Final = frozenset(
    {DrafterState.DORMANT, DrafterState.OFFLOADED, DrafterState.CONTRACTING, DrafterState.RELOADING, DrafterState.CATCHING_UP}
)


@dataclass(frozen=True, slots=True)
class InForce:
    """The settings that the policy has in force for a replica, and whether it runs them by its own last report."""

    version: SettingsVersion | None
    is_confirmed: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the statements are about: a replica and its group, its last decision, the operator's settings and overrides, the freeze
    in force, and the canary that it is a member of.
    """

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


def of_replica(replica: ReplicaState, group: GroupState, decision: Settings | None, warned: Causes) -> Causes:
    """The last decision's, for the batch that the replica runs now, after its `warnings`."""
    report, batch, plan = replica.report, replica.report.snapshot.load.decode_batch_size, group.plan_of(replica)
    if decision is None:
        return (because(Code.NO_DECISION),)
    causes = decision.causes
    if batch and decision.mode.kind in {"auto", "shadow"} and plan is not None and not report.serving_plainly:
        segments = decision.plan.segments if isinstance(decision.plan, Table) else ()
        causes = (*causes_at(plan, batch), *measuring(segments), *decision.restarts.causes)
        if decision.mode.kind == "shadow":
            causes = (because(Code.IN_SHADOW), *(group.not_known(replica, decision.mode) or causes))
    return (*warned, *causes)


def warnings(replica: ReplicaState, group: GroupState) -> Causes:
    """What an operator may have to act on."""
    report = replica.report
    kill_switch = report.local_mode
    return (
        *_text(Code.NOTICE, report.notice),
        *_text(Code.FAULT, report.snapshot.fault),
        *((because(Code.DISTRUSTED),) if report.replica_id in group.contributions.distrusted else ()),
        *_held(replica),
        *((*_text(Code.KILL_SWITCH, str(kill_switch)), *slower(kill_switch, report.group)) if kill_switch is not None else ()),
        *((replica.limit.cause(Code.LIMITED),) if replica.limit is not None and group.limit_decides(replica) else ()),
    )


def of_plan(group: GroupState) -> Causes:
    """The plan's reasons, bucket by bucket."""
    plan, only = group.plan, only_k(group.evidence, range(group.key.max_num_speculative_tokens + 1))
    if plan is None:
        return ()
    if plan.reasons and only is not None:
        return (*plan.summary, because(Code.BY_THE_ODDS, only=only))
    return tuple(cause for causes in all_reasons(plan) for cause in causes) or plan.summary


def beside_plan(group: GroupState) -> Causes:
    """How many of a group's restarts are granted, and how many of its cells nobody measured here; nothing where there are none."""
    granted, waiting = len(group.restarts.open_leases), len(group.restarts.waiting_since_s)
    cells, imported = len(group.evidence.cells), group.imported.clean_cells
    restarts = because(Code.RESTARTS, granted=granted, wished=granted + waiting)
    return (
        *((restarts,) if granted or waiting else ()),
        *((because(Code.IMPORTED, cells=imported, of=cells),) if imported else ()),
    )


def statements(facts: Facts) -> Iterator[Statement]:
    """Everybody's say, in order of authority; the plan's comes last of those that decide, so that there is always one."""
    yield from _unsteered(facts)
    yield _mode(facts)
    yield from _settings(facts)
    yield from _guard(facts)
    yield from _measurement(facts)
    yield from _requests(facts)
    yield from _drafter(facts)
    yield from _last_step(facts)
    yield from _limit(facts)
    if facts.canary is not None:
        yield _states("canary", because(Code.CANARY, facts.canary.in_words()))
    if facts.frozen is not None:
        yield _states("freeze", because(Code.FREEZE, facts.frozen.status(facts.now_s).in_words()))
    yield _plan(facts)
    yield from _reported(facts)


def planned(plan: GroupPlan | None, batch: int) -> int | None:
    """The plan's K at a batch; None where it leaves that to the engines."""
    return plan.num_speculative_tokens(batch) if plan is not None and plan.local is None else None


def _states(who: str, *causes: Cause, decides: bool = False, words: Callable[[Causes], str] = explained) -> Statement:
    return Statement(who=who, causes=causes, words=words(causes), decides=decides)


def _text(code: Code, text: str) -> Causes:
    return (because(code, text),) if text else ()


def _held(replica: ReplicaState) -> Causes:
    """Batches that the guard holds off, of those that the engine can have (INV-10: a report may name others)."""
    most = replica.report.group.max_num_seqs
    held = (bucket for bucket in replica.report.snapshot.held_buckets if bucket <= batch_bucket(most))
    return tuple(in_batches(Code.GUARD, *bucket_range(bucket, most)) for bucket in held)


def _unsteered(facts: Facts) -> Iterator[Statement]:
    """What no policy can overrule."""
    report, snapshot = facts.replica.report, facts.replica.report.snapshot
    if report.serving_plainly:
        yield _states("engine", because(Code.SERVED_PLAINLY, report.serving_plainly), decides=True)
    if snapshot.fault:
        yield _states("engine", because(Code.FAULT, snapshot.fault), decides=True)
    if report.local_mode is not None:
        kill_switch = because(Code.KILL_SWITCH, str(report.local_mode))
        yield _states("kill switch", kill_switch, decides=report.local_mode.kind != "auto")
    if Code.AGED in codes(snapshot.causes):
        yield _states("settings", because(Code.AGED, max_age_s=facts.settings.settings_max_age_s), decides=True)


def _mode(facts: Facts) -> Statement:
    report = facts.replica.report
    mode, who = effective_mode(
        facts.replica_id,
        report.application,
        facts.settings.mode,
        facts.overrides,
        facts.now_s,
        adaptive_verification=report.group.adaptive_verification,
    )
    override = override_of(facts.replica_id, report.application, facts.overrides, facts.now_s)
    tried = facts.canary.override_of(facts.replica_id, mode) if facts.canary is not None else None
    if tried is not None:
        mode, who, override = tried.mode, "the canary", None
    causes = [because(Code.MODE, str(mode)), because(Code.SET_BY, who)]
    if override is not None:
        ends_s = override.expires_at_s
        causes.append(because(Code.HOLDS_ON) if ends_s is None else because(Code.HOLDS_FOR, seconds_left=ends_s - facts.now_s))
    causes += slower(mode, report.group)
    if mode.kind == "shadow":
        would_run = planned(facts.group.plan_of(facts.replica), report.snapshot.load.decode_batch_size)
        causes.append(because(Code.UNTOUCHED))
        causes += [because(Code.WOULD_RUN, num_speculative_tokens=would_run)] if would_run is not None else []
        causes += facts.group.not_known(facts.replica, mode)
    return _states("mode", *causes, decides=mode.kind != "auto" and report.local_mode is None)


def _settings(facts: Facts) -> Iterator[Statement]:
    snapshot, in_force = facts.replica.report.snapshot, facts.in_force
    if snapshot.refused:
        yield _states("settings", because(Code.REFUSED, snapshot.refused), decides=True)
    if in_force is not None and not in_force.is_confirmed and in_force.version is not None:
        runs = snapshot.settings_version
        version = in_force.version.model_dump()
        its = {"runs_incarnation": runs.incarnation, "runs_sequence": runs.sequence} if runs is not None else {}
        yield _states("settings", because(Code.UNDER_WAY, **version, **its))


def _guard(facts: Facts) -> Iterator[Statement]:
    snapshot = facts.replica.report.snapshot
    if held := _held(facts.replica):
        here = batch_bucket(snapshot.load.decode_batch_size) in snapshot.held_buckets
        yield _states("guard", *held, decides=here and bool(_wanted(facts)))
    if Code.CHECKING in codes(snapshot.causes):
        yield _states("guard", because(Code.CHECKING), decides=True)


def _measurement(facts: Facts) -> Iterator[Statement]:
    mine = [held.segment for held in facts.group.exploration.segments if held.replica_id == facts.replica_id]
    if mine:
        decides = Code.SEGMENT in codes(facts.replica.report.snapshot.causes)
        yield _states("measurement", *measuring(mine), because(Code.TO_LEARN), decides=decides)


def _requests(facts: Facts) -> Iterator[Statement]:
    """Clients may ask for fewer drafts than the plan's K, and near an answer's end vLLM can use none."""
    if asked := tuple(cause for cause in facts.replica.report.snapshot.causes if cause.code == Code.REQUESTS):
        yield _states("requests", *asked, decides=True)


def _drafter(facts: Facts) -> Iterator[Statement]:
    """Why drafts do not run though somebody wants them: asleep, moved out, catching up, or waiting for a lease."""
    snapshot = facts.replica.report.snapshot
    state, drafter, wish = snapshot.drafter_state, snapshot.drafter, snapshot.restart_wish
    causes = [because(Code.DRAFTER_IS, state.value)] if state in _DRAFTER_DOWN else []
    if drafter.borrowed_blocks:
        causes.append(because(Code.LENT, blocks=drafter.borrowed_blocks))
    causes += _text(Code.DRAFTER, drafter.reason)
    causes += facts.decision.restarts.causes if facts.decision is not None else ()
    if wish is not None:
        since_s = facts.group.restarts.waiting_since_s.get(facts.replica_id)
        waiting_s = facts.now_s - since_s if since_s is not None else None
        causes.append(because(Code.WISHES, lag_tokens=wish.lag_tokens, waiting_s=waiting_s))
    elif drafter.lag_tokens and state in _DRAFTER_DOWN:
        causes.append(because(Code.MISSED, lag_tokens=drafter.lag_tokens))
    if causes:
        is_off = not snapshot.load.num_speculative_tokens
        yield _states("drafter", *causes, decides=is_off and state in _DRAFTER_DOWN and bool(_wanted(facts)))


def _last_step(facts: Facts) -> Iterator[Statement]:
    """What in the engine's own rules made the last step's K another than the plan's for pure decode steps."""
    snapshot = facts.replica.report.snapshot
    said = codes(snapshot.causes)
    if Code.DWELL in said:
        yield _states("dwell", because(Code.DWELL, dwell_steps=facts.settings.dwell_steps), decides=True)
    if Code.BESIDE_PREFILL in said:
        k = snapshot.load.num_speculative_tokens
        yield _states("prefill", because(Code.BESIDE_PREFILL, num_speculative_tokens=k), decides=True)
    if Code.MIXED in said:
        yield _states("prefill", because(Code.MIXED), decides=True)


def _limit(facts: Facts) -> Iterator[Statement]:
    """A limit of a step that not all of its group have; the fleet's is in the planner's own words."""
    group, replica, batch = facts.group, facts.replica, facts.replica.report.snapshot.load.decode_batch_size
    if replica.limit is None:
        return
    if not group.limit_decides(replica):
        yield _states("step limit", replica.limit.cause(Code.LIMIT))
        return
    plan, without = group.plan_of(replica), group.plan_without_limit(replica)
    runs, else_runs = (planned(one, batch) or 0 for one in (plan, without))
    allows = replica.limit.cause(Code.ALLOWS, num_speculative_tokens=runs, without_limit=else_runs)
    yield _states("step limit", allows, *(causes_at(plan, batch) if plan is not None else ()), decides=True)


def _plan(facts: Facts) -> Statement:
    plan, planner = facts.group.plan_of(facts.replica), facts.group.planner or facts.settings.planner
    if facts.decision is None or plan is None:
        return _states("policy", because(Code.NO_DECISION), decides=True)
    batch = facts.replica.report.snapshot.load.decode_batch_size
    own = (because(Code.OWN_EVIDENCE),) if facts.replica.own is not None else ()
    return _states(f"planner {planner}", *(causes_at(plan, batch) if batch else plan.summary), *own, decides=True)


def _reported(facts: Facts) -> Iterator[Statement]:
    """What decides nothing: the engine's own word of its last step, a notice, and how old all of it is."""
    report = facts.replica.report
    if report.snapshot.causes:
        yield _states("engine", because(Code.LAST_STEP), *report.snapshot.causes, words=in_words)
    if report.notice:
        yield _states("replica", because(Code.NOTICE, report.notice))
    if (silent_s := facts.now_s - facts.replica.heard_at_s) > DELIVERY_S:
        yield _states("report", because(Code.OLD_REPORT, age_s=silent_s))


def _wanted(facts: Facts) -> int:
    """K that would run if nobody disposed otherwise: what the engine says it planned, or the plan's."""
    load = facts.replica.report.snapshot.load
    return load.planned_num_speculative_tokens or planned(facts.group.plan_of(facts.replica), load.decode_batch_size) or 0
