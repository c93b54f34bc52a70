"""BanditSpec: a UCB bandit over K, rewarded with the tokens a second of each step.

Source: arXiv 2505.15141 (ICML 2025) and its release, sail-sg/BanditSpec, `ucb_length_spec_generate`. The release runs the
arms 1..4 twice in turn (seven steps), then takes the K with the highest

    mean speed(K) + sqrt(6 * ln(t) / all pulls)

where speed is all rows' tokens (accepted and bonus) over the step's wall time. The bonus is the same for every K, so the
release is greedy after its warm-up. There is no context and no K = 0.

Assumed: arms are the engine's 1..K_max instead of 1..4. One bandit lives as long as the server; the release starts anew with
every batch of prompts, which a server does not have. A step verifies the drafts of the step before, so a K other than the last
is pulled for two steps and only the second is learned from. Steps with prefill are no pulls.

Variants, ours, so that it is not beaten for what it leaves out: `per_arm_bonus` divides by the pulls of the K itself, as the
paper's UCBSpec does, with speeds divided by the highest mean so that a bonus of order one means something; `by_batch` keeps a
bandit for each of policy's batch buckets and allows K = 0, with a row's tokens as reward, because the batch sizes of a bucket
differ.

Not modelled: choosing between drafters (a bandit over configurations), which is the paper's other use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log, sqrt
from typing import Final

from nightjar.policy.planners.local import LocalContext, LocalOptions, StepOutcome, StepView, flag_option, refuse_unknown
from nightjar.policy.wire.batch_buckets import batch_bucket

EXPLORATION_WEIGHT: Final = 6.0
WARM_UP_ROUNDS: Final = 2
STEPS_OF_A_NEW_K: Final = 2
"""Steps until one step drafts and verifies the same K."""


def build(options: LocalOptions, context: LocalContext) -> BanditSpec:
    """Options: `by_batch` (a bandit per batch bucket, K = 0 allowed), `per_arm_bonus`."""
    refuse_unknown(options, ("by_batch", "per_arm_bonus"))
    by_batch = flag_option(options, "by_batch", False)
    ks = context.allowed if by_batch else tuple(k for k in context.allowed if k)
    return BanditSpec(ks or (0,), by_batch=by_batch, per_arm_bonus=flag_option(options, "per_arm_bonus", False))


@dataclass(slots=True)
class _Bandit:
    round: int = 0
    k: int = -1
    held_steps: int = 0
    pulls: dict[int, int] = field(default_factory=dict)
    means: dict[int, float] = field(default_factory=dict)


class BanditSpec:
    """UCB over `ks`. Deterministic: it draws no random numbers."""

    plans_mixed_steps = False

    def __init__(self, ks: tuple[int, ...], *, by_batch: bool, per_arm_bonus: bool) -> None:
        self._ks = ks
        self._by_batch = by_batch
        self._per_arm_bonus = per_arm_bonus
        self._bandits: dict[int, _Bandit] = {}

    def choose(self, view: StepView) -> int:
        """The K whose turn it is in the warm-up, and then the one with the highest upper confidence bound."""
        bandit = self._bandit(view.decode_batch_size)
        if 0 < bandit.held_steps < STEPS_OF_A_NEW_K:
            bandit.held_steps += 1
            return bandit.k
        bandit.round += 1
        if bandit.round < WARM_UP_ROUNDS * len(self._ks) or not bandit.means:
            k = self._ks[(bandit.round - 1) % len(self._ks)]
        else:
            k = self._best(bandit)
        bandit.k, bandit.held_steps = k, STEPS_OF_A_NEW_K if k == bandit.k else 1
        return k

    def in_mixed_step(self, view: StepView) -> int:
        """The K of the last pull."""
        return max(self._bandit(view.decode_batch_size).k, self._ks[0])

    def learn(self, outcome: StepOutcome) -> None:
        """Move the mean speed of the K that ran."""
        if not outcome.settled or outcome.step_seconds <= 0.0:
            return
        speed = outcome.generated_tokens / outcome.step_seconds
        if self._by_batch:
            speed /= max(outcome.decode_rows, 1)
        bandit, k = self._bandit(outcome.decode_rows), outcome.num_speculative_tokens
        bandit.pulls[k] = bandit.pulls.get(k, 0) + 1
        bandit.means[k] = bandit.means.get(k, 0.0) + (speed - bandit.means.get(k, 0.0)) / bandit.pulls[k]

    def _best(self, bandit: _Bandit) -> int:
        means = bandit.means
        if not self._per_arm_bonus:
            return max(self._ks, key=lambda k: (means.get(k, 0.0), -k))
        scale, spread = max(means.values()), EXPLORATION_WEIGHT * log(bandit.round)
        return max(
            self._ks,
            key=lambda k: (means[k] / scale + sqrt(spread / bandit.pulls[k]) if k in means else float("inf"), -k),
        )

    def _bandit(self, decode_rows: int) -> _Bandit:
        context = batch_bucket(decode_rows) if self._by_batch else 0
        bandit = self._bandits.get(context)
        if bandit is None:
            bandit = self._bandits[context] = _Bandit()
        return bandit
