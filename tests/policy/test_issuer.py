"""Which settings a replica gets under which version: the fence that the actor and the simulator share (INV-5)."""

from __future__ import annotations

import pytest

from nightjar.policy.issuer import MAX_PLAUSIBLE, Issuer
from nightjar.policy.planners.base import one_k
from nightjar.policy.wire.cause import Causes, Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import Counters, EngineSnapshot, GroupKey, LoadReport
from nightjar.policy.wire.settings import RestartLimits, Settings, SettingsVersion, Table

GROUP = GroupKey(target="llama", max_num_speculative_tokens=3, max_num_seqs=8)


def decided(k: int = 3, causes: Causes = (), **changes: object) -> Settings:
    told = Settings(
        mode=Mode(kind="auto"),
        plan=Table(rows=one_k(k, 8)),
        allowed_num_speculative_tokens=(0, k),
        restarts=RestartLimits(causes=causes),
        causes=causes,
    )
    return told.model_copy(update=changes)


def report(replica_id: str = "r1", known: SettingsVersion | None = None) -> LoadReport:
    snapshot = EngineSnapshot(counters=Counters(engine_id="e"), settings_version=known)
    return LoadReport(replica_id=replica_id, application="chat", group=GROUP, report_number=1, snapshot=snapshot)


def issuer() -> Issuer:
    made = Issuer(incarnation=5)
    assert made.admit(report("r1")) == made.admit(report("r2")) == ""
    return made


def test_the_sequence_rises_with_new_content_only_and_causes_are_none() -> None:
    made = issuer()
    first = made.post("r1", decided())
    assert first is not None
    assert first.version == SettingsVersion(incarnation=5, sequence=1)
    assert made.post("r1", decided(causes=(because(Code.PLANNER, "fleet"),))) is None
    second = made.post("r2", decided())
    third = made.post("r1", decided(k=1))
    assert [given.version.sequence for given in (second, third) if given is not None] == [2, 3]
    assert made.post("r3", decided()) is None


def test_what_the_operator_changes_is_new_content_too() -> None:
    made = issuer()
    made.post("r1", decided())
    assert made.post("r1", decided()) is None
    changed = made.post("r1", decided(exchange_period_s=2.0))
    assert changed is not None
    assert (changed.version.sequence, changed.settings.exchange_period_s) == (2, 2.0)


def test_what_a_replica_does_not_run_is_given_and_counts_as_sent() -> None:
    made = issuer()
    assert made.give("r1", None) is None
    assert not made.slots["r1"].is_confirmed
    posted = made.post("r1", decided())
    assert [slot.has_unsent_news for slot in made.slots.values()] == [True, False]
    assert made.give("r1", None) == posted
    assert [slot.has_unsent_news for slot in made.slots.values()] == [False, False]
    assert not made.slots["r1"].is_confirmed
    assert posted is not None
    assert made.give("r1", posted.version) is None
    assert made.admit(report("r1", posted.version)) == ""
    assert made.slots["r1"].is_confirmed


def test_a_version_never_issued_lifts_the_incarnation_above_it_once_per_replica() -> None:
    made = issuer()
    made.post("r1", decided())
    assert not made.raise_incarnation(4)
    assert made.admit(report("r1", SettingsVersion(incarnation=9, sequence=2))) == ""
    assert made.raise_incarnation(0)
    assert made.slots["r1"].version == SettingsVersion(incarnation=10, sequence=2)
    assert "has named such a version before" in made.admit(report("r1", SettingsVersion(incarnation=99, sequence=1)))
    assert "implausible" in made.admit(report("r2", SettingsVersion(incarnation=MAX_PLAUSIBLE, sequence=1)))


def test_a_version_that_was_issued_lifts_nothing() -> None:
    made = issuer()
    posted = made.post("r1", decided())
    assert posted is not None
    assert made.admit(report("r1", posted.version)) == ""
    assert made.admit(report("a newcomer with the engine of another", posted.version)) == ""
    assert not made.raise_incarnation(0)


def test_a_first_policy_has_nobody_to_rise_above() -> None:
    made = Issuer(incarnation=1)
    assert not made.raise_incarnation(0)
    assert made.incarnation == 1


def test_an_incarnation_that_somebody_else_has_as_well_is_left() -> None:
    made = issuer()
    assert made.raise_incarnation(5)
    assert made.incarnation == 6


@pytest.mark.parametrize("replica_id", ["r1", "a newcomer"])
def test_a_foreign_version_is_found_before_any_settings_were_posted(replica_id: str) -> None:
    made = issuer()
    assert made.admit(report(replica_id, SettingsVersion(incarnation=5, sequence=1))) == ""
    assert made.raise_incarnation(0)
    assert made.incarnation == 6


def test_only_replicas_that_named_a_foreign_version_have_done_so() -> None:
    made = issuer()
    posted = made.post("r1", decided())
    assert posted is not None
    assert made.admit(report("r1", posted.version)) == ""
    assert made.admit(report("r2", SettingsVersion(incarnation=9, sequence=1))) == ""
    assert made.raise_incarnation(0)
    assert made.admit(report("r1", SettingsVersion(incarnation=20, sequence=1))) == ""
    assert "has named such a version before" in made.admit(report("r2", SettingsVersion(incarnation=20, sequence=1)))


@pytest.mark.parametrize("number", [(1 << 40) - 1, 1 << 40])
@pytest.mark.parametrize("field", ["incarnation", "sequence"])
def test_numbers_that_no_policy_ever_reaches_are_refused(field: str, number: int) -> None:
    refused = issuer().admit(report("r1", SettingsVersion.model_validate({"incarnation": 5, "sequence": 1, field: number})))
    assert ("implausible" in refused) is (number >= 1 << 40)


def test_a_full_fleet_keeps_its_own_and_refuses_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = issuer()
    monkeypatch.setattr("nightjar.policy.issuer.MAX_REPLICAS", 3)
    assert made.admit(report("r3")) == ""
    assert "at most 3 replicas" in made.admit(report("r4"))
    assert made.admit(report("r3")) == ""


def test_a_forgotten_replica_begins_anew() -> None:
    made = issuer()
    made.post("r1", decided())
    made.keep_only({"r2"})
    assert list(made.slots) == ["r2"]
    assert made.admit(report("r1")) == ""
    assert made.give("r1", None) is None
