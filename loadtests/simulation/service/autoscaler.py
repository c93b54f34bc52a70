"""How many replicas a service should have, as Ray Serve's autoscaler decides: from the requests in flight, with delays.

A pure function of what is in flight and of what was wanted for how long. New replicas take a while to start; replicas that
leave finish what they have. Fails quiet: the number stays within its bounds whatever the load says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Autoscale:
    """Rules, in the words of Ray Serve's autoscaling_config. Times in seconds.

    A change is made when it was wanted at every look for its whole delay. `start_up_s` passes until a new replica serves.
    """

    min_replicas: int = 1
    max_replicas: int = 8
    target_ongoing_requests: float = 16.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 300.0
    start_up_s: float = 60.0
    look_period_s: float = 5.0

    def __post_init__(self) -> None:
        if not (1 <= self.min_replicas <= self.max_replicas and self.target_ongoing_requests > 0 and self.look_period_s > 0):
            raise ValueError(
                f"{self}: 1 <= min_replicas <= max_replicas, target_ongoing_requests and look_period_s above 0 are allowed"
            )


@dataclass(frozen=True, slots=True)
class Wanting:
    """More (or fewer) replicas were wanted at every look since `since_s`; `upward` None: as many as there are."""

    upward: bool | None = None
    since_s: float = 0.0


def look(rules: Autoscale, replicas: int, ongoing_requests: int, wanting: Wanting, now_s: float) -> tuple[int, Wanting]:
    """Replicas to have from now on, those that are starting included, and what was wanted since when."""
    wanted = math.ceil(ongoing_requests / rules.target_ongoing_requests)
    wanted = min(max(wanted, rules.min_replicas), rules.max_replicas)
    if wanted == replicas:
        return replicas, Wanting(None, now_s)
    upward = wanted > replicas
    since_s = wanting.since_s if wanting.upward is upward else now_s
    if now_s - since_s >= (rules.upscale_delay_s if upward else rules.downscale_delay_s):
        return wanted, Wanting(None, now_s)
    return replicas, Wanting(upward, since_s)
