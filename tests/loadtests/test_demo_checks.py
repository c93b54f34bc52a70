"""The demo's bars: each holds on a good record and fails on the fault that it is there for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightjar.loadtests.demo_checks import (
    Explanation,
    check_fixed_length,
    check_planned_length,
    check_policy_restart,
    check_requests,
    explain,
    read_decisions,
)
from nightjar.loadtests.demo_texts import Answer, compare_texts, first_difference
from nightjar.loadtests.openai_stream import Token
from nightjar.loadtests.regimes import arrival_times, parse_regime
from nightjar.policy.records import EngineLoad, ExplorationSegment, Mode, Settings, SettingsVersion, Table, TableRow, to_plain
from tests.loadtests.recorded import replica, row, sample, totals

REGIME = parse_regime("few:2@=2")


def settings(sequence: int, *, first_length: int = 5, segment: int | None = None, incarnation: int = 1) -> Settings:
    """Batch 1 to 4 at `first_length`, 5 to 16 at K=1; a segment measures batch 1 to 16 at its K."""
    rows = (
        TableRow(first_batch_size=1, last_batch_size=4, num_speculative_tokens=first_length),
        TableRow(first_batch_size=5, last_batch_size=16, num_speculative_tokens=1),
    )
    segments: tuple[ExplorationSegment, ...] = ()
    if segment is not None:
        measured = ExplorationSegment(
            segment_id=1, first_batch_size=1, last_batch_size=16, num_speculative_tokens=segment, clean_steps=8, time_to_live_s=60
        )
        segments = (measured,)
    return Settings(
        version=SettingsVersion(incarnation=incarnation, sequence=sequence),
        mode=Mode.parse("auto"),
        plan=Table(rows=rows, segments=segments),
        allowed_num_speculative_tokens=(0, 1, 3, 5),
    )


def explained(batch: int, length: int, sent: list[Settings], sequence: int = 1) -> Explanation:
    load = EngineLoad(decode_batch_size=batch, num_speculative_tokens=length)
    return explain(replica("r1", load=load, sequence=sequence), sent)


@pytest.mark.parametrize(
    ("batch", "length", "segment", "expected"),
    [
        (2, 5, None, Explanation.TABLE),
        (5, 1, None, Explanation.TABLE),
        (17, 0, None, Explanation.TABLE),
        (5, 3, 3, Explanation.MEASURING),
        (2, 3, None, Explanation.HELD_LOWER),
        (5, 2, 3, Explanation.HELD_LOWER),
        (5, 3, None, Explanation.CONTRADICTION),
        (5, 5, 3, Explanation.CONTRADICTION),
        (17, 1, None, Explanation.CONTRADICTION),
    ],
)
def test_a_sampled_length_follows_from_the_settings_or_contradicts_them(
    batch: int, length: int, segment: int | None, expected: Explanation
) -> None:
    assert explained(batch, length, [settings(1, segment=segment)]) is expected


def test_the_last_step_may_have_run_under_the_settings_before_the_newest() -> None:
    sent = [settings(1, first_length=5), settings(2, first_length=0), settings(3, first_length=0)]
    assert explained(2, 5, sent, sequence=2) is Explanation.TABLE
    assert explained(2, 5, sent, sequence=3) is Explanation.CONTRADICTION


def test_settings_that_the_journal_does_not_hold_explain_nothing() -> None:
    assert explained(2, 5, [settings(1)], sequence=9) is Explanation.UNKNOWN


def decoding(length: int, batch: int = 2, sequence: int = 1) -> EngineLoad:
    return EngineLoad(decode_batch_size=batch, num_running_reqs=batch, num_speculative_tokens=length)


def test_planned_lengths_hold_unless_one_contradicts_or_too_few_are_known() -> None:
    sent = {"r1": [settings(1)]}
    good = [sample(1.0, "auto", replica("r1", load=decoding(5))), sample(2.0, "auto", replica("r1", load=decoding(1, batch=9)))]
    assert check_planned_length("auto", good, sent).passed
    assert check_planned_length("auto", good, sent).detail == "samples: 2 as the table says"
    bad = sample(3.0, "auto", replica("r1", load=decoding(5, batch=9)))
    assert "K=5 at batch 9 under 1.1" in check_planned_length("auto", [*good, bad], sent).detail
    assert not check_planned_length("auto", [*good, bad], sent).passed
    assert not check_planned_length("auto", good, {}).passed
    assert not check_planned_length("auto", [], sent).passed


def test_a_fixed_mode_runs_every_step_at_its_length() -> None:
    before = sample(1.0, "pin=5", replica("r1", totals(0, 40), totals(5, 2)))
    assert check_fixed_length(
        Mode.parse("pin=5"), [before, sample(9.0, "pin=5", replica("r1", totals(0, 40), totals(5, 30)))]
    ).passed
    slipped = sample(9.0, "pin=5", replica("r1", totals(0, 41), totals(5, 30)))
    failed = check_fixed_length(Mode.parse("pin=5"), [before, slipped])
    assert (failed.passed, failed.detail) == (False, "1 steps at K=0, 28 steps at K=5")
    assert not check_fixed_length(Mode.parse("off"), [before, slipped]).passed
    assert not check_fixed_length(Mode.parse("off"), []).passed


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


def entry(**decided: Settings) -> str:
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
    assert first_difference(answer("a", "b"), answer("a", "b")) is None
    assert first_difference(answer("a", "b"), answer("a", "c")) == 1
    assert first_difference(answer("a", "b"), answer("a")) == 1
    same = compare_texts({"off": [answer("a", "b")], "pin=5": [answer("a", "b")], "auto": [answer("a", "b")]})
    assert (same.passed, same.detail) == (True, "1 prompts, 2 tokens, the same under off, pin=5, auto")
    different = compare_texts({"off": [answer("a", "b")], "auto": [answer("a", "c")]})
    assert (different.passed, different.detail) == (False, "auto: 'a prompt' differs from off at token 1")


def test_a_difference_counts_as_equal_only_where_the_reference_was_a_near_tie() -> None:
    assert compare_texts({"off": [answer("a", "b", gap=9e-5)], "auto": [answer("a", "c")]}).passed
    assert not compare_texts({"off": [answer("a", "b", gap=2e-4)], "auto": [answer("a", "c", gap=9e-5)]}).passed
    assert not compare_texts({"off": [answer("a", gap=9e-5)], "auto": [answer("a", "c")]}).passed


def test_an_answer_that_failed_is_no_equal_text() -> None:
    failed = compare_texts({"off": [answer("a")], "auto": [answer("a", error="HTTP 503")]})
    assert (failed.passed, failed.detail) == (False, "auto: HTTP 503")
