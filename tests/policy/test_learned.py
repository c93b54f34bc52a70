"""INV-7, INV-10 where the fleet is stored: whatever a report may claim, what was learned can be stored, exported and read back."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.decision.fleet import decide
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.counting import MOST_CHUNK_TOKENS, MOST_CONTEXT_TOKENS
from nightjar.policy.intake import observe
from nightjar.policy.learned import LearnedGroup, LearnedTables, measurable
from nightjar.policy.priors import exported
from nightjar.policy.state import FleetState, learned
from nightjar.policy.status.fleet import fleet_status
from nightjar.policy.wire.batch_buckets import batch_bucket, bucket_range
from nightjar.policy.wire.report import CatchUpCounters, CellCounters, Counters, EngineLoad, EngineSnapshot, GroupKey, LoadReport
from tests.policy.engines import AUTO

KEY = GroupKey(target="llama-8b", max_num_speculative_tokens=32, max_num_seqs=4096)
MOST = (1 << 53) - 1
"""The largest count that a report can carry."""


@st.composite
def cells_at_the_limits(draw: st.DrawFn) -> CellCounters:
    """One cell that counting admits, as large or as small as its record allows."""
    bucket, length = draw(st.integers(0, batch_bucket(KEY.max_num_seqs))), draw(st.integers(0, KEY.max_num_speculative_tokens))
    seconds = draw(st.sampled_from([1.00001e-5, 0.01, 0.99, 599.0]))
    steps = draw(st.sampled_from([1, 2, 1000, int(min(9e8 / seconds, 9e11 / abs(math.log(seconds))))]))
    rows = steps * draw(st.sampled_from(bucket_range(bucket, KEY.max_num_seqs)))
    kept = draw(st.sampled_from([0, 1, rows // 2, rows]))
    return CellCounters(
        batch_bucket=bucket,
        num_speculative_tokens=length,
        steps=steps,
        step_seconds=steps * seconds,
        log_step_seconds=steps * math.log(seconds),
        log_step_seconds_squared=draw(st.sampled_from([0.0, min(steps * math.log(seconds) ** 2, 1e13), 1e13])),
        decode_rows=rows,
        context_tokens=draw(st.sampled_from([0, min(rows * MOST_CONTEXT_TOKENS, MOST)])),
        generated_tokens=min(rows * (length + 1), MOST),
        reached=(rows,) * length,
        accepted=(kept,) * length,
    )


@st.composite
def catch_up_at_the_limits(draw: st.DrawFn) -> CatchUpCounters:
    steps, chunk = draw(st.sampled_from([(1, 1), (MOST, 1), (1, MOST_CHUNK_TOKENS), (8191, MOST_CHUNK_TOKENS)]))
    return CatchUpCounters(
        steps=steps,
        tokens=steps * chunk,
        tokens_squared=steps * chunk * chunk,
        seconds=draw(st.sampled_from([-1e9, 0.0, 1e9])),
        token_seconds=draw(st.sampled_from([-1e15, 0.0, 1e15])),
    )


def cell_of(cell: CellCounters) -> tuple[int, int]:
    return cell.batch_bucket, cell.num_speculative_tokens


reports_at_the_limits = st.builds(
    lambda cells, catch_up: Counters(
        engine_id="engine-1", step_count=MOST, cells=tuple(cells), catch_up=catch_up, restarts=MOST, failed_probes=MOST
    ),
    st.lists(cells_at_the_limits(), max_size=12, unique_by=cell_of),
    catch_up_at_the_limits(),
)


@pytest.mark.heavy
@given(st.lists(reports_at_the_limits, min_size=1, max_size=4))
def test_inv_10_whatever_counting_admits_can_be_decided_on_shown_stored_and_exported(told: list[Counters]) -> None:
    state = FleetState()
    for number, counters in enumerate(told):
        load = EngineLoad(decode_batch_size=KEY.max_num_seqs)
        report = LoadReport(
            replica_id=f"r{number}",
            application="chat",
            group=KEY,
            report_number=1,
            snapshot=EngineSnapshot(counters=counters, load=load),
        )
        state, ignored = observe(state, report, 0.1, AUTO)
        assert ignored == ""
    for now_s in (1.0, 2.0):
        decisions, state = decide(state, AUTO, (), now_s, random.Random(0))
        assert [settings.mode for settings in decisions.values()] == [AUTO.mode] * len(told)
        assert len(fleet_status(state, decisions, now_s)[1]) == len(told)
        tables = learned(state)
        assert LearnedTables.from_wire(tables.to_wire()) == tables
        for seed in exported(state, now_s):
            assert measurable(LearnedGroup.from_wire(seed.to_wire())) == seed


@given(st.lists(st.tuples(st.sampled_from([1, 20, 2000, 10**6, 3 * 10**6]), st.booleans()), max_size=12))
def test_acceptance_that_falls_to_nothing_and_comes_back_stays_a_share(told: list[tuple[int, bool]]) -> None:
    known = AcceptanceEvidence((2.0, 2.0), (1.0, 1.0))
    for rows, kept in told:
        known = known.plus(AcceptanceEvidence((float(rows),) * 2, (float(rows * kept),) * 2))
        assert all(0.0 <= share <= 1.0 + 1e-9 for share in known.measured())


def test_acceptance_that_has_decayed_to_the_smallest_float_can_be_added_to() -> None:
    known = AcceptanceEvidence((2000.0, 2000.0), (5e-324, 5e-324))
    assert known.plus(AcceptanceEvidence((10.0,), (5.0,))).measured()[0] > 0.0
