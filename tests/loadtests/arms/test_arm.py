"""Which texts name an arm."""

from __future__ import annotations

import pytest

from nightjar.loadtests.arms.arm import ArmError, parse_arm, parse_arms


@pytest.mark.parametrize(
    ("text", "name", "mode", "planner", "url"),
    [
        ("off", "off", "off", None, ""),
        ("pin=5", "pin=5", "pin=5", None, ""),
        ("again=off", "again", "off", None, ""),
        ("one=pin=1", "one", "pin=1", None, ""),
        ("nightjar", "nightjar", "auto", "nightjar", ""),
        ("paper=nightjar", "paper", "auto", "nightjar", ""),
        ("auto", "auto", "auto", None, ""),
        ("plain=http://h:8001/", "plain", "None", None, "http://h:8001"),
    ],
)
def test_an_arm_is_a_mode_a_planner_or_an_address_with_a_name_if_wanted(
    text: str, name: str, mode: str, planner: str | None, url: str
) -> None:
    arm = parse_arm(text)
    assert (arm.name, str(arm.mode), arm.planner, arm.url) == (name, mode, planner, url)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["off"], "1 arm: a comparison needs two at least"),
        (["off", "of"], "arm 'of' is none of off, shadow, auto, pin=K, a planner"),
        (["off", "pin=99"], "arm 'pin=99' is none of"),
        (["off", "off"], "arm off is there more than once; give the second a name of its own, again=off"),
        (["off", "plain=http://:1"], "server address 'http://:1'"),
        (["off", "http://h:8001"], "the address of another server, always with one (plain=http://host:8001)"),
        (["off", "a b=off"], "arm 'a b=off' is none of"),
    ],
)
def test_what_is_no_arm_is_refused_in_one_line(texts: list[str], said: str) -> None:
    with pytest.raises(ArmError) as refused:
        parse_arms(texts)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
