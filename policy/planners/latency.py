"""K by what users wait for: request-seconds, the area under the number of requests in the system (Little's law).

Tokens per busy second see a step with prefill only by the pure decode steps that it saves. Where prompts are long and answers short
hardly any are left to save, and still its rows wait for the whole step: a token that a draft saves there is a prompt chunk's time
that its request does not wait, and where slots or KV are full that much sooner the next request begins. So a step's K is the one
that saves most of the time of all requests in the system, and every second that it adds to the step is paid by all of them.
With nobody waiting and no prefill that is the K with the most tokens per second, and the planner's other objective decides. Fails
towards off: where no K saves anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.evidence.waits import Waits
from nightjar.policy.wire.record import SHORTEST_STEP_SECONDS

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class IndexPair(NamedTuple):
    """Indices of K by bucket: of pure decode steps, and of those with prefill."""

    pure: Indices
    mixed: Indices

    def is_same(self, other: IndexPair) -> bool:
        """Whether both run the same everywhere."""
        return bool((self.pure == other.pure).all() and (self.mixed == other.mixed).all())


ROUNDS: Final = 4
"""A token's time follows from K and K from it. Where they go in a circle, the longer K of the last two is taken."""
MARGIN: Final = 0.002
"""Share of the time of all requests in the system during a step that another K must save."""
RIVAL_DEVIATIONS: Final = 1.0
"""Standard deviations of its gain that another K above 0 must exceed in pure decode steps, and for most tokens a second (fleet.py)
one that is beyond doubt better than off in place of another such. Such a change can be taken back, while each deviation more keeps
a plan that much below what is known: prompts differ, so 4 % of doubt stay however long one looks."""


def saved_request_seconds(
    tokens: Floats, added_s: Floats, rows: Floats, token_s: Floats, engine_s: Floats, for_slot: Floats, for_compute: Floats
) -> Floats:
    """(cases, ks): request-seconds that a step with each K saves against one with the first.

    tokens    (ks,) or (cases, ks): tokens of a row's step
    added_s   (cases, ks): what K adds to the step
    rows      (cases,): requests that decode
    token_s   (cases,): what a row waits for one more token, as K is now
    engine_s  (cases,): what one more token adds to a step
    for_slot, for_compute  (cases,): requests that wait for a slot or KV, and for prompt compute, with those who will
    Each row, and each request that waits for its slot, is done so much sooner; requests that wait for prompt compute gain what the
    saved tokens would have taken from it; and all of them wait for what the step takes longer.
    """
    more = np.atleast_2d(tokens - tokens[..., :1])
    sooner = ((rows + for_slot) * token_s)[:, None] * more
    computed = (for_compute * rows * engine_s)[:, None] * more
    saved: Floats = sooner + computed - (rows + for_slot + for_compute)[:, None] * added_s
    return saved


def tokens_until_the_end(survival: Sequence[float], ks: Sequence[int], answer_tokens: float) -> Floats:
    """(ks,): tokens of a row's step, those beyond the end of its answer not counted, which has `answer_tokens` after the first.

    A row whose steps give X tokens goes beyond its end by E[X^2] / 2 E[X] - 1/2 on average (renewal theory), where the end lies
    anywhere. No step gives more than is left.

    >>> [round(float(tokens), 2) for tokens in tokens_until_the_end((0.7, 0.5, 0.3), (0, 1, 3), 24.0)]
    [1.0, 1.67, 2.4]
    >>> [round(float(tokens), 2) for tokens in tokens_until_the_end((0.7, 0.5, 0.3), (0, 1, 3), 1.0)]
    [1.0, 1.0, 1.0]
    """
    reached = np.concatenate(([1.0], survival))
    counts = np.arange(len(reached))[None, :] <= np.array(ks)[:, None]
    tokens, squares = counts @ reached, counts @ (reached * (2.0 * np.arange(len(reached)) + 1.0))
    beyond = squares / (2.0 * tokens) - 0.5
    until: Floats = np.minimum(tokens * answer_tokens / (answer_tokens + beyond), max(answer_tokens, 1.0))
    return until


def choose_for_latency(
    model: GoodputModel, evidence: Evidence, waits: Waits, present: IndexPair, *, drafter_sleeps: bool
) -> IndexPair | None:
    """The K that save most request-seconds, `present` being those that run now; None where nobody waits, or before there was a
    step with prefill.

    Where the drafter sleeps at K = 0 both are off or neither is; elsewhere off in pure decode steps is off in all.
    """
    mixed_s, pure_s, rows, tokens = model.mixed_seconds, model.seconds, model.rows, model.tokens_per_row
    if mixed_s is None or pure_s is None or waits.is_nobody or len(rows) < 2:
        return None
    mixed_s = np.maximum(mixed_s, SHORTEST_STEP_SECONDS)
    if evidence.answers_per_token > 0.0 and not evidence.is_censored:
        survival, left = evidence.acceptance.acceptance(model.ks[-1]), max(1.0 / evidence.answers_per_token - 1.0, 1.0)
        tokens = np.broadcast_to(tokens_until_the_end(survival, model.ks, left), tokens.shape)
    buckets, ks = np.arange(len(rows)), np.array(model.ks, dtype=float)
    share_s = waits.share_beside_prefill
    row_s = (mixed_s[-1, 0] - mixed_s[0, 0]) / (rows[-1] - rows[0])  # a sum of parts, each as long for every row
    may_run = _pairs(model.allowed, drafter_sleeps=drafter_sleeps)
    _, deviation = model.gain(present.pure)
    doubt, nobody = RIVAL_DEVIATIONS * deviation, np.zeros(len(rows))
    doubt[:, 0] = 0.0
    requests = rows + waits.mean_waiting + waits.mean_prefilling
    to_come = requests * waits.load / (1.0 - waits.load)
    added_pure, added_mixed = pure_s - pure_s[:, :1], mixed_s - mixed_s[:, :1]
    chosen = present
    for _ in range(ROUNDS):
        pure, mixed = chosen
        beside, alone = share_s / mixed_s[buckets, mixed], (1.0 - share_s) / pure_s[buckets, pure]
        share = beside / (beside + alone)
        step_s = (1.0 - share) * pure_s[buckets, pure] + share * mixed_s[buckets, mixed]
        of_pure, of_mixed = tokens[buckets, pure], tokens[buckets, mixed]
        token_s = step_s / ((1.0 - share) * of_pure + share * of_mixed)
        engine_s = row_s * (1.0 + ks[mixed]) / of_mixed
        # Who waits while every step computes prompts waits for that, otherwise for a slot; and so will those who come meanwhile.
        for_slot = (1.0 - share) * (waits.mean_waiting + to_come)
        for_compute = share * (waits.mean_waiting + to_come) + waits.mean_prefilling
        at_stake_s = (requests + to_come) * step_s
        saved_pure = saved_request_seconds(tokens, added_pure, rows, token_s, engine_s, for_slot, nobody)
        saved_pure -= (requests + to_come)[:, None] * pure_s * doubt  # what is in doubt is how long such a step takes
        saved_mixed = saved_request_seconds(tokens, added_mixed, rows, token_s, engine_s, for_slot, for_compute)
        saved = (1.0 - share)[:, None, None] * saved_pure[:, :, None] + share[:, None, None] * saved_mixed[:, None, :]
        before, chosen = chosen, _best(np.where(may_run, saved, -np.inf), present, at_stake_s)
        if chosen.is_same(before):
            return chosen
    return IndexPair(np.maximum(chosen.pure, before.pure), np.maximum(chosen.mixed, before.mixed))


def _pairs(allowed: npt.NDArray[np.bool_], *, drafter_sleeps: bool) -> npt.NDArray[np.bool_]:
    """(buckets, ks, ks): whether a K of pure decode steps may run with one beside prefill."""
    pairs: npt.NDArray[np.bool_] = allowed[:, :, None] & allowed[:, None, :]
    pairs[:, 0, 1:] = False
    if drafter_sleeps:
        pairs[:, 1:, 0] = False
    return pairs


def _best(saved: Floats, present: IndexPair, at_stake_s: Floats) -> IndexPair:
    """The pair of K that saves most in each bucket of what is at stake; the present pair where no other saves MARGIN more."""
    buckets = np.arange(len(saved))
    flat = saved.reshape(len(saved), -1)
    best = flat.argmax(axis=1)
    kept = present.pure * saved.shape[2] + present.mixed
    stays = flat[buckets, kept] >= flat[buckets, best] - MARGIN * at_stake_s
    return IndexPair(*np.divmod(np.where(stays, kept, best), saved.shape[2]))
