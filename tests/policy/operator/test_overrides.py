"""Modes set by hand: the most specific live one wins, expires by itself, and replaces its predecessor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nightjar.policy.operator.overrides import ModeOverride, effective_mode, live_overrides, set_override
from nightjar.policy.wire.mode import Mode

SETTINGS = Mode.parse("auto")
FLEET = ModeOverride(scope="fleet", mode=Mode.parse("shadow"))
APPLICATION = ModeOverride(scope="application", name="chat", mode=Mode.parse("off"))
REPLICA = ModeOverride(scope="replica", name="r1", mode=Mode.parse("pin=3"), expires_at_s=100.0, reason="trial")


def mode_of(replica_id: str, application: str, overrides: list[ModeOverride], now_s: float = 0.0) -> str:
    return str(effective_mode(replica_id, application, SETTINGS, overrides, now_s)[0])


@given(st.permutations([FLEET, APPLICATION, REPLICA]))
def test_the_most_specific_override_wins_in_any_order(overrides: list[ModeOverride]) -> None:
    assert mode_of("r1", "chat", overrides) == "pin=3"
    assert mode_of("r2", "chat", overrides) == "off"
    assert mode_of("r2", "code", overrides) == "shadow"
    assert mode_of("r2", "code", [APPLICATION, REPLICA]) == "auto"


def test_an_expired_override_uncovers_the_next_less_specific_one() -> None:
    overrides = [FLEET, APPLICATION, REPLICA]
    assert mode_of("r1", "chat", overrides, now_s=99.9) == "pin=3"
    assert mode_of("r1", "chat", overrides, now_s=100.0) == "off"
    assert live_overrides(overrides, 100.0) == (FLEET, APPLICATION)


def test_who_set_the_mode_is_said_with_the_reason_given() -> None:
    assert effective_mode("r1", "chat", SETTINGS, [REPLICA], 0.0)[1] == "replica r1 by hand (trial)"
    assert effective_mode("r1", "chat", SETTINGS, [FLEET], 0.0)[1] == "fleet by hand"
    assert effective_mode("r1", "chat", SETTINGS, [], 0.0)[1] == "the settings"


@pytest.mark.parametrize(("said", "means"), [("auto", "shadow"), ("shadow", "shadow"), ("off", "off"), ("pin=2", "pin=2")])
def test_beside_adaptive_verification_the_settings_auto_means_shadow_and_any_other_mode_what_it_says(said: str, means: str) -> None:
    mode, who = effective_mode("r1", "chat", Mode.parse(said), [], 0.0, adaptive_verification=True)
    assert str(mode) == means
    assert ("adaptive verification" in who) == (said == "auto")


@pytest.mark.parametrize(
    "scope", [{"scope": "fleet"}, {"scope": "application", "name": "chat"}, {"scope": "replica", "name": "r1"}]
)
def test_beside_adaptive_verification_a_mode_by_hand_of_any_scope_holds(scope: dict[str, str]) -> None:
    override = ModeOverride.model_validate({**scope, "mode": "auto"})
    assert str(effective_mode("r1", "chat", SETTINGS, [override], 0.0, adaptive_verification=True)[0]) == "auto"


def test_a_new_override_replaces_only_the_one_of_its_scope_and_name() -> None:
    newer = REPLICA.model_copy(update={"mode": Mode.parse("off")})
    assert set_override((FLEET, REPLICA, APPLICATION), newer) == (FLEET, APPLICATION, newer)


@pytest.mark.parametrize(
    ("scope", "name", "said"),
    [("fleet", "r1", "scope fleet takes no name"), ("replica", "", "scope replica needs the name of the replica")],
)
def test_a_scope_and_a_name_that_do_not_fit_are_refused(scope: str, name: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModeOverride.model_validate({"scope": scope, "name": name, "mode": "off"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"scope": "application", "name": "chat", "mode": "auto"},
            "planner: nightjar for one application; replicas",
        ),
        (
            {"scope": "fleet", "mode": "pin=3"},
            "planner: nightjar with mode pin=3, which plans nothing",
        ),
    ],
)
def test_a_planner_is_of_the_whole_fleet_and_of_a_mode_that_plans(values: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModeOverride.model_validate({**values, "planner": "nightjar"})


@given(
    mode=st.sampled_from(["auto", "shadow", "off", "pin=0", "pin=32"]),
    expires_at_s=st.none() | st.floats(0, 1e9),
    reason=st.text(max_size=50),
)
def test_an_override_survives_the_wire(mode: str, expires_at_s: float | None, reason: str) -> None:
    override = ModeOverride(scope="replica", name="r", mode=Mode.parse(mode), expires_at_s=expires_at_s, reason=reason)
    assert ModeOverride.from_wire(override.to_wire()) == override
