"""What a group's plan is worth now: generated tokens a second of its busy replicas, with the plan's K, with K = 0 and
with the K that runs now.

The same numbers that the plan stands on (policy.evidence.goodput), so metrics, `status` and the planner never tell different
stories. Predicted, not measured. Fails towards silence: where a batch is not known well enough, its replica is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nightjar.policy.decision.grants import goodput_of, plan_goodput_of
from nightjar.policy.state import GroupState, PlanVariant, ReplicaState
from nightjar.policy.wire.batch_buckets import batch_bucket


@dataclass(frozen=True, slots=True)
class Predicted:
    """Generated tokens a second that a group's busy replicas are predicted to give at the batches they run now."""

    planned: float
    """With the K of the plan."""
    off: float
    """With K = 0."""
    present: float | None = None
    """With the K of each replica's last step; None where one is not predicted. In shadow, what the plan is compared with."""


def predict(group: GroupState, replicas: Iterable[ReplicaState]) -> Predicted | None:
    """What the plan stands on (policy.evidence.goodput; `status` gives it as reasons), summed over the replicas that are busy.

    None where no busy replica's batch is known well enough, where a single K ever ran, or where engines plan for themselves.
    """
    if group.plan is None or group.plan.local is not None or group.evidence.only_length is not None:
        return None
    known = [(planned, off, present) for planned, off, present in _goodputs(group, replicas) if planned is not None and off]
    if not known:
        return None
    presents = [present for _, _, present in known if present is not None]
    return Predicted(
        planned=sum(planned for planned, _, _ in known),
        off=sum(off for _, off, _ in known),
        present=sum(presents) if len(presents) == len(known) else None,
    )


def _goodputs(group: GroupState, replicas: Iterable[ReplicaState]) -> Iterator[tuple[float | None, float | None, float | None]]:
    """Tokens a second of each busy replica that can be steered: with its plan, off, as it runs. Asked once for each estimate."""
    alike: Counter[tuple[int, int, int]] = Counter()
    variants: dict[int, PlanVariant] = {}
    for replica in replicas:
        load = replica.report.snapshot.load
        batch = load.decode_batch_size
        if not batch or not replica.can_be_steered:
            continue
        variant = group.variant(replica)
        variants[id(variant.estimate)] = variant
        alike[id(variant.estimate), batch_bucket(batch), load.num_speculative_tokens] += 1
    plan_goodputs = {key: plan_goodput_of(group, variant) for key, variant in variants.items()}
    for (key, bucket, length), count in alike.items():
        planned, off = plan_goodputs[key].planned_goodput[bucket], plan_goodputs[key].off_goodput[bucket]
        present = goodput_of(group, variants[key].estimate, bucket, length)
        yield from ((planned, off, present) for _ in range(count))
