"""The draft model's part of a step, on vLLM's real scheduling: what is drafted on is there, and what is missing is known."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightjar.policy.step.drafter import FIRST_HOLD_S, DrafterLife
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState, EngineLoad

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from nightjar.deployments.engine.scheduler.drafting import Drafting
from nightjar.deployments.engine.scheduler.lag_ledger import LagLedger
from nightjar.deployments.engine.worker.draft_work import RUN, WORK_ATTRIBUTE
from tests.engine.draft_cache import VOCABULARY, DraftCache
from tests.engine.scheduler.scheduler_harness import (
    MAXIMUM,
    Engines,
    hand_over_drafts,
    make_request,
    make_scheduler,
    model_output,
    run_steps,
    steer,
)

OUT_OF_MEMORY = "OutOfMemoryError: CUDA out of memory"


def start(engines: Engines, **options: Any) -> DraftCache:
    return DraftCache(engines.scheduler(can_be_dormant=True, **options), engines.in_flight)


def test_a_sleeping_drafter_is_asked_nothing_and_its_lag_is_what_was_generated(both: Engines) -> None:
    cache = start(both)
    for name in "ab":
        cache.add(make_request(name, prompt=[ord(name)] * 20))
    steer(cache.scheduler, "pin=2", 1)
    cache.steps(4)
    steer(cache.scheduler, "off", 2)
    outputs = cache.steps(6)
    assert not any(getattr(output, WORK_ATTRIBUTE).runs for output in outputs)
    drafting, scheduler = cache.scheduler.nightjar.drafting, cache.scheduler
    assert drafting.life.state is DrafterState.DORMANT
    missing = sum(
        request.num_computed_tokens
        - cache.valid_tokens(name, scheduler.kv_cache_manager.get_block_ids(name)[0], request.num_computed_tokens)
        for name, request in scheduler.requests.items()
    )
    assert drafting.lag(scheduler.requests.values())[0] == missing > 0


@pytest.mark.parametrize("chunk_tokens", [1, 3, 16, 1000])
def test_a_restart_recomputes_what_is_missing_in_chunks_and_drafts_again(both: Engines, chunk_tokens: int) -> None:
    cache = start(both)
    for name in "abc":
        cache.add(make_request(name, prompt=[ord(name)] * 5))
    steer(cache.scheduler, "off", 1)
    cache.steps(30)
    steer(cache.scheduler, "pin=3", 2, chunk_tokens=chunk_tokens)
    outputs = cache.steps(130)
    chunks = [sum(len(portion.token_ids) for portion in getattr(output, WORK_ATTRIBUTE).recompute) for output in outputs]
    assert 0 < max(chunks) <= chunk_tokens + 3
    assert cache.scheduler.nightjar.drafting.life.state in {DrafterState.PROBING, DrafterState.ACTIVE}
    assert outputs[-1].num_spec_tokens_to_schedule == 3
    assert {len(drafts) for drafts in outputs[-1].scheduled_spec_decode_tokens.values()} == {3}


def test_what_a_prompt_found_in_the_cache_is_missing_if_it_was_written_while_the_drafter_slept(sync: Engines) -> None:
    cache = start(sync, prefix_caching=True)
    prompt = list(range(40))
    steer(cache.scheduler, "off", 1)
    cache.add(make_request("writer", prompt=prompt))
    cache.steps(3)
    steer(cache.scheduler, "pin=2", 2, allowance=0)
    cache.add(make_request("reader", prompt=prompt))
    cache.steps(1)
    lag = cache.scheduler.nightjar.drafting.ledger.lag(cache.scheduler.requests["reader"])
    assert lag is not None
    assert lag.valid_tokens == 0


def test_what_a_prompt_found_in_the_cache_is_there_if_the_drafter_had_read_it(sync: Engines) -> None:
    cache = start(sync, prefix_caching=True)
    prompt = list(range(40))
    steer(cache.scheduler, "pin=2", 1)
    cache.add(make_request("writer", prompt=prompt))
    cache.steps(3)
    cache.add(make_request("reader", prompt=prompt))
    (output,) = cache.steps(1)
    assert output.scheduled_new_reqs[0].num_computed_tokens == 32
    assert not cache.scheduler.nightjar.drafting.ledger.behind


def test_a_client_may_ask_for_fewer_draft_tokens_or_none(both: Engines) -> None:
    cache = start(both)
    for name, most in (("all", None), ("one", 1), ("none", 0)):
        extra = None if most is None else {"num_speculative_tokens": most}
        cache.add(make_request(name, prompt=[7] * 9, extra_args=extra))
    steer(cache.scheduler, "pin=3", 1)
    last = cache.steps(8)[-1]
    assert {name: len(drafts) for name, drafts in last.scheduled_spec_decode_tokens.items()} == {"all": 3, "one": 1}


def test_where_every_client_opted_out_the_drafter_sleeps(sync: Engines) -> None:
    cache = start(sync)
    cache.add(make_request("a", prompt=[7] * 9, extra_args={"num_speculative_tokens": 0}))
    steer(cache.scheduler, "pin=3", 1)
    outputs = cache.steps(5)
    assert not any(getattr(output, WORK_ATTRIBUTE).runs for output in outputs)


def test_a_row_that_opted_out_is_not_caught_up_and_no_part_of_what_a_restart_costs(both: Engines) -> None:
    cache = start(both)
    cache.add(make_request("in", prompt=[1] * 10))
    cache.add(make_request("out", prompt=[2] * 200, extra_args={"num_speculative_tokens": 0}))
    steer(cache.scheduler, "off", 1)
    cache.steps(20)
    drafting, requests = cache.scheduler.nightjar.drafting, cache.scheduler.requests
    lag = drafting.ledger.lag(requests["in"])
    assert lag is not None
    assert drafting.lag(requests.values()) == (lag.tokens, lag.tokens)
    steer(cache.scheduler, "pin=3", 2, allowance=lag.tokens + 50)
    outputs = cache.steps(10)
    recomputed = [portion for output in outputs for portion in getattr(output, WORK_ATTRIBUTE).recompute]
    assert {portion.request_id for portion in recomputed} == {"in"}
    assert {name: len(drafts) for name, drafts in outputs[-1].scheduled_spec_decode_tokens.items()} == {"in": 3}


def test_a_row_that_opted_out_is_nobody_to_wake_the_drafter_for() -> None:
    ledger = LagLedger(num_blocks=1, block_size=16, blocks=lambda request_id: ())
    drafting = Drafting(DrafterLife(can_be_dormant=True), ledger)

    def decoding(name: str, num_tokens: int) -> Any:
        return SimpleNamespace(
            request_id=name, num_computed_tokens=num_tokens, num_tokens=num_tokens, num_output_tokens=1, max_tokens=1000
        )

    for name in ("just begun", "in sync"):
        ledger.enter(name, 0, ())
    ledger.draft_sleeps([decoding("just begun", 0)])
    rows = [decoding("just begun", 5000), decoding("in sync", 50)]
    assert drafting.lag(rows)[0] == 5000
    drafting.opted_out.add("in sync")
    assert drafting.lag(rows)[0] == 0


def test_requests_of_one_cold_prompt_in_one_step_miss_nothing_of_what_the_first_of_them_reads(sync: Engines) -> None:
    cache = start(sync, prefix_caching=True)
    steer(cache.scheduler, "pin=3", 1)
    for name in "abcd":
        cache.add(make_request(name, prompt=[index % VOCABULARY for index in range(100)]))
    outputs = cache.steps(5)
    assert [new.num_computed_tokens for new in outputs[0].scheduled_new_reqs] == [0, 96, 96, 96]
    assert not cache.scheduler.nightjar.drafting.ledger.behind
    assert cache.recomputed_tokens == 0
    assert len(outputs[-1].scheduled_spec_decode_tokens) == 4


def test_long_prompts_that_have_just_begun_neither_wake_the_drafter_nor_are_caught_up_without_permission(sync: Engines) -> None:
    cache = start(sync)
    steer(cache.scheduler, "off", 1)
    for number in range(4):
        cache.add(make_request(f"r{number}", prompt=[number] * 1500, max_tokens=300))
    cache.steps(4)
    life = cache.scheduler.nightjar.drafting.life
    steer(cache.scheduler, "pin=3", 2, allowance=0)
    outputs = cache.steps(60)
    assert life.state is DrafterState.DORMANT
    assert not any(getattr(output, WORK_ATTRIBUTE).runs for output in outputs)
    assert cache.recomputed_tokens == 0
    wish = life.wish(cache.scheduler.nightjar.drafting.lag(cache.scheduler.running)[0], cache.scheduler.nightjar.clock())
    assert wish is not None
    assert wish.lag_tokens > 4 * 1500


def test_a_drafter_that_waits_for_a_lease_keeps_no_room_for_drafts(sync: Engines) -> None:
    cache = start(sync, max_num_batched_tokens=64)
    steer(cache.scheduler, "off", 1)
    for number in range(6):
        cache.add(make_request(f"r{number}", prompt=[number] * 20))
    cache.steps(20)
    steer(cache.scheduler, "pin=3", 2, allowance=0)
    cache.steps(2)
    cache.add(make_request("new", prompt=[9] * 200))
    look_ahead = watch_look_ahead(cache.scheduler)
    _, output = cache.steps(2)
    assert cache.scheduler.nightjar.drafting.life.state is DrafterState.DORMANT
    assert look_ahead == [MAXIMUM, 0], "the request that begins may miss nothing"
    assert output.total_num_scheduled_tokens == 64
    steer(cache.scheduler, "pin=3", 3)
    assert cache.steps(80)[-1].num_spec_tokens_to_schedule == 3


def test_a_request_that_finds_the_engine_idle_is_drafted_for_at_once_whatever_was_missing_before(both: Engines) -> None:
    cache = start(both)
    steer(cache.scheduler, "off", 1)
    cache.add(make_request("before", prompt=[7] * 50))
    cache.steps(20)
    steer(cache.scheduler, "pin=3", 2, allowance=0)
    cache.steps(4)
    assert cache.scheduler.nightjar.drafting.life.state is DrafterState.DORMANT
    cache.scheduler.finish_requests("before", RequestStatus.FINISHED_ABORTED)
    cache.add(make_request("new", prompt=[8] * 50))
    outputs = cache.steps(4)
    assert all(getattr(output, WORK_ATTRIBUTE).runs for output in outputs if output.num_scheduled_tokens)
    assert len(outputs[-1].scheduled_spec_decode_tokens["new"]) == 3
    assert cache.recomputed_tokens == 0


@pytest.mark.parametrize("sleeps", [True, False], ids=["asleep", "awake"])
def test_a_session_that_goes_on_keeps_what_is_known_of_its_own_tokens(sync: Engines, *, sleeps: bool) -> None:
    cache = start(sync, prefix_caching=True, num_blocks=8, max_model_len=100)
    scheduler = cache.scheduler
    steer(scheduler, "pin=2", 1)
    cache.add(make_request("before", prompt=[3] * 80, max_tokens=5))
    cache.steps(6)
    steer(scheduler, "off" if sleeps else "pin=2", 2)
    cache.add(make_request("session", prompt=[1] * 40, max_tokens=3, resumable=True))
    cache.steps(5)
    steer(scheduler, "pin=2", 3)
    scheduler.add_request(make_request("session", prompt=[2] * 3, max_tokens=40, resumable=True))
    cache.prompts["session"] = tuple(scheduler.requests["session"].prompt_token_ids)
    output = scheduler.schedule()
    kept = output.scheduled_new_reqs[0].num_computed_tokens
    assert kept >= 40
    assert scheduler.nightjar.drafting.ledger.behind.get("session") == (0 if sleeps else None)


def test_a_request_that_finds_blocks_of_one_that_resumes_beside_it_misses_what_that_one_misses(both: Engines) -> None:
    cache = start(both, prefix_caching=True, num_blocks=20)
    scheduler = cache.scheduler
    prompt = [index % VOCABULARY for index in range(100)]
    steer(scheduler, "pin=2", 1)
    cache.add(make_request("before", prompt=[3] * 280, max_tokens=5))
    while scheduler.requests:
        cache.steps(1)
    cache.add(make_request("resumed", prompt=prompt))
    cache.steps(3)
    steer(scheduler, "off", 2)
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    cache.add(make_request("new", prompt=prompt))
    (output,) = cache.steps(1)
    assert output.scheduled_cached_reqs.resumed_req_ids == {"resumed"}
    assert [new.num_computed_tokens for new in output.scheduled_new_reqs] == [96]
    assert dict(scheduler.nightjar.drafting.ledger.behind) == {"resumed": 0, "new": 0}


@pytest.mark.parametrize(("mode", "drafted"), [("off", 0), ("pin=1", MAXIMUM)])
def test_a_fault_of_ours_while_a_step_is_scheduled_drafts_none_where_it_got_no_slots_for_drafts(
    both: Engines, mode: str, drafted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start(both, num_blocks=12, max_model_len=128).scheduler
    steer(scheduler, mode, 1)
    for name in "abcd":
        scheduler.add_request(make_request(name, prompt=[ord(name)] * 30))

    def fails(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(scheduler.nightjar.drafting.ledger, "leave", fails)
    output = scheduler.schedule()
    while not scheduler.nightjar.fault:
        scheduler.update_from_output(output, model_output(scheduler, output, lambda name, drafts: 0))
        if both.in_flight == 1:
            hand_over_drafts(scheduler, output)
        output = scheduler.schedule()
    assert scheduler.nightjar.fault == "leave: RuntimeError: a mistake of ours"
    assert output.num_scheduled_tokens
    assert output.num_spec_tokens_to_schedule == drafted
    assert getattr(output, WORK_ATTRIBUTE, RUN).runs is bool(drafted)


def test_a_fault_of_ours_in_what_rows_may_verify_leaves_the_engine_running(both: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = start(both).scheduler
    scheduler.add_request(make_request("a", prompt=[1] * 15))
    scheduler.add_request(make_request("one", prompt=[1] * 15, extra_args={"num_speculative_tokens": 1}))
    steer(scheduler, "pin=2", 1)

    def fails(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(scheduler.nightjar.drafting, "rows_without_drafts", fails)
    last = run_steps(scheduler, 6, in_flight=both.in_flight)[-1]
    assert scheduler.nightjar.fault == "draft_limits: RuntimeError: a mistake of ours"
    assert {name: len(drafts) for name, drafts in last.scheduled_spec_decode_tokens.items()} == {"a": MAXIMUM, "one": 1}


def test_a_fault_of_ours_in_a_step_without_room_for_drafts_drafts_none_in_it(
    both: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = start(both)
    scheduler = cache.scheduler
    cache.add(make_request("a", prompt=[1] * 15))
    steer(scheduler, "off", 1)
    cache.steps(2)

    def fails(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(scheduler.nightjar, "_choose", fails)
    output = scheduler.schedule()
    assert "a mistake of ours" in scheduler.nightjar.fault
    assert output.num_spec_tokens_to_schedule == 0
    assert not getattr(output, WORK_ATTRIBUTE).runs
    assert not getattr(output, WORK_ATTRIBUTE).recompute


def test_what_clients_asked_for_is_forgotten_with_their_requests_also_while_off(sync: Engines) -> None:
    cache = start(sync)
    steer(cache.scheduler, "off", 1)
    for number in range(40):
        cache.add(make_request(f"r{number}", prompt=[7] * 4, max_tokens=2, extra_args={"num_speculative_tokens": 0}))
    while cache.scheduler.has_unfinished_requests():
        cache.steps(1)
    assert cache.scheduler.nightjar._capped == {}
    assert cache.scheduler.nightjar.drafting.opted_out == set()


@pytest.mark.parametrize("chunk_tokens", [5, 1000], ids=["in chunks", "at once"])
def test_a_catch_up_that_breaks_off_has_read_nothing_and_puts_the_drafter_to_sleep_for_a_while(
    both: Engines, chunk_tokens: int
) -> None:
    cache = start(both)
    loop, now_s = cache.scheduler.nightjar, 1000.0
    loop.clock = lambda: now_s
    for name in "abc":
        cache.add(make_request(name, prompt=[ord(name)] * 20, max_tokens=400))
    steer(cache.scheduler, "off", 1)
    cache.steps(12)
    cache.pass_failure = OUT_OF_MEMORY
    steer(cache.scheduler, "pin=3", 2, chunk_tokens=chunk_tokens)
    outputs = cache.steps(12)
    assert sum(bool(getattr(output, WORK_ATTRIBUTE).recompute) for output in outputs) in {1, both.in_flight}
    assert [loop.drafting.life.state] == [DrafterState.DORMANT]
    assert f"its last catch-up broke off ({OUT_OF_MEMORY}): no other for 30 s" in loop.drafting.life.reason(now_s)
    assert all(loop.drafting.ledger.behind[name] == 0 for name in "abc")
    cache.pass_failure = ""
    now_s += FIRST_HOLD_S
    steer(cache.scheduler, "pin=3", 3)
    outputs = cache.steps(10)
    assert loop.drafting.life.state in {DrafterState.PROBING, DrafterState.ACTIVE}
    assert [len(drafts) for drafts in outputs[-1].scheduled_spec_decode_tokens.values()] == [3, 3, 3]


def test_where_nobody_steers_rows_whose_catch_up_broke_off_get_no_drafts_and_no_other_try_for_a_while(both: Engines) -> None:
    cache = start(both)
    loop, now_s = cache.scheduler.nightjar, 1000.0
    loop.clock = lambda: now_s
    cache.add(make_request("a", prompt=[1] * 20, max_tokens=400))
    steer(cache.scheduler, "off", 1)
    cache.steps(12)
    cache.pass_failure = OUT_OF_MEMORY
    loop.steering.override_mode(Mode.parse("shadow"))
    cache.steps(both.in_flight + 1)
    cache.add(make_request("new", prompt=[2] * 20, max_tokens=400))
    outputs = cache.steps(8)
    assert not any(getattr(output, WORK_ATTRIBUTE).recompute for output in outputs[both.in_flight :])
    assert outputs[-1].scheduled_spec_decode_tokens.keys() == {"new"}


def test_an_idle_engine_wishes_for_no_restart(sync: Engines) -> None:
    cache = start(sync)
    loop = cache.scheduler.nightjar
    cache.add(make_request("a", prompt=[7] * 50, max_tokens=100))
    steer(cache.scheduler, "off", 1)
    cache.steps(20)
    steer(cache.scheduler, "pin=3", 2, allowance=0)
    cache.steps(2)
    busy = loop.snapshot(EngineLoad(num_running_reqs=1), loop.drafting.life.state, cache.scheduler.running, "")
    idle = loop.snapshot(EngineLoad(num_running_reqs=0), loop.drafting.life.state, cache.scheduler.running, "")
    assert busy.restart_wish is not None
    assert idle.restart_wish is None


def test_off_schedules_what_an_engine_without_a_drafter_would(sync: Engines) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    def scheduled(scheduler: Any, cache: DraftCache | None) -> list[dict[str, int]]:
        for index in range(6):
            request = make_request(f"r{index}", prompt_tokens=45)
            (scheduler if cache is None else cache).add_request(request) if cache is None else cache.add(request)
        if cache is not None:
            return [dict(output.num_scheduled_tokens) for output in cache.steps(12)]
        from tests.engine.scheduler.scheduler_harness import run_steps

        scheduler.vllm_config.speculative_config = None
        scheduler.num_spec_tokens = scheduler.num_lookahead_tokens = 0
        scheduler.dynamic_sd_lookup = None
        return [dict(output.num_scheduled_tokens) for output in run_steps(scheduler, 12)]

    options: dict[str, Any] = {"max_num_batched_tokens": 64, "num_blocks": 25}
    cache = start(sync, **options)
    steer(cache.scheduler, "off", 1)
    look_ahead = watch_look_ahead(cache.scheduler)
    ours = scheduled(cache.scheduler, cache)
    plain = scheduled(make_scheduler(Scheduler, sync.folder, **options), None)
    assert ours == plain
    assert look_ahead == [0] * 12


def test_look_ahead_slots_are_vllms_own_unless_the_drafter_sleeps(both: Engines) -> None:
    cache = start(both)
    look_ahead = watch_look_ahead(cache.scheduler)
    cache.add(make_request("a", prompt=[7] * 9))
    for sequence, length in enumerate((4, 1, 0, 3), start=1):
        steer(cache.scheduler, f"pin={length}", sequence)
        cache.steps(3)
    assert look_ahead == [MAXIMUM] * 6 + [0] * 3 + [MAXIMUM] * 3


def watch_look_ahead(scheduler: Any) -> list[int]:
    """The look-ahead that each step from now on is scheduled with."""
    seen: list[int] = []
    update = scheduler._update_after_schedule

    def watched(output: Any) -> None:
        seen.append(scheduler.num_lookahead_tokens)
        update(output)

    scheduler._update_after_schedule = watched
    return seen


def test_where_vllm_skips_the_drafts_of_a_chunked_prompt_the_drafter_reads_it_all_the_same_and_drafts_at_once_after_it(
    both: Engines,
) -> None:
    """vLLM 0.33, runner V2, marks steps in which no row could use drafts: all but the last chunk, and a request's last step."""
    cache = start(both, max_num_batched_tokens=400)
    scheduler = cache.scheduler
    update = scheduler._update_after_schedule

    def marked(output: Any) -> None:
        rows = [(scheduler.requests[name], tokens) for name, tokens in output.num_scheduled_tokens.items()]
        output.skip_drafts = all(request.num_computed_tokens + tokens < request.num_tokens for request, tokens in rows)
        update(output)

    scheduler._update_after_schedule = marked
    steer(scheduler, "pin=4", 1, allowance=0)
    cache.add(make_request("long", prompt=[7] * 1500))
    outputs = cache.steps(12)
    assert [output.skip_drafts for output in outputs[:5]] == [True] * 3 + [False] * 2
    assert [output.num_spec_tokens_to_schedule for output in outputs] == [0] * 3 + [4] * 9
    assert [output.nightjar_note.num_speculative_tokens for output in outputs] == [0] * 3 + [4] * 9
    assert all(getattr(output, WORK_ATTRIBUTE).runs for output in outputs)
    assert len(outputs[-1].scheduled_spec_decode_tokens["long"]) == 4
    assert scheduler.nightjar.drafting.life.state is DrafterState.ACTIVE
    assert cache.recomputed_tokens == 0
    assert not scheduler.nightjar.drafting.ledger.behind


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_no_draft_is_ever_made_on_missing_kv_whatever_comes_and_goes(both: Engines, seed: int) -> None:
    rng = random.Random(seed)
    cache = start(
        both,
        prefix_caching=True,
        num_blocks=rng.choice((14, 30, 200)),
        max_num_batched_tokens=rng.choice((32, 256)),
        max_model_len=128,
    )
    scheduler = cache.scheduler
    prefixes = [[rng.randrange(VOCABULARY) for _ in range(48)] for _ in range(2)]
    now_s = 0.0
    scheduler.nightjar.clock = lambda: now_s
    breaks_off = rng.choice((0.0, 0.3))
    for step in range(1, 60):
        now_s += rng.choice((0.1, 60.0))
        cache.pass_failure = OUT_OF_MEMORY if rng.random() < breaks_off else ""
        if rng.random() < 0.3:
            chunk = rng.choice((None, 1, 4, 20))
            steer(scheduler, rng.choice(("off", "off", "pin=1", "pin=4")), step, chunk_tokens=chunk)
        if rng.random() < 0.25:
            prompt = prefixes[rng.randrange(2)][: rng.randrange(1, 48)] + [rng.randrange(VOCABULARY) for _ in range(4)]
            cache.add(make_request(f"r{step}", prompt=prompt, max_tokens=rng.randrange(1, 60)))
        if rng.random() < 0.05 and scheduler.requests:
            scheduler.finish_requests(rng.choice(list(scheduler.requests)), RequestStatus.FINISHED_ABORTED)
        cache.step(rng.randrange(MAXIMUM + 1))
