"""Who waits: requests beside those that decode, as each replica's load says with every report.

What users wait for is the time of all requests in the system (Little's law), so what a K is worth depends on how many there are
beside its rows, and on what they wait for: a slot or KV, or prompt compute (planners/latency.py). A report has the load of one
moment, and a group's is of many: sums over looks that fade, the median replica's of each, so that no liar moves it (INV-10).
Not stored: it is of the last minutes. Fails towards nobody waiting, where K is the one with most tokens a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Final, NamedTuple

from nightjar.policy.evidence.mixed_steps import TRAFFIC_HALF_LIFE_S
from nightjar.policy.wire.report import EngineLoad

FULL_KV: Final = 0.9
"""KV usage from which requests that wait are taken to wait for KV and not for prompt compute."""
MOST_LOAD: Final = 0.8
"""Share of the time that engines count as busy at most: who comes before the queue is empty grows without end towards all of it,
and what comes after a burst is not known."""
LEAST: Final = 0.01
"""Requests beside one that decodes, and share of its time, that count as none: sums fade and never end."""


class Waits(NamedTuple):
    """Decayed sums over looks at an engine: how many, at which it had work, and decode rows, and prompts beside these; and over
    those with decode rows the requests that waited and that were in prefill."""

    looks: float = 0.0
    busy: float = 0.0
    decoding: float = 0.0
    beside_prefill: float = 0.0
    waiting: float = 0.0
    prefilling: float = 0.0

    def after(self, load: EngineLoad, max_num_seqs: int, elapsed_s: float) -> Waits:
        """The sums `elapsed_s` later, with a look at the engine.

        With requests that wait and neither a full KV cache nor all slots taken it computes prompts in its next step. Requests that
        can run in no step yet are served no sooner by any K.

        >>> load = EngineLoad(decode_batch_size=3, num_running_reqs=5, num_waiting_reqs=5, num_deferred_reqs=1)
        >>> NO_WAITS.after(load, 256, 1.0)
        Waits(looks=1.0, busy=1.0, decoding=1.0, beside_prefill=1.0, waiting=4.0, prefilling=2.0)
        """
        left = 0.5 ** (max(elapsed_s, 0.0) / TRAFFIC_HALF_LIFE_S)
        looks, busy, decoding, beside_prefill, waiting, prefilling = (value * left for value in self)
        running = min(load.num_running_reqs, max_num_seqs)
        waits = max(load.num_waiting_reqs - load.num_deferred_reqs, 0)
        looks += 1.0
        busy += running > 0 or waits > 0
        if load.decode_batch_size:
            in_prefill = max(running - load.decode_batch_size, 0)
            is_full = running >= max_num_seqs or load.kv_cache_usage >= FULL_KV
            decoding += 1.0
            beside_prefill += in_prefill > 0 or (waits > 0 and not is_full)
            waiting += waits
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

    @property
    def is_nobody(self) -> bool:
        """Whether rows decode alone: nobody waits, and no prompt is computed beside them."""
        return max(self.share_beside_prefill, self.mean_waiting, self.mean_prefilling) < LEAST


NO_WAITS: Final = Waits()
"""Nothing was seen yet."""


def waits_of_group(replicas: Iterable[Waits]) -> Waits:
    """One look that stands for all of the replicas': each ratio is the median replica's, of those that had rows of late.

    >>> quiet, queue = Waits(9.0, 9.0, 9.0), Waits(9.0, 9.0, 9.0, 9.0, 18.0, 9.0)
    >>> waits_of_group([quiet, queue, queue, NO_WAITS])
    Waits(looks=1.0, busy=1.0, decoding=1.0, beside_prefill=1.0, waiting=2.0, prefilling=1.0)
    """
    seen = [one for one in replicas if one.looks]
    decoding = [one for one in seen if one.decoding >= LEAST]
    if not decoding:
        return NO_WAITS
    return Waits(
        1.0,
        median(one.busy / one.looks for one in seen),
        1.0,
        median(one.share_beside_prefill for one in decoding),
        median(one.mean_waiting for one in decoding),
        median(one.mean_prefilling for one in decoding),
    )
