"""What is known of drafts that are not made follows what is seen of those that are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.policy.evidence.acceptance import AcceptanceEvidence

MANY_ROWS = 1e9


def seen(survival: tuple[float, ...], rows: float) -> AcceptanceEvidence:
    """So many rows that each came as far as all of these positions."""
    return AcceptanceEvidence((rows,) * len(survival), tuple(rows * share for share in survival))


@given(
    before=st.floats(0.3, 0.9),
    after=st.floats(0.3, 0.9),
    reached=st.integers(1, 5),
)
def test_where_each_draft_is_kept_as_often_as_the_one_before_a_short_k_tells_all_of_the_longer_ones(
    before: float, after: float, reached: int
) -> None:
    known = seen(tuple(before**position for position in range(1, 9)), 1000.0)
    changed = known.plus(seen(tuple(after**position for position in range(1, reached + 1)), MANY_ROWS))
    assert changed.acceptance(8) == pytest.approx([after**position for position in range(1, 9)], rel=0.15, abs=0.02)


@pytest.mark.parametrize("profile", ["llama-8b-eagle", "llama-8b-eagle3-h100"])
@pytest.mark.parametrize("reached", [1, 2])
def test_after_texts_of_another_class_of_a_profile_what_is_not_drafted_is_expected_as_that_class_has_it(
    profile: str, reached: int
) -> None:
    code, _, open_ended = (kind.survival for kind in read_profile(profile).acceptance_classes)
    for one, other in ((open_ended, code), (code, open_ended)):
        changed = seen(one, 1000.0).plus(seen(other[:reached], MANY_ROWS))
        assert changed.acceptance(5) == pytest.approx(other, abs=0.07)


def test_what_is_not_drafted_is_as_before_where_nothing_changed() -> None:
    known = seen((0.8, 0.5, 0.2), 1000.0)
    assert known.plus(seen((0.8,), 1000.0)).measured() == pytest.approx((0.8, 0.5, 0.2))


def test_texts_that_become_hard_and_easy_again_leave_what_is_not_drafted_as_it_was() -> None:
    known = seen((0.8, 0.5, 0.2), 1000.0)
    there = known.plus(seen((0.4,), 8000.0)).plus(seen((0.8,), MANY_ROWS))
    assert there.measured() == pytest.approx((0.8, 0.5, 0.2), rel=0.01)
