"""What a group's plan promises: tokens a second at each batch, with the plan's K and with K = 0, and summed over its busy replicas.

The same numbers that the plan stands on (policy.evidence.goodput), so leases, metrics, `status` and the planner never tell
different stories. Predicted, not measured. Fails towards silence: where a batch is not known well enough, its replica is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nightjar.policy.planners.estimates import Estimate
from nightjar.policy.restarts.leases import PlanGoodput
from nightjar.policy.state import GroupState, PlanVariant, ReplicaState
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, batch_bucket, buckets_up_to


def goodput_of(group: GroupState, estimate: Estimate | None, bucket: int, num_speculative_tokens: int) -> float | None:
    """Tokens a second that this K is predicted to give, by the estimate that a replica's plan stands on; else as measured."""
    if estimate is not None and num_speculative_tokens in estimate.goodput_model.arms:
        return estimate.goodput_model.goodput_tokens_per_s(bucket, num_speculative_tokens)
    return group.evidence.goodput_tokens_per_s(bucket, num_speculative_tokens)


def plan_goodput_of(group: GroupState, variant: PlanVariant) -> PlanGoodput:
    """What the plan of one of the group's replicas promises; what the evidence says where there is no estimate."""
    buckets, plan = buckets_up_to(group.key.max_num_seqs), variant.plan
    assert plan is not None

    def goodput(bucket: int, num_speculative_tokens: int) -> float | None:
        return goodput_of(group, variant.estimate, bucket, num_speculative_tokens)

    planned = tuple(plan.num_speculative_tokens(FIRST_BATCH_SIZES[bucket]) for bucket in buckets)
    off = tuple(goodput(bucket, 0) for bucket in buckets)
    return PlanGoodput(
        accelerator=group.key.accelerator,
        max_num_seqs=group.key.max_num_seqs,
        planned=planned,
        planned_goodput=tuple(goodput(bucket, planned[bucket]) if planned[bucket] else off[bucket] for bucket in buckets),
        off_goodput=off,
        is_local=plan.local is not None,
    )


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
