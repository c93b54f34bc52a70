"""What every planner is given and what it answers.

A planner is a pure function of what is known of one group. It decides K by decode batch size and says why; bounds,
dwell and the kill switch act around it in the engine's step loop, so every planner has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.ceilings import predict_emitted
from nightjar.policy.evidence.cells import Cell, Evidence
from nightjar.policy.evidence.goodput import GoodputModel, goodput_model, step_limit
from nightjar.policy.evidence.mixed_steps import long_prefill, mixed_costs, mixed_seconds
from nightjar.policy.evidence.step_time import predict_step_times, step_noise
from nightjar.policy.evidence.waits import NO_WAITS, Waits
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, batch_bucket, bucket_range, buckets_up_to
from nightjar.policy.wire.cause import Causes, Code, in_batches
from nightjar.policy.wire.operator import Objective, OperatorSettings
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import Local, TableRow, k_at
from nightjar.policy.wire.switch_cost import SwitchCostRow


@dataclass(frozen=True, eq=False, slots=True)
class AskedLater:
    """What the objective `latency` decides by, of a plan of the other one: its model, evidence without the cells, who waited, and
    K (indices, by bucket) of pure decode steps and of those with prefill: before that plan, and of it."""

    model: GoodputModel
    evidence: Evidence
    waits: Waits
    present: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    runs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    drafter_sleeps: bool


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """K by decode batch size. `reasons` says why, bucket by bucket; a planner that does not learn gives none. `why` says it of the
    whole, in the place of its rows.

    `mixed_rows` is K where drafts are expected to be verified beside prefill; empty where that is no other K. With `local` every
    engine plans for itself instead, and there are no rows. `asked_later` is what the other objective would run, which `fleet` works
    out where somebody asks.
    """

    rows: tuple[TableRow, ...]
    why: Causes = ()
    reasons: tuple[Causes, ...] = ()
    local: Local | None = None
    mixed_rows: tuple[TableRow, ...] = ()
    asked_later: AskedLater | None = field(default=None, compare=False)

    def num_speculative_tokens(self, decode_batch_size: int) -> int:
        """K at a decode batch size, as in a `Table` of these rows."""
        return k_at(self.rows, decode_batch_size)

    @property
    def summary(self) -> Causes:
        """Why the whole, or what it runs."""
        return self.why or (*_of_rows(Code.ROW, self.rows), *_of_rows(Code.MIXED_ROW, self.mixed_rows))

    def causes(self, decode_batch_size: int) -> Causes:
        """Why the K at a decode batch size, without what another objective would run (`fleet.causes_at` says that as well)."""
        bucket = batch_bucket(decode_batch_size)
        return self.reasons[bucket] if bucket < len(self.reasons) else self.summary


def _of_rows(code: Code, rows: Sequence[TableRow]) -> Causes:
    return tuple(in_batches(code, row.first_batch_size, row.last_batch_size, row.num_speculative_tokens) for row in rows)


@dataclass(frozen=True, slots=True)
class GroupView:
    """What is known of a group at `now_s`: its key, the operator's settings, its evidence and the plan it runs now.

    `imported` are the cells of the evidence that nobody measured here, `replicas` how many are live. `resting` are cells that are
    not to be measured now. `drafter_sleeps`: a drafter that does not run at K = 0 and must catch up when it comes back. `waits`:
    who waited of late beside the rows. `switch_costs` is what restarts of the group cost, for planners of engines' own; empty
    before the first.
    """

    key: GroupKey
    settings: OperatorSettings
    evidence: Evidence
    present: GroupPlan | None = None
    now_s: float = 0.0
    imported: tuple[Cell, ...] = ()
    replicas: int = 1
    resting: tuple[Cell, ...] = ()
    drafter_sleeps: bool = True
    waits: Waits = NO_WAITS
    switch_costs: tuple[SwitchCostRow, ...] = ()

    @property
    def ks(self) -> tuple[int, ...]:
        """The K that may run, ascending, 0 first."""
        return self.settings.runnable_ks(self.key.max_num_speculative_tokens, self.key.graph_tiers)

    def with_plan(self, plan: GroupPlan | None) -> GroupView:
        """The same view where `plan` runs."""
        return replace(self, present=plan)

    def with_objective(self, objective: Objective | None) -> GroupView:
        """The same view with another objective; None: with its own."""
        return replace(self, settings=self.settings.with_objective(objective))

    def with_evidence(self, evidence: Evidence) -> GroupView:
        """The same view with other evidence."""
        return replace(self, evidence=evidence)

    @property
    def buckets(self) -> range:
        """The batch buckets that the group's engines can reach."""
        return buckets_up_to(self.key.max_num_seqs)

    def is_measured(self, bucket: int, num_speculative_tokens: int) -> bool:
        """Whether the group measured this cell in earnest."""
        return self.evidence.is_measured(bucket, num_speculative_tokens, self.settings.calibration_clean_steps)

    def is_measured_beside_prefill(self, num_speculative_tokens: int) -> bool:
        """Whether the group measured a K in steps with prefill in earnest."""
        return self.evidence.is_measured_beside_prefill(num_speculative_tokens, self.settings.calibration_clean_steps)

    def goodput_model(self) -> GoodputModel:
        """Expected goodput of every K in every bucket; half a millisecond, so ask once."""
        cells, mixed_cells = self.evidence.cells, self.evidence.mixed_cells
        times = predict_step_times(cells, self.ks, self.buckets, self.key.max_num_seqs, self.now_s, mixed_cells)
        emitted = predict_emitted(cells, self.ks, times.rows, self.now_s) if self.evidence.is_censored else None
        tokens = emitted.tokens if emitted is not None else None
        mixed_s = mixed_seconds(self.evidence, times, self.ks)
        costs = mixed_costs(self.evidence, times, self.ks, mixed_s, drafter_sleeps=self.drafter_sleeps, emitted=tokens)
        limit_ms = self.settings.max_step_ms
        limit = None
        if limit_ms is not None:
            prefill_s = long_prefill(self.evidence, times, self.ks, limit_ms / 1e3, tokens)
            limit = step_limit(times, limit_ms / 1e3, step_noise(cells), prefill_s)
        return goodput_model(self.ks, times, self.evidence, costs, self.now_s, limit, mixed_s, emitted)


def present_indices(view: GroupView) -> npt.NDArray[np.int64]:
    """Index of the K that the plan in force gives each bucket; off where it may not run any more or there is no plan."""
    return _indices_of(view, view.present.rows if view.present is not None else ())


def present_mixed_indices(view: GroupView) -> npt.NDArray[np.int64]:
    """The same for steps with prefill."""
    return _indices_of(view, (view.present.mixed_rows or view.present.rows) if view.present is not None else ())


def _indices_of(view: GroupView, rows: Sequence[TableRow]) -> npt.NDArray[np.int64]:
    index_of = {k: index for index, k in enumerate(view.ks)}
    ks = [k_at(rows, FIRST_BATCH_SIZES[bucket]) for bucket in view.buckets]
    return np.array([index_of.get(k, 0) for k in ks], dtype=np.int64)


def only_k(evidence: Evidence, ks: Sequence[int]) -> int | None:
    """The single K that ever ran, where others may: nothing can be said of those. None where something can.

    A model of step times that saw a single K knows neither what drafting costs nor what it saves: its doubt exceeds most gains.
    """
    return evidence.only_k if len(ks) > 1 else None


def stated_ks(evidence: Evidence, ks: Sequence[int]) -> tuple[int, ...]:
    """The K of which a view may say what they give: all, or the only one that ever ran (`only_k`).

    >>> stated_ks(Evidence(), (0, 3, 5))
    (0, 3, 5)
    """
    only = evidence.only_k
    return tuple(ks) if only is None else tuple(k for k in ks if k == only)


Planner = Callable[[GroupView], GroupPlan]


def nearest_runnable(num_speculative_tokens: int, settings: OperatorSettings, key: GroupKey) -> int:
    """The K that runs where this one is asked for by name: at most the engine's maximum and, where the operator listed the
    allowed ones or the engine captured graphs for some alone, the highest of those that is not above it.

    >>> key = GroupKey(target="llama-8b", max_num_speculative_tokens=5)
    >>> nearest_runnable(4, OperatorSettings(), key), nearest_runnable(9, OperatorSettings(), key)
    (4, 5)
    >>> nearest_runnable(4, OperatorSettings(allowed_num_speculative_tokens=(0, 1, 3, 5)), key)
    3
    """
    clamped = min(num_speculative_tokens, key.max_num_speculative_tokens)
    if settings.allowed_num_speculative_tokens is None and not key.graph_tiers:
        return clamped
    return max(k for k in settings.runnable_ks(key.max_num_speculative_tokens, key.graph_tiers) if k <= clamped)


def one_k(num_speculative_tokens: int, max_num_seqs: int) -> tuple[TableRow, ...]:
    """The rows of a plan that runs one K at every decode batch size."""
    return (TableRow(first_batch_size=1, last_batch_size=max_num_seqs, num_speculative_tokens=num_speculative_tokens),)


def rows_of(ks: Sequence[int], max_num_seqs: int) -> tuple[TableRow, ...]:
    """The rows of a plan that runs these K, one for each batch bucket: one row per run of buckets with the same K.

    >>> [(row.first_batch_size, row.last_batch_size, row.num_speculative_tokens) for row in rows_of((3, 3, 1), 3)]
    [(1, 2, 3), (3, 3, 1)]
    """
    rows: list[TableRow] = []
    first = 1
    for bucket, k in enumerate(ks):
        last = bucket_range(bucket, max_num_seqs)[1]
        if bucket + 1 == len(ks) or ks[bucket + 1] != k:
            rows.append(TableRow(first_batch_size=first, last_batch_size=last, num_speculative_tokens=k))
            first = last + 1
    return tuple(rows)


def plan_of(
    view: GroupView, indices: npt.NDArray[np.int64], mixed_indices: npt.NDArray[np.int64], reasons: tuple[Causes, ...]
) -> GroupPlan:
    """The plan that runs these K (indices, by bucket): in pure decode steps, and where drafts are verified beside prefill."""
    rows, mixed_rows = (rows_of([view.ks[index] for index in its], view.key.max_num_seqs) for its in (indices, mixed_indices))
    return GroupPlan(rows, reasons=reasons, mixed_rows=mixed_rows if mixed_rows != rows else ())
