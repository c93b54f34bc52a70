"""What may be said of two arms: a planted slowdown is found, equals get no verdict, too little says nothing."""

from __future__ import annotations

import random

import pytest

from nightjar.loadtests.arms.measures import Figures
from nightjar.loadtests.arms.verdict import LEAST_ROUNDS, Comparison, compared

NOISE = 0.03


def figures(seconds_per_token: float, *, failed: int = 0, tokens: int = 600) -> Figures:
    seconds = tokens * seconds_per_token
    return Figures(20, failed, tokens, seconds, seconds, 20 * seconds_per_token, tokens - 20, (tokens - 20) * seconds_per_token)


def rounds(seed: int, count: int, slowdown: float = 1.0, failed: int = 0) -> dict[int, Figures]:
    """An arm's rounds: what each round does to all arms, and what it does to this one."""
    mine, shared = random.Random(f"{seed} {slowdown} {count}"), random.Random(f"round {seed % 1_000}")
    return {
        number: figures(0.02 * shared.gauss(1.0, 0.2) * mine.gauss(1.0, NOISE) * slowdown, failed=failed)
        for number in range(2, count + 2)
    }


def judged(seed: int, count: int, slowdown: float = 1.0, failed: int = 0) -> Comparison:
    return compared("surge", "off", "fleet", rounds(seed, count), rounds(seed + 1_000, count, slowdown, failed), seed)


def test_a_slowdown_of_ten_percent_is_found_in_six_rounds() -> None:
    found = [judged(seed, 6, slowdown=1.1) for seed in range(100)]
    assert sum(one.verdict == "slower" for one in found) >= 85
    assert not any(one.verdict == "faster" for one in found)
    assert all(one.main and 0.86 < one.main.value < 0.96 for one in found)


@pytest.mark.heavy
@pytest.mark.parametrize("count", [6, 7, 10])
def test_equals_get_a_verdict_no_more_often_than_one_in_twenty(count: int) -> None:
    verdicts = [judged(seed, count).verdict for seed in range(400)]
    wrong = sum(verdict in {"faster", "slower"} for verdict in verdicts)
    assert set(verdicts) <= {"faster", "slower", "no difference shown"}
    assert wrong <= 0.05 * len(verdicts)


def test_too_few_rounds_give_no_verdict_however_large_the_difference() -> None:
    few = judged(0, LEAST_ROUNDS - 1, slowdown=3.0)
    assert few.verdict == "too few rounds"
    assert "no verdict from 5 of at least 6 rounds" in str(few)


def test_an_arm_that_fails_requests_gets_no_verdict_and_the_sentence_says_why() -> None:
    failing = judged(0, 6, slowdown=0.5, failed=2)
    assert failing.verdict == "requests failed"
    assert "no verdict, 12 of 240 requests failed" in str(failing)


def test_only_rounds_that_both_arms_played_count() -> None:
    mine = rounds(0, 7)
    theirs = {number: one for number, one in rounds(1, 7).items() if number != 4}
    assert compared("surge", "off", "fleet", mine, theirs, 0).rounds == 6


def test_nothing_in_common_is_said_as_nothing() -> None:
    nothing = compared("surge", "off", "fleet", {}, rounds(0, 5), 0)
    assert (nothing.verdict, nothing.main) == ("nothing measured", None)
    assert str(nothing) == "surge: fleet against off: nothing was measured."


def test_a_sentence_says_how_much_how_sure_and_from_how_many_rounds() -> None:
    sentence = str(judged(3, 6, slowdown=1.25))
    assert sentence.startswith("surge: fleet is ")
    assert " slower than off: answers at 0." in sentence
    assert sentence.endswith(", 6 rounds.")


def test_a_round_without_a_single_token_is_left_out_of_the_ratio_and_fails_nothing() -> None:
    mine, theirs = rounds(0, 6), rounds(1, 6)
    theirs[3] = Figures(1, 0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0)
    found = compared("quiet", "off", "fleet", mine, theirs, 0)
    assert found.main is not None
    assert found.main.rounds == 5
