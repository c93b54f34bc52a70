"""What a group's plan is worth now: generated tokens a second of its busy replicas, with the plan's K and with K = 0.

The same numbers that the plan stands on (policy.estimate.goodput), so metrics, `status` and the planner never tell different
stories. Predicted, not measured. Fails towards silence: where a batch is not known well enough, its replica is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nightjar.policy.granting import plan_goodput_of
from nightjar.policy.planners.replanning import Estimate
from nightjar.policy.state import GroupState, ReplicaState
from nightjar.policy.wire.batch_buckets import batch_bucket


@dataclass(frozen=True, slots=True)
class Predicted:
    """Generated tokens a second that a group's busy replicas are predicted to give at the batches they run now."""

    planned: float
    """With the K of the plan."""
    off: float
    """With K = 0."""


def predict(group: GroupState, replicas: Iterable[ReplicaState]) -> Predicted | None:
    """What the plan stands on (policy.estimate.goodput; `status` gives it as reasons), summed over the replicas that are busy.

    None where no busy replica's batch is known well enough, or where engines plan for themselves.
    """
    if group.plan is None or group.plan.local is not None:
        return None
    pairs = [(planned, off) for planned, off in _goodputs(group, replicas) if planned is not None and off]
    return Predicted(sum(planned for planned, _ in pairs), sum(off for _, off in pairs)) if pairs else None


def _goodputs(group: GroupState, replicas: Iterable[ReplicaState]) -> Iterator[tuple[float | None, float | None]]:
    """Tokens a second of each busy replica that can be steered: with its plan, and off. Asked once for each estimate."""
    alike: Counter[tuple[int, int]] = Counter()
    estimates: dict[int, Estimate | None] = {}
    for replica in replicas:
        batch = replica.report.snapshot.load.decode_batch_size
        if not batch or not replica.can_be_steered:
            continue
        apart = group.apart(replica)
        estimates[id(apart)] = apart
        alike[id(apart), batch_bucket(batch)] += 1
    plan_goodputs = {key: plan_goodput_of(group, apart) for key, apart in estimates.items()}
    for (key, bucket), count in alike.items():
        pair = plan_goodputs[key].planned_goodput[bucket], plan_goodputs[key].off_goodput[bucket]
        yield from (pair for _ in range(count))
