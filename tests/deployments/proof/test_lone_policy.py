"""The policy beside one engine: what an engine counted goes in, what it shall run comes out."""

from __future__ import annotations

import random

import pytest

from nightjar.deployments.proof.lone_policy import LonePolicy
from nightjar.policy.wire.settings import Table, k_at
from tests.policy.engines import KEY, Replica, best_k

GROUP = KEY.model_copy(update={"graph_tiers": (0, 1, 3, 5)})
"""Those K have step times (tests/policy/engines.py)."""


def test_one_engine_beside_its_policy_comes_to_run_the_best_k() -> None:
    policy, engine, rng = LonePolicy(GROUP, seed=0), Replica("r1", batch=4), random.Random(0)
    for tick in range(60):
        engine.run_until(0.5 * tick, rng)
        engine.adopt(policy.decide(engine.report().snapshot, 0.5 * tick))
    plan = policy.decide(engine.report().snapshot, 30.0).plan
    assert isinstance(plan, Table)
    assert k_at(plan.rows, 4) == best_k(4)


def test_beside_adaptive_verification_the_engine_is_steered_as_by_an_operators_hand() -> None:
    group = GROUP.model_copy(update={"adaptive_verification": True})
    decided = LonePolicy(group, seed=0).decide(Replica("r1", batch=4).report().snapshot, 0.5)
    assert decided.mode.kind == "auto"


def test_counts_that_cannot_be_true_end_the_run_with_the_reason() -> None:
    policy, engine = LonePolicy(GROUP, seed=0), Replica("r1", batch=4)
    engine.run_until(1.0, random.Random(0))
    policy.decide(engine.report().snapshot, 1.0)
    snapshot = engine.report().snapshot
    lie = snapshot.model_copy(update={"counters": snapshot.counters.model_copy(update={"step_count": 10**9})})
    with pytest.raises(RuntimeError, match="the policy refused a report"):
        policy.decide(lie, 1.5)
