"""Workloads: the same requests for the same seed, whoever serves them; closed-loop users; recorded traces."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightjar.loadtests.load.regimes import arrival_times, parse_regime
from nightjar.loadtests.load.traces import read_trace
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal
from nightjar.loadtests.simulation.service.workload import Demand, Trace, UserCount, Users, Workload

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.0000000,5,0
2023-11-16 18:15:51,4000,900
"""


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(2, 600))
def test_open_loop_requests_come_when_the_regime_says_and_fit_the_context(seed: int, max_model_len: int) -> None:
    workload = Workload(parse_regime("a:20@3,idle:5@0,b:5@2..9"), max_model_len=max_model_len, class_shares=(0.5, 0.3, 0.2))
    demands = list(workload.open_demands(seed))
    assert [(demand.number, demand.due_s) for demand in demands] == [
        (arrival.number, arrival.time_s) for arrival in arrival_times(parse_regime("a:20@3,idle:5@0,b:5@2..9"), seed)
    ]
    assert all(demand.prompt_tokens >= 1 and demand.output_tokens >= 1 for demand in demands)
    assert all(demand.prompt_tokens + demand.output_tokens <= max_model_len for demand in demands)
    assert demands == list(workload.open_demands(seed))


def test_acceptance_classes_come_in_their_shares() -> None:
    workload = Workload(parse_regime("a:100@40"), class_shares=(0.7, 0.0, 0.3))
    classes = [demand.acceptance_class for demand in workload.open_demands(1)]
    assert 1 not in classes
    assert classes.count(0) / len(classes) == pytest.approx(0.7, abs=0.04)


def test_a_users_requests_are_the_same_whenever_it_asks_them() -> None:
    workload = Workload(parse_regime("a:10@3u,b:10@1u,c:10@3u"))
    eager, lazy = Users(workload, 5), Users(workload, 5)
    asked = eager.set_count(3, 0.0)
    for turn in range(10):
        asked += [again for user in (2, 0, 1) if (again := eager.answered(user, turn)) is not None]
    others = lazy.set_count(2, 7.0) + lazy.set_count(3, 8.0)
    for turn in range(10):
        others += [again for user in (0, 1, 2) if (again := lazy.answered(user, 9.0 + turn)) is not None]

    def by_number(demands: list[Demand]) -> dict[int, tuple[int, int, int]]:
        return {demand.number: (demand.prompt_tokens, demand.output_tokens, demand.acceptance_class) for demand in demands}

    assert len(by_number(asked)) == 33
    assert by_number(asked) == by_number(others)


def test_users_above_the_count_stop_after_their_answer_and_nobody_asks_twice() -> None:
    users = Users(Workload(parse_regime("a:10@4u")), 0)
    assert [demand.user for demand in users.set_count(4, 0.0)] == [0, 1, 2, 3]
    assert users.set_count(1, 1.0) == []
    assert users.waiting == 4
    assert users.answered(3, 2.0) is None
    assert [demand.user for demand in users.set_count(4, 3.0)] == [3]
    assert users.answered(0, 3.0) is not None
    users.set_count(0, 4.0)
    assert [users.answered(user, 5.0) for user in range(4)] == [None] * 4
    with pytest.raises(ValueError, match="user 1 waits for no answer"):
        users.answered(1, 6.0)


def test_the_number_of_users_changes_with_the_phases_and_ends_with_the_regime() -> None:
    workload = Workload(parse_regime("open:5@1,a:10@8u,b:10@8u,c:5@2u"))
    assert workload.user_counts() == (UserCount(5, 8), UserCount(25, 2), UserCount(30, 0))


def test_a_trace_keeps_its_order_lengths_and_distances(trace_path: Path) -> None:
    demands = list(Workload(Trace(trace_path), max_model_len=1000).open_demands(0))
    assert [demand.due_s for demand in demands] == pytest.approx([0, 1.31941, 4.314579, 4.31941], abs=1e-5)
    assert [(demand.prompt_tokens, demand.output_tokens) for demand in demands] == [(374, 44), (5, 1), (396, 109), (999, 1)]


@pytest.mark.parametrize("rate_scale", [0.25, 1.0, 2.5])
def test_a_traces_rate_and_speed_can_be_scaled(tmp_path: Path, rate_scale: float) -> None:
    path = tmp_path / "long.csv"
    rows = [f"2024-05-10 00:{n // 60:02}:{n % 60:02},100,{n + 1}" for n in range(3000)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows))
    demands = list(Workload(Trace(path, time_scale=0.1, rate_scale=rate_scale)).open_demands(3))
    assert len(demands) == pytest.approx(3000 * rate_scale, rel=0.1)
    assert max(demand.due_s for demand in demands) == pytest.approx(299.9, rel=0.01)
    assert all(earlier.due_s <= later.due_s for earlier, later in pairwise(demands))


def test_a_missing_trace_and_a_wrong_scale_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="rate_scale 0, allowed are more than 0"):
        Trace(tmp_path / "none.csv", rate_scale=0)


@pytest.mark.parametrize("shares", [(), (0.5, 0.4), (1.5, -0.5)])
def test_class_shares_are_shares(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="class_shares"):
        Workload(parse_regime("a:1@1"), class_shares=shares)


def test_lengths_without_spread_are_constant() -> None:
    workload = Workload(parse_regime("a:10@2"), dataset=Dataset("fixed", Lognormal(100, 0), Lognormal(50, 0)))
    assert {demand[2:4] for demand in islice(workload.open_demands(0), 10)} == {(100, 50)}
