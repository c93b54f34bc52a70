"""K by what users wait for: request-seconds, the area under the number of requests in the system (Little's law).

Tokens per busy second see a step with prefill only by the pure decode steps that it saves. Where prompts are long and answers short
hardly any are left to save, and still its rows wait for the whole step: a token that a draft saves there is a prompt chunk's time
that its request does not wait, and where slots or KV are full that much sooner the next request begins. So a step's K is the one
that saves most of the time of all requests in the system, and every second that it adds to the step is paid by all of them.
With nobody waiting and no prefill this is the K with the most tokens per second. Fails towards off: where no K saves anything.

Tried out (tests/benchmarks/latency/rule.py); no planner runs it. What it lacks: answers that end within a step, who
waits by batch, and thresholds in the plan, so that K follows who waits now and not who waited in the last minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.evidence.mixed_steps import mixed_seconds
from nightjar.policy.evidence.step_time import StepTimes
from nightjar.policy.wire.report import EngineLoad

Floats = npt.NDArray[np.float64]
Arms = npt.NDArray[np.int64]

HALF_LIFE_S: Final = 60.0
"""How long it is remembered how many waited: a burst's length and not an hour's, for K follows from who waits now."""
FULL_KV: Final = 0.9
"""KV usage from which requests that wait are taken to wait for KV and not for prompt compute."""
MOST_LOAD: Final = 0.8
"""Share of the time that engines count as busy at most: who comes before the queue is empty grows without end towards all of it,
and what comes after a burst is not known."""
ROUNDS: Final = 8
"""A token's time follows from K and K from it. Where they go in a circle, the longer K of the last two is taken."""
MARGIN: Final = 0.002
"""Share of the time of all requests in the system during a step that another K must save."""


WAKES: Final = 0.02
"""The same share that waking a drafter must save, or putting it to sleep: whoever decodes then must be caught up."""


class Waits(NamedTuple):
    """Decayed sums over looks at engines: how many, at engines with work, at those with decode rows, at those of the last that also
    computed prompts, and over those with decode rows the requests that waited and that were in prefill."""

    looks: float = 0.0
    busy: float = 0.0
    decoding: float = 0.0
    beside_prefill: float = 0.0
    waiting: float = 0.0
    prefilling: float = 0.0

    def after(self, loads: Iterable[EngineLoad], max_num_seqs: int, elapsed_s: float) -> Waits:
        """The sums `elapsed_s` later, with a look at each of these engines.

        An engine with requests that wait and neither a full KV cache nor all slots taken computes prompts in its next step.

        >>> NO_WAITS.after([EngineLoad(decode_batch_size=3, num_running_reqs=5, num_waiting_reqs=4), EngineLoad()], 256, 1.0)
        Waits(looks=2.0, busy=1.0, decoding=1.0, beside_prefill=1.0, waiting=4.0, prefilling=2.0)
        """
        left = 0.5 ** (elapsed_s / HALF_LIFE_S)
        looks, busy, decoding, beside_prefill, waiting, prefilling = (value * left for value in self)
        for load in loads:
            looks += 1.0
            busy += bool(load.num_running_reqs or load.num_waiting_reqs)
            if load.decode_batch_size:
                in_prefill = max(load.num_running_reqs - load.decode_batch_size, 0)
                is_full = load.num_running_reqs >= max_num_seqs or load.kv_cache_usage >= FULL_KV
                decoding += 1.0
                beside_prefill += in_prefill > 0 or (load.num_waiting_reqs > 0 and not is_full)
                waiting += load.num_waiting_reqs
                prefilling += in_prefill
        return Waits(looks, busy, decoding, beside_prefill, waiting, prefilling)

    @property
    def share_beside_prefill(self) -> float:
        """Share of the time with decode rows in which engines also compute prompts."""
        return self.beside_prefill / self.decoding if self.decoding else 0.0

    @property
    def load(self) -> float:
        """Share of the time in which engines had work, MOST_LOAD at most."""
        return min(self.busy / self.looks, MOST_LOAD) if self.looks else 0.0

    @property
    def mean_waiting(self) -> float:
        """Requests that wait while an engine decodes."""
        return self.waiting / self.decoding if self.decoding else 0.0

    @property
    def mean_prefilling(self) -> float:
        """Requests in prefill while an engine decodes."""
        return self.prefilling / self.decoding if self.decoding else 0.0


NO_WAITS: Final = Waits()
"""Nothing was seen yet."""


def saved_request_seconds(
    tokens: Floats, added_s: Floats, rows: Floats, token_s: Floats, engine_s: Floats, for_slot: Floats, for_compute: Floats
) -> Floats:
    """(cases, arms): request-seconds that a step with each K saves against one with the first.

    tokens    (arms,): tokens of a row's step
    added_s   (cases, arms): what K adds to the step
    rows      (cases,): requests that decode
    token_s   (cases,): what a row waits for one more token, as K is now
    engine_s  (cases,): what one more token adds to a step
    for_slot, for_compute  (cases,): requests that wait for a slot or KV, and for prompt compute, with those who will
    Each row, and each request that waits for its slot, is done so much sooner; requests that wait for prompt compute gain what the
    saved tokens would have taken from it; and all of them wait for what the step takes longer.
    """
    more = (tokens - tokens[0])[None, :]
    sooner = ((rows + for_slot) * token_s)[:, None] * more
    computed = (for_compute * rows * engine_s)[:, None] * more
    saved: Floats = sooner + computed - (rows + for_slot + for_compute)[:, None] * added_s
    return saved


def choose_for_waits(
    evidence: Evidence, times: StepTimes, arms: Sequence[int], waits: Waits, present: tuple[Arms, Arms], *, drafter_sleeps: bool
) -> tuple[Arms, Arms] | None:
    """Indices of the arms by bucket, of pure decode steps and of those with prefill, that save most request-seconds; None before
    there was a step with prefill. `present` are those that run now.

    Where the drafter sleeps at K = 0 both are off or neither is, in all batches in which prompts were computed, by what is saved
    over all of them: rows whose prompts it did not read while it slept must be caught up when a batch shrinks. Elsewhere off in
    pure decode steps is off in all.
    """
    mixed_s = mixed_seconds(evidence, times, arms)
    if mixed_s is None or not waits.decoding or len(times.rows) < 2:
        return None
    pure_s, rows = np.exp(times.log_seconds), times.rows
    tokens = np.array([evidence.tokens_per_row(arm) for arm in arms])
    lengths = np.array(arms, dtype=float)
    share_s = waits.share_beside_prefill
    row_s = np.gradient(mixed_s[:, 0], rows)
    buckets = np.arange(len(rows))
    seen = np.array([sum(known.steps for cell, known in evidence.mixed_cells.items() if cell.batch_bucket == at) for at in buckets])
    pure, mixed = present
    for _ in range(ROUNDS):
        beside, alone = share_s / mixed_s[buckets, mixed], (1.0 - share_s) / pure_s[buckets, pure]
        share = beside / (beside + alone)
        step_s = (1.0 - share) * pure_s[buckets, pure] + share * mixed_s[buckets, mixed]
        token_s = step_s / ((1.0 - share) * tokens[pure] + share * tokens[mixed])
        engine_s = row_s * (1.0 + lengths[mixed]) / tokens[mixed]
        # Who waits while every step computes prompts waits for that, otherwise for a slot; and so will those who come meanwhile.
        present_requests = rows + waits.mean_waiting + waits.mean_prefilling
        to_come = present_requests * waits.load / (1.0 - waits.load)
        for_slot = (1.0 - share) * (waits.mean_waiting + to_come)
        for_compute = share * (waits.mean_waiting + to_come) + waits.mean_prefilling
        added_pure, added_mixed = pure_s - pure_s[:, :1], mixed_s - mixed_s[:, :1]
        saved_pure = saved_request_seconds(tokens, added_pure, rows, token_s, engine_s, for_slot, 0.0 * rows)
        saved_mixed = saved_request_seconds(tokens, added_mixed, rows, token_s, engine_s, for_slot, for_compute)
        saved = (1.0 - share)[:, None, None] * saved_pure[:, :, None] + share[:, None, None] * saved_mixed[:, None, :]
        saved[:, 0, 1:] = -np.inf
        if drafter_sleeps:
            saved[:, 1:, 0] = -np.inf
            enough = WAKES * (seen @ ((present_requests + to_come) * step_s))
            sleeps = not present[0][seen > 0.0].any()
            if seen @ saved[:, 1:, 1:].max(axis=(1, 2)) > (enough if sleeps else -enough):
                saved[seen > 0.0, 0, 0] = -np.inf
            else:
                saved[seen > 0.0, 1:, 1:] = -np.inf
        before = pure, mixed
        pure, mixed = _best(saved, *present, MARGIN * (present_requests + to_come) * step_s)
        if (before[0] == pure).all() and (before[1] == mixed).all():
            return pure, mixed
    return np.maximum(pure, before[0]), np.maximum(mixed, before[1])


def _best(saved: Floats, present: Arms, present_mixed: Arms, enough: Floats) -> tuple[Arms, Arms]:
    """The pair of arms that saves most in each bucket; the present pair where no other saves `enough` more."""
    buckets = np.arange(len(saved))
    flat = saved.reshape(len(saved), -1)
    best = flat.argmax(axis=1)
    kept = present * saved.shape[2] + present_mixed
    stays = flat[buckets, kept] >= flat[buckets, best] - enough
    chosen = np.where(stays, kept, best)
    pure, mixed = np.divmod(chosen, saved.shape[2])
    return pure, mixed
