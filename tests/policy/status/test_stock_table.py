"""vLLM's own table from what a group learned: the K that are best where vLLM counts and pays as it does, and what that loses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.drafter_kinds import KINDS, STEERABLE
from nightjar.deployments.engine.start.vllm_versions import V2_LEAVES_QUERIES_OUT_FROM
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.planners.base import GroupView
from nightjar.policy.planners.estimates import replan_alone
from nightjar.policy.state import FleetState, GroupState
from nightjar.policy.status.stock_table import (
    BLOCKS_REST_FROM,
    DRAFT_A_BLOCK,
    TAKE_A_TABLE,
    StockTable,
    in_words,
    seconds_run,
    stock_table,
    stock_tables,
    why_no_table,
)
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, batch_bucket, bucket_range, buckets_up_to
from nightjar.policy.wire.report import GroupKey
from tests.policy.engines import ACCEPTANCE, AUTO, KEY, MAX_NUM_SEQS, best_k, step_seconds

NGRAM = KEY.model_copy(update={"drafter_kind": "ngram"})
ROWS = 1e5


def evidence(ks: tuple[int, ...] = (0, 1, 3, 5), acceptance: tuple[float, ...] = ACCEPTANCE) -> Evidence:
    """The engine of vLLM pull request 32374, measured well at every batch."""
    cells = {}
    for bucket in buckets_up_to(MAX_NUM_SEQS):
        rows = FIRST_BATCH_SIZES[bucket]
        for k in ks:
            cells[Cell(bucket, k)] = CellEvidence(500.0, 500.0 * math.log(step_seconds(rows, k)), 500.0 * rows)
    return Evidence(cells, AcceptanceEvidence((ROWS,) * len(acceptance), tuple(ROWS * share for share in acceptance)))


def with_prompts(known: Evidence, steps_per_token: float) -> Evidence:
    """The same, where so many steps with a prompt of 500 tokens come with each generated token."""
    mixed = {
        Cell(bucket, k, prefill=True): CellEvidence(
            200.0,
            rows=200.0 * FIRST_BATCH_SIZES[bucket],
            seconds=200.0 * (0.03 + step_seconds(FIRST_BATCH_SIZES[bucket], k)),
            prefill_tokens=200.0 * 500.0,
            draft_tokens=200.0 * FIRST_BATCH_SIZES[bucket] * k,
        )
        for bucket in buckets_up_to(MAX_NUM_SEQS)
        for k in (0, 1, 3)
    }
    return replace(
        known, mixed_cells=mixed, mixed_steps_per_token=steps_per_token, prefill_tokens_per_token=500.0 * steps_per_token
    )


def table_of(known: Evidence, key: GroupKey = NGRAM, *, taxes_off: bool = False) -> StockTable:
    view = GroupView(key, AUTO, known, drafter_sleeps=False)
    return stock_table(view, replan_alone(view), seconds_run(known), taxes_off=taxes_off, group_id=key.group_id)


def k_at(table: StockTable, requests: int) -> int:
    """What vLLM looks up."""
    (k,) = [row.num_speculative_tokens for row in table.rows if row.first_batch_size <= requests <= row.last_batch_size]
    return k


def test_where_vllm_pays_what_we_pay_the_table_is_the_plan_and_loses_nothing() -> None:
    table = table_of(evidence())
    assert [k_at(table, batch) for batch in (1, 16, 64, 256)] == [best_k(batch) for batch in (1, 16, 64, 256)]
    assert table.lost is not None
    assert table.lost.share == pytest.approx(0.0, abs=1e-6)
    assert table.lost.low <= table.lost.share <= table.lost.high


def test_a_drafter_that_vllm_runs_at_k_0_as_well_costs_the_table_something_where_off_is_best() -> None:
    plain, taxed = table_of(evidence(), KEY), table_of(evidence(), KEY, taxes_off=True)
    assert (taxed.lost, plain.lost) != (None, None)
    assert taxed.lost is not None
    assert plain.lost is not None
    assert taxed.lost.share > plain.lost.share
    assert taxed.worst is not None
    assert taxed.worst.last_batch_size >= 128
    assert taxed.lost.low < taxed.lost.share < taxed.lost.high
    assert any("still runs the drafter" in line for line in in_words(taxed))
    assert not any("still runs the drafter" in line for line in in_words(plain))


@pytest.mark.parametrize(("version", "drafts"), [("0.32.0", True), ("0.32.1+cpu", True), ("0.33.0rc1", False), ("0.33.0", False)])
@pytest.mark.parametrize("kind", DRAFT_A_BLOCK)
def test_a_block_that_vllm_drafts_at_k_0_before_0_33_costs_the_table_what_drafting_costs(
    kind: str, version: str, drafts: bool
) -> None:
    key = KEY.model_copy(update={"drafter_kind": kind, "engine_version": version})
    (table,) = stock_tables(FleetState(groups={key.group_id: GroupState(key, evidence=evidence())}), AUTO, 0.0)
    assert table.taxes_off is drafts
    assert table.lost is not None
    assert (table.lost.share > 0.001) is drafts
    assert any("K=0 still runs the drafter: taken to add all of what K=1 adds" in line for line in in_words(table)) is drafts
    assert any("model runner V1" in line for line in in_words(table)) is (kind != "dspark")


def test_under_adaptive_verification_a_table_is_of_ceilings_and_acceptance_by_position_has_no_say() -> None:
    """How many drafts were verified is not known there: what was accepted of a position may be of any share of the rows."""
    key = NGRAM.model_copy(update={"drafter_kind": "dspark", "adaptive_verification": True})

    def censored(acceptance: tuple[float, ...]) -> StockTable:
        known = with_prompts(evidence(acceptance=acceptance), 0.02)
        cells = {
            cell: sums._replace(generated_tokens=sums.rows * (1.0 + 0.6 * min(cell.num_speculative_tokens, 2)))
            for cell, sums in known.cells.items()
        }
        return table_of(replace(known, cells=cells), key)

    easy, hard = censored((0.95, 0.9, 0.85, 0.8, 0.75)), censored((0.3, 0.1, 0.05, 0.02, 0.01))
    assert easy == hard
    assert any("ceilings, learned beside enable_adaptive_verification: true" in line for line in in_words(easy))
    assert not any("adaptive" in line for line in in_words(table_of(evidence())))


def test_a_change_too_small_to_show_has_no_sign_of_a_loss() -> None:
    told = "".join(in_words(table_of(evidence(), KEY.model_copy(update={"max_num_seqs": 100}), taxes_off=True)))
    assert "-0.0 %" not in told


def test_where_most_steps_compute_a_prompt_a_row_reaches_one_request_further() -> None:
    quiet, busy = table_of(with_prompts(evidence(), 1e-4)), table_of(with_prompts(evidence(), 0.02))
    assert not quiet.counts_prompts
    assert busy.counts_prompts
    edges = {row.last_batch_size + 1 for row in busy.rows[:-1]}
    assert edges
    assert all(edge - 1 in FIRST_BATCH_SIZES for edge in edges if edge > 64)
    assert any("one request beyond" in line for line in in_words(busy))


def test_batches_that_never_ran_are_told_as_such() -> None:
    known = evidence()
    low = replace(known, cells={cell: sums for cell, sums in known.cells.items() if cell.batch_bucket <= batch_bucket(40)})
    assert any("nothing ran above batch 47" in line for line in in_words(table_of(low)))
    assert not any("nothing ran above" in line for line in in_words(table_of(known)))


@given(
    shares=st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    ks=st.sets(st.sampled_from((0, 1, 3, 5)), min_size=2),
    steps_per_token=st.sampled_from((0.0, 1e-3, 0.1, 2.0)),
    most=st.integers(1, 300),
)
def test_a_table_names_every_number_of_requests_once_and_only_k_that_may_run(
    shares: list[float], ks: set[int], steps_per_token: float, most: int
) -> None:
    acceptance = tuple(math.prod(shares[: position + 1]) for position in range(5))
    known = evidence(tuple(sorted(ks)), acceptance)
    known = with_prompts(known, steps_per_token) if steps_per_token else known
    within = replace(known, cells={cell: sums for cell, sums in known.cells.items() if cell.batch_bucket in buckets_up_to(most)})
    mixed = {cell: sums for cell, sums in known.mixed_cells.items() if cell.batch_bucket in buckets_up_to(most)}
    key = NGRAM.model_copy(update={"max_num_seqs": most})
    for taxes_off in (False, True):
        table = table_of(replace(within, mixed_cells=mixed), key, taxes_off=taxes_off)
        assert [k_at(table, requests) for requests in range(1, most + 1)]
        assert (table.rows[0].first_batch_size, table.rows[-1].last_batch_size) == (1, most)
        assert {row.num_speculative_tokens for row in table.rows} <= {0, 1, 3, 5}
        assert table.lost is not None
        assert math.isfinite(table.lost.share)


def test_a_table_is_for_the_drafters_that_we_steer() -> None:
    assert set(TAKE_A_TABLE) == set(STEERABLE)
    assert set(DRAFT_A_BLOCK) == {kind.method for kind in KINDS.values() if kind.drafts_a_block}
    assert BLOCKS_REST_FROM == V2_LEAVES_QUERIES_OUT_FROM


@pytest.mark.parametrize(
    ("key", "known", "part"),
    [
        (KEY.model_copy(update={"drafter_kind": "none"}), evidence(), "it has no drafter"),
        (
            KEY.model_copy(update={"drafter_kind": "suffix"}),
            evidence(),
            "it drafts with suffix, which is not known to follow a table",
        ),
        (KEY.model_copy(update={"data_parallel_size": 2}), evidence(), "its data_parallel_size is 2"),
        (KEY, Evidence(), "it has learned nothing yet"),
        (KEY, evidence((3,)), "only K=3 ever ran"),
        (KEY, replace(evidence(), acceptance=AcceptanceEvidence()), "its acceptance is not known"),
    ],
)
def test_why_there_is_no_table_is_one_line(key: GroupKey, known: Evidence, part: str) -> None:
    why = why_no_table(GroupView(key, AUTO, known))
    assert part in why
    assert "\n" not in why


def test_a_fleet_has_a_table_or_a_reason_for_each_of_its_groups_the_best_known_first() -> None:
    other = KEY.model_copy(update={"engine_version": "9.9"})
    groups = {key.group_id: GroupState(key, evidence=known) for key, known in ((other, Evidence()), (KEY, evidence()))}
    known, unknown = stock_tables(FleetState(groups=groups), AUTO, 0.0)
    assert (known.group_id, known.why_none, known.taxes_off) == (KEY.group_id, "", True)
    assert (unknown.group_id, unknown.rows) == (other.group_id, ())
    assert "learned nothing" in unknown.why_none


def test_the_worst_batches_are_those_of_a_bucket_that_ran() -> None:
    known = evidence()
    worst = table_of(known, KEY, taxes_off=True).worst
    assert worst is not None
    assert (worst.first_batch_size, worst.last_batch_size) in [
        bucket_range(bucket, MAX_NUM_SEQS) for bucket in buckets_up_to(MAX_NUM_SEQS)
    ]


def test_one_absurd_step_time_neither_ends_an_export_nor_counts() -> None:
    known = evidence()
    absurd = replace(known, cells={**known.cells, Cell(4, 2): CellEvidence(500.0, 500.0 * 5000.0, 500.0 * 6.0)})
    (table,) = stock_tables(FleetState(groups={KEY.group_id: GroupState(KEY, evidence=absurd)}), AUTO, 0.0)
    (without,) = stock_tables(FleetState(groups={KEY.group_id: GroupState(KEY, evidence=known)}), AUTO, 0.0)
    assert table == without
