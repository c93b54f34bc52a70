"""INV-10 where evidence is pooled: it counts on arrival, and from three replicas on no faulty one moves it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence, table_of
from nightjar.policy.evidence.contributions import NewEvidence, steps_at
from nightjar.policy.evidence.pooling import MOST_EFFECT
from nightjar.policy.evidence.robust import LEAST_STEPS, agreeing, capped_weights, weighted_median
from tests.policy.evidence.group_of import CELL, Group, measured

weights = st.lists(st.floats(0.1, 1e6), min_size=3, max_size=20)


@given(weights)
def test_no_weight_is_more_than_a_third_and_none_grows(given_weights: list[float]) -> None:
    before = np.array(given_weights)
    after = capped_weights(before)
    assert after.max() <= after.sum() / 3 * (1 + 1e-9)
    assert (after <= before).all()
    assert (after > 0).all()


@given(weights)
def test_weights_that_are_fair_already_stay(given_weights: list[float]) -> None:
    before = np.array(given_weights)
    if before.max() <= before.sum() / 3:
        assert capped_weights(before) == pytest.approx(before)


@given(st.lists(st.floats(-10.0, 10.0), min_size=3, max_size=20))
def test_the_median_is_one_of_the_values_and_agrees_with_itself(values: list[float]) -> None:
    sample, even = np.array(values), np.ones(len(values))
    assert weighted_median(sample, even) in values
    assert agreeing(sample, even)[list(sample).index(weighted_median(sample, even))]


WITH_PREFILL = Cell(0, 3, prefill=True)


def test_what_one_of_sixteen_measured_is_the_groups_at_once() -> None:
    group = Group(16)
    group.hears({"a": measured(0.1, steps=8.0)})
    assert group.step_seconds() == pytest.approx(0.1)
    assert group.evidence.cells[CELL].steps == pytest.approx(8.0)
    assert group.evidence.acceptance.measured() == pytest.approx((0.5,))


@given(
    honest=st.lists(st.floats(0.095, 0.105), min_size=2, max_size=15),
    lie=st.floats(1e-5, 600.0),
    claimed_steps=st.floats(LEAST_STEPS, 1e12),
)
def test_inv_10_whatever_one_of_three_or_more_says_the_mean_stays_near_the_honest_ones(
    honest: list[float], lie: float, claimed_steps: float
) -> None:
    group = Group(len(honest) + 1)
    steady = {f"r{number}": measured(value, steps=100.0) for number, value in enumerate(honest)}
    group.hears({**steady, "liar": measured(lie, claimed_steps)})
    spread = max(max(honest) / min(honest) - 1.0, 0.02)
    assert min(honest) * (1 - 3 * spread) <= group.step_seconds() <= max(honest) * (1 + 3 * spread)


def test_inv_10_where_honest_replicas_agree_a_lie_moves_the_mean_less_than_the_default_switch_margin() -> None:
    for lie in (1e-4, 100.0):
        group = Group(3)
        group.hears({"a": measured(0.1), "b": measured(0.1), "liar": measured(lie, 1e6)})
        assert group.step_seconds() == pytest.approx(0.1, rel=0.004)


def test_inv_10_a_lie_that_was_believed_is_taken_back_whole_once_two_others_reported() -> None:
    group = Group(4)
    group.hears({"liar": measured(0.01, 1000.0)})
    assert group.step_seconds() == pytest.approx(0.01)
    group.hears({"a": measured(0.1)}, now_s=1.0)
    assert CELL not in group.evidence.cells, "of two that no one card can both have measured, neither counts"
    group.hears({"b": measured(0.1)}, now_s=2.0)
    assert group.step_seconds() == pytest.approx(0.1, rel=0.004)


def test_two_replicas_of_two_that_contradict_each_other_count_both() -> None:
    group = Group(2)
    group.hears({"a": measured(0.1), "b": measured(0.4)})
    assert group.step_seconds() == pytest.approx(0.2)


@pytest.mark.parametrize("lie", [0.0, 1.0])
def test_inv_10_a_lie_about_acceptance_moves_it_less_than_a_point(lie: float) -> None:
    group = Group(3)
    group.hears({"a": measured(0.1), "b": measured(0.1), "liar": measured(0.1, accepted=lie)})
    assert group.evidence.acceptance.measured()[0] == pytest.approx(0.5, abs=0.01)


def test_inv_10_a_lie_about_acceptance_that_a_later_position_gives_away_has_no_say_at_the_first() -> None:
    rows = (60.0, 60.0, 60.0)
    shares = {"a": 0.62, "b": 0.68, "c": 0.72, "d": 0.78}
    honest = {
        name: NewEvidence(acceptance=AcceptanceEvidence(rows, (60 * first, 30 * first, 15 * first)))
        for name, first in shares.items()
    }
    told, alone = Group(5), Group(5)
    told.hears({**honest, "liar": NewEvidence(acceptance=AcceptanceEvidence(rows, rows))})
    alone.hears(honest)
    assert told.evidence.acceptance.measured() == pytest.approx(alone.evidence.acceptance.measured())


def test_three_replicas_of_which_one_has_other_prompts_still_learn_together() -> None:
    group = Group(3)
    group.hears({name: measured(0.1, accepted=share) for name, share in {"a": 0.8, "b": 0.8, "c": 0.1}.items()})
    assert group.evidence.acceptance.measured()[0] == pytest.approx(0.8)


@given(lie=st.one_of(st.floats(1e-5, 0.03), st.floats(0.3, 600.0)))
def test_inv_10_with_three_honest_replicas_a_lie_changes_nothing_at_all(lie: float) -> None:
    honest = {"a": measured(0.1), "b": measured(0.101), "c": measured(0.102)}
    told, without_it = Group(4), Group(4)
    told.hears({**honest, "liar": measured(lie)})
    without_it.hears(honest)
    believed, expected = told.evidence.cells[CELL], without_it.evidence.cells[CELL]
    assert (believed.steps, believed.log_seconds) == pytest.approx((expected.steps, expected.log_seconds))


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_replicas_does_not_matter(order: list[str]) -> None:
    values = {"a": 0.1, "b": 0.11, "c": 0.12, "d": 0.5}
    one, other = Group(4), Group(4)
    one.hears({name: measured(values[name], steps=100.0 * values[name]) for name in order})
    other.hears({name: measured(values[name], steps=100.0 * values[name]) for name in sorted(order)})
    assert one.evidence == other.evidence


@given(steps=st.floats(0.1, 1e12), age_s=st.floats(0.0, 1e6), later_s=st.floats(0.0, 1e6))
def test_sums_that_age_keep_their_mean_and_only_lose_weight(steps: float, age_s: float, later_s: float) -> None:
    table = table_of([CellEvidence(steps, -4.0 * steps, 2.0 * steps)])
    assert steps_at(table, age_s + later_s)[0] <= steps_at(table, age_s)[0] <= steps
    newer = CellEvidence(1e-9, -4e-9, 2e-9, measured_at_s=age_s)
    met = CellEvidence(steps, -4.0 * steps, 2.0 * steps).plus(newer, half_life_steps=1e12)
    assert met.steps == pytest.approx(steps_at(table, age_s)[0] + 1e-9, rel=1e-3)
    assert met.step_seconds == pytest.approx(math.exp(-4.0))


def test_in_a_group_of_two_each_step_weighs_the_same() -> None:
    group = Group(2)
    group.hears({"a": measured(0.1, steps=3.0)})
    assert group.evidence.cells[CELL].steps == 3.0
    group.hears({"b": measured(0.2, steps=1.0)})
    assert group.step_seconds() == pytest.approx(0.1 ** (3 / 4) * 0.2 ** (1 / 4), rel=0.02)


def test_what_was_measured_hours_ago_does_not_outvote_what_is_fresh() -> None:
    group, hours_later_s = Group(2), 3.0 * 3600.0
    group.hears({"old": measured(0.2, 1e6, accepted=0.0, rows=1e6)})
    group.hears({"fresh": measured(0.1, 20.0, accepted=0.8, rows=400.0)}, now_s=hours_later_s)
    assert group.step_seconds() == pytest.approx(0.1, rel=0.05)
    assert group.evidence.acceptance.measured()[0] > 0.65


def test_what_everybody_measures_of_late_fades_what_was_measured_before() -> None:
    group = Group(4, half_life_steps=20.0)
    group.hears({name: measured(0.1, steps=100.0) for name in "abcd"})
    for tick in range(10):
        group.hears({name: measured(0.2, steps=10.0) for name in "abc"}, now_s=float(tick))
    assert group.step_seconds() == pytest.approx(0.2, rel=0.01)


def test_what_a_replica_measured_outlives_it_unless_the_others_contradict_it() -> None:
    group = Group(4)
    group.hears({**{name: measured(0.1) for name in "abc"}, "liar": measured(9.0)})
    before = group.step_seconds()
    group.leaves("a", "liar")
    assert set(group.contributions.rows) == {"b", "c"}
    group.hears({"b": measured(0.1)}, now_s=1.0)
    assert group.step_seconds() == pytest.approx(before, rel=0.01)
    assert group.evidence.cells[CELL].steps > 30.0
    assert group.evidence.acceptance.reached[0] > 300.0


def test_a_row_of_one_that_left_is_given_to_the_next_newcomer_empty() -> None:
    group = Group(3)
    group.hears({name: measured(0.1) for name in "abc"})
    group.leaves("b")
    group.hears({"d": measured(0.1, steps=2.0)}, now_s=1.0)
    assert group.contributions.rows["d"] == 2
    assert group.contributions.steps_of("d", CELL, now_s=1.0) == pytest.approx(2.0)
    assert group.contributions.steps_of("b", CELL, now_s=1.0) == 0.0


def test_remembered_evidence_stays_beside_what_is_measured_and_imported_evidence_gives_way_to_it() -> None:
    known = Evidence({CELL: CellEvidence(24.0, 24.0 * math.log(0.2), 24.0)}, AcceptanceEvidence((80.0,), (40.0,)))
    remembered, imported = Group(1, known), Group(1, known)
    remembered.hears({"a": measured(0.1, steps=24.0)})
    imported.hears({"a": measured(0.1, steps=24.0)}, forgotten=(CELL,))
    assert remembered.step_seconds() == pytest.approx(math.sqrt(0.02))
    assert imported.step_seconds() == pytest.approx(0.1)


def test_a_slow_replicas_effect_is_learned_and_a_common_shift_is_nobodys() -> None:
    group = Group(5)
    for tick in range(10):
        group.hears({name: measured(0.125 if name == "slow" else 0.1, 30.0) for name in ("slow", *"abcd")}, float(tick))
    effects = group.effect
    assert effects("slow") == pytest.approx(math.log(1.25), abs=0.03)
    assert all(abs(effects(name)) < 0.03 for name in "abcd")
    assert group.step_seconds() == pytest.approx(0.1, rel=0.01)


def test_where_slow_replicas_measured_off_and_fast_ones_speculation_the_difference_is_no_gain() -> None:
    """Off and K = 2 take equally long here; without the effects K = 2 would seem a quarter faster."""
    group, off, with_drafts = Group(6), Cell(3, 0), Cell(3, 2)
    slow, fast = [f"slow{number}" for number in range(3)], [f"fast{number}" for number in range(3)]
    for tick in range(40):
        group.hears({name: measured(0.125 if name in slow else 0.1, 100.0, cell=CELL) for name in (*slow, *fast)}, float(tick))
    group.hears({name: measured(0.125, cell=off) for name in slow}, 40.0)
    group.hears({name: measured(0.1, cell=with_drafts) for name in fast}, 40.0)
    assert group.step_seconds(off) == pytest.approx(group.step_seconds(with_drafts), rel=0.02)


def test_a_replica_alone_in_its_group_has_no_effect() -> None:
    group = Group(1)
    group.hears({"a": measured(0.1, 1000.0)})
    assert group.effect("a") == 0.0


@given(st.lists(st.tuples(st.floats(1e-5, 600.0), st.floats(0.1, 1e6)), min_size=2, max_size=12))
def test_inv_10_no_report_makes_an_effect_of_more_than_twice(told: list[tuple[float, float]]) -> None:
    group = Group(len(told))
    group.hears({f"r{number}": measured(step_seconds, steps) for number, (step_seconds, steps) in enumerate(told)})
    assert all(abs(effect) <= 2 * MOST_EFFECT for effect in group.contributions.effects)


def test_scatter_is_kept_as_it_was_measured_whoever_is_slower() -> None:
    group = Group(2)
    group.hears({"a": measured(0.1, 100.0, scatter=0.05), "b": measured(0.2, 100.0, scatter=0.05)})
    cell = group.evidence.cells[CELL]
    assert cell.log_seconds_squared / cell.steps - (cell.log_seconds / cell.steps) ** 2 == pytest.approx(0.05**2)


def test_a_liar_among_three_hardly_moves_what_a_step_with_prefill_takes() -> None:
    honest = CellEvidence(50.0, seconds=5.0, rows=200.0, prefill_tokens=25_000.0, draft_tokens=600.0)
    liar = CellEvidence(5000.0, seconds=1e5, rows=20_000.0, prefill_tokens=5000.0)
    group = Group(3)
    told = {"a": honest, "b": honest, "c": liar}
    group.hears({name: NewEvidence({WITH_PREFILL: one}) for name, one in told.items()})
    found = group.evidence.mixed_cells[WITH_PREFILL]
    assert found.seconds / found.steps == pytest.approx(0.1, rel=0.01)
    assert found.prefill_tokens / found.steps == pytest.approx(500.0)


def test_inv_10_a_replica_that_three_contradict_in_one_cell_is_believed_in_none() -> None:
    group, other = Group(4), Cell(5, 5)
    group.hears({**{name: measured(0.1) for name in "abc"}, "liar": measured(0.01)})
    assert group.distrusted() == ["liar"]
    group.hears({"liar": measured(0.01, 50.0, accepted=1.0, cell=other)}, now_s=1.0)
    assert other not in group.evidence.cells
    assert group.evidence.acceptance.measured() == pytest.approx((0.5,))


def test_a_replica_whose_one_step_stalled_is_not_distrusted_and_one_that_mended_is_believed_again() -> None:
    group = Group(4)
    group.hears({**{name: measured(0.1) for name in "abc"}, "d": measured(3.0, steps=1.0)})
    assert group.distrusted() == []
    group.hears({"d": measured(3.0, steps=5.0)}, now_s=1.0)
    assert group.distrusted() == ["d"]
    group.hears({"d": measured(0.1, steps=60.0)}, now_s=2.0)
    assert group.distrusted() == []


def test_in_a_group_of_two_nobody_is_distrusted() -> None:
    group = Group(2)
    group.hears({"a": measured(0.1), "b": measured(9.0)})
    assert group.distrusted() == []


def test_what_a_distrusted_replica_said_of_steps_with_prefill_leaves_with_it() -> None:
    mixed = CellEvidence(50.0, seconds=5.0, rows=200.0, prefill_tokens=25_000.0, draft_tokens=600.0)
    group = Group(4)
    group.hears({**{name: measured(0.1) for name in "abc"}, "liar": measured(0.01)})
    group.hears({"liar": NewEvidence({WITH_PREFILL: mixed})}, now_s=1.0)
    group.leaves("liar")
    group.hears({"a": NewEvidence({WITH_PREFILL: mixed})}, now_s=2.0)
    assert group.evidence.mixed_cells[WITH_PREFILL].steps == pytest.approx(50.0)


sums = st.builds(CellEvidence, *(st.floats(1.0, 1e6),) * 9, measured_at_s=st.just(0.0))


@given(told=st.lists(sums, min_size=1, max_size=6), prefill=st.booleans())
def test_a_row_of_a_table_fades_as_the_record_does_and_with_prefill_by_steps_alone(told: list[CellEvidence], prefill: bool) -> None:
    cell = Cell(2, 3, prefill)
    group, record = Group(1, half_life_steps=500.0), None
    now_s = 0.0
    for new in told:
        now_s += 1000.0 if prefill else 0.0
        heard = NewEvidence().plus({cell: new}, AcceptanceEvidence(), 500.0, now_s)
        group.contributions, changed = group.contributions.plus({"a": heard}, Evidence(), (), 500.0, now_s)
        record = heard.cells[cell] if record is None else record.plus(heard.cells[cell], 500.0)
        assert changed == {cell}
    (row,) = group.contributions.cells[cell][1:]
    assert tuple(row) == pytest.approx(record)
    assert group.contributions.steps_of("a", cell, now_s) == pytest.approx(record.steps if record else 0.0)


def test_steps_with_prefill_are_another_cell_of_the_same_batch_and_k() -> None:
    group = Group(1)
    with_prefill = CellEvidence(50.0, seconds=5.0, rows=200.0, prefill_tokens=25_000.0)
    group.hears({"a": NewEvidence({**measured(0.1).cells, WITH_PREFILL: with_prefill})})
    assert group.evidence.cells.keys() == {CELL}
    assert group.evidence.mixed_cells.keys() == {WITH_PREFILL}
    assert group.evidence.of(CELL) == group.evidence.cells[CELL]
    assert group.evidence.of(WITH_PREFILL) == pytest.approx(with_prefill)
    assert group.evidence.of(Cell(9, 9)) is None
