"""INV-9: any sequence of growing, contracting, preempting and aborting conserves the elastic KV pool's blocks and every row."""

import itertools
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

pytest.importorskip("vllm")

from nightjar.deployments.engine.scheduler.kv_pool import ContractionLimits
from tests.engine.elastic_engine import BASE, EVERYWHERE, PATIENCE, Engine, prompt_of


class AnySequence(RuleBasedStateMachine):
    """INV-9 and right rows after any sequence; the engine checks integrity after each schedule and each output."""

    in_flight = 1
    on_v2 = False
    folder: Path

    @initialize(moved_per_step=st.integers(1, 6), reserve=st.integers(0, 1), tokens_per_step=st.sampled_from([48, 512]))
    def start(self, moved_per_step: int, reserve: int, tokens_per_step: int) -> None:
        limits = ContractionLimits(
            reserve_blocks_per_request=reserve, max_moved_blocks_per_step=moved_per_step, patience_steps=PATIENCE
        )
        self.engine = Engine(self.folder, self.in_flight, on_v2=self.on_v2, limits=limits, max_num_batched_tokens=tokens_per_step)
        self.names = itertools.count()

    @precondition(lambda self: len(self.engine.scheduler.requests) < 12)
    @rule(family=st.integers(0, 3), tokens=st.integers(1, 70), max_tokens=st.integers(20, 57), count=st.integers(1, 3))
    def add_and_step(self, family: int, tokens: int, max_tokens: int, count: int) -> None:
        for _ in range(count):
            self.engine.add(f"request-{next(self.names)}", prompt_of(family, tokens), max_tokens)
        self.engine.step(2)

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        self.engine.step(steps)

    @rule(steps=st.integers(0, 2))
    def grow(self, steps: int) -> None:
        self.engine.grow()
        self.engine.step(steps)

    @precondition(lambda self: self.engine.pool.borrowed_blocks_in_use)
    @rule(steps=st.integers(0, 4))
    def contract(self, steps: int) -> None:
        self.engine.pool.begin_contraction()
        self.engine.step(steps)

    @precondition(lambda self: self.engine.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(data.draw(st.sampled_from(sorted(self.engine.scheduler.requests))))

    @precondition(lambda self: len(self.engine.done) % 8 == 7)
    @rule()
    def reset_prefix_cache_and_running_requests(self) -> None:
        assert self.engine.scheduler.reset_prefix_cache(reset_running_requests=True)

    @invariant()
    def integrity_holds(self) -> None:
        self.engine.pool.check_integrity()
        assert all(source >= BASE > target for source, target in self.engine.moves)

    def teardown(self) -> None:
        """A contraction ends whatever runs, and long before the requests do."""
        self.engine.pool.begin_contraction()
        for _ in range(12 * (PATIENCE + 2)):
            self.engine.step()
        assert self.engine.pool.drained or not self.engine.scheduler.requests
        assert not self.engine.pool.borrowed_blocks_in_use
        self.engine.step(500)
        assert not self.engine.scheduler.requests


@pytest.mark.heavy
@EVERYWHERE
def test_inv_9_any_sequence_of_growing_contracting_preempting_and_aborting_conserves_blocks_and_rows(
    in_flight: int, on_v2: bool, folder: Path
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("AnySequenceHere", (AnySequence,), {"in_flight": in_flight, "on_v2": on_v2, "folder": folder})
    run_state_machine_as_test(
        machine, settings=hypothesis_settings(max_examples=30, stateful_step_count=40, deadline=None, derandomize=True)
    )
