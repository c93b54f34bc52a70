"""When a replica plans for itself: its prompts draft otherwise than its group's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.acceptance import LEAST_DIFFERENCE, AcceptanceEvidence
from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.planners.base import GroupView
from nightjar.policy.planners.estimates import OTHER_DEVIATIONS, own_evidence
from nightjar.policy.words import in_words
from tests.policy.engines import ACCEPTANCE, AUTO, KEY, Fleet, Replica, best_k

HARD = tuple(0.2 * share for share in ACCEPTANCE)


def test_a_replica_whose_prompts_are_hard_to_draft_for_stops_and_its_group_goes_on() -> None:
    fleet = Fleet([Replica("hard", 16, acceptance=HARD), *(Replica(f"r{number}", 16) for number in range(7))])
    fleet.run(20.0)
    own = fleet.state.replicas["hard"].own
    assert own is not None
    assert own.plan.num_speculative_tokens(16) == 0
    assert fleet.planned(16) == best_k(16)
    assert in_words(fleet.decisions["hard"].causes).endswith("(its own evidence)")


def test_replicas_with_the_same_prompts_do_not_plan_for_themselves() -> None:
    fleet = Fleet([Replica(f"r{number}", 16) for number in range(8)])
    fleet.run(20.0)
    assert [name for name, replica in fleet.state.replicas.items() if replica.own is not None] == []


@pytest.mark.parametrize("share", [0.45, 0.7])
def test_hours_of_luck_make_no_replica_different(share: float) -> None:
    """Twenty steps a second, thirteen requests of five seconds each, half of them easy and half hard to draft for."""
    requests, rows_each, apart = 13, 20, 0.12
    group = AcceptanceEvidence((1e9,), (1e9 * share,))
    rng, mine = np.random.default_rng(0), AcceptanceEvidence()
    shares = share + rng.choice([-apart, apart], requests)
    for _ in range(8 * 3600):
        shares = np.where(rng.random(requests) < 0.2, share + rng.choice([-apart, apart], requests), shares)
        kept = float(rng.binomial(rows_each, shares).sum())
        mine = mine.plus(AcceptanceEvidence((float(rows_each * requests),), (kept,)))
        assert mine.deviations_from(group, now_s=0.0) < OTHER_DEVIATIONS


def plans_for_itself(share: float, rows: float = 3000.0, *, has_own: bool = False) -> bool:
    """Whether one of eight replicas does that keeps such a share of first drafts, in a group that keeps 0.7."""
    group = Evidence(acceptance=AcceptanceEvidence((1e6,), (0.7e6,)))
    mine = AcceptanceEvidence((rows,), (rows * share,))
    return own_evidence(GroupView(KEY, AUTO, group, replicas=8), mine, has_own=has_own) is not None


def test_a_fifth_less_is_seen_as_soon_as_the_rows_prove_it() -> None:
    assert plans_for_itself(0.55)
    assert not plans_for_itself(0.55, rows=300.0)


def test_who_plans_for_itself_goes_on_where_nobody_would_begin() -> None:
    assert plans_for_itself(0.64, has_own=True)
    assert not plans_for_itself(0.64)
    assert not plans_for_itself(0.69, has_own=True)


def test_inv_10_a_replica_that_lies_about_acceptance_plans_for_itself_alone() -> None:
    fleet = Fleet([Replica("liar", 16, acceptance=(1.0,) * 5), *(Replica(f"r{number}", 16) for number in range(7))])
    fleet.run(20.0)
    assert fleet.planned(16) == best_k(16)
    assert fleet.state.replicas["liar"].own is not None
    assert all(fleet.state.replicas[f"r{number}"].own is None for number in range(7))


def test_what_is_not_seen_any_more_stops_making_a_replica_different() -> None:
    mine, group = AcceptanceEvidence((400.0,), (200.0,), (0.0,)), AcceptanceEvidence((9e4,), (7e4,), (0.0,))
    fresh, old = (mine.deviations_from(group, now_s) for now_s in (0.0, 1e5))
    assert fresh > 5.0
    assert old < 3.0


@given(st.floats(0.0, 1e5), st.floats(0.0, 1.0), st.floats(20.0, 1e6), st.floats(0.05, 0.95))
def test_shrunk_acceptance_lies_between_the_replicas_and_the_groups(
    rows: float, share: float, group_rows: float, group: float
) -> None:
    mine = AcceptanceEvidence((rows,), (rows * share,))
    (shrunk,) = mine.shrunk_to(AcceptanceEvidence((group_rows,), (group_rows * group,))).measured()
    low, high = min(share, group), max(share, group)
    assert low - 1e-6 <= shrunk <= high + 1e-6


@pytest.mark.parametrize("share", [1.0 - LEAST_DIFFERENCE / 2, 1.0, 1.0 + LEAST_DIFFERENCE / 2])
def test_a_small_difference_is_none_however_sure_it_is(share: float) -> None:
    group = AcceptanceEvidence((1e9,), (0.7e9,))
    assert AcceptanceEvidence((1e9,), (0.7e9 * share,)).deviations_from(group, 0.0) == 0.0
