"""The replica's side of the exchange: which replies count (INV-5), what they confirm, and when the next report is due."""

from __future__ import annotations

import pytest

from nightjar.policy.exchange import Reporting
from nightjar.policy.planners.base import one_k
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.settings import ExchangeReply, IssuedSettings, Settings, SettingsVersion, Table

PERIOD_S = 2.0


def issued(incarnation: int, sequence: int) -> IssuedSettings:
    told = Settings(
        mode=Mode(kind="auto"),
        plan=Table(rows=one_k(3, 8)),
        allowed_num_speculative_tokens=(0, 3),
        exchange_period_s=PERIOD_S,
    )
    return IssuedSettings(version=SettingsVersion(incarnation=incarnation, sequence=sequence), settings=told)


def running(incarnation: int = 2, sequence: int = 5) -> Reporting:
    """A replica that knows settings, and runs them by the report that is on its way since second 10."""
    known = issued(incarnation, sequence)
    made = Reporting(issued=known, heard_s=1.0)
    made.begins(known.version, 10.0)
    return made


def test_a_new_replica_reports_at_once_and_twice_a_second_until_settings_say_otherwise() -> None:
    made = Reporting()
    assert (made.next_report_s, made.heard_s) == (0.0, 0.0)
    made.begins(None, 3.0)
    assert made.ends(ExchangeReply(incarnation=1), 3.2) == (False, "")
    assert made.next_report_s == 3.5


def test_new_settings_are_known_and_acknowledged_at_once() -> None:
    made = running()
    assert made.ends(ExchangeReply(incarnation=2, issued=issued(2, 6)), 11.0) == (True, "")
    assert made.issued == issued(2, 6)
    assert (made.next_report_s, made.heard_s) == (11.0, 11.0)


def test_a_reply_without_news_confirms_what_was_reported_and_the_next_report_is_a_period_after_this_one() -> None:
    made = running()
    assert made.ends(ExchangeReply(incarnation=2), 11.5) == (True, "")
    assert (made.next_report_s, made.heard_s) == (10.0 + PERIOD_S, 11.5)


def test_settings_that_the_engine_does_not_run_yet_are_not_confirmed() -> None:
    made = running()
    made.begins(SettingsVersion(incarnation=2, sequence=4), 20.0)
    assert made.ends(ExchangeReply(incarnation=2), 21.0) == (False, "")
    assert made.heard_s == 1.0


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (ExchangeReply(incarnation=2, issued=issued(2, 4)), "settings 2.4 are older than 2.5"),
        (ExchangeReply(incarnation=3, issued=issued(1, 9)), "settings 1.9 are older than 2.5"),
        (ExchangeReply(incarnation=1), "the policy is of incarnation 1, older than the settings 2.5"),
        (ExchangeReply(incarnation=9, issued=issued(9, 1), protocol_version=PROTOCOL_VERSION + 1), "speaks protocol"),
    ],
)
def test_inv_5_what_is_older_or_of_another_protocol_changes_and_confirms_nothing(reply: ExchangeReply, why: str) -> None:
    made = running()
    is_heard, refused = made.ends(reply, 11.9)
    assert why in refused
    assert not is_heard
    assert (made.issued, made.heard_s) == (issued(2, 5), 1.0)
    assert made.next_report_s == 11.9 + 0.5


def test_settings_that_come_with_a_refusal_are_known_and_the_refused_report_waits() -> None:
    made = running()
    assert made.ends(ExchangeReply(incarnation=2, issued=issued(2, 6), refused="no"), 13.0) == (True, "no")
    assert made.issued == issued(2, 6)
    assert made.next_report_s == 13.5


def test_after_failures_in_a_row_the_next_report_waits_longer_each_time_until_one_succeeds() -> None:
    made = running()
    waits_s = []
    for _ in range(5):
        made.fails(20.0)
        waits_s.append(made.next_report_s - 20.0)
    assert waits_s == [0.5, 1.0, 2.0, 4.0, 5.0]
    made.ends(ExchangeReply(incarnation=2), 21.0)
    made.fails(22.0)
    assert made.next_report_s == 22.5
