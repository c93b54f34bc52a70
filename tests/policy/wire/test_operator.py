"""Operator's settings: defaults that change nothing, and one message that names field, value and what is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.wire.operator import PLANNER_NAMES, OperatorSettings, SettingsError, parse_operator_settings, setting_problems


def test_nothing_set_is_shadow_so_that_installing_changes_nothing() -> None:
    settings = parse_operator_settings({})
    assert settings == OperatorSettings()
    assert str(settings.mode) == "shadow"


def test_every_setting_says_what_it_means() -> None:
    assert all(field.description for field in OperatorSettings.model_fields.values())


ALLOWED_PLANNERS = f"{', '.join(map(repr, PLANNER_NAMES[:-1]))} or {PLANNER_NAMES[-1]!r}"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"swich_margin": 0.1}, "swich_margin: no such setting (value 0.1); did you mean switch_margin?"),
        ({"zzz": 1}, "zzz: no such setting (value 1); allowed are "),
        ({"switch_margin": 0.9}, "switch_margin: Input should be less than or equal to 0.5 (value 0.9)"),
        ({"dwell_steps": -1}, "dwell_steps: Input should be greater than or equal to 0 (value -1)"),
        ({"planner": "magic"}, f"planner: Input should be {ALLOWED_PLANNERS} (value 'magic')"),
        ({"mode": "on"}, "mode: mode 'on' is none of auto, shadow, off, pin=K"),
        ({"num_speculative_tokens": 99}, "num_speculative_tokens: Input should be less than or equal to 32 (value 99)"),
        ({"planner": "schedule"}, "planner schedule needs num_speculative_tokens_per_batch_size"),
        (
            {"exchange_period_s": 10, "replica_timeout_s": 29},
            "replica_timeout_s 29, allowed are at least 3 times exchange_period_s 10: one lost report would count as silence",
        ),
        (
            {"exchange_period_s": 4, "settings_max_age_s": 10},
            "settings_max_age_s 10, allowed are at least 3 times exchange_period_s 4",
        ),
        ({"num_speculative_tokens_per_batch_size": [[1, 8, 3], [8, 9, 1]]}, "rows must ascend without overlap: 8 follows 8"),
    ],
)
def test_what_cannot_be_used_is_refused_with_field_value_and_what_is_allowed(values: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_operator_settings(values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["http://me:swordfish@host/nightjar/learned", "me:swordfish@host/learned", "https://swordfish@host"]
)
def test_a_password_in_a_place_to_seed_from_is_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(SettingsError, match=r"seed_from: no place of a file; .* without user or password") as caught:
        parse_operator_settings({"seed_from": place})
    assert "swordfish" not in str(caught.value)
    assert [problem for problem in setting_problems({"seed_form": place}) if "swordfish" in str(problem)] == []


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_operator_settings({"dwel_steps": 1, "switch_margin": -1})
    assert "did you mean dwell_steps?" in str(caught.value)
    assert "switch_margin" in str(caught.value)


@given(
    maximum=st.integers(0, 32),
    tiers=st.lists(st.integers(0, 32), min_size=1, max_size=6),
    allowed=st.none() | st.lists(st.integers(0, 32), max_size=6).map(tuple),
)
def test_where_graphs_were_captured_for_some_k_alone_no_other_may_run(
    maximum: int, tiers: list[int], allowed: tuple[int, ...] | None
) -> None:
    settings = OperatorSettings(allowed_num_speculative_tokens=allowed)
    captured = {k for k in (0, *tiers) if k <= maximum}
    assert set(settings.runnable_ks(maximum, tiers)) == (captured if allowed is None else captured & {0, *allowed})


@given(maximum=st.integers(0, 32), allowed=st.none() | st.lists(st.integers(0, 32), max_size=6).map(tuple))
def test_k_ascend_from_off_to_at_most_the_engines_maximum(maximum: int, allowed: tuple[int, ...] | None) -> None:
    ks = OperatorSettings(allowed_num_speculative_tokens=allowed).runnable_ks(maximum)
    assert ks[0] == 0
    assert list(ks) == sorted(set(ks))
    assert ks[-1] <= maximum
    assert allowed is not None or ks[-1] == maximum
