"""Which texts name an arm, and in which order arms take their turns."""

from __future__ import annotations

import pytest

from nightjar.loadtests.compare.arms import ArmError, parse_arm, parse_arms
from nightjar.loadtests.compare.plan import ComparePlan, Load, turns


def some_plan(*arms: str, rounds: int = 5, lessons: int = 1, seed: int = 0) -> ComparePlan:
    return ComparePlan(arms=parse_arms(arms), url="http://h", load=Load(regime="a:1@1"), rounds=rounds, lessons=lessons, seed=seed)


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
        (["off", "http://h:8001"], "arm 'http://h:8001' is none of"),
        (["off", "a b=off"], "arm 'a b=off' is none of"),
    ],
)
def test_what_is_no_arm_is_refused_in_one_line(texts: list[str], said: str) -> None:
    with pytest.raises(ArmError) as refused:
        parse_arms(texts)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_round_has_each_arm_once_in_orders_that_differ_and_come_from_the_seed() -> None:
    plan = some_plan("off", "pin=5", "nightjar", "fleet", rounds=6, lessons=2)
    found = turns(plan)
    orders = [tuple(turn.arm for turn in found if turn.round == number) for number in range(1, 9)]
    assert all(sorted(order) == sorted(arm.name for arm in plan.arms) for order in orders)
    assert len(set(orders)) > 4
    assert [turn.is_lesson for turn in found] == [True] * 8 + [False] * 24
    assert found == turns(plan)
    assert found != turns(some_plan("off", "pin=5", "nightjar", "fleet", rounds=6, lessons=2, seed=1))


def test_more_rounds_leave_the_order_of_those_before_as_it_was() -> None:
    assert turns(some_plan("off", "fleet", rounds=9))[:12] == turns(some_plan("off", "fleet", rounds=5))


def test_what_was_played_is_not_played_again() -> None:
    plan = some_plan("off", "fleet")
    first, *rest = turns(plan)
    assert turns(plan, {(first.round, first.arm)}) == rest
