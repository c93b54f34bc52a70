"""What is said of starts, turns and phases is what they were."""

from __future__ import annotations

import pytest

from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.serve.compared import Phase, Start, Turn, median_of, of_phases, of_starts, of_turns


def bars(outcome: Outcome) -> dict[str, tuple[float | None, str]]:
    return {bar.name: (bar.value, bar.verdict) for bar in outcome.bars}


@pytest.mark.parametrize(("ours_s", "verdict"), [(10.5, "reached"), (11.5, "MISSED")])
def test_a_start_that_takes_more_than_a_tenth_longer_misses_its_bar(ours_s: float, verdict: str) -> None:
    found = bars(of_starts([Start(ours_s, 10.0, 530.0, 500.0), Start(2 * ours_s, 20.0, 540.0, 500.0)], seed=0))
    value, said = found["ready_over_vllm"]
    assert value == pytest.approx(ours_s / 10.0)
    assert said == verdict
    assert found["own_memory_added_mib"] == (35.0, "stated")


def test_times_at_k_0_are_ours_over_both_plain_servers_beside_what_these_two_differ_by() -> None:
    turns = [Turn(0.4, 0.1, 0.4, 0.03, 0.03, 0.03), Turn(0.8, 0.2, 0.8, 0.06, 0.06, 0.06)]
    found = bars(of_turns(turns, {"ours": 3.0, "theirs": 2.0, "again": 2.0}, 100.0, seed=0))
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(
        {
            "ttft_off_over_plain": 2.0,
            "ttft_plain_over_plain": 4.0,
            "tpot_off_over_plain": 1.0,
            "tpot_plain_over_plain": 1.0,
            "own_cpu_added_share": 0.01,
        }
    )
    assert {verdict for _, verdict in found.values()} == {"stated"}


def test_k_that_follows_is_higher_in_quiet_and_a_failed_request_misses_the_bar() -> None:
    phases = [Phase(1, {0: 10}, 3, 0), Phase(16, {0: 30, 5: 10}, 40, 1), Phase(1, {0: 1, 5: 9}, 9, 0)]
    found = bars(of_phases(phases))
    assert found["crossing_k_quiet_minus_full"][0] == pytest.approx(4.5 - 1.25)
    assert found["crossing_failed"] == (1.0, "MISSED")


def test_a_turn_without_any_time_is_an_error_in_words() -> None:
    assert median_of([None, 3.0, 1.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="no request of a turn had a time"):
        median_of([None])
