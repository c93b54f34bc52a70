"""Step costs: the measured numbers where they were measured, and the shape of an engine everywhere."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.profiles import PROFILE_NAMES, MeasuredTable, Mechanics, Profile, read_profile
from nightjar.loadtests.simulation.step_cost import prepared_cost, step_cost
from nightjar.policy.evidence.cells import Cell, CellEvidence
from nightjar.policy.evidence.step_time import predict_step_times
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, buckets_up_to

PROFILES = {name: read_profile(name) for name in PROFILE_NAMES}
COSTS = {name: step_cost(profile) for name, profile in PROFILES.items()}
CONTEXT_PER_ROW = 300

BLOCKS = PROFILES["qwen-7b-0.5b-rtx4090"].model_copy(
    update={"drafter": PROFILES["qwen-7b-0.5b-rtx4090"].drafter.model_copy(update={"drafts_a_block": True})}
)

names = st.sampled_from(PROFILE_NAMES)
rows = st.integers(1, 256)
lengths = st.integers(0, 5)


def goodputs(profile: Profile, decode_rows: int) -> Sequence[float]:
    """Tokens per second of each arm, dormant, relative to off."""
    prepared = prepared_cost(profile, profile.mechanics(Mechanics.DORMANT))
    survival = profile.mean_survival()
    rates = [
        (1 + sum(survival[:arm])) / prepared.steady_seconds(decode_rows, decode_rows * CONTEXT_PER_ROW, arm)
        for arm in profile.drafter.arms
    ]
    return [rate / rates[0] for rate in rates]


@pytest.mark.parametrize("name", ["llama-8b-eagle", "cpu-smollm2"])
def test_a_table_gives_back_every_number_that_was_measured(name: str) -> None:
    table = PROFILES[name].step_cost
    assert isinstance(table, MeasuredTable)
    for size, line, stock_off in zip(table.batch_sizes, table.milliseconds, table.stock_off_milliseconds, strict=True):
        context = size * table.context_tokens_per_row
        found = [COSTS[name].seconds(size, context, length, draft="active" if length else "dormant") for length in table.lengths]
        assert found == pytest.approx([value / 1e3 for value in line])
        assert COSTS[name].seconds(size, context, 0, draft="stock") == pytest.approx(stock_off / 1e3)


@given(name=names, decode_rows=rows, length=lengths)
def test_a_step_gets_no_shorter_with_rows_drafts_verification_context_prefill_or_catch_up(
    name: str, decode_rows: int, length: int
) -> None:
    cost, context = COSTS[name], decode_rows * CONTEXT_PER_ROW
    here = cost.seconds(decode_rows, context, length)
    slack = 1.0 + 1e-9
    assert here <= slack * cost.seconds(decode_rows + 1, context + CONTEXT_PER_ROW, length)
    assert here <= slack * cost.seconds(decode_rows, context, length, verified_tokens=length + 1)
    assert here <= slack * cost.seconds(decode_rows, context + 500, length)
    assert here <= slack * cost.seconds(decode_rows, context, length, prefill_tokens=100)
    assert here <= slack * cost.seconds(decode_rows, context, length, catch_up_tokens=100)
    if length:
        assert here <= slack * cost.seconds(decode_rows, context, length + 1, verified_tokens=length)


@given(decode_rows=rows, length=st.integers(1, 5))
def test_a_block_of_drafts_costs_the_same_at_every_k_above_0(decode_rows: int, length: int) -> None:
    cost, context = step_cost(BLOCKS), decode_rows * CONTEXT_PER_ROW
    assert cost.seconds(decode_rows, context, length, verified_tokens=1) == cost.seconds(decode_rows, context, 1)
    assert cost.seconds(decode_rows, context, 0, draft="kv") < cost.seconds(decode_rows, context, 1, verified_tokens=0)


def test_step_times_that_were_learned_at_two_k_tell_what_a_block_of_drafts_costs_at_the_others() -> None:
    """Drafting costs a row the same at every K, which no part of the learned shape says by itself."""
    cost, most = step_cost(BLOCKS), BLOCKS.limits.max_num_seqs
    buckets, arms = buckets_up_to(most), BLOCKS.drafter.arms
    measured = {}
    for bucket in buckets:
        rows_there = FIRST_BATCH_SIZES[bucket]
        context = rows_there * CONTEXT_PER_ROW
        for length in (0, 1, arms[-1]):
            log_seconds = math.log(cost.seconds(rows_there, context, length, draft="active" if length else "kv"))
            measured[Cell(bucket, length)] = CellEvidence(400.0, 400.0 * log_seconds, 400.0 * rows_there, 400.0 * context)
    found = predict_step_times(measured, arms, buckets, most, now_s=0.0)
    for bucket in buckets:
        rows_there = FIRST_BATCH_SIZES[bucket]
        truth = [
            cost.seconds(rows_there, rows_there * CONTEXT_PER_ROW, length, draft="active" if length else "kv") for length in arms
        ]
        assert np.exp(found.log_seconds[bucket]) == pytest.approx(truth, rel=0.05)


@given(name=names, decode_rows=rows)
def test_off_is_cheapest_dormant_and_offloaded_costs_the_same(name: str, decode_rows: int) -> None:
    cost, context = COSTS[name], decode_rows * CONTEXT_PER_ROW
    dormant = cost.seconds(decode_rows, context, 0, draft="dormant")
    assert dormant == cost.seconds(decode_rows, context, 0, draft="offloaded")
    assert dormant < cost.seconds(decode_rows, context, 0, draft="stock")
    assert cost.seconds(decode_rows, context, 0, prefill_tokens=512, draft="dormant") < cost.seconds(
        decode_rows, context, 0, prefill_tokens=512, draft="stock"
    )


@given(decode_rows=rows, prefill_tokens=st.integers(0, 2000))
def test_a_head_that_writes_its_kv_alone_costs_little(decode_rows: int, prefill_tokens: int) -> None:
    cost, context = COSTS["llama-8b-eagle"], decode_rows * CONTEXT_PER_ROW
    nothing, kv, stock = (cost.seconds(decode_rows, context, 0, prefill_tokens, draft) for draft in ("dormant", "kv", "stock"))
    assert nothing < kv < stock
    assert kv - nothing < 0.75 * (stock - nothing)


@given(name=names, decode_rows=st.integers(1, 32), length=lengths, verified=lengths, share=st.floats(0.0, 0.9))
def test_prepared_look_ups_are_the_cost_itself(name: str, decode_rows: int, length: int, verified: int, share: float) -> None:
    profile = PROFILES[name]
    context = int(share * profile.limits.num_blocks * profile.limits.block_size)
    prepared = prepared_cost(profile, Mechanics.DORMANT)
    exact = COSTS[name].seconds(decode_rows, context, length, draft="active" if length else "dormant", verified_tokens=verified)
    assert prepared.decode_seconds(decode_rows, context, length, verified) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    ("name", "still_pays", "pays_no_more"),
    [
        ("llama-8b-eagle", 128, 256),
        ("qwen-7b-0.5b-rtx4090", 32, 56),
        ("vicuna-13b-68m-a100", 48, 80),
        ("qwen-32b-0.5b-2xl20", 40, 64),
        ("cpu-smollm2", 8, 16),
    ],
)
def test_speculation_pays_below_the_crossover_and_loses_above(name: str, still_pays: int, pays_no_more: int) -> None:
    assert max(goodputs(PROFILES[name], still_pays)) > 1.02
    assert max(goodputs(PROFILES[name], pays_no_more)[1:]) < 1.0


def test_the_7b_pair_gains_and_loses_what_the_paper_printed() -> None:
    profile = PROFILES["qwen-7b-0.5b-rtx4090"]
    best = max(max(goodputs(profile, decode_rows)) for decode_rows in (1, 8, 16))
    assert 1.12 < best < 1.22
    assert 0.68 < max(goodputs(profile, 96)[1:]) < 0.82
