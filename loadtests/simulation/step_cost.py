"""How long one engine step takes: from measured tables, or from hardware numbers by a roofline.

The planner learns step times as a regression; the truth that it is held against must not be one. Tables are interpolated
as they were measured (a power law between batch sizes), rooflines are a smooth maximum of memory and compute time whose
compute part rises by tiles. As in vLLM's V1 engine a step verifies the drafts of the step before and drafts for the
step after, so that the first step after a change of K is neither one's.
Fails closed: more decode rows or a longer K than the profile knows are extrapolated along its last segment, never refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from math import ceil, exp, log
from typing import Final, Literal

from nightjar.loadtests.simulation.profiles import Drafter, Limits, MeasuredTable, Mechanics, Model, Profile, Roofline

DraftRun = Literal["active", "stock", "dormant", "offloaded", "kv"]
"""What the drafter does in a step. At K=0 `active` and `stock` run its first forward, `kv` writes its KV, others run nothing."""
WITH_FORWARDS: Final = frozenset({"active", "stock"})
"""In these the drafter runs its forwards."""

AT_ZERO: Final[Mapping[Mechanics, DraftRun]] = {
    Mechanics.DORMANT: "dormant",
    Mechanics.STOCK: "stock",
    Mechanics.KV: "kv",
}
PREFILL_SHARPNESS: Final = 2.0
"""Exponent with which a table's prefill and decode times join: a small chunk hides in a step that is bound by memory (assumed)."""
CONTEXT_POINTS: Final = 33
"""Points over the KV cache at which a prepared cost is computed; between them it is linear."""

PREFILL_STEP_TOKENS: Final = 32
"""Resolution of prompt lengths in prepared costs."""


class StepCost(ABC):
    """Seconds of one step of an engine, without noise."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter

    def seconds(
        self,
        decode_rows: int,
        context_tokens: float,
        num_speculative_tokens: int,
        prefill_tokens: int = 0,
        draft: DraftRun = "active",
        catch_up_tokens: int = 0,
        verified_tokens: float | None = None,
    ) -> float:
        """Seconds of a step that drafts K for each row. `context_tokens` is the rows' sum.

        `verified_tokens`: drafts that a row verifies on average, K where None. `catch_up_tokens`: draft tokens that are recomputed.
        """
        verified = num_speculative_tokens if verified_tokens is None else verified_tokens
        seconds = self._forwards(decode_rows, context_tokens, num_speculative_tokens, prefill_tokens, draft, verified)
        return seconds + _draft_prefill(self._drafter, prefill_tokens if draft in WITH_FORWARDS else 0, catch_up_tokens)

    @abstractmethod
    def _forwards(
        self, decode_rows: int, context_tokens: float, k: int, prefill_tokens: int, draft: DraftRun, verified: float
    ) -> float:
        """Seconds without the draft's own prefill."""


def step_cost(profile: Profile) -> StepCost:
    """The cost that the profile describes."""
    return _cost(profile.step_cost, profile.drafter)


class TableCost(StepCost):
    """Measured step times, interpolated."""

    def __init__(self, table: MeasuredTable, drafter: Drafter) -> None:
        super().__init__(drafter)
        self._table = table
        self._log_sizes = [log(size) for size in table.batch_sizes]
        self._log_seconds = [[log(line[column] / 1e3) for line in table.milliseconds] for column in range(len(table.lengths))]
        self._log_stock_off = [log(value / 1e3) for value in table.stock_off_milliseconds]

    def _forwards(
        self, decode_rows: int, context_tokens: float, k: int, prefill_tokens: int, draft: DraftRun, verified: float
    ) -> float:
        table, seconds = self._table, 0.0
        if decode_rows:
            off = self._at(self._log_seconds[0], decode_rows)
            seconds = off + (1.0 - table.draft_share) * (self._long(decode_rows, verified) - off)
            seconds += table.seconds_per_context_token * (context_tokens - decode_rows * table.context_tokens_per_row)
            if k:
                seconds += table.draft_share * (self._long(decode_rows, k) - off)
            elif draft in WITH_FORWARDS:
                seconds += self._at(self._log_stock_off, decode_rows) - off
            seconds = max(seconds, 0.25 * off)
        if prefill_tokens:
            seconds = _smooth_maximum(PREFILL_SHARPNESS, seconds, table.prefill_seconds_per_token * prefill_tokens)
        if not k:
            seconds += _kv_pass(self._drafter, draft, round(decode_rows * (1 + verified)) + prefill_tokens)
        return seconds

    def _long(self, decode_rows: int, k: float) -> float:
        """The table at one K, linear between those that were measured."""
        ks = self._table.lengths
        upper = min(max(bisect_right(ks, k), 1), len(ks) - 1)
        low, high = ks[upper - 1], ks[upper]
        share = (k - low) / (high - low)
        return (1.0 - share) * self._at(self._log_seconds[upper - 1], decode_rows) + share * self._at(
            self._log_seconds[upper], decode_rows
        )

    def _at(self, log_seconds: list[float], decode_rows: int) -> float:
        sizes = self._log_sizes
        upper = min(max(bisect_right(sizes, log(decode_rows)), 1), len(sizes) - 1)
        share = (log(decode_rows) - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1])
        return exp((1.0 - share) * log_seconds[upper - 1] + share * log_seconds[upper])


class RooflineCost(StepCost):
    """Step times from hardware numbers."""

    def __init__(self, roofline: Roofline, drafter: Drafter) -> None:
        super().__init__(drafter)
        self._roofline = roofline

    def _forwards(
        self, decode_rows: int, context_tokens: float, k: int, prefill_tokens: int, draft: DraftRun, verified: float
    ) -> float:
        roofline = self._roofline
        if not decode_rows and not prefill_tokens:
            return 0.0
        scored = round(decode_rows * (1 + verified))
        seconds = self._forward(roofline.target, scored + prefill_tokens, context_tokens, roofline.tensor_parallel_size)
        seconds += roofline.host_seconds + roofline.host_seconds_per_row * decode_rows
        seconds += roofline.sampler_seconds_per_token * scored
        if k and decode_rows:
            seconds += roofline.proposer_seconds + roofline.proposer_seconds_per_row * decode_rows
            if self._drafter.drafts_a_block:
                queries = decode_rows * (1 + self._drafter.arms[-1])
                return seconds + self._forward(roofline.draft, queries, context_tokens, 1)
            seconds += self._forward(roofline.draft, scored, context_tokens, 1)
            seconds += (k - 1) * self._forward(roofline.draft, decode_rows, context_tokens, 1)
        elif draft in WITH_FORWARDS and decode_rows:
            seconds += self._forward(roofline.draft, scored, context_tokens, 1)
        elif not k:
            seconds += _kv_pass(self._drafter, draft, scored + prefill_tokens)
        return seconds

    def _forward(self, model: Model, tokens: int, context_tokens: float, gpus: int) -> float:
        """Seconds of one forward over `tokens`; a model on several GPUs is split evenly."""
        roofline = self._roofline
        memory_rate = roofline.memory_bytes_per_s * roofline.memory_share * gpus
        whole_tiles = roofline.tile_tokens * ceil(tokens / roofline.tile_tokens)
        computed = roofline.tile_share * whole_tiles + (1.0 - roofline.tile_share) * tokens
        compute = computed * model.flops_per_token / (roofline.flops_per_s * roofline.flops_share * gpus)
        seconds = _smooth_maximum(roofline.sharpness, model.weight_bytes / memory_rate, compute)
        seconds += context_tokens * model.kv_bytes_per_token / memory_rate
        seconds = _smooth_maximum(roofline.sharpness, seconds, model.layers * model.launch_seconds_per_layer)
        if gpus > 1:
            all_reduced_bytes = 2.0 * tokens * model.hidden_size  # activations are two bytes wide
            seconds += 2 * model.layers * (roofline.all_reduce_seconds + all_reduced_bytes / roofline.all_reduce_bytes_per_s)
        return seconds


class PreparedCost:
    """A step cost as look-ups, for steps without prefill: each (rows, K drafted, K verified) is computed once over the context.

    `mechanics` says what K=0 runs. Shared by all engines of a process that have the same profile.
    """

    def __init__(self, cost: StepCost, limits: Limits, mechanics: Mechanics) -> None:
        self.cost = cost
        self.off: DraftRun = AT_ZERO[mechanics]
        self._context_step = (limits.num_blocks + limits.extra_blocks) * limits.block_size / (CONTEXT_POINTS - 1)
        self._points_per_token = 1.0 / self._context_step
        self._usual_context_per_row = self._context_step * (CONTEXT_POINTS - 1) / 2.0 / limits.max_num_seqs
        self._curves: dict[int, list[float]] = {}
        self._prefill_seconds: dict[tuple[int, int, int], float] = {}

    def decode_seconds(self, decode_rows: int, context_tokens: int, drafted: int, verified: int) -> float:
        """Seconds of a pure decode step that drafts K = `drafted` and verifies `verified` drafts per row."""
        key = (decode_rows << 12) + (drafted << 6) + verified
        curve = self._curves.get(key)
        if curve is None:
            curve = self._curves[key] = self._curve(decode_rows, drafted, verified)
        at = context_tokens * self._points_per_token
        point = int(at)
        if point >= CONTEXT_POINTS - 1:
            point = CONTEXT_POINTS - 2
        low = curve[point]
        return low + (at - point) * (curve[point + 1] - low)

    def steady_seconds(self, decode_rows: int, context_tokens: int, num_speculative_tokens: int) -> float:
        """Seconds of a pure decode step at a K that is held."""
        return self.decode_seconds(decode_rows, context_tokens, num_speculative_tokens, num_speculative_tokens)

    def prefill_seconds(self, decode_rows: int, num_speculative_tokens: int, prefill_tokens: float) -> float:
        """Seconds that prompt tokens add to a step at a K that is held, where the rows' contexts half fill the KV cache of a full
        engine; prompts of nearly the same length cost the same."""
        chunks = round(prefill_tokens / PREFILL_STEP_TOKENS)
        key = (decode_rows, num_speculative_tokens, chunks)
        added = self._prefill_seconds.get(key)
        if added is None:
            draft: DraftRun = "active" if num_speculative_tokens else self.off
            context_tokens = decode_rows * self._usual_context_per_row
            mixed = self.cost.seconds(decode_rows, context_tokens, num_speculative_tokens, chunks * PREFILL_STEP_TOKENS, draft)
            added = mixed - self.cost.seconds(decode_rows, context_tokens, num_speculative_tokens, 0, draft)
            self._prefill_seconds[key] = added
        return added

    def _curve(self, decode_rows: int, drafted: int, verified: int) -> list[float]:
        draft: DraftRun = "active" if drafted else self.off
        return [
            self.cost.seconds(decode_rows, point * self._context_step, drafted, draft=draft, verified_tokens=verified)
            for point in range(CONTEXT_POINTS)
        ]


def prepared_cost(profile: Profile, mechanics: Mechanics) -> PreparedCost:
    """The profile's look-ups, the same object for every engine of this process with equal profile and mechanics."""
    return _prepared(profile.step_cost, profile.drafter, profile.limits, mechanics)


@lru_cache(maxsize=32)
def _prepared(numbers: MeasuredTable | Roofline, drafter: Drafter, limits: Limits, mechanics: Mechanics) -> PreparedCost:
    return PreparedCost(_cost(numbers, drafter), limits, mechanics)


def _cost(numbers: MeasuredTable | Roofline, drafter: Drafter) -> StepCost:
    return TableCost(numbers, drafter) if isinstance(numbers, MeasuredTable) else RooflineCost(numbers, drafter)


def _kv_pass(drafter: Drafter, draft: DraftRun, tokens: int) -> float:
    """Seconds of a step of K=0 that write a head's KV of `tokens`."""
    return drafter.kv_pass_seconds + drafter.kv_pass_seconds_per_token * tokens if draft == "kv" else 0.0


def _draft_prefill(drafter: Drafter, prefill_tokens: int, catch_up_tokens: int) -> float:
    """Seconds of the draft over new prompts and over the lag: both are a prefill of the draft, one pass in the step."""
    tokens = prefill_tokens + catch_up_tokens
    if not tokens:
        return 0.0
    fixed = drafter.catch_up_seconds if catch_up_tokens else 0.0
    return fixed + drafter.catch_up_seconds_per_token * tokens


def _smooth_maximum(sharpness: float, left: float, right: float) -> float:
    """(left^p + right^p)^(1/p), without overflow.

    >>> _smooth_maximum(2.0, 3.0, 4.0)
    5.0
    """
    larger, smaller = (left, right) if left >= right else (right, left)
    if smaller <= 0.0:
        return larger
    return float(larger * (1.0 + (smaller / larger) ** sharpness) ** (1.0 / sharpness))
