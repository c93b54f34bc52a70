"""What a group learned as vLLM's own table, and what that table loses against steering: for those who stay with vLLM's.

`num_speculative_tokens_per_batch_size` has one K for each number of requests that a step schedules (vLLM 0.32,
`v1/core/sched/scheduler.py`: those whose prompts are computed count, too). So its K is the best of those that run beside prefill as
well, and where most steps compute a prompt each row reaches one request further than the decode batch that it is for. vLLM's K = 0
still runs a drafter that has a model: it is taken to add STOCK_OFF_SHARE of what K = 1 adds at the smallest batch that ran, where
verifying is nearly free (all of it for one that drafts a block), and the doubt is as if anything from nothing to twice that were as
likely.

Predicted, from the same model of step times and acceptance that the planner stands on. Fails closed: of a group that knows too
little, or whose drafter takes no table, there is none, and one line says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from nightjar.policy.evidence.cells import CellEvidence, Evidence, Floats
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.evidence.mixed_steps import mixed_costs
from nightjar.policy.evidence.step_time import StepTimes, predict_step_times
from nightjar.policy.planners.base import GroupView, only_k, present_indices
from nightjar.policy.planners.estimates import Estimate, replan_alone
from nightjar.policy.planners.fleet import choose
from nightjar.policy.priors import MAX_SEED_GROUPS
from nightjar.policy.state import FleetState, GroupState, ReplicaState
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import LONGEST_STEP_SECONDS, SHORTEST_STEP_SECONDS, Identifier, Reason, Record
from nightjar.policy.wire.report import DrafterState, GroupKey, SteeringLevel
from nightjar.policy.wire.settings import TableRow
from nightjar.policy.words import batch_range

SEPARATE_DRAFT_MODEL: Final = "draft_model"
WITH_A_MODEL: Final = (SEPARATE_DRAFT_MODEL, "eagle", "eagle3", "mtp")
"""Drafters that run a model for each draft, the first of which vLLM goes on running at K = 0."""
DRAFT_A_BLOCK: Final = ("dflash", "dspark")
"""Drafters whose one forward drafts at every K."""
BLOCKS_REST_FROM: Final = (0, 33)
"""The vLLM from which on stock runs no such forward at K = 0."""
TAKE_A_TABLE: Final = (*WITH_A_MODEL, *DRAFT_A_BLOCK, "ngram")
"""Drafters that stock vLLM runs at the table's K: those that we steer (deployments/drafter_kinds.py)."""
MOST_DEVIATION: Final = 1.0
"""Of a loss's logarithm, half its interval: what is doubted more tells nothing."""
STOCK_OFF_SHARE: Final = 0.4
"""Of what K = 1 adds to a step at the smallest batch: what vLLM's K = 0 adds. It is 0.1 to 0.6 in the simulator's seven profiles of
such drafters (loadtests/simulation/profiles), and changes little with the batch."""

Indices = npt.NDArray[np.int64]
SecondsOfBuckets = Mapping[int, float]
"""How long engines ran at each batch bucket: what a loss is weighed by."""


class Lost(Record):
    """Share of the tokens a second that steering is predicted to give at the same batches, with the ends of its interval. Below 0
    the table is predicted to give more."""

    share: float
    low: float
    high: float


class WorstBatches(Record):
    """The batches at which a table loses most."""

    first_batch_size: int
    last_batch_size: int
    lost: float


class StockTable(Record):
    """One group's table, or why it has none. `rows` count scheduled requests. `measured_to` is the last batch that ever ran."""

    group_id: Identifier
    drafter_kind: Annotated[str, Field(max_length=32)] = ""
    num_speculative_tokens: int = 0
    rows: Annotated[tuple[TableRow, ...], Field(max_length=256)] = ()
    lost: Lost | None = None
    worst: WorstBatches | None = None
    measured_to: int = 0
    adaptive_verification: bool = False
    """Whether K are ceilings under vLLM's adaptive verification, as they were learned."""
    counts_prompts: bool = False
    """Whether rows reach one request further somewhere, for the prompt that most steps compute there."""
    taxes_off: bool = False
    """Whether vLLM's K = 0 was taken to cost more than the K = 0 that was measured."""
    why_none: Reason = ""

    @property
    def vllm_rows(self) -> list[list[int]]:
        """`num_speculative_tokens_per_batch_size`.

        >>> row = TableRow(first_batch_size=1, last_batch_size=8, num_speculative_tokens=3)
        >>> StockTable(group_id="a", rows=(row,)).vllm_rows
        [[1, 8, 3]]
        """
        return [[row.first_batch_size, row.last_batch_size, row.num_speculative_tokens] for row in self.rows]


def stock_tables(state: FleetState, settings: OperatorSettings, now_s: float) -> tuple[StockTable, ...]:
    """The table of every group, those that stand on most steps first. Half a millisecond each, from values that nobody changes."""
    known = sorted(state.groups.items(), key=lambda item: (-sum(cell.steps for cell in item[1].evidence.cells.values()), item[0]))[
        :MAX_SEED_GROUPS
    ]
    members: dict[str, list[ReplicaState]] = {group_id: [] for group_id, _ in known}
    for replica in state.replicas.values():
        if replica.group_id in members:
            members[replica.group_id].append(replica)
    planned = settings.model_copy(update={"planner": "fleet"})
    return tuple(_of_group(group_id, group, members[group_id], planned, now_s) for group_id, group in known)


def stock_table(
    view: GroupView, estimate: Estimate, seconds_of_buckets: SecondsOfBuckets, *, taxes_off: bool, group_id: str
) -> StockTable:
    """The table of a group that learned enough, against what `estimate`'s plan gives under steering.

    `taxes_off`: the K = 0 that is known is one at which no drafter runs, or only the part of a head that writes its KV.
    """
    model = estimate.goodput_model
    planned = present_indices(view.with_plan(estimate.plan))
    costs = _Costs.of(view, model, taxes_off=taxes_off)
    chosen = choose(costs.model, planned, view.settings.switch_margin)
    reach = _reach(view, costs, chosen)
    buckets = np.arange(len(chosen))
    own = np.exp(-model.log_goodput[buckets, planned])
    theirs = costs.seconds_per_token(chosen, chosen[_beside_prompt(view, costs.times, reach)])
    _, deviations = model.gain(planned)
    doubt = np.sqrt(deviations[buckets, chosen] ** 2 + np.where(chosen == 0, costs.tax_variance, 0.0))
    weights = np.array([seconds_of_buckets.get(bucket, 0.0) for bucket in view.buckets])
    tokens = weights / own
    ratio = float((weights / theirs).sum() / tokens.sum())
    deviation = DOUBT_DEVIATIONS * float((tokens * doubt).sum() / tokens.sum())
    if not (math.isfinite(ratio) and deviation < MOST_DEVIATION):
        why_none = "its step times tell too little yet; give it more load in mode auto"
        return StockTable(group_id=group_id, drafter_kind=view.key.drafter_kind, why_none=why_none)
    by_bucket = np.where(weights > 0.0, 1.0 - own / theirs, -np.inf)
    worst = int(by_bucket.argmax())
    first, last = bucket_range(worst, view.key.max_num_seqs)
    return StockTable(
        group_id=group_id,
        drafter_kind=view.key.drafter_kind,
        num_speculative_tokens=view.key.max_num_speculative_tokens,
        rows=_rows([view.ks[index] for index in chosen], reach, view.key.max_num_seqs),
        lost=Lost(share=1.0 - ratio, low=1.0 - ratio * math.exp(deviation), high=1.0 - ratio * math.exp(-deviation)),
        worst=WorstBatches(first_batch_size=first, last_batch_size=last, lost=float(by_bucket[worst])),
        measured_to=bucket_range(max(cell.batch_bucket for cell in view.evidence.cells), view.key.max_num_seqs)[1],
        adaptive_verification=view.key.adaptive_verification,
        counts_prompts=any(reach),
        taxes_off=taxes_off,
    )


def stock_off_drafts(key: GroupKey) -> bool:
    """Whether vLLM's K = 0 runs more of the group's drafter than ours. Of an unknown version it is taken to be the newest.

    >>> key = GroupKey(target="m", drafter_kind="dflash", engine_version="0.32.0+cpu")
    >>> stock_off_drafts(key), stock_off_drafts(key.model_copy(update={"engine_version": "0.33.0rc1"}))
    (True, False)
    """
    version = re.match(r"(\d+)\.(\d+)", key.engine_version)
    is_before = version is not None and (int(version[1]), int(version[2])) < BLOCKS_REST_FROM
    return key.drafter_kind in WITH_A_MODEL or (key.drafter_kind in DRAFT_A_BLOCK and is_before)


def as_yaml(table: StockTable) -> str:
    """The table as a line that belongs under `speculative_config`, below comments."""
    return "\n".join([*(f"# {line}" for line in in_words(table)), f"num_speculative_tokens_per_batch_size: {table.vllm_rows}"])


def in_words(table: StockTable) -> Iterator[str]:
    """What to know before a table is used, a line each."""
    lost, worst = table.lost, table.worst
    assert lost is not None
    assert worst is not None
    yield (
        f"{table.group_id}: vLLM's own table of K by batch for {table.drafter_kind}; it belongs under speculative_config, beside "
        f"num_speculative_tokens: {table.num_speculative_tokens}"
    )
    if table.adaptive_verification:
        yield "its K are ceilings, learned beside enable_adaptive_verification: true, which belongs there as well"
    where = f", {_share(worst.lost)} at batch {batch_range(worst.first_batch_size, worst.last_batch_size)}"
    yield (
        f"predicted against steering: {_share(lost.share)} of tokens a second ({_share(lost.low)} to {_share(lost.high)}) at the "
        f"batches that ran{where}; what steering pays for measuring and restarts is not counted"
    )
    last = table.rows[-1].last_batch_size
    if table.measured_to < last:
        yield f"nothing ran above batch {table.measured_to}: K from there to {last} stands on the model of step times alone"
    further = "; where most steps compute a prompt they reach one request beyond the decode batch" if table.counts_prompts else ""
    yield f"rows count every request that a step schedules, those in prefill too, as vLLM does{further}"
    if table.taxes_off:
        share = "all" if table.drafter_kind in DRAFT_A_BLOCK else "two fifths"
        yield f"vLLM's K=0 still runs the drafter: taken to add {share} of what K=1 adds at the smallest batch that ran"
    yield _ON_RUNNERS.get(table.drafter_kind, f"{_PIECEWISE}; V2 keeps full ones, and follows a table from vLLM 0.32")


_PIECEWISE: Final = "on model runner V1 a table forces piecewise CUDA graphs"
_ON_RUNNERS: Final = {
    SEPARATE_DRAFT_MODEL: (
        f"{_PIECEWISE}; V2 (from vLLM 0.32) keeps full ones and verifies the table's K, but drafts num_speculative_tokens in every "
        "step"
    ),
    "dspark": "model runner V2 alone runs it, with full CUDA graphs, and follows a table from vLLM 0.32",
}


def _share(lost: float) -> str:
    """A change of tokens a second.

    >>> _share(0.0234), _share(-0.001), _share(0.0001)
    ('-2.3 %', '+0.1 %', '+0.0 %')
    """
    return f"{round(-lost * 100.0, 1) + 0.0:+.1f} %"


def why_no_table(view: GroupView) -> str:
    """Why a group has no table; empty where it has one."""
    kind, evidence = view.key.drafter_kind, view.evidence
    if not view.key.max_num_speculative_tokens or kind == "none":
        return "it has no drafter, so there is no K to choose"
    if kind not in TAKE_A_TABLE:
        return f"it drafts with {kind}, which is not known to follow a table; one is for {', '.join(TAKE_A_TABLE)}"
    if view.key.data_parallel_size > 1:
        return f"its data_parallel_size is {view.key.data_parallel_size}, and vLLM drops a table above 1"
    if not evidence.cells:
        return "it has learned nothing yet: no clean step was counted; give it load in mode auto or shadow"
    if (only := only_k(evidence, range(view.key.max_num_speculative_tokens + 1))) is not None:
        return f"only K={only} ever ran, so nothing is known of other K; `nightjar mode auto --for 5m` finds out"
    if not evidence.acceptance.reached:
        return "no draft of it was ever verified, so its acceptance is not known; `nightjar mode auto --for 5m` finds out"
    return ""


def _of_group(
    group_id: str, group: GroupState, members: Sequence[ReplicaState], settings: OperatorSettings, now_s: float
) -> StockTable:
    kind = group.key.drafter_kind
    sleeps = any(member.report.snapshot.drafter_state is not DrafterState.IN_SYNC for member in members)
    evidence = replace(group.evidence, cells={cell: known for cell, known in group.evidence.cells.items() if _is_a_step(known)})
    view = GroupView(
        group.key, settings, evidence, group.plan, now_s, group.imported.cells, max(len(members), 1), drafter_sleeps=sleeps
    )
    if why_none := why_no_table(view):
        return StockTable(group_id=group_id, drafter_kind=kind, why_none=why_none)
    taxes_off = stock_off_drafts(group.key) and _off_is_ours(members)
    return stock_table(view, replan_alone(view), seconds_run(evidence), taxes_off=taxes_off, group_id=group_id)


def _is_a_step(known: CellEvidence) -> bool:
    """Whether an engine's steps can take so long: one absurd report must not end an export (INV-10)."""
    return math.log(SHORTEST_STEP_SECONDS) <= known.log_seconds / known.steps <= math.log(LONGEST_STEP_SECONDS)


def _off_is_ours(members: Iterable[ReplicaState]) -> bool:
    """Whether the K = 0 that a group measured is ours and not vLLM's; taken to be so where nobody reports."""
    levels = {member.report.steering for member in members}
    return not levels or SteeringLevel.FULLY in levels


def seconds_run(evidence: Evidence) -> dict[int, float]:
    """How long engines ran at each bucket of late, in steps of either kind."""
    seconds: dict[int, float] = {}
    for cell, known in evidence.cells.items():
        seconds[cell.batch_bucket] = seconds.get(cell.batch_bucket, 0.0) + known.steps * known.step_seconds
    for cell, known in evidence.mixed_cells.items():
        seconds[cell.batch_bucket] = seconds.get(cell.batch_bucket, 0.0) + known.seconds
    return seconds


@dataclass(frozen=True, slots=True)
class _Costs:
    """What a table's steps cost. A K is its index."""

    times: StepTimes
    beside: Floats
    """(buckets, ks, ks): seconds that a generated token takes longer by K in pure decode steps and K beside prefill."""
    tax: Floats
    """(buckets,): logarithm of how much longer vLLM's K = 0 takes."""
    model: GoodputModel
    """What each K gives where it runs in steps of both kinds, at vLLM's K = 0."""

    @property
    def tax_variance(self) -> Floats:
        """(buckets,): of the tax."""
        variance: Floats = self.tax**2 / 3.0
        return variance

    @classmethod
    def of(cls, view: GroupView, model: GoodputModel, *, taxes_off: bool) -> _Costs:
        evidence, most = view.evidence, view.key.max_num_seqs
        times = predict_step_times(evidence.cells, model.ks, view.buckets, most, view.now_s, evidence.mixed_cells)
        emitted = model.tokens_per_row if evidence.is_censored else None
        known = mixed_costs(evidence, times, model.ks, model.mixed_seconds, drafter_sleeps=False, emitted=emitted)
        shape = (*times.log_seconds.shape, len(model.ks))
        beside = np.zeros(shape) if known is None else np.maximum(known - known[:, :1, :1], 0.0)
        tax = np.zeros(shape[0])
        if taxes_off:
            both = predict_step_times(evidence.cells, (0, 1), view.buckets, most, view.now_s, evidence.mixed_cells)
            off_s, first_s = np.exp(both.log_seconds).T
            added_s = np.maximum(first_s - off_s, 0.0)
            smallest = min(cell.batch_bucket for cell in evidence.cells)
            share = 1.0 if view.key.drafter_kind in DRAFT_A_BLOCK else STOCK_OFF_SHARE
            tax = np.log1p(np.minimum(added_s, share * added_s[smallest]) / off_s)
        costs = cls(times, beside, tax, model)
        indices = np.tile(np.arange(shape[1]), (shape[0], 1))
        alike = np.stack([costs.seconds_per_token(index, index) for index in indices.T], axis=1)
        covariance = model.covariance.copy()
        covariance[:, 0, 0] += costs.tax_variance
        return replace(costs, model=replace(model, log_goodput=-np.log(alike), covariance=covariance, mixed_costs=None))

    def seconds_per_token(self, indices: Indices, beside: Indices) -> Floats:
        """(buckets,): of an engine that runs these K in pure decode steps, and those beside prefill."""
        buckets = np.arange(len(self.tax))
        tokens = self.times.rows * self.model.tokens_per_row[buckets, indices]
        charged = self.beside[buckets, indices, np.where(np.isfinite(self.beside[buckets, indices, beside]), beside, indices)]
        seconds = np.exp(self.times.log_seconds[buckets, indices]) / tokens + charged
        taxed: Floats = seconds * np.exp(np.where(indices == 0, self.tax, 0.0))
        return taxed


def _reach(view: GroupView, costs: _Costs, chosen: Indices) -> list[int]:
    """By how many requests the rows of each bucket reach further: 1 where most steps at its batch compute a prompt as well."""
    tokens = costs.times.rows * costs.model.tokens_per_row[np.arange(len(chosen)), chosen]
    return [int(share > 0.5) for share in view.evidence.mixed_steps_per_token * tokens]


def _beside_prompt(view: GroupView, times: StepTimes, reach: Sequence[int]) -> list[int]:
    """The bucket whose K a step gets that computes one prompt beside each bucket's usual rows."""
    looked_up = [max(round(rows), 1) + 1 - further for rows, further in zip(times.rows.tolist(), reach, strict=True)]
    return [batch_bucket(min(requests, view.key.max_num_seqs)) for requests in looked_up]


def _rows(ks: Sequence[int], reach: Sequence[int], max_num_seqs: int) -> tuple[TableRow, ...]:
    """Rows by scheduled requests from K by bucket.

    >>> [(row.first_batch_size, row.last_batch_size) for row in _rows((5, 5, 3, 0), (0, 0, 1, 1), 5)]
    [(1, 2), (3, 4), (5, 5)]
    """
    by_requests = []
    for requests in range(1, max_num_seqs + 1):
        before = max(requests - 1, 1)
        decode_rows = before if reach[batch_bucket(before)] else requests
        by_requests.append((ks[batch_bucket(decode_rows)], requests))
    rows = []
    for k, same in groupby(by_requests, key=lambda one: one[0]):
        first, *others = [requests for _, requests in same]
        last = others[-1] if others else first
        rows.append(TableRow(first_batch_size=first, last_batch_size=last, num_speculative_tokens=k))
    return tuple(rows)
