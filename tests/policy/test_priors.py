"""What another fleet learned: it stands until somebody here measures, weighs little, and cannot be what no engine can be."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.policy.decision.fleet import decide
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.catch_up import CatchUpEvidence, NewRestarts
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS
from nightjar.policy.evidence.goodput import GoodputModel
from nightjar.policy.exploration import LONGEST_PAUSE_S
from nightjar.policy.intake import observe
from nightjar.policy.learned import LearnedCell, LearnedGroup, LearnedMixedCell, LearnedTables, measurable
from nightjar.policy.priors import MAX_SEED_GROUPS, MOST_SEED_ROWS, MOST_SEED_STEPS, exported, seeded
from nightjar.policy.restarts.leases import GroupRestarts
from nightjar.policy.state import FleetState, GroupState, learned, with_learned
from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, batch_bucket, bucket_range
from tests.policy.engines import ACCEPTANCE, AUTO, KEY, MAX_NUM_SEQS, Fleet, Replica, best_k, step_seconds, table

KS = (0, 1, 3, 5)
NOW_S = 1000.0


def cell_of(bucket: int, k: int, *, log_error: float = 0.0, steps: float = 200.0) -> CellEvidence:
    """A cell as the measured engine gives it, a share off."""
    rows = math.sqrt(math.prod(bucket_range(bucket, MAX_NUM_SEQS)))
    log_seconds = math.log(step_seconds(round(rows), k)) + log_error
    return CellEvidence(steps, steps * log_seconds, steps * rows, 100.0 * steps * rows, measured_at_s=NOW_S)


def seed_of(cells: dict[Cell, CellEvidence], rows: float = 2000.0) -> LearnedGroup:
    """What a fleet exports that knows these cells."""
    acceptance = AcceptanceEvidence((rows,) * 5, tuple(rows * share for share in ACCEPTANCE)).at(NOW_S)
    group = GroupState(KEY, Evidence(cells, acceptance), planner="fleet", decided_at_s=NOW_S)
    (seed,) = exported(FleetState(groups={KEY.group_id: group}), NOW_S)
    return seed


def everything(*, log_error: float = 0.0) -> dict[Cell, CellEvidence]:
    """Every cell of the measured engine."""
    return {
        Cell(bucket, k): cell_of(bucket, k, log_error=log_error) for bucket in range(batch_bucket(MAX_NUM_SEQS) + 1) for k in KS
    }


def warm_fleet(*replicas: Replica, seed: LearnedGroup | None = None) -> Fleet:
    """Replicas under a policy that starts with a seed."""
    return Fleet(list(replicas), state=seeded(FleetState(), [seed or seed_of(everything())]))


def known(fleet: Fleet) -> GroupState:
    (group,) = fleet.state.groups.values()
    return group


def test_a_replica_that_joins_an_imported_group_runs_its_plan_before_its_first_request_and_measures_nothing_known() -> None:
    fleet = warm_fleet(Replica("a", 0))
    fleet.run(1.0)
    assert [fleet.planned(batch) for batch in (1, 16, 64, 256)] == [best_k(batch) for batch in (1, 16, 64, 256)]
    assert table(fleet.decisions["a"]).rows == known(fleet).plan.rows  # type: ignore[union-attr]
    for batch in (1, 16):
        fleet.replicas[0].batch = batch
        fleet.run(5.0)
        assert fleet.replicas[0].k == best_k(batch)
    assert not fleet.dealt


def best_goodput_over(batch: int, k: int) -> float:
    """What the best K gives there over what this one does."""
    best, other = ((1 + sum(ACCEPTANCE[:k])) / step_seconds(batch, k) for k in (best_k(batch), k))
    return best / other


def test_what_was_imported_as_measured_rests_for_two_minutes_however_nearly_two_k_tie() -> None:
    tie = math.log(best_goodput_over(64, 3))
    seed = seed_of(
        {cell: cell_of(*cell[:2], steps=8.0, log_error=-tie if cell.num_speculative_tokens == 3 else 0.0) for cell in everything()}
    )
    fleet = warm_fleet(Replica("a", 64), seed=seed)
    fleet.run(LONGEST_PAUSE_S - 1.0)
    assert not fleet.dealt
    fleet.run(LONGEST_PAUSE_S)
    assert {Cell(batch_bucket(batch), k) for _, batch, k in fleet.dealt.values()} <= everything().keys()
    assert fleet.dealt, "then it is measured like any other"


def test_a_cell_that_was_hardly_seen_elsewhere_is_measured_here_at_once() -> None:
    hardly = {cell: cell_of(*cell[:2], steps=2.0 if cell.num_speculative_tokens == 3 else 200.0) for cell in everything()}
    fleet = warm_fleet(Replica("a", 64), seed=seed_of(hardly))
    fleet.run(20.0)
    assert {k for _, _, k in fleet.dealt.values()} == {3}


def test_what_was_measured_here_wins_over_what_is_imported() -> None:
    fleet = Fleet([Replica("a"), Replica("b")])
    fleet.run(8.0)
    before = known(fleet)
    lie = {cell: cell_of(*cell[:2], log_error=1.0 + cell.num_speculative_tokens) for cell in everything()}
    fleet.state = seeded(fleet.state, [seed_of(lie)])
    for replica in fleet.replicas:
        replica.batch = 0
    fleet.run(0.5)
    after = known(fleet)
    assert after.evidence.cells.keys() > before.evidence.cells.keys()
    for cell, mine in before.evidence.cells.items():
        assert after.evidence.cells[cell].step_seconds == pytest.approx(mine.step_seconds, rel=0.05)
        assert cell not in after.imported.cells
    assert after.evidence.acceptance.reached[0] > MOST_SEED_ROWS


def test_an_imported_cell_weighs_three_measurements_at_most_and_next_to_nothing_once_it_was_measured() -> None:
    fleet = warm_fleet(Replica("a", 16), seed=seed_of(everything(log_error=2.0)))
    fleet.replicas[0].batch = 0
    fleet.run(0.5)
    assert {cell.steps for cell in known(fleet).evidence.cells.values()} == {MOST_SEED_STEPS}
    fleet.replicas[0].batch = 16
    fleet.run(1.0)
    group = known(fleet)
    measured = {cell for cell in group.evidence.cells if cell not in group.imported.cells}
    assert measured
    for cell in measured:
        true = step_seconds(16, cell.num_speculative_tokens)
        assert group.evidence.cells[cell].step_seconds == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("batch", [16, 256])
def test_a_lie_that_makes_a_bad_k_shine_is_outvoted_within_seconds(batch: int) -> None:
    worst = min(KS, key=lambda k: (1 + sum(ACCEPTANCE[:k])) / step_seconds(batch, k))
    bucket = batch_bucket(batch)
    lie = {**everything(), Cell(bucket, worst): cell_of(bucket, worst, log_error=-1.5)}
    fleet = warm_fleet(Replica("a", batch), Replica("b", batch), seed=seed_of(lie))
    fleet.run(8.0)
    assert fleet.planned(batch) == best_k(batch)


def test_a_lie_that_makes_off_look_slow_is_found_out_when_off_is_measured_again() -> None:
    slow = math.log(10.0)
    lie = {cell: cell_of(*cell[:2], log_error=slow if cell.num_speculative_tokens else slow + 0.4) for cell in everything()}
    fleet = warm_fleet(Replica("a", 256, speed=0.1), seed=seed_of(lie))
    fleet.run(60.0, period_s=2.0)
    assert fleet.planned(256) > 0
    fleet.run(800.0, period_s=2.0)
    assert fleet.planned(256) == 0


def test_a_lie_that_makes_every_k_look_bad_is_found_out_when_the_best_is_measured_again() -> None:
    slow = math.log(10.0)
    lie = {cell: cell_of(*cell[:2], log_error=slow + 0.6 if cell.num_speculative_tokens else slow) for cell in everything()}
    fleet = warm_fleet(Replica("a", 0, speed=0.1), seed=seed_of(lie))
    fleet.run(2.0)
    fleet.replicas[0].batch = 16
    fleet.run(60.0, period_s=2.0)
    assert fleet.planned(16) == 0
    fleet.run(800.0, period_s=2.0)
    assert fleet.planned(16) == best_k(16)


def test_a_seed_is_matched_by_the_exact_key_and_waits_otherwise() -> None:
    other = KEY.model_copy(update={"engine_version": "0.33.0"})
    seed = LearnedGroup.model_validate({**seed_of(everything()).model_dump(), "key": other})
    fleet = warm_fleet(Replica("a", 0), seed=seed)
    fleet.run(5.0)
    assert not known(fleet).evidence.cells
    assert list(fleet.state.waiting) == [other.group_id]
    fleet.observe(Replica("b", 0).report(group=other))
    fleet.decide()
    assert fleet.state.groups[other.group_id].imported.cells
    assert not fleet.state.waiting


def test_a_seed_does_not_age_while_it_waits() -> None:
    fleet = warm_fleet()
    fleet.now_s = 1e6
    fleet.decide()
    fleet.observe(Replica("a", 0).report())
    fleet.decide()
    assert {cell.measured_at_s for cell in known(fleet).evidence.cells.values()} == {1e6}


def test_the_number_of_waiting_groups_is_bounded_and_the_latest_are_kept() -> None:
    state = FleetState()
    one = seed_of({Cell(0, 0): cell_of(0, 0)})
    keys = [KEY.model_copy(update={"target": f"model-{number}"}) for number in range(MAX_SEED_GROUPS + 5)]
    for key in keys:
        state = seeded(state, [one.model_copy(update={"key": key})])
    assert list(state.waiting) == [key.group_id for key in keys[5:]]


def test_a_newer_seed_replaces_what_an_older_one_planted_and_the_same_one_twice_adds_nothing() -> None:
    fleet = warm_fleet(Replica("a", 0), seed=seed_of(everything(log_error=1.0)))
    fleet.decide()
    fleet.run(0.5)
    right = seed_of(everything())
    fleet.state = seeded(fleet.state, [right])
    fleet.run(0.5)
    once = exported(fleet.state, fleet.now_s)
    fleet.state = seeded(fleet.state, [right])
    fleet.run(0.5)
    assert without_ages(exported(fleet.state, fleet.now_s)) == without_ages(once)
    cell = known(fleet).evidence.cells[Cell(0, 0)]
    assert cell.steps == MOST_SEED_STEPS
    assert cell.step_seconds == pytest.approx(step_seconds(1, 0))
    assert known(fleet).evidence.acceptance.reached[0] == MOST_SEED_ROWS


def test_the_imported_price_of_catching_up_goes_when_a_replica_has_caught_up_here() -> None:
    dear = CatchUpEvidence(100.0, 6400.0, 409_600.0, 30_000.0, 1_920_000.0)
    group = GroupState(KEY, Evidence(everything()), restarts=GroupRestarts(catch_up=dear), planner="fleet", decided_at_s=NOW_S)
    (seed,) = exported(FleetState(groups={KEY.group_id: group}), NOW_S)
    fleet = warm_fleet(Replica("a", 0), seed=seed)
    fleet.run(0.5)
    assert known(fleet).restarts.catch_up == dear.times(MOST_SEED_STEPS / 100.0)
    cheap = CatchUpEvidence(4.0, 256.0, 16_384.0, 0.04, 2.56)
    caught_up = replace(fleet.state.replicas["a"], new_restarts=NewRestarts(cheap))
    fleet.state = replace(fleet.state, replicas=fleet.state.replicas.with_item("a", caught_up))
    fleet.decide()
    assert known(fleet).restarts.catch_up == cheap


def test_status_says_how_much_of_a_group_is_imported_until_it_is_measured() -> None:
    fleet = warm_fleet(Replica("a", 0))
    fleet.run(0.5)
    (group,), _ = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert group.reason.endswith("; 64 of 64 cells imported, not measured here")
    fleet.replicas[0].batch = 1
    fleet.run(2.0)
    (group,), _ = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert "63 of 64 cells imported" in group.reason


def test_a_full_fleet_exports_its_best_known_groups_within_the_bounds() -> None:
    crowd = {}
    for number in range(MAX_SEED_GROUPS + 10):
        key = KEY.model_copy(update={"target": f"model-{number}"})
        crowd[key.group_id] = GroupState(key, Evidence({Cell(0, 0): cell_of(0, 0, steps=100.0 + number)}))
    seeds = exported(FleetState(groups=crowd), NOW_S)
    assert len(seeds) == MAX_SEED_GROUPS
    assert {seed.key.target for seed in seeds}.isdisjoint({f"model-{number}" for number in range(10)})


measured_cells = st.dictionaries(
    st.integers(0, batch_bucket(MAX_NUM_SEQS)),
    st.tuples(*(st.tuples(st.floats(-0.05, 0.05), st.floats(6.0, 5000.0)) for _ in KS)),
    min_size=1,
)
"""By bucket each K's error in log step time, and its clean steps."""
DIFFERENCE = 0.03
"""Share of predicted goodput."""


@settings(deadline=None, max_examples=60)
@given(measured=measured_cells, rows=st.floats(20.0, 5000.0))
def test_an_exported_group_planted_elsewhere_plans_as_its_exporter_does_and_exports_the_same_cells(
    measured: dict[int, tuple[tuple[float, float], ...]], rows: float
) -> None:
    evidence = {
        Cell(bucket, k): cell_of(bucket, k, log_error=error, steps=steps)
        for bucket, cells in measured.items()
        for k, (error, steps) in zip(KS, cells, strict=True)
    }
    acceptance = AcceptanceEvidence((rows,) * 5, tuple(rows * share for share in ACCEPTANCE)).at(NOW_S)
    state = joined(FleetState(groups={KEY.group_id: GroupState(KEY, Evidence(evidence, acceptance))}))
    seeds = exported(state, NOW_S)
    exporter = decided(state, NOW_S + 1.0)
    importer = decided(joined(seeded(FleetState(), seeds)), NOW_S + 1.0)
    mine, theirs = group_of(exporter), group_of(importer)

    assert theirs.evidence.cells.keys() == mine.evidence.cells.keys()
    for cell, before in mine.evidence.cells.items():
        after = theirs.evidence.cells[cell]
        assert after.steps == min(before.steps, MOST_SEED_STEPS)
        assert after.step_seconds == pytest.approx(before.step_seconds, rel=1e-9)
        assert after.rows / after.steps == pytest.approx(before.rows / before.steps, rel=1e-9)
    again = exported(importer, NOW_S + 1.0)
    assert without_ages(exported(decided(joined(seeded(FleetState(), again)), NOW_S + 1.0), NOW_S + 1.0)) == without_ages(again)

    assert mine.estimate is not None
    assert theirs.estimate is not None
    assert mine.plan is not None
    assert theirs.plan is not None
    models = (mine.estimate.goodput_model, theirs.estimate.goodput_model)
    for bucket in measured:
        first = FIRST_BATCH_SIZES[bucket]
        here, there = mine.plan.num_speculative_tokens(first), theirs.plan.num_speculative_tokens(first)
        assert here == there or any(are_alike(model, bucket, here, there) for model in models)


def joined(state: FleetState) -> FleetState:
    """With an idle replica, after a first decision."""
    heard, ignored = observe(state, Replica("a", 0).report(), NOW_S, AUTO)
    assert not ignored
    return decided(heard, NOW_S)


def decided(state: FleetState, now_s: float) -> FleetState:
    return decide(state, AUTO, (), now_s, random.Random(0))[1]


def group_of(state: FleetState) -> GroupState:
    return state.groups[KEY.group_id]


def are_alike(model: GoodputModel, bucket: int, one: int, other: int) -> bool:
    """Whether this outlook, sharper or blurred by the import, leaves it open which of the two K a plan gives there.

    Within DIFFERENCE, or within its doubt; or one of them is off, which stays in force while the favourite is in doubt.
    """
    gain, deviation = (each[bucket] for each in model.gain(np.full(len(model.rows), model.ks.index(one))))
    over_off, over_off_deviation = (each[bucket] for each in model.gain(np.zeros(len(model.rows), dtype=np.int64)))
    rival, favourite = model.ks.index(other), int(np.argmax(over_off))
    stays_off = 0 in {one, other} and over_off[favourite] <= DOUBT_DEVIATIONS * over_off_deviation[favourite]
    return bool(stays_off or abs(gain[rival]) <= max(DIFFERENCE, DOUBT_DEVIATIONS * deviation[rival]))


def without_ages(seeds: tuple[LearnedGroup, ...]) -> list[LearnedGroup]:
    return [seed.model_copy(update={"cells": tuple(cell._replace(age_s=None) for cell in seed.cells)}) for seed in seeds]


@settings(max_examples=10, deadline=None)
@given(luck=st.integers(0, 2**32))
def test_whatever_an_engine_was_measured_at_can_be_exported_and_taken_in(luck: int) -> None:
    rng = random.Random(luck)
    fleet = Fleet([Replica("a", rng.choice((1, 7, 256)), speed=rng.uniform(0.5, 2.0))], rng=rng)
    fleet.run(1.0)
    for seed in exported(fleet.state, fleet.now_s):
        assert measurable(LearnedGroup.from_wire(seed.to_wire())) == seed
        assert len(seed.cells) == len(known(fleet).evidence.cells)


GOOD = LearnedCell(
    batch_bucket=3, num_speculative_tokens=3, steps=10.0, log_step_seconds=-40.0, decode_rows=45.0, context_tokens=900.0
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_speculative_tokens": 6}, "cell (bucket 3, K=6): K above the group's 5"),
        ({"batch_bucket": 16}, "cell (bucket 16, K=3): a bucket above 15, the last of max_num_seqs 256"),
        ({"log_step_seconds": -200.0}, "e^-20 s a step, allowed are 1e-05 to 600 s"),
        ({"log_step_seconds": 70.0}, "e^7 s a step, allowed are 1e-05 to 600 s"),
        ({"decode_rows": 39.0}, "3.9 rows a step, allowed are 4 to 5"),
        ({"decode_rows": 51.0}, "5.1 rows a step, allowed are 4 to 5"),
        ({"context_tokens": 1e12}, "1e+12 context tokens, allowed are 0 to"),
        ({"generated_tokens": 1.0}, "1 generated tokens, allowed are 0 to 0: they are kept under adaptive verification alone"),
        ({"steps": 0.0}, "greater than 0"),
        ({"steps": math.nan}, "finite number"),
        ({"steps": math.inf}, "finite number"),
        ({"log_step_seconds": -math.inf}, "finite number"),
        ({"decode_rows": -1.0}, "greater than or equal to 0"),
    ],
)
def test_a_cell_that_no_engine_can_have_is_refused_with_the_value_and_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        measurable(LearnedGroup.model_validate({"key": KEY.model_dump(), "cells": [{**GOOD._asdict(), **changes}]}))


def test_a_cell_under_adaptive_verification_has_as_many_tokens_as_its_rows_can_emit() -> None:
    key = KEY.model_copy(update={"adaptive_verification": True}).model_dump()
    group = LearnedGroup.model_validate({"key": key, "cells": [{**GOOD._asdict(), "generated_tokens": 180.0}]})
    assert measurable(group) == group
    with pytest.raises(ValueError, match=re.escape("180.1 generated tokens, allowed are 0 to 180")):
        measurable(LearnedGroup.model_validate({"key": key, "cells": [{**GOOD._asdict(), "generated_tokens": 180.1}]}))


MIXED = LearnedMixedCell(3, 3, steps=10.0, seconds=0.5, decode_rows=45.0, prefill_tokens=900.0, draft_tokens=100.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_speculative_tokens": 6}, "cell (bucket 3, K=6, with prefill): K above the group's 5"),
        ({"decode_rows": 39.0}, "3.9 rows a step, allowed are 4 to 5"),
        ({"seconds": 1e-6}, "1e-07 s a step, allowed are 1e-05 to 600 s"),
        ({"seconds": 7000.0}, "700 s a step, allowed are 1e-05 to 600 s"),
        ({"prefill_tokens": 5.0}, "0.5 prompt tokens a step, allowed are 1 to"),
        ({"prefill_tokens": 1e12}, "1e+11 prompt tokens a step, allowed are 1 to"),
        ({"draft_tokens": 226.0}, "226 drafts verified, allowed are 0 to 225"),
        ({"seconds": math.nan}, "finite number"),
    ],
)
def test_a_cell_with_prefill_that_no_engine_can_have_is_refused_likewise(changes: dict[str, Any], said: str) -> None:
    cells = [{**MIXED._asdict(), **changes}]
    with pytest.raises(ValueError, match=re.escape(said)):
        measurable(LearnedGroup.model_validate({"key": KEY.model_dump(), "mixed_cells": cells}))


def test_what_steps_with_prefill_cost_is_stored_exported_and_taken_in_with_the_rest() -> None:
    quick = CellEvidence(96.0, rows=96.0, seconds=9.6, prefill_tokens=9600.0)
    mixed = {MIXED.cell: MIXED.evidence(), Cell(0, 0, prefill=True): quick}
    group = GroupState(KEY, Evidence({Cell(0, 0): cell_of(0, 0)}, mixed_cells=mixed))
    state = joined(FleetState(groups={KEY.group_id: group}))
    tables = LearnedTables.from_wire(learned(state).to_wire())
    assert group_of(with_learned(FleetState(), tables)).evidence.mixed_cells == mixed, "after a restart of the policy"
    seeds = tuple(measurable(LearnedGroup.from_wire(seed.to_wire())) for seed in exported(state, NOW_S))
    taken = group_of(decided(joined(seeded(FleetState(), seeds)), NOW_S + 1.0))
    assert taken.evidence.mixed_cells[MIXED.cell] == MIXED.evidence()
    weighed = taken.evidence.mixed_cells[Cell(0, 0, prefill=True)]
    assert weighed.steps == MOST_SEED_STEPS
    assert weighed.seconds / weighed.steps == pytest.approx(0.1)
    assert taken.imported.clean_cells == 1, "status counts what is measured, which those are not"


def test_steps_with_prefill_that_were_counted_here_win_over_imported_ones() -> None:
    here = {MIXED.cell: MIXED._replace(seconds=0.9).evidence()}
    state = joined(FleetState(groups={KEY.group_id: GroupState(KEY, Evidence({Cell(0, 0): cell_of(0, 0)}, mixed_cells=here))}))
    taken = group_of(decided(seeded(state, (LearnedGroup(key=KEY, mixed_cells=(MIXED,)),)), NOW_S + 1.0))
    assert taken.evidence.mixed_cells == here


def test_a_release_that_knows_no_cells_with_prefill_takes_none_for_a_clean_one() -> None:
    plain = LearnedGroup(key=KEY, cells=(GOOD,), mixed_cells=(MIXED,)).model_dump(mode="json")
    assert plain["cells"]["rows"] == [[3, 3, 10.0, -40.0, 45.0, 900.0]]
    assert LearnedGroup.model_validate({name: value for name, value in plain.items() if name != "mixed_cells"}).cells == (GOOD,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cells": [GOOD._asdict()] * 2}, "cell (bucket 3, K=3): given twice"),
        ({"acceptance": {"reached": [10.0], "accepted": [11.0]}}, "position 1: 11 rows accepted, allowed are 0 to 10"),
        ({"acceptance": {"reached": [10.0] * 6, "accepted": [1.0] * 6}}, "acceptance of 6 positions, allowed are at most 5"),
        ({"catch_up": {"steps": 2.0, "tokens": 1.0, "tokens_squared": 1.0}}, "catch_up: 1 tokens and 1 squared ones in 2 steps"),
        ({"catch_up": {"steps": 1.0, "tokens": 8.0, "tokens_squared": 64.0, "seconds": 700.0}}, "allowed are at most 600 s a step"),
        ({"plan": [{"first_batch_size": 1, "last_batch_size": 4, "num_speculative_tokens": 9}]}, "plan: K=9, allowed are 0 to 5"),
        (
            {"plan": [{"first_batch_size": 1, "last_batch_size": 4, "num_speculative_tokens": 1}] * 2},
            "rows must ascend without overlap",
        ),
    ],
)
def test_a_group_that_contradicts_itself_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        measurable(LearnedGroup.model_validate({"key": KEY.model_dump(), **changes}))


def test_imported_evidence_outlives_a_restart_as_the_groups_own() -> None:
    fleet = warm_fleet(Replica("a", 0))
    fleet.run(0.5)
    (stored,) = learned(fleet.state).groups
    assert {cell.steps for cell in stored.cells} == {MOST_SEED_STEPS}


def test_what_a_lying_replica_of_a_small_group_claimed_is_left_out_of_the_export() -> None:
    absurd = CatchUpEvidence(1.0, 64.0, 4096.0, 1e8, 6.4e9)
    cells = {Cell(0, 0): cell_of(0, 0), Cell(0, 3): cell_of(0, 3, log_error=-9.0), Cell(1, 9): cell_of(1, 0)}
    group = GroupState(KEY, Evidence(cells), restarts=GroupRestarts(catch_up=absurd))
    (seed,) = exported(FleetState(groups={KEY.group_id: group}), NOW_S)
    assert [cell.cell for cell in seed.cells] == [Cell(0, 0)]
    assert seed.catch_up.steps == 0.0
