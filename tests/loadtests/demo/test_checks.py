"""The demo's bars: each holds on a good record and fails on the fault that it is there for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nightjar.loadtests.arms.samples import StatusSample
from nightjar.loadtests.arms.texts import ROUNDED_NEAR_TIE, first_difference
from nightjar.loadtests.demo.checks import (
    Answer,
    Explanation,
    check_fixed_k,
    check_planned_k,
    check_policy_restart,
    check_requests,
    check_steering,
    compare_texts,
    explain,
    read_decisions,
)
from nightjar.loadtests.load.openai_stream import Token
from nightjar.loadtests.load.regimes import arrival_times, parse_regime
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.report import DrafterState, EngineLoad, SteeringLevel
from nightjar.policy.wire.settings import IssuedSettings, Plan, SettingsVersion
from nightjar.policy.wire.status import ReplicaStatus
from tests.loadtests.recorded import replica, row, sample, totals
from tests.policy.step import steering_settings
from tests.policy.step.steering_settings import local_plan, table

REGIME = parse_regime("few:2@=2")


def settings(
    sequence: int, *, first_length: int = 5, segment: int | None = None, incarnation: int = 1, plan: Plan | None = None
) -> IssuedSettings:
    """Batch 1 to 4 at `first_length`, 5 to 16 at K=1 (or `plan`); a segment measures batch 1 to 16 at its K."""
    measured = [] if segment is None else [steering_settings.segment(1, segment, last=16, clean_steps=8, time_to_live_s=60)]
    plan = plan or table((1, 4, first_length), (5, 16, 1), segments=measured)
    return steering_settings.settings(plan, sequence=sequence, incarnation=incarnation)


def status(
    batch: int,
    length: int,
    planned: int | None = None,
    *,
    cause: Code = Code.PLAN,
    state: DrafterState = DrafterState.ACTIVE,
    sequence: int = 1,
    steps: int = 0,
) -> ReplicaStatus:
    """A replica whose plan, dwell and guard left `planned`, for `cause`, of which its drafter made `length`."""
    load = EngineLoad(
        decode_batch_size=batch,
        num_running_reqs=batch,
        num_speculative_tokens=length,
        planned_num_speculative_tokens=length if planned is None else planned,
    )
    one = replica("r1", totals(length, steps), load=load, sequence=sequence)
    return one.model_copy(update={"step_causes": (because(cause),), "drafter_state": state})


@pytest.mark.parametrize(
    ("batch", "length", "segment", "expected"),
    [
        (2, 5, None, Explanation.TABLE),
        (4, 5, None, Explanation.TABLE),
        (5, 1, None, Explanation.TABLE),
        (17, 0, None, Explanation.TABLE),
        (5, 3, 3, Explanation.MEASURING),
        (1, 3, 3, Explanation.MEASURING),
        (16, 3, 3, Explanation.MEASURING),
        (17, 3, 3, Explanation.CONTRADICTION),
        (5, 3, None, Explanation.CONTRADICTION),
        (5, 5, 3, Explanation.CONTRADICTION),
        (17, 1, None, Explanation.CONTRADICTION),
        (2, 3, None, Explanation.UNEXPLAINED),
        (5, 2, 3, Explanation.UNEXPLAINED),
    ],
)
def test_a_sampled_length_follows_from_the_settings_or_contradicts_them(
    batch: int, length: int, segment: int | None, expected: Explanation
) -> None:
    assert explain(status(batch, length), [settings(1, segment=segment)]) is expected


@pytest.mark.parametrize(("batch", "length"), [(1, 5), (2, 5), (4, 5), (5, 3), (8, 3), (9, 1), (16, 1), (17, 0)])
def test_a_batch_takes_the_row_that_covers_it_the_first_below_all_and_off_above_them(batch: int, length: int) -> None:
    given = settings(1, plan=table((2, 4, 5), (5, 8, 3), (9, 16, 1)))
    assert explain(status(batch, length), [given]) is Explanation.TABLE
    assert explain(status(batch, 4), [given]) is (Explanation.UNEXPLAINED if length == 5 else Explanation.CONTRADICTION)


@pytest.mark.parametrize("cause", list(Code))
def test_a_length_that_dwell_prefill_or_guard_lowered_is_held(cause: Code) -> None:
    expected = (
        Explanation.HELD
        if cause in {Code.DWELL, Code.MIXED, Code.CHECKING, Code.WORSE_THAN_OFF, Code.AGED}
        else Explanation.UNEXPLAINED
    )
    for length in (0, 1):
        assert explain(status(2, length, cause=cause), [settings(1)]) is expected


def test_a_length_of_the_plan_beside_prefill_is_the_plans_where_the_engine_says_that_it_was() -> None:
    given = settings(1, plan=table((1, 16, 5)).model_copy(update={"mixed_rows": table((1, 16, 1)).rows}))
    assert explain(status(2, 1, cause=Code.BESIDE_PREFILL), [given]) is Explanation.TABLE
    assert explain(status(2, 1, cause=Code.PLAN), [given]) is Explanation.UNEXPLAINED
    assert explain(status(2, 3, cause=Code.BESIDE_PREFILL), [given]) is Explanation.UNEXPLAINED


@pytest.mark.parametrize("state", list(DrafterState))
def test_a_drafter_that_says_it_sleeps_explains_off_and_nothing_else(state: DrafterState) -> None:
    without_drafts = {"dormant", "offloaded", "contracting", "reloading", "catching_up"}
    expected = Explanation.ASLEEP if state in without_drafts else Explanation.UNEXPLAINED
    assert explain(status(2, 0, planned=5, state=state), [settings(1)]) is expected
    assert explain(status(9, 0, planned=3, state=state), [settings(1, segment=3)]) is expected
    assert explain(status(2, 1, planned=5, state=state), [settings(1)]) is Explanation.UNEXPLAINED


def test_a_drafter_that_sleeps_does_not_explain_that_its_engine_planned_less_than_the_plan() -> None:
    asleep = status(2, 0, planned=1, state=DrafterState.DORMANT)
    assert explain(asleep, [settings(1)]) is Explanation.UNEXPLAINED
    held = asleep.model_copy(update={"step_causes": (because(Code.DWELL),)})
    assert explain(held, [settings(1)]) is Explanation.ASLEEP


def test_the_last_step_may_have_run_under_the_settings_before_the_newest_or_since_those_surely_in_force() -> None:
    sent = [settings(1, first_length=5), settings(2, first_length=0), settings(3, first_length=0)]
    late = status(2, 5, sequence=2)
    first, second, third = (one.version for one in sent)
    assert explain(late, sent) is explain(late, sent, since=first) is Explanation.TABLE
    assert explain(late, sent, since=second) is Explanation.CONTRADICTION
    assert explain(late, sent, since=third) is Explanation.CONTRADICTION
    later = status(2, 5, sequence=3)
    assert explain(later, sent) is explain(later, sent, since=second) is explain(later, sent, since=third)
    assert explain(later, sent) is Explanation.CONTRADICTION
    assert explain(later, sent, since=first) is Explanation.TABLE
    assert explain(later, sent, since=SettingsVersion(incarnation=9, sequence=9)) is Explanation.CONTRADICTION


def test_settings_that_came_later_or_long_before_explain_nothing() -> None:
    sent = [settings(1, first_length=5), settings(2, first_length=0)]
    assert explain(status(2, 5, sequence=1), sent) is Explanation.TABLE
    assert explain(status(2, 0, sequence=1), sent) is Explanation.UNEXPLAINED


def test_where_the_journal_does_not_hold_the_sample_before_the_settings_just_before_may_explain_a_length() -> None:
    sent = [settings(1, first_length=3), settings(2, first_length=5), settings(3, first_length=0)]
    unknown = SettingsVersion(incarnation=9, sequence=9)
    assert explain(status(2, 5, sequence=3), sent, since=unknown) is Explanation.TABLE
    assert explain(status(2, 3, sequence=3), sent, since=unknown) is Explanation.UNEXPLAINED, "those before them do not"


def test_settings_that_the_journal_does_not_hold_or_an_engine_plans_itself_explain_nothing() -> None:
    assert explain(status(2, 5, sequence=9), [settings(1)]) is Explanation.UNKNOWN
    local = settings(1, plan=local_plan("nightjar"))
    assert explain(status(2, 5), [local]) is Explanation.UNKNOWN


SENT = {"r1": [settings(1)]}


def sampled(*replicas: ReplicaStatus) -> list[StatusSample]:
    return [sample(float(number), "auto", one) for number, one in enumerate(replicas)]


def asleep(count: int) -> list[ReplicaStatus]:
    return [status(2, 0, planned=5, state=DrafterState.DORMANT)] * count


def test_planned_lengths_hold_and_the_samples_are_counted_by_whether_they_speculate() -> None:
    check = check_planned_k("auto", sampled(status(2, 5), status(9, 1), status(20, 0), *asleep(1)), SENT)
    assert (check.name, check.passed) == ("K under auto", True)
    assert check.detail == (
        "4 samples, 2 at K > 0 and 2 at K = 0: 3 as the table says, 1 off while the drafter sleeps or catches up"
    )


def test_planned_lengths_fail_on_one_that_contradicts_and_on_one_that_nothing_explains() -> None:
    good = [status(2, 5), status(9, 1)]
    for bad, said in ((status(9, 5), "K=5 at batch 9 under 1.1"), (status(2, 3), "K=3 at batch 2 under 1.1")):
        check = check_planned_k("auto", sampled(*good, bad), SENT)
        assert not check.passed
        assert said in check.detail


def test_at_most_three_samples_that_fail_are_named() -> None:
    check = check_planned_k("auto", sampled(*[status(9, 5)] * 4), SENT)
    assert check.detail.count("K=5 at batch 9") == 3


def test_how_often_a_length_was_held_lower_for_a_reason_is_told_and_not_judged() -> None:
    asleep_throughout = check_planned_k("auto", sampled(*asleep(100)), SENT)
    assert asleep_throughout.passed
    assert asleep_throughout.detail.endswith("0 at K > 0 and 100 at K = 0: 100 off while the drafter sleeps or catches up")
    held = check_planned_k("auto", sampled(status(2, 5), *[status(2, 1, cause=Code.DWELL)] * 3), SENT)
    assert held.passed
    assert held.detail.endswith("1 as the table says, 3 held lower by dwell, prefill or guard")


def test_measuring_counts_as_following_the_plan() -> None:
    sent = {"r1": [settings(1, segment=3)]}
    assert check_planned_k("auto", sampled(status(2, 3), *asleep(1)), sent).passed


def test_settings_of_before_explain_a_length_only_until_the_engine_has_run_two_steps_under_the_newer() -> None:
    sent = {"r1": [settings(1, first_length=0), settings(2, first_length=5)]}
    stale = [status(2, 0, sequence=2, steps=steps) for steps in (10, 11)]
    assert check_planned_k("auto", sampled(*stale), sent).passed
    check = check_planned_k("auto", sampled(*stale, status(2, 0, sequence=2, steps=12)), sent)
    assert not check.passed
    assert "1 below the plan for no reason that the replica gives" in check.detail


def test_settings_that_came_while_a_long_step_ran_leave_it_to_those_that_planned_it() -> None:
    sent = {"r1": [settings(1, first_length=5), *(settings(number, first_length=0) for number in (2, 3, 4))]}
    before = [status(2, 5, sequence=1, steps=steps) for steps in (10, 12)]
    late = status(2, 5, sequence=4, steps=13)
    assert check_planned_k("auto", sampled(*before, late), sent).passed
    idle = status(0, 5, sequence=3, steps=12)
    assert check_planned_k("auto", sampled(*before, idle, late), sent).passed
    later = status(2, 5, sequence=4, steps=14)
    assert not check_planned_k("auto", sampled(*before, idle, later), sent).passed


def test_planned_lengths_fail_where_half_of_the_samples_or_all_are_unknown() -> None:
    known, unknown = status(2, 5), status(2, 5, sequence=9)
    assert check_planned_k("auto", sampled(known, known, unknown), SENT).passed
    assert not check_planned_k("auto", sampled(known, unknown), SENT).passed
    assert not check_planned_k("auto", sampled(known), {}).passed
    assert not check_planned_k("auto", [], SENT).passed


def test_the_run_fails_where_any_replica_was_ever_steered_less_than_fully() -> None:
    steered = sampled(status(2, 5), status(20, 0))
    assert check_steering(steered).passed
    less = status(2, 5).model_copy(update={"steering": SteeringLevel.PLAINLY, "steering_reason": "an error in the hooks"})
    check = check_steering([*steered, sample(9.0, "off", less)])
    assert not check.passed
    assert "an error in the hooks" in check.detail
    assert not check_steering([]).passed


def test_only_replicas_that_decode_steered_in_the_mode_are_sampled() -> None:
    others = [
        sample(1.0, "auto", status(2, 5).model_copy(update={"settings_confirmed": False})),
        sample(2.0, "auto", status(2, 5).model_copy(update={"steering": SteeringLevel.PLAINLY})),
        sample(3.0, "auto", status(0, 5)),
        sample(4.0, "off", status(2, 5)),
        StatusSample(time_s=5.0, mode="auto", error="away"),
    ]
    assert not check_planned_k("auto", others, SENT).passed


def test_a_fixed_mode_runs_every_step_at_its_length() -> None:
    before = sample(1.0, "pin=5", replica("r1", totals(0, 40), totals(5, 2)))
    assert check_fixed_k(Mode.parse("pin=5"), [before, sample(9.0, "pin=5", replica("r1", totals(0, 40), totals(5, 30)))]).passed
    slipped = sample(9.0, "pin=5", replica("r1", totals(0, 41), totals(5, 30)))
    failed = check_fixed_k(Mode.parse("pin=5"), [before, slipped])
    assert (failed.passed, failed.detail) == (False, "1 steps at K=0, 28 steps at K=5")
    assert not check_fixed_k(Mode.parse("off"), [before, slipped]).passed
    assert not check_fixed_k(Mode.parse("off"), []).passed


def test_steps_before_a_drafter_is_back_are_told_and_those_of_one_that_never_is_fail() -> None:
    mode, at_five = Mode.parse("pin=5"), totals(5, 2)
    asleep = {"drafter_state": DrafterState.CATCHING_UP}
    begin = sample(1.0, "pin=5", replica("r1", totals(0, 40), at_five).model_copy(update=asleep))
    comes = sample(2.0, "pin=5", replica("r1", totals(0, 42), at_five).model_copy(update=asleep))
    is_back = sample(3.0, "pin=5", replica("r1", totals(0, 43), totals(5, 3)))
    end = sample(9.0, "pin=5", replica("r1", totals(0, 43), totals(5, 9)))
    found = check_fixed_k(mode, [begin, comes, is_back, end])
    assert (found.passed, found.detail) == (True, "6 steps at K=5; 4 before the drafters were back")
    slipped = sample(9.0, "pin=5", replica("r1", totals(0, 44), totals(5, 9)))
    assert not check_fixed_k(mode, [begin, comes, is_back, slipped]).passed
    never = check_fixed_k(mode, [begin, comes])
    assert (never.passed, never.detail) == (False, "no step was counted; 2 on engines whose drafter was never back")


def test_off_runs_every_step_without_drafts_up_to_its_last_sample() -> None:
    times = (1.0, 5.0, 9.0)
    calm = [sample(time_s, "off", replica("r1", totals(0, 40 + int(time_s)))) for time_s in times]
    assert check_fixed_k(Mode.parse("off"), calm).detail == "8 steps at K=0"
    assert check_fixed_k(Mode.parse("off"), calm).passed
    slipped = [*calm[:2], sample(9.0, "off", replica("r1", totals(0, 49), totals(1, 1)))]
    assert not check_fixed_k(Mode.parse("off"), slipped).passed


def test_every_arrival_of_every_mode_has_a_row_and_none_failed() -> None:
    rows = [
        row(f"few-{arrival.number}", "few", arrival.time_s, start_s=1.0, mode=mode)
        for mode in ("off", "auto")
        for arrival in arrival_times(REGIME, 0)
    ]
    assert check_requests(REGIME, 0, ["off", "auto"], rows).passed
    assert "auto: 3 requests recorded of 4 due" in check_requests(REGIME, 0, ["off", "auto"], rows[:-1]).detail
    failed = check_requests(REGIME, 0, ["off", "auto"], [*rows[:-1], rows[-1].model_copy(update={"error": "refused"})])
    assert (failed.passed, failed.detail) == (False, "1 of 8 failed, the first: refused")
    two = [one.model_copy(update={"error": why}) for one, why in zip(rows[:2], ("refused", "torn"), strict=True)]
    assert check_requests(REGIME, 0, ["off", "auto"], [*two, *rows[2:]]).detail == "2 of 8 failed, the first: refused"


def test_the_policy_comes_back_when_a_higher_incarnation_steers_every_replica() -> None:
    before = sample(1.0, "auto", replica("r1"), incarnation=3)
    away = sample(6.0, "auto", incarnation=4)
    unconfirmed = replica("r1").model_copy(update={"settings_confirmed": False})
    back = sample(9.0, "auto", replica("r1"), incarnation=4)
    check = check_policy_restart(5.0, [before, away, sample(7.0, "auto", unconfirmed, incarnation=4), back])
    assert check.passed
    assert check.detail == "incarnation 3 was killed, 4 answered after 1 s and steered every replica after 4 s"
    assert not check_policy_restart(5.0, [before, away]).passed
    assert not check_policy_restart(5.0, [before, sample(9.0, "auto", replica("r1"), incarnation=3)]).passed
    assert not check_policy_restart(None, [before, back]).passed


def test_the_first_answer_and_the_first_time_that_all_were_steered_are_told() -> None:
    steered = [sample(time_s, "auto", replica("r1"), incarnation=number) for time_s, number in ((5.0, 4), (7.0, 4), (9.0, 5))]
    check = check_policy_restart(5.0, [sample(4.0, "auto", replica("r1"), incarnation=3), *steered])
    assert check.detail == "incarnation 3 was killed, 4 answered after 0 s and steered every replica after 0 s"
    assert check_policy_restart(5.0, steered[:1]).detail == (
        "incarnation 0 was killed, 4 answered after 0 s and steered every replica after 0 s"
    )
    assert check_policy_restart(5.0, [sample(9.0, "auto", replica("r1"), incarnation=1)]).passed
    none_newer = check_policy_restart(5.0, [sample(9.0, "auto", replica("r1"), incarnation=0)])
    assert (none_newer.passed, none_newer.detail) == (False, "no newer incarnation than 0 steers every replica")


def entry(**decided: IssuedSettings) -> str:
    return json.dumps({"tick": 1, "decided": {name: to_plain(one) for name, one in decided.items()}})


def test_decisions_are_read_by_replica_in_the_order_of_their_versions(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    lines = [
        entry(r1=settings(2)),
        '{"tick": 2, "decided": {}}',
        "torn {",
        "[]",
        entry(r1=settings(1, incarnation=2), r2=settings(1)),
        entry(r1=settings(1)),
    ]
    path.write_text("\n".join(lines))
    sent = read_decisions(path)
    assert [str(one.version) for one in sent["r1"]] == ["1.1", "1.2", "2.1"]
    assert len(sent["r2"]) == 1


def answer(*texts: str, gap: float = 1.0, error: str = "") -> Answer:
    return Answer("a prompt", tuple(Token(text, (-0.5, -0.5 - gap)) for text in texts), error)


def test_equal_text_holds_and_the_first_difference_is_named() -> None:
    assert first_difference("ab", "ab") is None
    assert first_difference("ab", "ac") == 1
    assert first_difference("ab", "a") == 1
    same = compare_texts({"off": [answer("a", "b")], "pin=5": [answer("a", "b")], "auto": [answer("a", "b")]})
    assert (same.passed, same.detail) == (True, "1 prompts, 2 tokens, the same under off, pin=5, auto")
    different = compare_texts({"off": [answer("a", "b")], "auto": [answer("a", "c")]})
    assert (different.passed, different.detail) == (False, "auto: 'a prompt' differs from off at token 1")


def test_a_difference_counts_as_equal_only_where_the_reference_was_a_near_tie() -> None:
    assert compare_texts({"off": [answer("a", "b", gap=9e-5)], "auto": [answer("a", "c")]}).passed
    assert not compare_texts({"off": [answer("a", "b", gap=2e-4)], "auto": [answer("a", "c", gap=9e-5)]}).passed
    assert not compare_texts({"off": [answer("a", gap=9e-5)], "auto": [answer("a", "c")]}).passed


def test_every_prompt_is_compared_and_at_most_four_that_differ_are_named() -> None:
    reference, other = answer("a", "b"), answer("a", "c")
    second = compare_texts({"off": [reference] * 2, "auto": [reference, other]})
    assert (second.passed, second.detail) == (False, "auto: 'a prompt' differs from off at token 1")
    assert compare_texts({"off": [reference] * 5, "auto": [other] * 5}).detail.count("differs") == 4
    with pytest.raises(ValueError, match="zip"):
        compare_texts({"off": [reference] * 2, "auto": [reference]})


def test_a_long_prompt_is_named_by_its_beginning_and_near_ties_are_counted() -> None:
    long = [replace(one, prompt="p" * 60) for one in (answer("a"), answer("b"))]
    assert compare_texts({"off": long[:1], "auto": long[1:]}).detail == f"auto: '{'p' * 40}' differs from off at token 0"
    tied = compare_texts({"off": [answer("a", gap=0.0)] * 2, "auto": [answer("b")] * 2})
    assert tied.detail == "2 prompts, 2 tokens, the same under off, auto (2 from a near tie of the two best tokens on)"


def test_without_a_second_candidate_there_is_no_near_tie() -> None:
    alone = Answer("a prompt", (Token("a", (-0.5,)),))
    assert not compare_texts({"off": [alone], "auto": [answer("b")]}).passed


def test_a_model_that_rounds_may_differ_from_wider_ties_on() -> None:
    given = {"off": [answer("a", "b", gap=0.25)], "auto": [answer("a", "c")]}
    assert compare_texts(given, ROUNDED_NEAR_TIE).passed
    assert not compare_texts(given).passed
    assert not compare_texts(given | {"off": [answer("a", "b", gap=0.31)]}, ROUNDED_NEAR_TIE).passed
    assert not compare_texts(given, near_tie=0.25).passed, "a gap as wide as the limit is none"


def test_an_answer_that_failed_is_no_equal_text() -> None:
    failed = compare_texts({"off": [answer("a")], "auto": [answer("a", error="HTTP 503")]})
    assert (failed.passed, failed.detail) == (False, "auto: HTTP 503")
