"""How measurements are dealt out: to whom, how long, and what may be lost by it (INV-3)."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.contributions import Contributions, NewEvidence
from nightjar.policy.evidence.goodput import HORIZON_S
from nightjar.policy.exploration import (
    COLD_START_TOKENS_PER_ROW,
    LEFT_BUCKET_S,
    LONGEST_PAUSE_S,
    OUTPUT_SHARE,
    PATIENT_SHARE,
    Allowance,
    Exploration,
    Explorer,
    Rounds,
    deal,
)
from nightjar.policy.planners.base import GroupView
from nightjar.policy.planners.calibration import Measurement
from nightjar.policy.wire.settings import DELIVERY_S
from tests.policy.engines import AUTO, KEY

BUCKET = 3
"""Batches 4 and 5."""
CELL = Cell(BUCKET, 3)
RICH = Allowance(tokens=1e6, most_rows=1e4, patient_tokens=1e6)
KNOWN = Evidence({Cell(BUCKET, 0): CellEvidence(100.0, -450.0, 400.0), Cell(BUCKET, 1): CellEvidence(100.0, -440.0, 400.0)})


class Desk:
    """A group at whose desk measurements are dealt out, tick after tick."""

    def __init__(self, replicas: int, allowance: Allowance = RICH) -> None:
        self.explorers = {f"r{number}": Explorer(4, 4, 0) for number in range(replicas)}
        self.contributions = Contributions()
        self.exploration = Exploration(allowance=allowance)
        self.measured_at_s: float | None = None
        self.next_id = 1

    def tick(self, now_s: float, *wanted: Measurement) -> Exploration:
        cells = dict(KNOWN.cells)
        if self.measured_at_s is not None:
            cells[CELL] = CellEvidence(12.0, -50.0, 48.0, measured_at_s=self.measured_at_s)
        view = GroupView(KEY, AUTO, Evidence(cells), now_s=now_s)
        by_bucket: dict[int, list[Measurement]] = {}
        for one in wanted or (measurement(),):
            by_bucket.setdefault(one.cell.batch_bucket, []).append(one)
        rng = random.Random(7)
        self.exploration = deal(view, by_bucket, self.explorers, self.contributions, self.exploration, self.next_id, rng)
        self.next_id = max([self.next_id, *(held.segment.segment_id + 1 for held in self.exploration.segments)])
        return self.exploration

    @property
    def asked(self) -> set[str]:
        return {held.replica_id for held in self.exploration.segments}

    def moves(self, replica_id: str, batch: int, before: int) -> None:
        self.explorers[replica_id] = replace(self.explorers[replica_id], decode_batch_size=batch, decode_batch_size_before=before)


def measurement(improvement: float = 0.1, cost_tokens: float = 10.0, gain_tokens_per_s: float = 100.0) -> Measurement:
    return Measurement(CELL, improvement, gain_tokens_per_s, cost_tokens)


@pytest.mark.parametrize("replicas", [1, 5])
def test_one_replica_measures_a_cell_in_full_whatever_the_size_of_its_group(replicas: int) -> None:
    (held,) = Desk(replicas).tick(0.0).segments
    assert held.segment.clean_steps == AUTO.calibration_clean_steps


def test_a_replica_that_has_only_just_come_into_a_bucket_is_not_asked_there() -> None:
    desk = Desk(2)
    desk.moves("r0", 4, before=9)
    desk.tick(0.0)
    assert desk.asked == {"r1"}


def test_a_batch_that_flickers_keeps_its_segment_and_one_that_left_loses_it() -> None:
    desk = Desk(1)
    desk.tick(0.0)
    desk.moves("r0", 7, before=4)
    assert desk.tick(LEFT_BUCKET_S).segments
    desk.moves("r0", 4, before=7)
    assert desk.tick(LEFT_BUCKET_S + 1.0).segments
    desk.moves("r0", 7, before=4)
    assert desk.tick(2 * LEFT_BUCKET_S + 1.0).segments
    assert not desk.tick(2 * LEFT_BUCKET_S + 2.0).segments


def test_another_is_asked_where_the_first_has_left_the_bucket() -> None:
    desk = Desk(4)
    (gone,) = {held.replica_id for held in desk.tick(0.0).segments}
    desk.moves(gone, 9, before=9)
    desk.tick(DELIVERY_S)
    assert len(desk.asked - {gone}) == 1


def test_a_cell_is_asked_of_one_that_has_not_measured_it() -> None:
    """A second opinion is worth more than more of the first: who is wrong shows from three on (INV-10)."""
    desk = Desk(replicas=5)
    told = {name: NewEvidence({CELL: CellEvidence(6.0, -25.0, 24.0)}) for name in ("r0", "r1", "r2", "r3")}
    desk.contributions, _ = desk.contributions.plus(told, KNOWN, (), 1e12, 0.0)
    desk.tick(0.0)
    assert desk.asked == {"r4"}


def pauses_of(replicas: int) -> list[float]:
    """Between two times that anybody is asked for a cell in 400 s, of which each round from the third on is heard of."""
    desk, asked_at_s = Desk(replicas), []
    for tick in range(400):
        now_s = float(tick)
        known = {held.segment.segment_id for held in desk.exploration.segments}
        desk.tick(now_s)
        for held in desk.exploration.segments:
            if held.segment.segment_id not in known:
                asked_at_s.append(now_s)
                desk.explorers[held.replica_id] = replace(
                    desk.explorers[held.replica_id], finished_segment_id=held.segment.segment_id
                )
                if len(asked_at_s) > 2:
                    desk.measured_at_s = now_s + 0.5
    return [later - earlier for earlier, later in pairwise(asked_at_s)]


def test_a_round_that_brought_nothing_is_repeated_soon_and_one_that_was_heard_pauses_longer_each_time() -> None:
    pauses = pauses_of(replicas=1)
    assert pauses[:2] == [DELIVERY_S, DELIVERY_S]
    assert pauses[2:] == sorted(pauses[2:])
    assert pauses[-1] == LONGEST_PAUSE_S


def test_of_more_replicas_each_pauses_as_long_so_that_the_group_looks_again_sooner() -> None:
    assert max(pauses_of(replicas=4)) == LONGEST_PAUSE_S / 4
    assert max(pauses_of(replicas=100)) == DELIVERY_S


def test_a_measurement_that_does_not_pay_back_soon_is_not_paid_from_the_cold_starts_grant() -> None:
    granted = Allowance(tokens=1000.0, most_rows=10.0, patient_tokens=0.0)
    slow = measurement(cost_tokens=100.0, gain_tokens_per_s=99.0 / HORIZON_S)
    quick = measurement(cost_tokens=100.0, gain_tokens_per_s=101.0 / HORIZON_S)
    assert not Desk(1, granted).tick(0.0, slow).segments
    assert Desk(1, granted).tick(0.0, quick).segments
    assert Desk(1, replace(granted, patient_tokens=100.0)).tick(0.0, slow).segments


def test_what_the_allowance_does_not_reach_for_is_saved_for_and_nothing_lesser_is_bought_instead() -> None:
    desk = Desk(1, Allowance(tokens=50.0, most_rows=10.0, patient_tokens=50.0))
    dear = Measurement(Cell(BUCKET, 3), 0.5, 1e6, 60.0)
    cheap = Measurement(Cell(BUCKET, 5), 0.01, 1e6, 20.0)
    assert not desk.tick(0.0, dear, cheap).segments


@given(
    ticks=st.lists(st.tuples(st.floats(0.0, 1e4), st.floats(1.0, 256.0), st.floats(0.0, 500.0), st.booleans()), max_size=60),
)
def test_inv_3_exploration_never_loses_more_than_its_share_of_the_output_and_one_cold_start(
    ticks: list[tuple[float, float, float, bool]],
) -> None:
    allowance, spent, waited, generated, most_rows = Allowance(), 0.0, 0.0, 0.0, 0.0
    for tokens, rows, cost, can_wait in ticks:
        allowance = allowance.earn(tokens, rows)
        generated, most_rows = generated + tokens, max(most_rows, rows)
        if allowance.reaches_for(cost, can_wait):
            allowance, spent, waited = allowance.spend(cost, can_wait), spent + cost, waited + cost * can_wait
        assert spent <= OUTPUT_SHARE * generated + COLD_START_TOKENS_PER_ROW * most_rows + 1e-6
        assert waited <= PATIENT_SHARE * generated + 1e-6
        assert allowance.tokens <= allowance.most_tokens


@given(st.integers(1, 12), st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(0, 2**16))
def test_no_replica_is_asked_twice_for_a_cell_and_none_has_its_hands_too_full(replicas: int, batches: list[int], seed: int) -> None:
    desk = Desk(replicas)
    rng = random.Random(seed)
    for tick in range(20):
        for name in desk.explorers:
            batch = batches[rng.randrange(len(batches))]
            desk.moves(name, batch, before=rng.choice((batch, desk.explorers[name].decode_batch_size)))
        wanted = [Measurement(Cell(bucket, k), 0.1, 1e3, 1.0) for bucket in (0, 1, 2, 3, 4) for k in (0, 1, 3, 5)]
        dealt = desk.tick(float(tick), *wanted).segments
        pairs = [(held.replica_id, held.cell) for held in dealt]
        assert len(pairs) == len(set(pairs))
        assert all(sum(held.replica_id == name for held in dealt) <= 2 for name in desk.explorers)


def test_rounds_are_bounded_by_the_cells_there_are() -> None:
    """INV-8: what is remembered of measurements is O(cells) a group."""
    desk = Desk(2)
    for tick in range(200):
        desk.tick(float(tick))
    rounds: Rounds = desk.exploration.rounds
    assert set(rounds) == {CELL}


@pytest.mark.parametrize("batch", [0, 9])
def test_a_replica_that_idles_or_runs_another_batch_is_not_asked(batch: int) -> None:
    desk = Desk(1)
    desk.moves("r0", batch, before=batch)
    assert not desk.tick(0.0).segments
