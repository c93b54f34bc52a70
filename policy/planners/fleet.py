"""The planner `fleet`: in each batch bucket the K with the highest predicted goodput, from what all replicas measured.

Where requests wait or prompts are computed beside decode rows, the objective `latency` chooses by latency.py instead. Predicted
goodput is rows * E(k) / step time (arXiv 2406.14066), also where a cell was never measured: there the step-time model answers,
with the doubt that it deserves. By it the present K gives way only to one that is better by the margin and beyond doubt, and fails
towards off: what is not known beyond doubt to beat off does not run, and nothing predicted below off stays. latency.py has a margin
and a doubt of its own.
One exception, for seconds: engines draft by their own settings before the first plan, and to stop them only to learn that
they were right costs every one of them a restart. Until off itself was measured, a K may run that has the odds on its side, and
one that was measured goes on while it is predicted no worse than off: one replica measures off within seconds for all others.
On a handful of steps the plan does not change at all.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.cells import Cell
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.planners.base import AskedLater, GroupPlan, GroupView, only_k, plan_of, present_indices, present_mixed_indices
from nightjar.policy.planners.latency import RIVAL_DEVIATIONS, IndexPair, choose_for_latency
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.cause import Cause, Causes, Code, because, in_batches
from nightjar.policy.wire.operator import Objective

MIXED_MARGIN: Final = 0.005
"""Share of the time per generated token that another K in steps with prefill must save."""

COLD_DEVIATIONS: Final = 0.5
"""Standard deviations of the gain that a K must exceed before off was measured: seven in ten such K do gain."""


def fleet_plan(view: GroupView, model: GoodputModel) -> GroupPlan:
    """K by batch bucket, and a reason for each. `model` is `view.goodput_model()`, which the caller keeps."""
    is_cold = 0 not in view.evidence.ks
    present = IndexPair(present_indices(view), present_mixed_indices(view))
    margin = view.settings.switch_margin
    chosen = choose_cold(model, present.pure, view) if is_cold else choose(model, present.pure, margin)
    most_tokens = IndexPair(chosen, choose_mixed(model, chosen, *present))
    may_differ = not (is_cold or view.waits.is_nobody) and len(view.evidence.ran) > 1  # one K alone tells nothing of others
    sleeps = view.drafter_sleeps
    if may_differ and view.settings.objective == "latency":
        least_time = choose_for_latency(model, view.evidence, view.waits, present, drafter_sleeps=sleeps)
        return _planned(view, model, least_time or most_tokens, most_tokens)
    plan = _planned(view, model, most_tokens, most_tokens)
    if not may_differ:
        return plan
    evidence = replace(view.evidence, cells={}, mixed_cells={})
    asked_later = AskedLater(replace(model, evidence=None), evidence, view.waits, present, most_tokens, sleeps)
    return replace(plan, asked_later=asked_later)


def all_reasons(plan: GroupPlan) -> tuple[Causes, ...]:
    """The reasons of a plan, bucket by bucket, and what the other objective would run."""
    if plan.asked_later is None:
        return plan.reasons
    asked, runs = plan.asked_later, IndexPair(*plan.asked_later.runs)
    other = _least_time_indices(asked)
    differ = (runs.pure != other.pure) | (runs.mixed != other.mixed)
    return tuple(
        (*reasons, *_other(asked.model, "latency", other, bucket)) if differ[bucket] else reasons
        for bucket, reasons in enumerate(plan.reasons)
    )


def causes_at(plan: GroupPlan, decode_batch_size: int) -> Causes:
    """Why the K of a plan at a decode batch size, and what the other objective would run."""
    bucket = batch_bucket(decode_batch_size)
    return all_reasons(plan)[bucket] if bucket < len(plan.reasons) else plan.summary


@lru_cache(maxsize=256)
def _least_time_indices(asked: AskedLater) -> IndexPair:
    """What the objective latency would run. Remembered: many replicas may be asked for one plan."""
    present, sleeps = IndexPair(*asked.present), asked.drafter_sleeps
    found = choose_for_latency(asked.model, asked.evidence, asked.waits, present, drafter_sleeps=sleeps)
    return found or IndexPair(*asked.runs)


def _planned(view: GroupView, model: GoodputModel, runs: IndexPair, most_tokens: IndexPair) -> GroupPlan:
    """The plan of the K that run; where those with most tokens are others, the reasons name these as well."""
    best = np.argmax(np.where(model.allowed, model.log_goodput, -np.inf), axis=1)
    differ = (runs.pure != most_tokens.pure) | (runs.mixed != most_tokens.mixed)
    reasons = tuple(
        (
            in_batches(Code.AT_BATCH, *bucket_range(bucket, view.key.max_num_seqs)),
            _least_time(view, model.ks[runs.pure[bucket]])
            if differ[bucket]
            else _reason(view, model, bucket, int(runs.pure[bucket]), int(best[bucket])),
            *_limit(model, bucket),
            *_mixed(model, int(runs.pure[bucket]), int(runs.mixed[bucket])),
            *(_other(model, "throughput", most_tokens, bucket) if differ[bucket] else ()),
        )
        for bucket in view.buckets
    )
    return plan_of(view, *runs, reasons)


def choose(model: GoodputModel, present: npt.NDArray[np.int64], switch_margin: float) -> npt.NDArray[np.int64]:
    """Index of the K to run in each bucket, given the index of the one that runs now.

    Off takes the place of a present K that is predicted no better; then the best K takes it if it gains more than
    `switch_margin` (a share) and DOUBT_DEVIATIONS, or RIVAL_DEVIATIONS where both are DOUBT_DEVIATIONS above off. What exceeds the
    operator's limit of a step neither stays nor comes.
    """
    buckets = np.arange(len(present))
    runs = model.allowed[buckets, present] & (model.log_goodput[buckets, present] > model.log_goodput[:, 0])
    present = np.where(runs, present, 0)
    gain, deviation = model.gain(present)
    best = np.argmax(np.where(model.allowed, gain, -np.inf), axis=1)
    over_off, over_off_deviation = model.gain(np.zeros_like(present))
    beats_off = over_off > DOUBT_DEVIATIONS * over_off_deviation
    deviations = np.where(beats_off[buckets, present] & beats_off[buckets, best], RIVAL_DEVIATIONS, DOUBT_DEVIATIONS)
    enough = np.maximum(np.log1p(switch_margin), deviations * deviation[buckets, best])
    return np.where(gain[buckets, best] > enough, best, present)


def choose_mixed(
    model: GoodputModel, chosen: npt.NDArray[np.int64], present: npt.NDArray[np.int64], present_mixed: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Index of the K to run in each bucket where drafts are verified beside prefill, given the K `chosen` for pure decode
    steps, and those that run now in either.

    What runs now stays, and otherwise the chosen K runs there as well, unless another saves MIXED_MARGIN of the time per token.
    """
    if model.mixed_costs is None:
        return chosen
    buckets = np.arange(len(chosen))
    may_run = model.allowed.copy()
    may_run[buckets, chosen] = True
    costs = np.where(may_run, model.mixed_costs[buckets, chosen], np.inf)
    stays = np.where((chosen == present) & np.isfinite(costs[buckets, present_mixed]), present_mixed, chosen)
    best = costs.argmin(axis=1)
    saved = costs[buckets, stays] - costs[buckets, best]
    enough = MIXED_MARGIN * np.exp(-model.log_goodput[buckets, chosen])
    indices: npt.NDArray[np.int64] = np.where(saved > enough, best, stays)
    return indices


def choose_cold(model: GoodputModel, present: npt.NDArray[np.int64], view: GroupView) -> npt.NDArray[np.int64]:
    """Index of the K to run in each bucket before off was measured, given the index of the one that runs now.

    The K with the best odds; but where that is off, a present K that was measured stays while it is predicted no worse.
    Nothing changes on fewer clean steps than one measurement has for each replica, but for the operator's limit: where load
    begins just before a tick, one step of each is all that is known, and stopping on it cost a whole group its restarts.
    """
    buckets = np.arange(len(present))
    allowed = model.allowed[buckets, present]
    was_measured = np.array([Cell(bucket, model.ks[index]) in view.evidence.cells for bucket, index in enumerate(present)])
    no_worse = model.log_goodput[buckets, present] >= model.log_goodput[:, 0]
    odds = favourites(model)
    clean_steps = sum(cell.steps for cell in view.evidence.cells.values())
    too_few = view.present is not None and 0 < clean_steps < view.settings.calibration_clean_steps * view.replicas
    stays = too_few | ((odds == 0) & was_measured & no_worse)
    return np.where(stays & allowed, present, odds)


def favourites(model: GoodputModel) -> npt.NDArray[np.int64]:
    """Index of the K with the best odds in each bucket: most gain over off after COLD_DEVIATIONS are taken off it.

    Of those that are expected to keep the operator's limit.
    """
    gain, deviation = model.gain(np.zeros(len(model.rows), dtype=np.int64))
    best: npt.NDArray[np.int64] = np.argmax(np.where(model.may_be_tried, gain - COLD_DEVIATIONS * deviation, -np.inf), axis=1)
    return best


def _reason(view: GroupView, model: GoodputModel, bucket: int, chosen: int, best: int) -> Cause:
    """Why that K, with the numbers that decided."""
    k = model.ks[chosen]
    if not view.evidence.cells:
        return because(Code.UNMEASURED, num_speculative_tokens=k)
    if (only := only_k(view.evidence, view.ks)) is not None:
        return because(Code.ONE_RAN, num_speculative_tokens=k, only=only)
    off = {"off_tokens_per_s": model.goodput_tokens_per_s(bucket, 0), "off_clean_steps": _clean_steps(view, bucket, 0)}
    if chosen:
        return because(Code.BETTER, **off, **_goodput(view, model, bucket, k))
    if best:
        enough = _enough(view, model, bucket, best)
        return because(Code.TOO_SMALL, **off, **enough, **_goodput(view, model, bucket, model.ks[best]))
    rival = max(model.ks[1:], key=lambda k: model.goodput_tokens_per_s(bucket, k), default=0)
    return because(Code.OFF_BEST, **off, **(_goodput(view, model, bucket, rival) if rival else {}))


def _least_time(view: GroupView, k: int) -> Cause:
    """Why what users wait for decided."""
    waits = view.waits
    numbers = {"waiting": waits.mean_waiting, "prefilling": waits.mean_prefilling, "beside_prefill": waits.share_beside_prefill}
    return because(Code.LEAST_TIME, num_speculative_tokens=k, **numbers)


def _other(model: GoodputModel, objective: Objective, indices: IndexPair, bucket: int) -> Causes:
    """What another objective would run."""
    pure, mixed = (model.ks[its[bucket]] for its in indices)
    return (because(Code.OTHER_OBJECTIVE, objective, num_speculative_tokens=pure, beside_prefill=mixed),)


def _goodput(view: GroupView, model: GoodputModel, bucket: int, k: int) -> dict[str, float | None]:
    return {
        "num_speculative_tokens": k,
        "tokens_per_s": model.goodput_tokens_per_s(bucket, k),
        "clean_steps": _clean_steps(view, bucket, k),
    }


def _clean_steps(view: GroupView, bucket: int, k: int) -> float | None:
    """How many a number stands on; None where none was measured."""
    cell = view.evidence.cells.get(Cell(bucket, k))
    return cell.steps if cell is not None else None


def _enough(view: GroupView, model: GoodputModel, bucket: int, best: int) -> dict[str, float]:
    """What the gain of the best K over off does not exceed: its doubt, or where that is smaller the margin."""
    _, deviation = model.gain(np.zeros(len(model.rows), dtype=np.int64))
    doubt, margin = DOUBT_DEVIATIONS * float(deviation[bucket, best]), view.settings.switch_margin
    return {"doubt": doubt} if doubt > np.log1p(margin) else {"margin": margin}


def _limit(model: GoodputModel, bucket: int) -> Causes:
    """Where the operator's limit of a step decided: what it forbids."""
    if model.limit is None or not model.limited[bucket]:
        return ()
    best = int(np.argmax(model.log_goodput[bucket]))
    most_ms, max_step_ms = float(model.limit.most_step_s[bucket, best]) * 1e3, model.limit.max_step_s * 1e3
    return (because(Code.FORBIDDEN, num_speculative_tokens=model.ks[best], max_step_ms=max_step_ms, most_ms=most_ms),)


def _mixed(model: GoodputModel, chosen: int, mixed: int) -> Causes:
    """What runs beside prefill, where that is another K."""
    return (because(Code.COSTS_LESS, num_speculative_tokens=model.ks[mixed]),) if mixed != chosen else ()
