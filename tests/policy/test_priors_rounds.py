"""Fleets that seed each other, in any order and over restarts: nobody ever knows more than was measured."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.policy.decision.fleet import decide
from nightjar.policy.evidence.cells import Cell
from nightjar.policy.intake import observe
from nightjar.policy.priors import MOST_SEED_ROWS, MOST_SEED_STEPS, exported, seeded
from nightjar.policy.state import FleetState, GroupState, learned, with_learned
from nightjar.policy.wire.batch_buckets import batch_bucket
from tests.policy.engines import AUTO, KEY, Replica

NAMES = ("old", "new", "third")
BATCHES, KS = (1, 16), (0, 3)
DOUBT_STEPS = MOST_SEED_STEPS / 100
"""What an imported cell weighs beside the first own measurement."""


@dataclass
class Cluster:
    """One fleet of one replica: what it knows, and its engine."""

    name: str
    state: FleetState = field(default_factory=FleetState)
    now_s: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        self.begin(FleetState(), engine_id="engine-1")

    def begin(self, state: FleetState, engine_id: str) -> None:
        self.state = state
        self.replica = Replica(self.name, batch=0, engine_id=engine_id)
        self.tell()

    def tell(self) -> None:
        self.now_s += 1.0
        self.state, ignored = observe(self.state, self.replica.report(), self.now_s, AUTO)
        assert not ignored
        _, self.state = decide(self.state, AUTO, (), self.now_s, self.rng)

    def measure(self, batch: int, k: int, steps: int) -> None:
        self.replica.batch = batch
        for _ in range(steps):
            self.replica.step(k, clean=True, rng=self.rng)
        self.tell()

    def read(self, other: Cluster) -> None:
        self.state = seeded(self.state, exported(other.state, other.now_s))
        self.tell()

    def restart_the_policy(self) -> None:
        self.state = with_learned(FleetState(), learned(self.state))
        self.tell()

    def lose_everything(self) -> None:
        self.begin(FleetState(), engine_id=f"{self.replica.engine_id}+")

    @property
    def group(self) -> GroupState:
        return self.state.groups[KEY.group_id]


names = st.sampled_from(NAMES)
measurements = st.tuples(st.just("measure"), names, st.sampled_from(BATCHES), st.sampled_from(KS), st.integers(1, 60))
readings = st.tuples(st.just("read"), names, names)
restarts = st.tuples(st.sampled_from(("restart", "lose")), names)


@settings(deadline=None, max_examples=40)
@given(events=st.lists(st.one_of(measurements, readings, readings, restarts), min_size=4, max_size=16))
def test_whoever_reads_whom_in_whatever_order_nobody_counts_more_than_was_measured(events: list[tuple[object, ...]]) -> None:
    clusters = {name: Cluster(name) for name in NAMES}
    measured: Counter[Cell] = Counter()
    verified = 0
    for event, name, *details in events:
        cluster = clusters[str(name)]
        match event, *details:
            case "measure", int(batch), int(k), int(steps):
                cluster.measure(batch, k, steps)
                measured[Cell(batch_bucket(batch), k)] += steps
                verified += batch * steps if k else 0
            case "read", str(other):
                cluster.read(clusters[other])
            case "restart", *_:
                cluster.restart_the_policy()
            case _:
                cluster.lose_everything()
        for known in clusters.values():
            for cell, evidence in known.group.evidence.cells.items():
                assert evidence.steps <= measured[cell] + DOUBT_STEPS
            reached = known.group.evidence.acceptance.reached
            assert (reached[0] if reached else 0.0) <= verified + 1e-6


@settings(deadline=None, max_examples=20)
@given(steps=st.integers(1, 200), rounds=st.integers(1, 5))
def test_what_came_back_from_a_cluster_that_was_seeded_here_changes_nothing_that_was_measured_here(steps: int, rounds: int) -> None:
    old, new = Cluster("old"), Cluster("new")
    old.measure(16, 3, steps)
    before = old.group
    for _ in range(rounds):
        new.read(old)
        old.read(new)
    after, there = old.group, new.group
    assert after.evidence.cells.keys() == before.evidence.cells.keys()
    for cell, evidence in before.evidence.cells.items():
        assert after.evidence.cells[cell].steps == evidence.steps
        assert there.evidence.cells[cell].steps == pytest.approx(min(evidence.steps, MOST_SEED_STEPS))
    assert after.evidence.acceptance.reached == before.evidence.acceptance.reached
    assert there.evidence.acceptance.reached[0] <= MOST_SEED_ROWS
    assert not after.imported.cells
