"""How long speculation will stay on once it is, and what that is worth: a chain over batch buckets, seen from the reports.

A restart is an investment: paid now, earned back while the load stays where speculation pays. How long that is depends on
where the load stands (deep in the quiet, or at the crossover), so the chain tells it by bucket; docs/restarts.md compares
it with the mean length of past ON times. Fails towards a short ON time: what was never seen is taken to end in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nightjar.policy.batch_buckets import batch_bucket
from nightjar.policy.merging import QUORUM

Floats = npt.NDArray[np.float64]

IDLE: Final = -1
"""The state of a replica without decode rows. It ends an ON time: after it nothing lags, and a restart is free anyhow."""
SAMPLE_PERIOD_S: Final = 1.0
"""Between two looks at a replica's batch."""
LONGEST_SAMPLE_S: Final = 3.0
"""A replica whose reports were missing for longer was not seen moving."""
HALF_LIFE_S: Final = 600.0
"""After which a transition counts half: load has habits of minutes, and forgets those of hours."""
HORIZON_SAMPLES: Final = 120.0
"""Value is counted over so many samples at most: nobody knows the load of the next hour."""
PRIOR_SAMPLES: Final = 5.0
PRIOR_STAY: Final = 0.9
"""Before evidence a bucket is left after ten samples, and speculation then ends; this weighs as much as five seen moves."""

Move = tuple[int, int]
"""From one bucket to another (or the same, or IDLE) within one sample."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Decayed counts of moves between buckets, of all replicas of a group."""

    counts: Mapping[Move, float] = field(default_factory=dict)
    at_s: float = 0.0

    def plus(self, seen: Mapping[Move, float], now_s: float) -> Moves:
        """These moves aged until `now_s`, and those seen since."""
        share_left = 0.5 ** (max(now_s - self.at_s, 0.0) / HALF_LIFE_S)
        counts = {move: count * share_left for move, count in self.counts.items() if count * share_left > 1e-3}
        for move, count in seen.items():
            counts[move] = counts.get(move, 0.0) + count
        return Moves(counts, now_s)

    def value_tokens(
        self, gains_tokens_per_s: Mapping[int, float], lag_costs_tokens_per_s: Mapping[int, float]
    ) -> dict[int, float]:
        """Tokens that speculation earns from now until the load leaves for good, by present bucket where speculation is on.

        It adds `gains_tokens_per_s` there. In another bucket it is off, and the drafter falls behind, which costs so many tokens a
        second to recompute; one that `lag_costs_tokens_per_s` does not name ends the ON time. An excursion is borne where that is
        worth more than giving up: V = max(0, D + g P V) there, V = D + g P V where it is on, with g = 1 - 1/HORIZON_SAMPLES and D
        what one sample gives.
        """
        if not gains_tokens_per_s:
            return {}
        per_second = {bucket: -cost for bucket, cost in lag_costs_tokens_per_s.items()} | dict(gains_tokens_per_s)
        buckets = sorted(per_second)
        per_sample = np.array([per_second[bucket] for bucket in buckets]) * SAMPLE_PERIOD_S
        is_on = np.array([bucket in gains_tokens_per_s for bucket in buckets])
        discounted = (1.0 - 1.0 / HORIZON_SAMPLES) * self._chances(buckets)
        kept = is_on
        while True:
            values = np.zeros(len(buckets))
            values[kept] = np.linalg.solve(np.eye(int(kept.sum())) - discounted[np.ix_(kept, kept)], per_sample[kept])
            borne = kept | (per_sample + discounted @ values > 0.0)
            if (borne == kept).all():
                return {bucket: float(value) for bucket, value, on in zip(buckets, values, is_on, strict=True) if on}
            kept = borne

    def _chances(self, buckets: Sequence[int]) -> Floats:
        """(buckets, buckets): that a replica is there a sample later; a row's rest goes where none of these is."""
        index = {bucket: position for position, bucket in enumerate(buckets)}
        stays = np.diag(np.full(len(buckets), PRIOR_SAMPLES * PRIOR_STAY))
        left = np.full(len(buckets), PRIOR_SAMPLES)
        for (origin, target), count in self.counts.items():
            if origin in index:
                left[index[origin]] += count
                if target in index:
                    stays[index[origin], index[target]] += count
        chances: Floats = stays / left[:, None]
        return chances


class Sight(NamedTuple):
    """A replica as it was last looked at: its state, when that was, and how often it has changed, which decays."""

    state: int
    at_s: float
    changes: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """Where each replica of a group was when it was last looked at; O(replicas) (INV-8)."""

    seen: Mapping[str, Sight] = field(default_factory=dict)

    def look(self, decode_batch_sizes: Mapping[str, int], now_s: float) -> tuple[Watch, dict[Move, float]]:
        """Look at the batches reported by now, and what moved since the look before, at most once a sample.

        In a group of three or more the most restless replica's changes count as if it had made one more than the second most
        restless: one that jumps every second would end everybody's ON time (INV-10).
        """
        seen: dict[str, Sight] = {}
        looked: list[tuple[Sight, Sight]] = []
        for replica_id, batch in decode_batch_sizes.items():
            before = self.seen.get(replica_id)
            if before is not None and now_s - before.at_s < 0.9 * SAMPLE_PERIOD_S:
                seen[replica_id] = before
                continue
            now = Sight(batch_bucket(batch) if batch else IDLE, now_s)
            if before is not None:
                was_seen = now_s - before.at_s <= LONGEST_SAMPLE_S
                left = before.changes * 0.5 ** ((now_s - before.at_s) / HALF_LIFE_S)
                now = now._replace(changes=left + (was_seen and now.state != before.state))
                if was_seen:
                    looked.append((before, now))
            seen[replica_id] = now
        most = nlargest(2, (sight.changes for sight in seen.values()))[1] + 1.0 if len(seen) >= QUORUM else float("inf")
        moves: dict[Move, float] = {}
        for before, now in looked:
            weight = min(1.0, most / now.changes) if now.state != before.state else 1.0
            moves[before.state, now.state] = moves.get((before.state, now.state), 0.0) + weight
        return Watch(seen), moves
