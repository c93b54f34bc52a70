"""An engine is hung when it has requests and steps are excluded for `hung_after_s`, and never otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from nightjar.deployments.engine_watch import EngineWatch, FrontEnd
from nightjar.policy.wire.report import Counters, EngineLoad, EngineSnapshot

AFTER_S = 120.0
IDLE, BUSY = FrontEnd(num_unfinished_reqs=0, num_steps=None), FrontEnd(num_unfinished_reqs=2, num_steps=None)


def snapshot(
    step_count: int, *, running: int = 1, waiting: int = 0, deferred: int = 0, engine_id: str = "e", **fields: Any
) -> EngineSnapshot:
    load = EngineLoad(num_running_reqs=running, num_waiting_reqs=waiting, num_deferred_reqs=deferred)
    return EngineSnapshot(counters=Counters(engine_id=engine_id, step_count=step_count), load=load, **fields)


@pytest.fixture
def watch() -> EngineWatch:
    """Looked at first at 0 s, with requests unfinished."""
    watch = EngineWatch(hung_after_s=AFTER_S)
    watch.why_hung(BUSY, 0.0)
    return watch


def answer(watch: EngineWatch, now_s: float, told: EngineSnapshot) -> None:
    watch.asked(now_s)
    watch.answered(told, now_s)


def test_call_without_an_answer_counts_from_when_it_was_sent(watch: EngineWatch) -> None:
    answer(watch, 5.0, snapshot(7))
    watch.asked(50.0)
    assert watch.why_hung(BUSY, 169.9) == ""
    assert watch.why_hung(BUSY, 170.0) == "engine hung: no answer for 120 s, 2 unfinished requests, step count 7"


def test_call_given_up_and_sent_again_counts_from_the_first(watch: EngineWatch) -> None:
    for sent_s in (10.0, 70.5, 131.0):
        watch.asked(sent_s)
    assert "no answer for 121 s" in watch.why_hung(BUSY, 131.0)


def test_late_answer_ends_the_wait(watch: EngineWatch) -> None:
    watch.asked(10.0)
    watch.asked(70.5)
    watch.answered(snapshot(1), 128.0)
    assert watch.why_hung(BUSY, 140.0) == ""
    watch.asked(140.0)
    assert watch.why_hung(BUSY, 259.0) == ""
    assert watch.why_hung(BUSY, 260.0)


@pytest.mark.parametrize(("running", "waiting"), [(2, 0), (0, 3), (1, 1)])
def test_step_count_that_stands_still_counts_from_its_last_move(watch: EngineWatch, running: int, waiting: int) -> None:
    answer(watch, 10.0, snapshot(41, running=running, waiting=waiting))
    for second in range(20, 160, 10):
        answer(watch, second, snapshot(42, running=running, waiting=waiting))
        assert bool(watch.why_hung(BUSY, second)) is (second >= 140)
    assert watch.why_hung(BUSY, 150.0) == (
        f"engine hung: no step for 130 s, {running} running and {waiting} waiting requests, step count 42"
    )


def test_requests_that_wait_while_others_step_are_no_hang(watch: EngineWatch) -> None:
    for second in range(0, 1000, 10):
        answer(watch, second, snapshot(second, running=1, waiting=50))
        assert watch.why_hung(BUSY, second) == ""


def test_time_after_the_last_answer_counts_for_the_unanswered_call_alone(watch: EngineWatch) -> None:
    """The policy parks an exchange for half a minute: steps between two answers can not be excluded."""
    answer(watch, 0.0, snapshot(1))
    answer(watch, 100.0, snapshot(1))
    assert watch.why_hung(BUSY, 130.0) == ""
    watch.asked(131.0)
    assert watch.why_hung(BUSY, 250.0) == ""
    assert watch.why_hung(BUSY, 251.0)


def test_idle_engine_is_never_hung(watch: EngineWatch) -> None:
    for second in range(0, 1000, 10):
        answer(watch, second, snapshot(5, running=0))
        assert watch.why_hung(IDLE, second) == ""
    watch.asked(1000.0)
    assert watch.why_hung(IDLE, 9000.0) == "", "nobody waits for it"


def test_engine_without_the_front_ends_requests_is_idle(watch: EngineWatch) -> None:
    """Its last outputs are on their way."""
    for second in range(0, 1000, 10):
        answer(watch, second, snapshot(5, running=0))
        assert watch.why_hung(BUSY, second) == ""


def test_request_that_finds_an_idle_engine_has_its_own_time(watch: EngineWatch) -> None:
    answer(watch, 0.0, snapshot(5, running=1))
    answer(watch, 100.0, snapshot(5, running=0))
    answer(watch, 130.0, snapshot(5, running=1))
    assert watch.why_hung(BUSY, 130.0) == ""
    answer(watch, 249.0, snapshot(5, running=1))
    assert watch.why_hung(BUSY, 249.0) == ""
    answer(watch, 250.0, snapshot(5, running=1))
    assert watch.why_hung(BUSY, 250.0)


def test_request_that_finds_an_engine_without_an_answer_has_its_own_time(watch: EngineWatch) -> None:
    watch.asked(10.0)
    assert watch.why_hung(IDLE, 110.0) == ""
    assert watch.why_hung(BUSY, 120.0) == ""
    assert watch.why_hung(BUSY, 239.0) == ""
    assert watch.why_hung(BUSY, 240.0)


def test_engine_that_is_a_new_one_has_moved(watch: EngineWatch) -> None:
    answer(watch, 0.0, snapshot(5))
    answer(watch, 100.0, snapshot(5, engine_id="next"))
    answer(watch, 200.0, snapshot(5, engine_id="next"))
    assert watch.why_hung(BUSY, 200.0) == ""


@pytest.mark.parametrize("unsure", [{"fault": "before_step: KeyError"}, {"refused": "the running scheduler is another"}])
def test_engine_that_ceased_to_count_its_steps_is_judged_by_the_front_end(watch: EngineWatch, unsure: dict[str, Any]) -> None:
    for second in range(0, 500, 10):
        answer(watch, second, snapshot(5, **unsure))
        assert watch.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=second), second) == ""
    answer(watch, 609.0, snapshot(5, **unsure))
    assert watch.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=490), 609.0) == ""
    assert watch.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=490), 610.0) == (
        "engine hung: no step for 120 s, 1 unfinished requests, step count 490 as seen by the front end"
    )


def test_call_that_fails_at_once_is_not_outstanding(watch: EngineWatch) -> None:
    watch.asked(0.0)
    watch.failed()
    assert watch.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=3), 10.0) == ""
    assert watch.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=4), 200.0) == "", "its steps are seen"
    assert watch.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=4), 320.0)


def test_requests_that_all_wait_for_what_others_are_to_bring_are_no_hang(watch: EngineWatch) -> None:
    """A decode instance whose only requests wait for their prefill instance's KV; Mooncake gives up after 480 s."""
    for second in range(0, 1000, 10):
        answer(watch, second, snapshot(5, running=0, waiting=2, deferred=2))
        assert watch.why_hung(BUSY, second) == ""


@pytest.mark.parametrize(("running", "waiting"), [(1, 2), (0, 3)])
def test_a_request_that_could_run_beside_those_that_cannot_is_due(watch: EngineWatch, running: int, waiting: int) -> None:
    for second in range(0, 130, 10):
        answer(watch, second, snapshot(5, running=running, waiting=waiting, deferred=2))
        assert bool(watch.why_hung(BUSY, second)) is (second >= 120)


def test_a_request_whose_kv_came_has_its_own_time(watch: EngineWatch) -> None:
    for second in range(0, 500, 10):
        answer(watch, second, snapshot(5, running=0, waiting=1, deferred=1))
    for second in range(500, 630, 10):
        answer(watch, second, snapshot(5, running=0, waiting=1))
        assert bool(watch.why_hung(BUSY, second)) is (second >= 620)


def test_an_engine_whose_requests_wait_for_others_is_hung_once_it_does_not_answer(watch: EngineWatch) -> None:
    answer(watch, 0.0, snapshot(5, running=0, waiting=1, deferred=1))
    watch.asked(10.0)
    assert watch.why_hung(BUSY, 129.0) == ""
    assert watch.why_hung(BUSY, 130.0) == "engine hung: no answer for 120 s, 2 unfinished requests, step count 5"


class TestEngineServedPlainly:
    """Its snapshots count no steps."""

    @pytest.fixture
    def plain(self) -> EngineWatch:
        return EngineWatch(hung_after_s=AFTER_S, counts_steps=False)

    def test_steps_that_the_front_end_sees_keep_it_healthy(self, plain: EngineWatch) -> None:
        for second in range(0, 1000, 10):
            answer(plain, second, snapshot(0))
            assert plain.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=second // 100), second) == ""

    def test_no_step_at_the_front_end_is_a_hang_counted_from_the_requests_arrival(self, plain: EngineWatch) -> None:
        plain.why_hung(FrontEnd(num_unfinished_reqs=0, num_steps=9), 0.0)
        for second in range(500, 650, 10):
            answer(plain, second, snapshot(0))
            assert bool(plain.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=9), second)) is (second >= 620)

    def test_requests_that_all_wait_for_what_others_are_to_bring_are_no_hang(self, plain: EngineWatch) -> None:
        for second in range(0, 1000, 10):
            answer(plain, second, snapshot(0, running=0, waiting=1, deferred=1))
            assert plain.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=9), second) == ""

    def test_a_request_whose_kv_came_has_its_own_time(self, plain: EngineWatch) -> None:
        for second in range(0, 500, 10):
            answer(plain, second, snapshot(0, running=0, waiting=1, deferred=1))
            plain.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=9), second)
        for second in range(500, 630, 10):
            answer(plain, second, snapshot(0, running=0, waiting=1))
            assert bool(plain.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=9), second)) is (second >= 610)

    def test_without_statistics_only_silence_is_a_hang(self, plain: EngineWatch) -> None:
        for second in range(0, 1000, 10):
            answer(plain, second, snapshot(0))
            assert plain.why_hung(BUSY, second) == ""
        plain.asked(1000.0)
        assert plain.why_hung(BUSY, 1120.0) == "engine hung: no answer for 120 s, 2 unfinished requests, steps not counted"


def test_pause_that_an_operator_ordered_does_not_count(watch: EngineWatch) -> None:
    for second in range(0, 130, 10):
        answer(watch, second, snapshot(5))
    assert watch.why_hung(BUSY, 120.0)
    watch.restart()
    answer(watch, 130.0, snapshot(5))
    assert watch.why_hung(BUSY, 130.0) == ""
    answer(watch, 140.0, snapshot(6))
    answer(watch, 255.0, snapshot(6))
    assert watch.why_hung(BUSY, 255.0) == ""


def test_zero_seconds_call_no_engine_hung() -> None:
    watch = EngineWatch(hung_after_s=0.0)
    watch.asked(0.0)
    assert watch.why_hung(BUSY, 0.0) == ""
    assert watch.why_hung(BUSY, 9999.0) == ""
