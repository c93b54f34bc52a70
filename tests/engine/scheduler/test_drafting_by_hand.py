"""The draft model's part of a step without an engine: steps made by hand, down to which tokens are read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from nightjar.policy.step.drafter import DrafterLife, Order
from nightjar.policy.wire.report import DrafterCounters, DrafterState
from nightjar.policy.wire.settings import RestartLimits, Settings

pytest.importorskip("vllm")

from nightjar.deployments.engine.scheduler.drafting import Drafting, Missing
from nightjar.deployments.engine.scheduler.lag_ledger import LagLedger
from nightjar.deployments.engine.worker.draft_work import RUN, SLEEP, WORK_ATTRIBUTE, DraftWork, Recompute
from tests.policy.step.steering_settings import settings

SIZE = 4


def told(micro: int, chunk: int | None = None) -> Settings:
    limits = RestartLimits(micro_restart_tokens=micro, catch_up_chunk_tokens=chunk)
    return settings().settings.model_copy(update={"restarts": limits})


def request(
    name: str, computed: int, *, prompt: int = 0, in_flight: int = 0, outputs: int = 500, most: int | None = None
) -> SimpleNamespace:
    """With `computed` tokens computed and one more known; `prompt` more are still to be read, of `in_flight` the id is unknown."""
    known = computed + 1 + prompt - in_flight
    return SimpleNamespace(
        request_id=name,
        num_computed_tokens=computed,
        num_tokens=known,
        num_output_tokens=outputs,
        max_tokens=most,
        all_token_ids=[100 + position for position in range(known)],
    )


def step(scheduled: Mapping[str, int] | None = None, drafts: Mapping[str, Sequence[int]] | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        num_scheduled_tokens=dict(scheduled or {}),
        scheduled_spec_decode_tokens=dict(drafts or {}),
        kv_cache_block_copies=None,
        scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set(), req_ids=[], num_computed_tokens=[]),
    )


class Engine:
    """A drafting whose requests and clock are in the test's hands; rows begin in sync."""

    def __init__(self, *names: str, micro: int = 1000, chunk: int | None = None) -> None:
        self.tables: dict[str, list[int]] = {}
        life = DrafterLife(can_be_dormant=True, catch_up_chunk_tokens=2048)
        life.adopt(told(micro, chunk), 0.0)
        ledger = LagLedger(num_blocks=64, block_size=SIZE, blocks=self._blocks)
        self.drafting = Drafting(life, ledger)
        for name in names:
            ledger.enter(name, 0, ())

    def _blocks(self, name: str) -> list[Any]:
        return [SimpleNamespace(block_id=block_id) for block_id in self.tables.get(name, ())]

    @property
    def life(self) -> DrafterLife:
        return self.drafting.life

    def order(
        self,
        rows: Sequence[SimpleNamespace],
        proposed: int,
        *,
        now_s: float = 1.0,
        is_steered: bool = True,
        scheduled: Mapping[str, int] | None = None,
        drafts: Mapping[str, Sequence[int]] | None = None,
    ) -> tuple[tuple[Order, int], DraftWork]:
        output = step({row.request_id: 1 for row in rows} if scheduled is None else scheduled, drafts)
        requests = {row.request_id: row for row in rows}
        ordered = self.drafting.order(output, requests, proposed, now_s, is_steered=is_steered)
        return ordered, getattr(output, WORK_ATTRIBUTE)


def test_rows_in_sync_are_drafted_for_and_nothing_is_read_again() -> None:
    engine = Engine("a")
    assert engine.order([request("a", 20)], 3) == ((Order(3, 0), 0), RUN)
    assert engine.drafting.ledger.behind == {}


def test_off_puts_the_drafter_to_sleep_and_rows_fall_behind_from_there() -> None:
    engine = Engine("a", "b")
    assert engine.order([request("a", 20), request("b", 7)], 0) == ((Order(0, 0), 0), SLEEP)
    assert engine.drafting.ledger.behind == {"a": 20, "b": 7}
    assert engine.life.state is DrafterState.DORMANT


def asleep(*names: str, at: int = 20, micro: int = 1000, chunk: int | None = None) -> Engine:
    """Whose rows fell asleep with `at` tokens each."""
    engine = Engine(*names, micro=micro, chunk=chunk)
    engine.order([request(name, at) for name in names], 0)
    return engine


def test_a_restart_reads_what_is_missing_with_its_ids_and_this_steps_tokens_with_the_last_of_it() -> None:
    engine = asleep("a")
    ordered, work = engine.order([request("a", 25)], 3)
    assert ordered == (Order(0, 5), 5)
    assert work == DraftWork(runs=False, recompute=(Recompute("a", 20, (120, 121, 122, 123, 124), True),))
    assert engine.drafting.ledger.behind == {"a": 26}, "the five, and the one that this step computes"
    assert engine.drafting.recomputed_tokens == 5
    ordered, work = engine.order([request("a", 26)], 3)
    assert (ordered, work) == ((Order(3, 0), 0), RUN)
    assert engine.life.state is DrafterState.PROBING
    assert engine.drafting.ledger.behind == {}
    assert engine.drafting.recomputed_tokens == 5


def test_a_restart_is_read_in_chunks_and_this_steps_own_tokens_do_not_count_toward_one() -> None:
    engine = asleep("a", "b", chunk=6)
    ordered, work = engine.order([request("a", 25), request("b", 24)], 3)
    assert ordered == (Order(0, 6), 7)
    assert [(one.request_id, len(one.token_ids), one.own_tokens) for one in work.recompute] == [("b", 4, True), ("a", 3, False)]
    assert engine.drafting.ledger.behind == {"a": 23, "b": 25}
    ordered, work = engine.order([request("a", 26), request("b", 25)], 3)
    assert [(one.request_id, one.first_token, len(one.token_ids)) for one in work.recompute] == [("b", 25, 0), ("a", 23, 3)]
    assert engine.drafting.recomputed_tokens == 10


def test_tokens_that_a_row_verifies_are_not_read_as_its_own_and_those_in_flight_stand_between() -> None:
    engine = asleep("a", "b")
    _, work = engine.order([request("a", 25), request("b", 25, in_flight=2)], 3, drafts={"a": [1, 2]})
    assert [(one.request_id, len(one.token_ids), one.own_tokens) for one in work.recompute] == [("b", 4, False), ("a", 5, False)]


def test_an_awake_drafter_reads_late_rows_beside_and_counts_only_theirs() -> None:
    engine = Engine("a", "b")
    engine.drafting.ledger.recomputed("b", 10)
    rows = [request("a", 20), request("b", 16)]
    ordered, work = engine.order(rows, 3)
    assert ordered == (Order(3, 6), 6)
    assert work == DraftWork(runs=True, recompute=(Recompute("b", 10, tuple(range(110, 116)), False),))
    assert engine.drafting.ledger.behind == {}, "it misses nothing after this step"


def test_an_awake_drafter_reads_no_more_beside_than_a_chunk() -> None:
    engine = Engine("b", chunk=4)
    engine.drafting.ledger.recomputed("b", 10)
    ordered, work = engine.order([request("b", 16)], 3)
    assert ordered == (Order(3, 4), 4)
    assert [len(one.token_ids) for one in work.recompute] == [4]


def test_rows_whose_newest_tokens_have_no_id_yet_get_their_whole_chunk() -> None:
    engine = asleep("a", chunk=3)
    ordered, work = engine.order([request("a", 25, in_flight=2)], 3)
    assert ordered == (Order(0, 3), 3)
    assert work.recompute == (Recompute("a", 20, (120, 121, 122), False),)


def test_where_nothing_is_missing_a_dormant_drafter_needs_no_permission() -> None:
    engine = asleep("a", micro=0)
    engine.drafting.ledger.leave(request("a", 21))
    assert engine.order([], 3, scheduled={}, now_s=400.0) == ((Order(3, 0), 0), RUN), "not even where the policy is silent"


def test_a_drafter_whose_weights_are_away_sleeps_also_where_nobody_steers() -> None:
    engine = asleep("a")
    engine.life.state = DrafterState.OFFLOADED
    assert engine.order([request("a", 25)], 3, is_steered=False) == ((Order(0, 0), 0), SLEEP)


def test_a_row_that_was_read_beyond_its_known_tokens_takes_none_of_anothers_lag_away() -> None:
    engine = asleep("a", "b")
    engine.drafting.ledger.recomputed("a", 27)
    assert engine.drafting.lag([request("a", 25), request("b", 25)]) == (5, 5)


def test_prompts_are_not_caught_up_but_stay_in_sync_once_read_from_the_start() -> None:
    engine = asleep("old", micro=0)
    ledger = engine.drafting.ledger
    for name in ("fresh", "lagging"):
        ledger.enter(name, 0, ())
    rows = [request("fresh", 0, prompt=9), request("lagging", 8, prompt=30), request("old", 20)]
    ordered, work = engine.order(rows, 3, scheduled={"fresh": 10, "lagging": 10, "old": 1})
    assert (ordered, work) == ((Order(3, 0), 0), RUN), "nothing that decodes misses anything: no permission is needed"
    assert ledger.behind == {"lagging": 0}


def test_a_restart_needs_permission_for_rows_that_will_be_worth_it_later_and_for_no_opted_out_one() -> None:
    engine = asleep("a", "later", "never", at=1, micro=40)
    engine.drafting.opted_out.add("never")
    rows = [request("a", 31), request("later", 2001, outputs=10), request("never", 500)]
    ordered, work = engine.order(rows, 3)
    assert (ordered, work) == ((Order(0, 0), 0), SLEEP)
    assert engine.drafting.lag(rows) == (2030, 30)
    ordered, _ = engine.order([rows[0], rows[2]], 3)
    assert ordered == (Order(0, 30), 30)


def test_where_no_row_would_be_drafted_for_nothing_is_missing_worth_a_wish() -> None:
    engine = asleep("later", at=1)
    rows = [request("later", 2001, outputs=10)]
    assert engine.drafting.lag(rows) == (0, 0)
    assert engine.order(rows, 3) == ((Order(0, 0), 0), SLEEP)
    assert engine.life.reason(1.0) == "its requests have generated too little yet to be worth catching up"
    beside = Engine("later", "in sync")
    beside.drafting.ledger.recomputed("later", 1)
    assert beside.drafting.lag([*rows, request("in sync", 9)]) == (2000, 0)


def test_a_drafter_that_a_row_in_sync_wakes_may_be_woken_by_no_opted_out_one() -> None:
    for opted_out, order in ((False, Order(3, 0)), (True, Order(0, 0))):
        engine = Engine("later", "in sync", micro=5000)
        engine.order([], 0, scheduled={})
        engine.drafting.ledger.recomputed("later", 1)
        if opted_out:
            engine.drafting.opted_out.add("in sync")
        ordered, _ = engine.order([request("later", 2001, outputs=10), request("in sync", 9)], 3)
        assert ordered == (order, 0)


@pytest.mark.parametrize(
    ("row", "lag"),
    [
        (request("a", 25), (5, 5)),
        (request("a", 25, prompt=1), (0, 0)),  # it still reads its prompt
        (request("a", 0), (0, 0)),  # it has not begun
        (request("a", 26, in_flight=2), (5, 5)),
    ],
)
def test_lag_is_what_decoding_rows_miss(row: SimpleNamespace, lag: tuple[int, int]) -> None:
    assert asleep("a").drafting.lag([row]) == lag


def test_without_rows_behind_there_is_no_lag() -> None:
    assert Engine("a").drafting.lag([request("a", 25)]) == (0, 0)
    assert Missing(5, 7, True).priced_tokens == 12
    assert Missing(5, 7, False).priced_tokens == 0


def test_where_nobody_steers_the_drafter_runs_and_reads_beside() -> None:
    engine = asleep("a")
    ordered, work = engine.order([request("a", 25)], 3, is_steered=False)
    assert ordered == (Order(3, 5), 5)
    assert work.runs
    ordered, work = engine.order([request("a", 26)], 0, is_steered=False)
    assert (ordered, work) == ((Order(0, 0), 0), RUN), "vLLM runs its drafter in every step"


def test_a_late_row_is_read_beside_also_where_nobody_steers_and_the_engine_drafts_none() -> None:
    engine = asleep("a")
    engine.order([request("a", 22)], 3, is_steered=False)
    engine.drafting.ledger.recomputed("a", 10)
    ordered, work = engine.order([request("a", 25)], 0, is_steered=False)
    assert ordered == (Order(0, 15), 15)
    assert work.runs


def test_a_drafter_that_waits_goes_by_the_lag_it_knows_for_sixteen_steps_of_the_same_rows() -> None:
    engine = asleep("a", micro=0)
    drafting, rows = engine.drafting, [request("a", 25)]
    assert not drafting.stays_asleep(1.0, same_rows=True), "nobody has added it up yet"
    assert engine.order(rows, 3) == ((Order(0, 0), 0), SLEEP)
    assert not drafting.stays_asleep(1.0, same_rows=False)
    for _ in range(16):
        assert drafting.stays_asleep(1.0, same_rows=True)
        output = step({"a": 1})
        assert drafting.sleep(output, {"a": rows[0]}, 3) == (Order(0, 0), 0)
        assert getattr(output, WORK_ATTRIBUTE) == SLEEP
    assert not drafting.stays_asleep(1.0, same_rows=True)
    engine.order(rows, 3)
    assert drafting.stays_asleep(1.0, same_rows=True)
    engine.life.adopt(told(5), 1.0)
    assert not drafting.stays_asleep(1.0, same_rows=True), "its allowance covers the lag by now"


def test_a_drafter_that_is_away_stays_asleep_whoever_begins() -> None:
    engine = asleep("a")
    engine.life.state = DrafterState.OFFLOADED
    assert engine.drafting.stays_asleep(1.0, same_rows=False)


def test_a_sleeping_step_makes_rows_fall_behind() -> None:
    engine = Engine("a")
    engine.drafting.sleep(step({"a": 1}), {"a": request("a", 9)}, 3)
    assert engine.drafting.ledger.behind == {"a": 9}


def entering(output: SimpleNamespace, **new: int) -> SimpleNamespace:
    output.scheduled_new_reqs = [SimpleNamespace(req_id=name, num_computed_tokens=found) for name, found in new.items()]
    return output


def test_requests_that_begin_or_resume_enter_and_those_that_go_on_do_not() -> None:
    engine = Engine("going on")
    output = entering(step(), new=0)
    output.scheduled_cached_reqs = SimpleNamespace(
        resumed_req_ids={"resumed", "going on"}, req_ids=["resumed", "going on", "never seen"], num_computed_tokens=[4, 8, 0]
    )
    engine.tables["resumed"] = [1]
    engine.drafting.enter(output, {})
    ledger = engine.drafting.ledger
    assert [ledger.knows(name) for name in ("new", "resumed", "never seen")] == [True, True, False]
    assert ledger.behind == {"resumed": 0}, "its blocks hold nothing of the draft; the one that goes on was left alone"


def test_the_new_blocks_of_all_are_cleared_before_any_is_looked_up() -> None:
    engine = Engine("before")
    engine.tables |= {"before": [1], "first": [1], "second": [1]}
    engine.drafting.ledger.leave(request("before", 4))
    engine.drafting.enter(entering(step(), second=4, first=0), {"first": request("first", 0)})
    assert engine.drafting.ledger.behind == {"second": 0}, "the first was given the block anew, the second found it there"


def test_blocks_that_a_step_copies_keep_what_they_hold() -> None:
    engine = Engine("before")
    engine.tables |= {"before": [1], "after": [2, 3]}
    engine.drafting.ledger.leave(request("before", 4))
    output = entering(step(), after=4)
    output.kv_cache_block_copies = [SimpleNamespace(src_block_id=1, dst_block_id=2)]
    engine.drafting.enter(output, {})
    assert engine.drafting.ledger.behind == {}


def test_requests_of_one_cold_prompt_are_drafted_for_together_in_the_step_that_they_enter_with() -> None:
    engine = Engine()
    engine.tables |= {"writer": [1, 2], "reader": [1, 2]}
    rows = {"writer": request("writer", 0, prompt=8), "reader": request("reader", 4, prompt=4)}
    output = entering(step({"writer": 8, "reader": 4}), writer=0, reader=4)
    engine.drafting.enter(output, rows)
    assert engine.drafting.ledger.behind == {"reader": 0}
    engine.drafting.order(output, rows, 3, 1.0, is_steered=True)
    assert engine.drafting.ledger.behind == {}


def test_rows_whose_drafts_would_stand_on_missing_kv_are_named() -> None:
    engine = asleep("a", "b", "gone")
    rows = {"a": request("a", 25), "b": request("b", 20)}
    assert engine.drafting.rows_without_drafts(rows) == ["a"]


def test_counters_say_what_the_drafter_did_and_what_it_lent() -> None:
    engine = asleep("a")
    engine.order([request("a", 25)], 3)
    engine.order([request("a", 26)], 3)
    expected = DrafterCounters(lag_tokens=7, recomputed_tokens=5, micro_restarts=1, probes=1)
    assert engine.drafting.counters(7, 1.0) == expected
    pool = SimpleNamespace(borrowed_blocks_in_use=1, relocated_blocks=2, preempted_requests=3)
    lending: Any = SimpleNamespace(offloads=4, reloads=5, moved_bytes=6, moving_seconds=7.0, pool=pool)
    engine.drafting.lending = lending
    assert engine.drafting.counters(7, 1.0) == expected.model_copy(
        update={
            "offloads": 4,
            "reloads": 5,
            "moved_bytes": 6,
            "moving_seconds": 7.0,
            "borrowed_blocks": 1,
            "relocated_blocks": 2,
            "preempted_requests": 3,
        }
    )
