"""Offload, growth, contraction and reload on vLLM's real scheduling: INV-9, and no step reads memory that is not its own."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Lease, OffloadRules

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from nightjar.deployments.engine.scheduler.steered import SteeredAsyncScheduler
from nightjar.deployments.engine.worker.draft_work import MEMORY_ATTRIBUTE, WORK_ATTRIBUTE, MemoryMove, MemoryWork
from tests.engine.draft_cache import VOCABULARY, DraftCache
from tests.engine.scheduler.scheduler_harness import MAXIMUM, Engines, make_request, steer

PROMPT_TOKENS = 30
BASE_BLOCKS = 13
PARTS = 4
"""Of a move here: a real one has as many as its bytes ask for."""
RULES = OffloadRules(free_share_below=0.3, pressure_s=0.0, reload_free_share=0.2)


class Fleet:
    """The policy, as far as one engine can tell: tells it a mode and grants every wish."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.sequence = 0

    def tell(self, mode: str, *, grants: bool = True, chunk_tokens: int | None = None, offload: OffloadRules = RULES) -> None:
        loop = self.scheduler.nightjar
        wish = loop.drafting.life.wish(loop.drafting.lag(self.scheduler.running)[0], loop.clock()) if grants else None
        leases = () if wish is None else (Lease(wish_id=wish.wish_id, time_to_live_s=600.0, reload=wish.reload),)
        self.sequence += 1
        steer(self.scheduler, mode, self.sequence, chunk_tokens=chunk_tokens, allowance=1 << 30, leases=leases, offload=offload)


def withheld_blocks(scheduler: Any) -> int:
    """Blocks that vLLM knows nothing of."""
    blocks = scheduler.kv_cache_manager.block_pool
    return len(blocks.blocks) - int(blocks.num_gpu_blocks)


def lending_engine(engines: Engines) -> DraftCache:
    """An engine of 13 base blocks and 13 borrowable ones: target and draft have equal KV, and the weights are nothing beside."""
    sizes = {"num_blocks": 2 * BASE_BLOCKS, "max_model_len": 128, "draft_weight_bytes": 1}
    scheduler = engines.scheduler(can_be_dormant=True, prefix_caching=True, **sizes)
    lending = scheduler.nightjar.drafting.lending
    assert lending.pool.base_blocks == BASE_BLOCKS
    assert lending._num_parts == 1, "so little memory moves in one part"
    lending._num_parts = PARTS
    return DraftCache(scheduler, engines.in_flight)


def pressed(cache: DraftCache, max_tokens: int = 60) -> Fleet:
    """Give it more requests than its base blocks carry, and tell it to draft nothing."""
    add(cache, *"abcdefgh", max_tokens=max_tokens)
    fleet = Fleet(cache.scheduler)
    fleet.tell("off", grants=False)
    return fleet


def add(cache: DraftCache, *names: str, max_tokens: int = 60) -> None:
    for name in names:
        prompt = [ord(name[-1]) % VOCABULARY] * PROMPT_TOKENS
        cache.add(make_request(name, prompt=prompt, max_tokens=max_tokens))


def parts(outputs: list[Any]) -> list[MemoryWork]:
    return [work for output in outputs if (work := getattr(output, MEMORY_ATTRIBUTE, None)) is not None]


def moves(outputs: list[Any]) -> list[MemoryMove]:
    return [work.move for work in parts(outputs) if not work.share]


def test_under_pressure_the_draft_leaves_and_the_queue_runs_in_its_memory(both: Engines) -> None:
    cache = lending_engine(both)
    pressed(cache)
    outputs = cache.steps(12)
    lending = cache.scheduler.nightjar.drafting.lending
    assert parts(outputs) == [MemoryWork(MemoryMove.OFFLOAD, part / PARTS) for part in range(PARTS + 1)]
    assert cache.scheduler.nightjar.drafting.life.state is DrafterState.OFFLOADED
    assert lending.pool.borrowed_blocks_in_use > 0
    assert (lending.offloads, lending.reloads) == (1, 0)


def test_blocks_are_lent_only_when_the_last_part_of_the_move_has_come_back(both: Engines) -> None:
    cache = lending_engine(both)
    pressed(cache)
    begun = False
    while cache.scheduler.nightjar.drafting.lending.offloads == 0:
        assert withheld_blocks(cache.scheduler) == BASE_BLOCKS
        outputs = cache.steps(1)
        begun = begun or bool(parts(outputs))
        assert not begun or not any(output.num_spec_tokens_to_schedule for output in outputs)
    assert withheld_blocks(cache.scheduler) == 0


def test_an_engine_without_requests_goes_on_with_a_move_when_it_has_some_and_its_idle_time_is_not_the_moves(both: Engines) -> None:
    cache = lending_engine(both)
    loop, now_s = cache.scheduler.nightjar, 1000.0
    loop.clock = lambda: now_s
    add(cache, *"abcdefgh")
    Fleet(cache.scheduler).tell("off", grants=False)
    while not parts(cache.steps(1)):
        now_s += 0.1
    for name in list(cache.scheduler.requests):
        cache.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
    assert loop.drafting.lending.offloads == 0
    now_s += 900.0
    add(cache, "i")
    for _ in range(PARTS):
        cache.steps(1)
        now_s += 0.1
    assert loop.drafting.lending.offloads == 1
    assert loop.drafting.life._reload_seconds < 10.0


def test_without_pressure_or_permission_nothing_moves(both: Engines) -> None:
    cache = lending_engine(both)
    add(cache, "a", "b")
    Fleet(cache.scheduler).tell("off", grants=False)
    assert moves(cache.steps(8)) == []


def test_requests_that_end_together_do_not_hide_that_others_wait(both: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = lending_engine(both)
    seconds = itertools.count()
    monkeypatch.setattr(cache.scheduler.nightjar, "clock", lambda: float(next(seconds)))
    add(cache, *"abcdefghijklmnopqrstuvwx", max_tokens=6)
    rules = RULES.model_copy(update={"pressure_s": 120.0})
    Fleet(cache.scheduler).tell("off", grants=False, offload=rules)
    assert moves(cache.steps(30)) == [MemoryMove.OFFLOAD]


def test_the_draft_comes_back_when_load_falls_and_drafts_after_catching_up(both: Engines) -> None:
    cache = lending_engine(both)
    fleet = pressed(cache, max_tokens=40)
    cache.steps(60)
    add(cache, "long", max_tokens=90)
    cache.steps(3)
    fleet.tell("pin=3")
    outputs = []
    for _ in range(6):
        outputs += cache.steps(8)
        fleet.tell("pin=3")
    assert moves(outputs) == [MemoryMove.RELOAD]
    assert [3] in [[len(drafts) for drafts in output.scheduled_spec_decode_tokens.values()] for output in outputs]
    assert withheld_blocks(cache.scheduler) == BASE_BLOCKS


def test_a_draft_that_cannot_be_brought_back_stays_away_its_blocks_lent_until_a_later_try(
    both: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = lending_engine(both)
    loop, now_s = cache.scheduler.nightjar, 1000.0
    monkeypatch.setattr(loop, "clock", lambda: now_s)
    fleet = pressed(cache, max_tokens=40)

    def wanted() -> list[Any]:
        outputs: list[Any] = []
        for _ in range(4):
            fleet.tell("pin=3")
            outputs += cache.steps(8)
        return outputs

    cache.steps(60)
    add(cache, "long", max_tokens=90)
    cache.steps(3)
    cache.reload_failure = "OSError: no such file"
    ordered = parts(wanted())
    assert [work.share for work in ordered] in ([0, 0.25, 0.5, 0.75], [0, 0.25, 0.5, 0.75, 1])
    assert {work.move for work in ordered} == {MemoryMove.RELOAD}
    assert loop.drafting.life.state is DrafterState.OFFLOADED
    assert "its last reload broke off (OSError: no such file)" in loop.drafting.life.reason(now_s)
    assert withheld_blocks(cache.scheduler) == 0
    assert loop.drafting.lending.reloads == 0
    cache.reload_failure = ""
    now_s += 40.0
    assert moves(wanted()) == [MemoryMove.RELOAD]
    assert not loop.drafting.life.is_away
    assert loop.drafting.lending.reloads == 1


def test_under_async_scheduling_rows_pause_for_a_step_so_that_they_can_move(folder: Path) -> None:
    sizes = {"max_num_seqs": 64, "num_blocks": 400, "max_model_len": 1024, "draft_weight_bytes": 1}
    scheduler = Engines(SteeredAsyncScheduler, 2, folder).scheduler(can_be_dormant=True, **sizes)
    cache, fleet = DraftCache(scheduler, in_flight=2), Fleet(scheduler)
    fleet.tell("off", grants=False)
    for number in range(60):
        cache.add(make_request(f"r{number}", prompt=[number % VOCABULARY] * 60, max_tokens=900))
    for _ in range(40):
        cache.step(accepted=2)
    pool = scheduler.nightjar.drafting.lending.pool
    for name in list(scheduler.requests)[16:]:
        scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
    borrowed = pool.borrowed_blocks_in_use
    for _ in range(30):
        fleet.tell("pin=3")
        cache.step(accepted=2)
    assert borrowed > 20
    assert pool.relocated_blocks >= borrowed
    assert pool.preempted_requests == 0
    assert scheduler.nightjar.drafting.lending.reloads == 1


def test_where_nobody_steers_any_more_the_draft_comes_back_without_a_lease(both: Engines) -> None:
    cache = lending_engine(both)
    pressed(cache, max_tokens=40)
    cache.steps(8)
    loop = cache.scheduler.nightjar
    loop.steering.override_mode(Mode.parse("shadow"))
    cache.steps(1)
    assert [loop.drafting.life.state] == [DrafterState.OFFLOADED]
    assert "nobody steers" in loop.drafting.life.reason(loop.clock())
    while cache.scheduler.requests:
        cache.steps(1)
    add(cache, "z", max_tokens=90)
    cache.steps(30)
    assert loop.drafting.life.state is DrafterState.ACTIVE
    assert loop.drafting.lending.reloads == 1


def test_after_a_fault_of_ours_an_engine_whose_draft_is_away_drafts_nothing(both: Engines) -> None:
    cache = lending_engine(both)
    pressed(cache)
    cache.steps(8)
    scheduler = cache.scheduler
    scheduler.nightjar.fault = "a mistake of ours"
    outputs = [scheduler.schedule() for _ in range(both.in_flight)]
    assert scheduler.nightjar.drafting.life.state is DrafterState.OFFLOADED
    assert {output.num_spec_tokens_to_schedule for output in outputs} == {0}
    assert not any(getattr(output, WORK_ATTRIBUTE).runs for output in outputs)
    assert moves(outputs) == []


@pytest.mark.heavy
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_inv_9_blocks_are_conserved_and_nobody_reads_memory_that_is_not_theirs_whatever_comes_and_goes(
    both: Engines, seed: int
) -> None:
    rng = random.Random(seed)
    cache = lending_engine(both)
    scheduler, fleet = cache.scheduler, Fleet(cache.scheduler)
    prefixes = [[rng.randrange(VOCABULARY) for _ in range(48)] for _ in range(2)]
    busy = rng.random()
    now_s = 0.0
    scheduler.nightjar.clock = lambda: now_s
    breaks_off = rng.choice((0.0, 0.2))
    for step in range(1, 150):
        now_s += rng.choice((0.1, 60.0)) if breaks_off else 0.1
        cache.reload_failure = "OSError: no such file" if rng.random() < breaks_off else ""
        cache.pass_failure = "out of memory" if rng.random() < breaks_off else ""
        if step % 40 == 0:
            busy = rng.random()
        if rng.random() < 0.25:
            fleet.tell(rng.choice(("off", "off", "pin=4")), grants=rng.random() < 0.7, chunk_tokens=rng.choice((None, 4, 40)))
        if rng.random() < 0.7 * busy:
            prompt = prefixes[rng.randrange(2)][: rng.randrange(1, 48)] + [rng.randrange(VOCABULARY) for _ in range(4)]
            cache.add(make_request(f"r{step}", prompt=prompt, max_tokens=rng.randrange(1, 60)))
        if rng.random() < 0.05 and scheduler.requests:
            scheduler.finish_requests(rng.choice(list(scheduler.requests)), RequestStatus.FINISHED_ABORTED)
        cache.step(rng.randrange(MAXIMUM + 1))
