"""Steering: K is always legal, off is always reachable at once, and what the policy said holds only as long as it may."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.step.steering import Steering
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.settings import ExplorationSegment, OffStep, SettingsVersion, Table, k_at
from nightjar.policy.words import in_words
from tests.policy.step.steering_settings import MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS, local_plan, segment, settings, table

STEPS = st.lists(st.tuples(st.integers(0, MAX_NUM_SEQS), st.booleans()), min_size=1, max_size=60)
PLANS = st.builds(
    lambda first, second: table((1, 4, first), (5, 16, second)),
    st.integers(0, 32),
    st.integers(0, 32),
)
ALLOWED = st.lists(st.integers(0, 32), min_size=1, max_size=6).map(tuple)


def make_steering() -> Steering:
    return Steering(max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS, max_num_seqs=MAX_NUM_SEQS)


def run(steering: Steering, steps: Iterable[tuple[int, bool]], now_s: float = 0.0) -> list[int]:
    ks = []
    for decode_batch_size, has_prefill in steps:
        chosen = steering.choose(decode_batch_size, has_prefill, now_s)
        assert chosen is not None
        ks.append(chosen)
    return ks


def run_clean(steering: Steering, decode_batch_size: int, count: int, now_s: float = 0.0) -> list[int]:
    """Pure decode steps, each one counted as clean when it is done."""
    ks = []
    for _ in range(count):
        ks += run(steering, [(decode_batch_size, False)], now_s)
        steering.count_clean_step(decode_batch_size, ks[-1])
    return ks


def test_without_settings_the_engine_keeps_its_own_k() -> None:
    assert make_steering().choose(1, False, 0.0) is None


def test_the_table_gives_the_k_by_decode_batch_size() -> None:
    steering = make_steering()
    steering.adopt(settings(table((2, 4, 5), (6, 8, 1))), 0.0)
    assert run(steering, [(size, False) for size in (1, 2, 4, 5, 6, 8, 9, 16)]) == [5, 5, 5, 5, 1, 1, 0, 0]


@given(PLANS, ALLOWED, st.integers(0, 8), STEPS)
def test_every_k_is_allowed_and_within_the_engines_maximum(
    plan: Table, allowed: tuple[int, ...], dwell: int, steps: list[tuple[int, bool]]
) -> None:
    steering = make_steering()
    assert steering.adopt(settings(plan, allowed=allowed, dwell_steps=dwell), 0.0) == ""
    legal = {0, *(k for k in allowed if k <= MAX_NUM_SPECULATIVE_TOKENS)}
    assert set(run(steering, steps)) <= legal


@given(STEPS, st.booleans(), st.sampled_from(["mode", "local mode", "table", "age"]))
def test_off_is_reached_in_the_very_next_step(steps: list[tuple[int, bool]], has_prefill: bool, cause: str) -> None:
    steering = make_steering()
    steering.adopt(settings(dwell_steps=1000, max_age_s=10.0), 0.0)
    run(steering, steps)
    now_s = 1.0
    if cause == "mode":
        steering.adopt(settings(mode="off", sequence=2), now_s)
    elif cause == "local mode":
        steering.override_mode(Mode.parse("off"))
    elif cause == "table":
        steering.adopt(settings(table((1, 16, 0)), sequence=2), now_s)
    else:
        now_s = 11.0
    assert run(steering, [(1, has_prefill)], now_s) == [0]


@given(PLANS, PLANS, st.integers(0, 8), st.integers(1, MAX_NUM_SEQS), st.lists(st.booleans(), min_size=2, max_size=40))
def test_between_the_two_k_of_a_batch_a_change_waits_for_nothing(
    pure: Table, mixed: Table, dwell: int, batch: int, follows: list[bool]
) -> None:
    steering = make_steering()
    plan = pure.model_copy(update={"mixed_rows": mixed.rows})
    steering.adopt(settings(plan, allowed=tuple(range(MAX_NUM_SPECULATIVE_TOKENS + 1)), dwell_steps=dwell), 0.0)
    chosen = [steering.choose(batch, has_prefill=True, now_s=0.0, prefill_follows=does) for does in follows]
    for k, does in zip(chosen, follows, strict=True):
        assert k == min(k_at((mixed if does else pure).rows, batch), MAX_NUM_SPECULATIVE_TOKENS)


def test_an_engines_first_step_takes_the_plans_k_also_with_prefill_so_that_its_drafter_reads_the_prompts() -> None:
    steering = make_steering()
    steering.adopt(settings(), 0.0)
    assert run(steering, [(0, True), (2, True), (2, False)]) == [5, 5, 5]


@given(PLANS, st.integers(0, 16), st.floats(0.0, 400.0))
def test_no_step_gets_more_than_the_most_that_was_announced_for_it(plan: Table, batch: int, now_s: float) -> None:
    steering = make_steering()
    steering.adopt(settings(plan), 0.0)
    most = steering.most(batch, now_s)
    assert most is not None
    assert run(steering, [(batch, False)], now_s)[0] <= most


def test_the_most_announced_for_a_step_holds_where_prefill_follows_too() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1)).model_copy(update={"mixed_rows": table((1, 4, 3), (5, 16, 0)).rows})), 0.0)
    assert [steering.most(batch, 0.0) for batch in (2, 8)] == [3, 1]


@given(PLANS, st.integers(0, 8), st.integers(0, 8), st.integers(0, 16), st.booleans())
def test_a_step_in_which_more_prompts_end_than_rows_decode_drafts_for_the_rows_that_will_verify(
    plan: Table, rows: int, joining: int, dwell: int, follows: bool
) -> None:
    one, other = make_steering(), make_steering()
    for steering in (one, other):
        steering.adopt(settings(plan, dwell_steps=dwell), 0.0)
    chosen = one.choose(rows, True, 0.0, prefill_follows=follows, joining_rows=joining)
    assert chosen == other.choose(rows + joining if joining > rows else rows, True, 0.0, prefill_follows=follows)


def test_a_burst_that_fills_the_batch_beyond_the_crossover_is_not_drafted_for_not_even_in_a_measurement() -> None:
    for segments in ([], [segment(1, 3, first=1, last=3)]):
        steering = make_steering()
        steering.adopt(settings(table((1, 3, 5), (4, 16, 0), segments=segments)), 0.0)
        planned = 3 if segments else 5
        assert run(steering, [(2, False)]) == [planned]
        chosen = [steering.choose(2, True, 0.0, joining_rows=joining) for joining in (0, 2, 8)]
        assert chosen == [planned, planned, 0], "as many as decode are no burst"


def test_a_step_with_prefill_takes_the_tables_k_as_any_other() -> None:
    steering = make_steering()
    steering.adopt(settings(), 0.0)
    assert run(steering, [(6, False), (2, True), (2, False), (2, True), (10, True)]) == [1, 5, 5, 5, 0]


@given(PLANS, st.integers(1, 8), STEPS)
def test_a_rise_waits_until_the_k_was_held_for_dwell_steps(plan: Table, dwell: int, steps: list[tuple[int, bool]]) -> None:
    steering = make_steering()
    steering.adopt(settings(plan, dwell_steps=dwell), 0.0)
    ks = run(steering, steps)
    held = 0
    for before, now in pairwise(ks):
        held += 1
        if now > before:
            assert held >= dwell
        if now != before:
            held = 0


def test_a_rise_held_back_is_counted_and_explained() -> None:
    steering = make_steering()
    steering.adopt(settings(dwell_steps=3), 0.0)
    assert run(steering, [(9, False), (1, False), (1, False), (1, False)]) == [0, 0, 0, 5]
    assert steering.guard_holds == 2


def test_inv_5_older_settings_are_refused_and_change_nothing() -> None:
    steering = make_steering()
    steering.adopt(settings(mode="pin=1", incarnation=2, sequence=5), 0.0)
    for incarnation, sequence in ((2, 4), (1, 99)):
        refused = steering.adopt(settings(mode="pin=5", incarnation=incarnation, sequence=sequence), 1.0)
        assert f"version {incarnation}.{sequence}" in refused
        assert "older than 2.5" in refused
    assert run(steering, [(1, False)]) == [1]
    assert steering.settings_version == SettingsVersion(incarnation=2, sequence=5)


def test_a_newer_incarnation_wins_over_any_sequence() -> None:
    steering = make_steering()
    steering.adopt(settings(mode="pin=1", incarnation=2, sequence=500), 0.0)
    assert steering.adopt(settings(mode="pin=3", incarnation=3, sequence=1), 0.0) == ""
    assert run(steering, [(1, False)]) == [3]


@pytest.mark.parametrize("mode", ["auto", "pin=3"])
def test_inv_4_settings_that_nobody_confirms_allow_only_off_after_their_age(mode: str) -> None:
    steering = make_steering()
    steering.adopt(settings(mode=mode, max_age_s=10.0), 100.0)
    ks = [run(steering, [(1, False)], now_s)[0] > 0 for now_s in (100.0, 110.0, 110.1)]
    assert ks == [True, True, False]
    assert "too old" in in_words(steering.causes)


def test_confirmation_restarts_the_age_and_names_the_version_in_force() -> None:
    steering = make_steering()
    in_force = settings(mode="pin=3", max_age_s=10.0)
    steering.adopt(in_force, 0.0)
    steering.confirm(SettingsVersion(incarnation=1, sequence=2), 9.0)
    assert run(steering, [(1, False)], 11.0) == [0]
    steering.confirm(in_force.version, 11.0)
    assert run(steering, [(1, False)], 20.0) == [3]
    assert steering.adopt(in_force, 25.0) == ""
    assert run(steering, [(1, False)], 34.0) == [3]


def test_pin_is_clamped_to_the_engines_maximum_and_ignores_dwell() -> None:
    steering = make_steering()
    steering.adopt(settings(mode="off", dwell_steps=100), 0.0)
    run(steering, [(1, False)])
    steering.adopt(settings(mode="pin=9", dwell_steps=100, sequence=2), 0.0)
    assert run(steering, [(1, False)]) == [MAX_NUM_SPECULATIVE_TOKENS]


def test_shadow_touches_nothing_and_shows_what_it_would_run() -> None:
    steering = make_steering()
    steering.adopt(settings(mode="shadow"), 0.0)
    assert steering.choose(6, False, 0.0) is None
    assert steering.planned_num_speculative_tokens == 1
    assert in_words(steering.causes).startswith("shadow")


@pytest.mark.parametrize(("local", "expected"), [("off", 0), ("pin=3", 3), ("auto", None), ("shadow", None)])
def test_the_replicas_kill_switch_works_before_any_settings(local: str, expected: int | None) -> None:
    steering = make_steering()
    steering.override_mode(Mode.parse(local))
    assert steering.choose(1, False, 0.0) == expected


def test_the_replicas_kill_switch_overrides_the_mode_until_it_is_taken_back() -> None:
    steering = make_steering()
    steering.adopt(settings(mode="pin=5"), 0.0)
    steering.override_mode(Mode.parse("off"))
    steering.adopt(settings(mode="pin=3", sequence=2), 0.0)
    assert run(steering, [(1, False)]) == [0]
    assert "this replica's own" in in_words(steering.causes)
    steering.override_mode(None)
    assert run(steering, [(1, False)]) == [3]


def test_the_replicas_own_pin_does_not_age() -> None:
    steering = make_steering()
    steering.adopt(settings(max_age_s=1.0), 0.0)
    steering.override_mode(Mode.parse("pin=3"))
    assert run(steering, [(1, False)], 1000.0) == [3]


def test_a_local_plan_is_refused_by_name_and_the_settings_in_force_stay() -> None:
    steering = make_steering()
    steering.adopt(settings(mode="pin=1"), 0.0)
    assert "'bandit' is unknown" in steering.adopt(settings(local_plan("bandit"), sequence=2), 0.0)
    assert run(steering, [(1, False)]) == [1]


@given(st.integers(1, 10), st.integers(0, 3))
def test_a_segment_runs_exactly_its_clean_steps_once_also_when_sent_again(clean_steps: int, resend_after: int) -> None:
    steering = make_steering()
    plan = table((1, 16, 1), segments=[segment(7, 3, clean_steps=clean_steps)])
    steering.adopt(settings(plan, dwell_steps=100), 0.0)
    ks = run_clean(steering, 2, min(resend_after, clean_steps))
    steering.adopt(settings(plan, dwell_steps=100, sequence=2), 1.0)
    ks += run_clean(steering, 2, clean_steps + 5, 1.0)
    assert ks.count(3) == clean_steps
    assert steering.finished_segment_id == 7
    steering.adopt(settings(plan, dwell_steps=100, sequence=3), 2.0)
    assert 3 not in run_clean(steering, 2, 5, 2.0)


def test_a_segment_waits_for_its_batch_and_counts_only_its_own_clean_steps() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1), segments=[segment(7, 3, first=5, last=8, clean_steps=2)])), 0.0)
    assert run_clean(steering, 2, 3) == [1, 1, 1]
    steering.count_clean_step(6, 1)
    assert run(steering, [(6, False), (6, False), (2, False)]) == [3, 3, 1]
    assert steering.finished_segment_id == 0
    assert run_clean(steering, 6, 3) == [3, 3, 1]


def test_segments_of_one_range_run_one_after_another() -> None:
    steering = make_steering()
    segments = [segment(1, 3, clean_steps=2), segment(2, 0, clean_steps=2), segment(3, 5, first=9, last=12)]
    steering.adopt(settings(table((1, 16, 1), segments=segments)), 0.0)
    assert run(steering, [(9, False)]) == [5]
    assert run_clean(steering, 2, 5) == [3, 3, 0, 0, 1]


def test_the_finished_id_never_falls() -> None:
    steering = make_steering()
    steering.adopt(
        settings(table((1, 16, 1), segments=[segment(1, 3, clean_steps=1), segment(2, 3, first=9, last=12, clean_steps=1)])), 0.0
    )
    run_clean(steering, 9, 1)
    run_clean(steering, 2, 1)
    assert steering.finished_segment_id == 2


def test_a_segment_is_dropped_after_its_time_to_live_and_stays_dropped() -> None:
    steering = make_steering()
    plan = table((1, 16, 1), segments=[segment(7, 3, time_to_live_s=10.0)])
    steering.adopt(settings(plan), 0.0)
    assert run(steering, [(2, False)], 9.0) == [3]
    assert run(steering, [(2, False)], 10.0) == [1]
    steering.adopt(settings(plan, sequence=2), 11.0)
    assert run(steering, [(2, False)], 11.0) == [1]
    assert steering.finished_segment_id == 0


def test_a_segment_that_is_no_longer_sent_ends() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1), segments=[segment(7, 3)])), 0.0)
    run_clean(steering, 2, 1)
    steering.adopt(settings(table((1, 16, 1)), sequence=2), 0.0)
    assert run(steering, [(2, False)]) == [1]


@pytest.mark.parametrize("unusable", [segment(7, 4), segment(7, 9)])
def test_a_segment_with_a_k_that_may_not_run_is_left_out(unusable: ExplorationSegment) -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1), segments=[unusable])), 0.0)
    assert run(steering, [(2, False)]) == [1]


def test_a_step_with_prefill_does_not_start_a_segment_that_is_above_the_last_k() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1), segments=[segment(7, 5)])), 0.0)
    assert run(steering, [(10, False), (2, True), (2, False), (2, True)]) == [1, 1, 5, 5]


def test_first_settings_that_meet_a_step_with_prefill_do_not_stop_an_engine_that_drafts_by_itself() -> None:
    steering = make_steering()
    assert steering.choose(4, has_prefill=False, now_s=0.0) is None
    steering.adopt(settings(table((1, 16, 3))), 0.0)
    assert run(steering, [(4, True)]) == [3]


def test_a_step_with_prefill_does_not_begin_a_segment() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1), segments=[segment(7, 0)])), 0.0)
    assert run(steering, [(10, False), (2, True), (2, False)]) == [1, 1, 0]


@given(st.integers(1, 10), st.lists(st.booleans(), min_size=30, max_size=30))
def test_a_segment_beside_prefill_runs_exactly_its_steps_in_whatever_steps_come(clean_steps: int, prefills: list[bool]) -> None:
    steering = make_steering()
    plan = table((1, 16, 1), segments=[segment(7, 3, clean_steps=clean_steps, beside_prefill=True)])
    steering.adopt(settings(plan, dwell_steps=0), 0.0)
    ks = []
    for has_prefill in prefills:
        ks += run(steering, [(2, has_prefill)])
        count = steering.count_prefill_step if has_prefill else steering.count_clean_step
        count(2, ks[-1])
    assert ks == [3] * clean_steps + [1] * (30 - clean_steps)
    assert steering.finished_segment_id == 7


def test_steps_with_prefill_do_not_advance_a_segment_that_is_of_clean_steps() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1), segments=[segment(7, 3, clean_steps=1)])), 0.0)
    assert run(steering, [(2, False)]) == [3]
    steering.count_prefill_step(2, 3)
    assert steering.finished_segment_id == 0


def test_a_segment_beside_prefill_waits_for_its_batch_and_counts_only_its_own_k() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 1), segments=[segment(7, 3, clean_steps=1, beside_prefill=True)])), 0.0)
    assert run(steering, [(10, True), (0, True)]) == [1, 1]
    steering.count_prefill_step(10, 3)
    steering.count_prefill_step(2, 1)
    assert steering.finished_segment_id == 0


def test_a_segment_of_an_older_policy_is_of_clean_steps() -> None:
    told = segment(7, 3).model_dump(exclude={"beside_prefill"})
    assert not ExplorationSegment.model_validate(told).beside_prefill


def test_a_new_incarnation_numbers_its_segments_anew() -> None:
    steering = make_steering()
    plan = table((1, 16, 1), segments=[segment(7, 3, clean_steps=1)])
    steering.adopt(settings(plan), 0.0)
    run_clean(steering, 2, 1)
    steering.adopt(settings(plan, incarnation=2), 0.0)
    assert steering.finished_segment_id == 0
    assert run_clean(steering, 2, 2) == [3, 1]


def test_before_any_settings_nothing_is_planned_held_or_finished() -> None:
    steering = make_steering()
    assert (steering.planned_num_speculative_tokens, steering.guard_holds, steering.finished_segment_id) == (0, 0, 0)
    assert (steering.guard_trips, steering.held_buckets(0.0), steering.settings_version) == (0, (), None)
    assert in_words(steering.causes) == "no settings yet: the engine's own K"


@pytest.mark.parametrize(
    ("mode", "local", "batch", "now_s", "most"),
    [
        ("auto", None, 2, 0.0, 5),
        ("auto", None, 6, 0.0, 3),  # a segment above the table
        ("auto", None, 10, 0.0, 3),  # and one below
        ("auto", None, 10, 50.0, 3),
        ("auto", None, 6, 100.0, 1),  # its time is over
        ("auto", None, 2, 300.0, 5),
        ("auto", None, 2, 300.5, 0),  # nobody confirmed the settings
        ("auto", None, 99, 0.0, 1),  # counts as the engine's largest
        ("pin=9", None, 2, 0.0, 5),
        ("pin=2", None, 2, 0.0, 2),
        ("off", None, 2, 0.0, 0),
        ("shadow", None, 2, 0.0, None),
        ("auto", "off", 2, 0.0, 0),
        ("auto", "pin=3", 2, 1000.0, 3),
        ("off", "auto", 2, 0.0, 5),
        ("auto", "shadow", 2, 0.0, None),
    ],
)
def test_the_most_that_a_step_may_get_is_what_mode_table_and_segment_give(
    mode: str, local: str | None, batch: int, now_s: float, most: int | None
) -> None:
    steering = make_steering()
    segments = [segment(1, 3, first=5, last=8), segment(2, 0, first=9, last=12)]
    steering.adopt(settings(table((1, 4, 5), (5, 8, 1), (9, 12, 3), (13, 16, 1), segments=segments), mode=mode), 0.0)
    steering.override_mode(None if local is None else Mode.parse(local))
    assert steering.most(batch, now_s) == most


def test_the_replicas_own_auto_runs_the_plan_and_its_own_shadow_only_shows_it() -> None:
    steering = make_steering()
    steering.adopt(settings(mode="off"), 0.0)
    steering.override_mode(Mode.parse("auto"))
    assert run(steering, [(6, False)]) == [1]
    steering.override_mode(Mode.parse("shadow"))
    assert steering.choose(2, False, 0.0) is None
    assert steering.planned_num_speculative_tokens == 5
    assert (
        in_words(steering.causes)
        == "shadow, nothing is touched; with auto: the plan's K for this decode batch (this replica's own)"
    )


@pytest.mark.parametrize(
    ("steps", "ks", "reason"),
    [
        ([(2, False)], [5], "the plan's K for this decode batch"),
        ([(2, True)], [5], "the plan's K for this decode batch"),
        ([(2, False), (2, True)], [5, 5], "the plan's K for this decode batch"),
        ([(6, False), (2, True)], [1, 5], "the plan's K for this decode batch"),
        ([(2, False), (6, True)], [5, 1], "the plan's K for this decode batch"),
        ([(10, False), (2, False)], [3, 0], "an exploration segment measures this K"),
        ([(2, False), (10, True)], [5, 3], "the plan's K for this decode batch"),
    ],
)
def test_a_step_says_where_its_k_comes_from(steps: list[tuple[int, bool]], ks: list[int], reason: str) -> None:
    steering = make_steering()
    segments = [segment(1, 0, first=2, last=2)] if (10, False) in steps else []
    steering.adopt(settings(table((1, 4, 5), (5, 8, 1), (9, 12, 3), segments=segments)), 0.0)
    assert run(steering, steps) == ks
    assert in_words(steering.causes) == reason


def test_a_step_before_prefill_says_that_its_k_is_the_one_for_that() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 3)).model_copy(update={"mixed_rows": table((1, 16, 1)).rows})), 0.0)
    assert steering.choose(2, has_prefill=True, now_s=0.0, prefill_follows=True) == 1
    assert in_words(steering.causes) == "the plan's K where the next step also computes prompt tokens"
    assert steering.choose(2, has_prefill=True, now_s=0.0) == 3, "none follows where nobody says so"


def test_an_engines_first_step_may_measure_off_also_with_prefill() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 3), segments=[segment(7, 0)])), 0.0)
    assert run(steering, [(2, True)]) == [0]


def lose_until_held(steering: Steering) -> float:
    """Steps that take five times as long as without speculation and yield no more, until the guard checks; the time of the last."""
    for number in range(2000):
        now_s = number * 0.1
        steering.count_clean_step(4, 3, 4, 0.05, now_s)
        if run(steering, [(4, False)], now_s) == [0]:
            return now_s
    raise AssertionError("the loss was never suspected")


def off_steps_at(batch: int) -> tuple[OffStep, ...]:
    return (OffStep(decode_rows=batch, step_seconds=0.01),)


def test_the_guard_sees_only_steps_whose_time_was_taken() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 3)).model_copy(update={"off_steps": off_steps_at(4)})), 0.0)
    for number in range(2000):
        steering.count_clean_step(4, 3, now_s=number * 0.1)
        assert steering.held_buckets(number * 0.1) == ()
    assert run(steering, [(4, False)]) == [3]
    fresh = make_steering()
    fresh.adopt(settings(table((1, 16, 3)).model_copy(update={"off_steps": off_steps_at(4)})), 0.0)
    assert lose_until_held(steering) == lose_until_held(fresh)
    assert in_words(steering.causes).startswith("the guard suspects that drafts cost more than they give at this batch, and checks")


def test_a_batch_bucket_is_named_while_the_guard_holds_it_and_no_longer() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 3)).model_copy(update={"off_steps": off_steps_at(4)}), max_age_s=3600.0), 0.0)
    now_s = 0.0
    while not steering.guard_trips:
        now_s += 0.1
        chosen = run(steering, [(4, False)], now_s)[0]
        steering.count_clean_step(4, chosen, 4, 0.05 if chosen else 0.01, now_s)
    assert steering.held_buckets(now_s) == (3,)
    assert run(steering, [(4, False)], now_s + 30.0) == [3]
    assert steering.held_buckets(now_s + 30.0) == ()


def test_the_age_of_settings_counts_from_when_they_were_heard() -> None:
    steering = make_steering()
    steering.adopt(settings(), 200.0)
    assert (steering.most(2, 500.0), steering.most(2, 500.5)) == (5, 0)


def test_a_plan_that_says_0_is_not_said_to_be_held_by_the_guard() -> None:
    steering = make_steering()
    steering.adopt(settings(table((1, 16, 3)).model_copy(update={"off_steps": off_steps_at(4)})), 0.0)
    now_s = lose_until_held(steering)
    steering.adopt(settings(table((1, 16, 0)).model_copy(update={"off_steps": off_steps_at(4)}), sequence=2), now_s)
    assert run(steering, [(4, False)], now_s) == [0]
    assert in_words(steering.causes) == "the plan's K for this decode batch"
