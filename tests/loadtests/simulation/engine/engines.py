"""Simulated engines for tests: requests, plans, and an engine that is kept busy."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.profiles import Mechanics, Profile, read_profile
from nightjar.policy.planners import LOCAL_PLANNERS
from nightjar.policy.step.drafter import UNLIMITED
from nightjar.policy.wire.settings import IssuedSettings, Lease, OffloadRules, Plan, RestartLimits, Table
from tests.policy.step import steering_settings

PAIR = read_profile("qwen-7b-0.5b-rtx4090")
EAGLE = read_profile("llama-8b-eagle")
PROMPTS = (40, 600)
OUTPUTS = (1, 120)


def held(num_speculative_tokens: int) -> Table:
    """One K for every batch."""
    return table((1, num_speculative_tokens))


def table(*rows: tuple[int, int]) -> Table:
    """A plan from (first batch size, K) pairs."""
    lasts = [first - 1 for first, _ in rows[1:]] + [4096]
    return steering_settings.table(*((first, last, k) for (first, k), last in zip(rows, lasts, strict=True)))


def settings(
    plan: Plan,
    *,
    sequence: int = 1,
    micro_restart_tokens: int = UNLIMITED,
    leases: Sequence[Lease] = (),
    offload: OffloadRules | None = None,
) -> IssuedSettings:
    """Settings of mode auto, every K allowed."""
    restarts = RestartLimits(micro_restart_tokens=micro_restart_tokens, leases=tuple(leases))
    every_k = tuple(range(6))
    return steering_settings.settings(plan, sequence=sequence, allowed=every_k, max_age_s=1e6, restarts=restarts, offload=offload)


def engine(profile: Profile = PAIR, plan: Plan | None = None, *, seed: int = 1, **options: object) -> SimulatedEngine:
    """An engine, dormant mechanics unless told otherwise, with a plan in force if one is given."""
    arguments: dict[str, object] = {"replica_id": "r1", "mechanics": Mechanics.DORMANT, "local_planners": LOCAL_PLANNERS}
    built = SimulatedEngine(profile, seed=seed, **(arguments | options))  # type: ignore[arg-type]
    if plan is not None:
        assert built.adopt(settings(plan)) == ""
    return built


def requests(seed: int, profile: Profile = PAIR) -> Callable[[float], SimulatedRequest]:
    """A source of requests: each call gives the next one, arriving at the time given."""
    rng, kinds, number = random.Random(seed), len(profile.acceptance_classes), 0

    def ask(arrival_s: float) -> SimulatedRequest:
        nonlocal number
        number += 1
        return SimulatedRequest(number, arrival_s, rng.randint(*PROMPTS), rng.randint(*OUTPUTS), rng.randrange(kinds))

    return ask


def keep_busy(
    busy: SimulatedEngine, users: int, steps: int, seed: int = 1, profile: Profile = PAIR
) -> tuple[list[SimulatedRequest], list[SimulatedRequest]]:
    """Closed loop: `users` requests are always in the engine. All that were asked, and all that were answered."""
    ask, asked, answered = requests(seed, profile), list[SimulatedRequest](), list[SimulatedRequest]()
    for _ in range(users):
        asked.append(ask(busy.now_s))
        busy.submit(asked[-1])
    for _ in range(steps):
        for done in busy.step():
            answered.append(done)
            asked.append(ask(busy.now_s))
            busy.submit(asked[-1])
    return asked, answered
