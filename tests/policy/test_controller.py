"""One loop decides: whoever serves, simulates, proves or replays runs the controller, and none beside it."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from nightjar.policy.controller import Controller
from nightjar.policy.issuer import MAX_PLAUSIBLE
from nightjar.policy.learned import LearnedTables
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.settings import SettingsVersion
from tests.policy.engines import Replica

ROOT = Path(__file__).parents[2]
ROOMS = ("nightjar/policy", "nightjar/cluster", "nightjar/deployments", "nightjar/loadtests", "tests/benchmarks")
LOOP = "nightjar/policy/controller.py"
HOMES = {"observe": "nightjar.policy.intake", "decide": "nightjar.policy.decision.fleet"}
AUTO = parse_operator_settings({"mode": "auto", "allowed_num_speculative_tokens": [0, 1, 3, 5]})
"""The engines have step times for these K."""


def uses(source: str) -> list[str]:
    """Where a module takes the two functions from: imported by name, or as an attribute of their modules, under whatever name."""
    found, modules = list[str](), dict[str, str]()
    if not any(name in source for name in HOMES):
        return found
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found += [alias.name for alias in node.names if HOMES.get(alias.name) == node.module]
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in HOMES:
            owner = ast.unparse(node.value)
            found += [node.attr] if modules.get(owner, owner) == HOMES[node.attr] else []
    return sorted(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from nightjar.policy.decision.fleet import decide as choose", ["decide"]),
        ("from nightjar.policy import intake\nintake.observe(state)", ["observe"]),
        ("import nightjar.policy.decision.fleet as loop\nloop.decide(state)", ["decide"]),
        ("import nightjar.policy.decision.fleet\nnightjar.policy.decision.fleet.decide(state)", ["decide"]),
        ("histogram.observe(3.0)\npolicy.decide(snapshot)\nself.observe(report)", []),
        ("from nightjar.policy.intake import MAX_RETIRED_ENGINES", []),
    ],
)
def test_a_use_of_the_two_functions_is_found_by_whatever_name_and_a_namesake_is_none(source: str, found: list[str]) -> None:
    assert uses(source) == found


def test_the_controller_alone_observes_and_decides() -> None:
    modules = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(modules) > 400
    callers = {path.relative_to(ROOT).as_posix(): found for path in modules if (found := uses(path.read_text()))}
    assert callers == {LOOP: ["decide", "observe"]}


def test_what_is_issued_once_is_issued_again_only_where_its_content_changed() -> None:
    policy, replica = Controller(AUTO), Replica("r1")
    assert policy.take(replica.report(), 0.0).is_admitted
    assert list(policy.tick(0.5, random.Random(0))) == ["r1"]
    assert policy.tick(1.0, random.Random(0)) == {}
    policy.overrides = (ModeOverride(scope="fleet", mode=Mode.parse("off")),)
    (issued,) = policy.tick(1.5, random.Random(0)).values()
    assert issued.settings == policy.decisions["r1"]
    assert issued.version == SettingsVersion(incarnation=1, sequence=2)


def test_a_replica_that_was_only_observed_is_decided_for_and_issued_nothing() -> None:
    policy = Controller(AUTO)
    assert policy.observe(Replica("r1").report(), 0.0) == ""
    assert policy.tick(0.5, random.Random(0)) == {}
    assert list(policy.decisions) == ["r1"]


def test_a_report_that_is_not_admitted_changes_nothing_and_one_heard_before_is_admitted_and_refused() -> None:
    policy, report = Controller(AUTO), Replica("r1").report()
    before = policy.state
    version = SettingsVersion(incarnation=MAX_PLAUSIBLE, sequence=1)
    lie = report.model_copy(update={"snapshot": report.snapshot.model_copy(update={"settings_version": version})})
    taken = policy.take(lie, 0.0)
    assert (taken.is_admitted, "implausible" in taken.refused, policy.state) == (False, True, before)
    assert policy.take(report, 0.0).refused == ""
    again = policy.take(report, 1.0)
    assert (again.is_admitted, again.refused) == (True, "replica r1: report 1 was heard before")


def test_inv_6_a_controller_that_rises_above_another_policy_grants_nothing_yet_and_issues_all_anew() -> None:
    policy, replica = Controller(AUTO), Replica("r1")
    policy.take(replica.report(), 0.0)
    (first,) = policy.tick(0.5, random.Random(0)).values()
    assert (policy.rise_above(0, 1.0), policy.state.quiet_since_s) == (False, None)
    assert (policy.rise_above(6, 1.0), policy.state.quiet_since_s) == (True, 1.0)
    (slot,) = policy.issuer.slots.values()
    assert slot.issued is not None
    assert (slot.issued.version.incarnation, slot.issued.settings) == (7, first.settings)


def test_a_tick_that_raises_leaves_state_decisions_and_versions_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, replica = Controller(AUTO), Replica("r1")
    policy.take(replica.report(), 0.0)
    policy.tick(0.5, random.Random(0))
    state, decisions, (slot,) = policy.state, policy.decisions, policy.issuer.slots.values()
    version = slot.version

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("nightjar.policy.controller.decide", broken)
    with pytest.raises(ZeroDivisionError):
        policy.tick(1.0, random.Random(0))
    assert (policy.state, policy.decisions, slot.version) == (state, decisions, version)


def test_what_was_learned_is_noted_once_until_it_changes() -> None:
    policy, replica, rng = Controller(AUTO), Replica("r1", batch=4), random.Random(0)
    assert not policy.note_learned()
    replica.run_until(5.0, rng)
    policy.observe(replica.report(), 5.0)
    policy.tick(5.5, rng)
    assert policy.note_learned()
    assert policy.learned != LearnedTables()
    assert not policy.note_learned()
    successor = Controller(AUTO)
    successor.take_up(policy.learned, 6.0)
    assert successor.note_learned()
    assert [group.key for group in successor.learned.groups] == [group.key for group in policy.learned.groups]
