"""The driver in virtual time: requests are sent when due, whatever the answers do, and no row is lost."""

from __future__ import annotations

from collections.abc import Callable

import gevent
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.load.driver import FAILURE_PAUSE_S, LoadDriver, LoadPlan, Shard
from nightjar.loadtests.load.openai_stream import ChatResult
from nightjar.loadtests.load.regimes import Phase, Regime, arrival_times, parse_regime
from nightjar.loadtests.load.rows import RequestRow
from nightjar.loadtests.load.trace_join import JoinedRequest

PROMPTS = ("one", "two", "three")


class VirtualTime:
    """A clock that jumps to the next sleeper once every other greenlet had its turns."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        wake_s, rounds_as_next = self.now_s + seconds, 0
        self._sleepers.append(wake_s)
        while self.now_s < wake_s:
            gevent.sleep(0)
            rounds_as_next = rounds_as_next + 1 if wake_s == min(self._sleepers) else 0
            if rounds_as_next == 3:
                self.now_s = wake_s
        self._sleepers.remove(wake_s)


def play(
    text: str, answer: Callable[[VirtualTime, str], ChatResult], shard: Shard | None = None, drain_s: float = 60.0
) -> list[RequestRow]:
    time, rows = VirtualTime(), list[RequestRow]()
    plan = LoadPlan(parse_regime(text), 5, PROMPTS, shard or Shard(), drain_s)
    driver = LoadDriver(
        plan,
        lambda prompt, max_tokens: answer(time, prompt),
        rows.append,
        clock=time.clock,
        wall_clock=time.clock,
        sleep=time.sleep,
    )
    driver.run()
    return rows


def whole(seconds: float) -> Callable[[VirtualTime, str], ChatResult]:
    def answer(time: VirtualTime, prompt: str) -> ChatResult:
        time.sleep(seconds)
        return ChatResult(status=200, error="", e2e_s=seconds)

    return answer


def refused(time: VirtualTime, prompt: str) -> ChatResult:
    return ChatResult(status=0, error="refused", e2e_s=0.0)


def test_open_loop_requests_are_sent_when_due_though_every_answer_is_slow() -> None:
    rows = sorted(play("busy:10@5,idle:5@0", whole(7.0)), key=lambda row: row.scheduled_s)
    due = [arrival.time_s for arrival in arrival_times(parse_regime("busy:10@5,idle:5@0"), 5)]
    assert [row.scheduled_s for row in rows] == due
    assert max(row.schedule_lag_s for row in rows) < 1e-9
    assert [round(row.start_s - row.scheduled_s, 9) for row in rows] == [0.0] * len(due)


def test_closed_loop_users_ask_again_when_answered_and_stop_with_their_phase() -> None:
    rows = play("closed:10@2u", whole(4.0))
    assert sorted((row.request_id, row.scheduled_s) for row in rows) == [
        (f"closed-u{user}-{asked}", scheduled_s) for user in (0, 1) for asked, scheduled_s in ((1, 0.0), (2, 4.0), (3, 8.0))
    ]


def test_a_user_that_fails_at_once_pauses_before_it_asks_again() -> None:
    rows = play("closed:10@1u", refused)
    assert len(rows) == 10 / FAILURE_PAUSE_S
    assert {row.error for row in rows} == {"refused"}


def test_shards_share_arrivals_and_users_without_overlap() -> None:
    text = "busy:5@6,closed:5@5u"
    alone = sorted(row.request_id for row in play(text, whole(1.0)))
    together = sorted(row.request_id for process in range(3) for row in play(text, whole(1.0), Shard(process, 3)))
    assert together == alone


@given(due=st.lists(st.floats(0, 20), min_size=1, max_size=12).map(sorted), processes=st.integers(1, 4))
def test_shards_of_a_trace_send_each_request_exactly_once_when_it_is_due_with_its_own_text_and_length(
    due: list[float], processes: int
) -> None:
    trace = tuple(
        JoinedRequest(number=n, due_s=due_s, category="", lines=(), prompt_tokens=n, output_tokens=n + 1, prompt=f"prompt {n}")
        for n, due_s in enumerate(due)
    )
    asked: list[tuple[str, int]] = []
    rows = [row for process in range(processes) for row in play_trace(trace, Shard(process, processes), asked)]
    assert sorted(asked) == sorted((request.prompt, request.output_tokens) for request in trace)
    by_id = {row.request_id: row for row in rows}
    assert len(rows) == len(by_id) == len(trace)
    for request in trace:
        row = by_id[f"trace-{request.number}"]
        assert (row.scheduled_s, row.asked_output_tokens) == (request.due_s, request.output_tokens)
        assert row.schedule_lag_s < 1e-9


def play_trace(trace: tuple[JoinedRequest, ...], shard: Shard, asked: list[tuple[str, int]]) -> list[RequestRow]:
    """Every answer takes longer than the trace."""
    time, rows = VirtualTime(), list[RequestRow]()
    plan = LoadPlan(Regime((Phase("trace", 20.0, requests_per_s=1.0),)), 0, (), shard, trace=trace)

    def send(prompt: str, max_tokens: int) -> ChatResult:
        asked.append((prompt, max_tokens))
        time.sleep(30.0)
        return ChatResult(status=200, error="", e2e_s=30.0)

    LoadDriver(plan, send, rows.append, clock=time.clock, wall_clock=time.clock, sleep=time.sleep).run()
    return rows


def test_what_has_not_ended_after_the_drain_is_cut_off_and_recorded_as_failed() -> None:
    def never(time: VirtualTime, prompt: str) -> ChatResult:
        gevent.sleep(60)
        raise AssertionError("not reached")

    rows = play("few:1@=3", never, drain_s=0.001)
    assert [row.status for row in rows] == [0, 0, 0]
    assert all("cut off" in row.error for row in rows)


def test_a_killed_driver_leaves_no_request_running_and_records_each() -> None:
    rows = list[RequestRow]()

    def never(prompt: str, max_tokens: int) -> ChatResult:
        gevent.sleep(60)
        raise AssertionError("not reached")

    greenlet = gevent.spawn(LoadDriver(LoadPlan(parse_regime("closed:60@2u"), 0, PROMPTS), never, rows.append).run)
    gevent.sleep(0.005)
    greenlet.kill()
    assert len(rows) == 2
