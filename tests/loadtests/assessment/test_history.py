"""What ran, from scrapes: hours by batch and K, acceptance by position, and holes that count for nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.assessment.history import History, Scraped, scraped
from nightjar.loadtests.assessment.scrapes import EngineScrapes, Metric, Series
from nightjar.policy.wire.batch_buckets import batch_bucket


def engine(
    running: Sequence[float], counted: dict[Metric, Sequence[float]] | None = None, at: Sequence[Sequence[float]] = ()
) -> EngineScrapes:
    """Scraped every 15 s: running requests, cumulative counters, and accepted tokens by position."""

    def series(values: Sequence[float]) -> Series:
        return Series.of((15.0 * place, value) for place, value in enumerate(values))

    return EngineScrapes(
        {"model_name": "chat"},
        {Metric.RUNNING: series(running), **{metric: series(values) for metric, values in (counted or {}).items()}},
        tuple(map(series, at)),
    )


def history(*engines: EngineScrapes) -> History:
    return History(scraped(engines).stretches)


def drafting(k: float, running: Sequence[float] = (4,) * 5, kept: Sequence[float] = (0.8, 0.5, 0.25)) -> EngineScrapes:
    """An engine that verifies 100 drafts of a mean length in each stretch."""
    at = range(len(running))
    return engine(
        running,
        {
            Metric.DRAFTS: [100.0 * n for n in at],
            Metric.DRAFT_TOKENS: [100.0 * k * n for n in at],
            Metric.ACCEPTED_TOKENS: [100.0 * sum(kept) * n for n in at],
            Metric.STEP_ROWS: [100.0 * n for n in at],
            Metric.STEP_SECONDS: [2.0 * n for n in at],
        },
        [[100.0 * share * n for n in at] for share in kept],
    )


@given(batches=st.lists(st.integers(min_value=0, max_value=300), min_size=2, max_size=60))
def test_every_scraped_second_is_idle_or_in_the_bucket_of_a_batch_that_was_seen(batches: list[int]) -> None:
    found = history(engine(batches))
    assert math.isclose(found.idle_s + sum(found.seconds.values()), 15.0 * (len(batches) - 1))
    assert {bucket for bucket, _ in found.seconds} <= {batch_bucket(batch) for batch in batches if batch}
    assert all(length == 0 for _, length in found.seconds)
    for bucket, rows in found.rows.items():
        assert batch_bucket(math.floor(rows + 1e-9)) == bucket


def test_a_stretch_counts_half_for_the_batch_before_it_and_half_for_the_one_after_it() -> None:
    assert history(engine([4, 32, 32])).seconds == {(batch_bucket(4), 0): 7.5, (batch_bucket(32), 0): 22.5}


def test_a_stretch_without_scrapes_counts_nowhere_and_is_told() -> None:
    samples = [(15.0 * place, 4.0) for place in range(10)] + [(1000.0 + 15.0 * place, 4.0) for place in range(10)]
    found: Scraped = scraped([EngineScrapes({}, {Metric.RUNNING: Series.of(samples)})])
    assert found.period_s == 15.0
    assert found.missed_s == 1000.0 - 9 * 15.0
    assert sum(History(found.stretches).seconds.values()) == 18 * 15.0


def test_k_and_acceptance_come_from_what_was_drafted() -> None:
    found = history(drafting(3.0))
    assert found.seconds == {(batch_bucket(4), 3): 60.0}
    assert found.acceptance.measured() == pytest.approx((0.8, 0.5, 0.25))
    assert found.acceptance.reached == (400.0, 400.0, 400.0)
    assert found.accepted_share(batch_bucket(4)) == pytest.approx((0.8 + 0.5 + 0.25) / 3)
    assert found.step_seconds(batch_bucket(4), 3) == pytest.approx(0.02)


def test_drafts_that_were_cut_reached_only_the_positions_that_their_mean_length_tells() -> None:
    found = history(drafting(2.9, kept=(0.8, 0.5, 0.2)))
    assert found.seconds == {(batch_bucket(4), 3): 60.0}
    assert found.acceptance.reached == pytest.approx((400.0, 400.0, 360.0))


def test_stretches_between_two_k_tell_nothing_of_acceptance_where_there_are_others() -> None:
    mixed = drafting(2.5, kept=(0.1, 0.1, 0.1))
    assert history(drafting(3.0), mixed).acceptance.measured() == pytest.approx((0.8, 0.5, 0.25))
    assert history(mixed).acceptance.measured() == pytest.approx((0.1, 0.1, 0.2))


def test_rows_without_drafts_are_time_at_k_0() -> None:
    half = drafting(3.0)
    half = EngineScrapes(
        half.labels, {**half.series, Metric.STEP_ROWS: Series.of((15.0 * n, 200.0 * n) for n in range(5))}, half.accepted_at
    )
    assert history(half).seconds == {(batch_bucket(4), 0): 30.0, (batch_bucket(4), 3): 30.0}


def test_counters_that_are_exported_less_often_than_scraped_make_no_time_without_drafts() -> None:
    scrapes = drafting(3.0, (4,) * 13)
    held = {
        metric: Series(series.times_s, series.values[np.arange(13) // 3 * 3]) if metric is not Metric.RUNNING else series
        for metric, series in scrapes.series.items()
    }
    at = [Series(series.times_s, series.values[np.arange(13) // 3 * 3]) for series in scrapes.accepted_at]
    found, plain = history(EngineScrapes(scrapes.labels, held, at)), history(scrapes)
    assert found.seconds == plain.seconds
    assert found.acceptance.measured() == pytest.approx(plain.acceptance.measured())
    assert found.step_seconds(batch_bucket(4), 3) == pytest.approx(0.02)


@given(counts=st.lists(st.integers(0, 50), min_size=2, max_size=30), running=st.data())
def test_whatever_was_counted_is_in_some_stretch(counts: list[int], running: st.DataObject) -> None:
    batches = running.draw(st.lists(st.integers(0, 3), min_size=len(counts), max_size=len(counts)))
    generated = [float(value) for value in accumulate(counts)]
    found = history(engine(batches, {Metric.GENERATED_TOKENS: generated, Metric.DRAFTS: generated}))
    assert found.stretches.drafts.min() >= 0.0
    assert math.isclose(found.stretches.drafts.sum(), generated[-1] - generated[0], abs_tol=1e-6)


def test_what_no_counter_tells_is_not_known() -> None:
    found = history(engine([4, 4, 4]))
    assert not found.drafted
    assert found.acceptance.measured() == ()
    assert (found.prefill_tokens_per_token, found.prefill_tokens, found.context_tokens) == (None, None, None)
    assert found.step_seconds(batch_bucket(4), 0) is None
    assert found.accepted_share(batch_bucket(4)) is None


def test_prompts_that_a_cache_held_are_no_work() -> None:
    found = history(
        engine(
            [4, 4],
            {
                Metric.PROMPT_TOKENS: [0.0, 4000.0],
                Metric.CACHED_TOKENS: [0.0, 1000.0],
                Metric.GENERATED_TOKENS: [0.0, 2000.0],
                Metric.ANSWERS: [0.0, 10.0],
                Metric.ANSWER_TOKENS: [0.0, 2000.0],
                Metric.ANSWERED_PROMPT_TOKENS: [0.0, 4000.0],
            },
        )
    )
    assert (found.prefill_tokens_per_token, found.prefill_tokens, found.context_tokens) == (1.5, 300.0, 600.0)


def test_nobody_scraped_is_no_hour_at_all() -> None:
    found = scraped([EngineScrapes({}, {Metric.RUNNING: Series.of([(0.0, 1.0)])})])
    assert (found.period_s, found.missed_s) == (0.0, 0.0)
    assert History(found.stretches).seconds == {}
