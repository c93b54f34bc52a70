"""What the policy actor exports: its groups, leases and wishes, and whether it still decides.

`policy_numbers` reads the fleet's state once, the table gives the series of each. Pure. Series are bounded by the
groups that the policy tracks (policy.wire.record.MAX_NAMED); how many replicas report does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nightjar.cluster.telemetry.metrics import Labels, Metric, Values, counter, gauge, one_series
from nightjar.policy.controller import Controller
from nightjar.policy.operator.canary.trial import Trial
from nightjar.policy.state import FleetState, GroupState, ReplicaState
from nightjar.policy.status.fleet import Predicted, predict

FRESH_REPORT_S: Final = 5.0
FRESH_REPORT_PERIODS: Final = 3
"""A replica is fresh whose last report is at most so old, whichever is longer."""


@dataclass(frozen=True, slots=True)
class GroupNumbers:
    """One group as it is now."""

    replicas: int
    fresh_replicas: int
    open_leases: int
    waiting_wishes: int
    open_segments: int
    limited_buckets: int
    """Batch buckets whose K of the most goodput the operator's limit of a step forbids."""
    limited_replicas: int
    """Busy replicas whose K a limit of a step of their own, or of their application, decides."""
    is_frozen: bool
    predicted: Predicted | None
    """None where no busy replica's batch is known well enough, or where engines plan for themselves."""


@dataclass(frozen=True, slots=True)
class PolicyNumbers:
    """The policy actor as it is now; reports are cumulative since its process started."""

    incarnation: int
    decision_age_s: float
    reports: int
    refused_reports: int
    groups: Mapping[str, GroupNumbers]
    is_frozen: bool = False
    """By an operator."""
    canary: Trial | None = None
    """That runs, or has ended."""


def policy_numbers(controller: Controller, decided_at_s: float, reports: int, refused_reports: int, now_s: float) -> PolicyNumbers:
    """The policy as of `now_s`, which last decided at `decided_at_s`."""
    fleet = controller.state
    fresh_within_s = max(FRESH_REPORT_S, FRESH_REPORT_PERIODS * controller.settings.exchange_period_s)
    return PolicyNumbers(
        incarnation=controller.issuer.incarnation,
        decision_age_s=now_s - decided_at_s,
        reports=reports,
        refused_reports=refused_reports,
        groups=group_numbers(fleet, fresh_within_s, now_s),
        is_frozen=fleet.freeze is not None,
        canary=fleet.canary,
    )


def group_numbers(fleet: FleetState, fresh_within_s: float, now_s: float) -> dict[str, GroupNumbers]:
    """Every group of the fleet, by id. A replica is fresh whose last report is at most `fresh_within_s` old."""
    members: dict[str, list[ReplicaState]] = {group_id: [] for group_id in fleet.groups}
    for replica in fleet.replicas.values():
        members[replica.group_id].append(replica)
    return {group_id: _group(fleet.groups[group_id], replicas, fresh_within_s, now_s) for group_id, replicas in members.items()}


def _group(group: GroupState, replicas: list[ReplicaState], fresh_within_s: float, now_s: float) -> GroupNumbers:
    """A replica holds one lease at a time, and no longer waits with it."""
    restarts = group.restarts
    holding = {held.replica_id for held in restarts.open_leases if now_s < held.ends_at_s}
    return GroupNumbers(
        replicas=len(replicas),
        fresh_replicas=sum(now_s - replica.heard_at_s <= fresh_within_s for replica in replicas),
        open_leases=len(holding),
        waiting_wishes=len(restarts.waiting_since_s.keys() - holding),
        open_segments=len(group.exploration.segments),
        limited_buckets=int(group.estimate.goodput_model.limited.sum()) if group.estimate is not None else 0,
        limited_replicas=sum(group.limit_decides(replica) for replica in replicas),
        is_frozen=now_s < restarts.probes.frozen_until_s,
        predicted=predict(group, replicas),
    )


def _of_looked_at_canary(policy: PolicyNumbers) -> Mapping[Labels, float]:
    last = policy.canary.last if policy.canary is not None else None
    return {(): last.ratio} if last is not None else {}


def _by_group(read: Callable[[GroupNumbers], float]) -> Values[PolicyNumbers]:
    return lambda policy: {(group_id,): float(read(group)) for group_id, group in policy.groups.items()}


def _by_predicted_group(read: Callable[[Predicted], float]) -> Values[PolicyNumbers]:
    """Without the groups of which nothing is predicted: none is not zero."""
    return lambda policy: {
        (group_id,): read(group.predicted) for group_id, group in policy.groups.items() if group.predicted is not None
    }


GROUP: Final = ("group_id",)

POLICY_METRICS: Final[tuple[Metric[PolicyNumbers], ...]] = (
    gauge(
        "nightjar_policy_incarnation",
        "1",
        "Incarnation of the policy actor: rises with every restart.",
        one_series(lambda policy: policy.incarnation),
    ),
    gauge(
        "nightjar_policy_decision_age_seconds",
        "seconds",
        "Time since the policy last decided without an error, or since it started. Rises where deciding fails or is stuck.",
        one_series(lambda policy: policy.decision_age_s),
    ),
    counter(
        "nightjar_policy_reports", "reports", "Reports of replicas that were taken.", one_series(lambda policy: policy.reports)
    ),
    counter(
        "nightjar_policy_refused_reports",
        "reports",
        "Reports that were refused or whose counts were left out: late, doubled, malformed or implausible.",
        one_series(lambda policy: policy.refused_reports),
    ),
    gauge(
        "nightjar_policy_frozen",
        "0 or 1",
        "1 while an operator has frozen the fleet: no new plan, measurement or lease.",
        one_series(lambda policy: policy.is_frozen),
    ),
    gauge(
        "nightjar_canary_replicas",
        "replicas",
        "Replicas that a canary tries something on; 0 without one that runs.",
        one_series(lambda policy: len(policy.canary.members) if policy.canary is not None else 0),
    ),
    gauge(
        "nightjar_canary_goodput_ratio",
        "ratio",
        "Goodput of the canary over its control's at the same batch, as of the last look at the canary that runs or ran last. "
        "Absent before the first.",
        _of_looked_at_canary,
    ),
    gauge(
        "nightjar_replicas",
        "replicas",
        "Replicas that the policy knows; one that falls silent counts until replica_timeout_s.",
        _by_group(lambda group: group.replicas),
        GROUP,
    ),
    gauge(
        "nightjar_fresh_replicas",
        "replicas",
        "Known replicas whose last report is at most 5 s old, or three exchange periods where those are longer.",
        _by_group(lambda group: group.fresh_replicas),
        GROUP,
    ),
    gauge(
        "nightjar_open_leases",
        "leases",
        "Leases in flight: restarts that the policy permitted and that have neither ended nor expired.",
        _by_group(lambda group: group.open_leases),
        GROUP,
    ),
    gauge(
        "nightjar_waiting_wishes",
        "replicas",
        "Replicas that wish to restart speculation and hold no lease.",
        _by_group(lambda group: group.waiting_wishes),
        GROUP,
    ),
    gauge(
        "nightjar_restarts_frozen",
        "0 or 1",
        "1 while the group's restarts are frozen because probes failed.",
        _by_group(lambda group: group.is_frozen),
        GROUP,
    ),
    gauge(
        "nightjar_open_segments",
        "segments",
        "Measurements that the policy dealt out and that are not finished.",
        _by_group(lambda group: group.open_segments),
        GROUP,
    ),
    gauge(
        "nightjar_limited_batch_buckets",
        "buckets",
        "Batch buckets in which max_step_ms forbids the K that is predicted to give most.",
        _by_group(lambda group: group.limited_buckets),
        GROUP,
    ),
    gauge(
        "nightjar_limited_replicas",
        "replicas",
        "Busy replicas whose K a limit of their own decides: max_step_ms_per_application, or one set by hand.",
        _by_group(lambda group: group.limited_replicas),
        GROUP,
    ),
    gauge(
        "nightjar_predicted_tokens_per_second",
        "tokens per second",
        "Generated tokens that the group's busy replicas are predicted to give at their present batches with the plan's K, "
        "whatever mode they run in. Absent where nothing is predicted.",
        _by_predicted_group(lambda predicted: predicted.planned),
        GROUP,
    ),
    gauge(
        "nightjar_predicted_off_tokens_per_second",
        "tokens per second",
        "As nightjar_predicted_tokens_per_second, with K = 0.",
        _by_predicted_group(lambda predicted: predicted.off),
        GROUP,
    ),
    gauge(
        "nightjar_gain_over_off_ratio",
        "ratio",
        "nightjar_predicted_tokens_per_second over nightjar_predicted_off_tokens_per_second: 1 where the plan is off. "
        "Predicted, not measured.",
        _by_predicted_group(lambda predicted: predicted.planned / predicted.off),
        GROUP,
    ),
)
"""Labels beyond Ray's own: `group_id`, as `nightjar status` shows it and nightjar_replica_info joins it with replicas."""
