"""No draft is written past its request's blocks: on vLLM's real scheduling, with a separate draft model that is kept in sync."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.wire.report import DrafterState, EngineLoad

pytest.importorskip("vllm")

from vllm.v1.core import single_type_kv_cache_manager
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from nightjar.deployments.engine.scheduler.draft_slots import DraftSlots
from nightjar.deployments.engine.worker.draft_work import SLEEP, WORK_ATTRIBUTE
from tests.engine.scheduler.scheduler_harness import BLOCK_TOKENS, MAXIMUM, TOKEN, Engines, hand_over_drafts, make_request, steer


class Watched:
    """An engine of a scheduler, whose every step is held against the blocks that its requests have as it is scheduled."""

    def __init__(self, scheduler: Any, in_flight: int) -> None:
        self.scheduler = scheduler
        self.steps = self.steps_past_blocks = self.rows_at_the_limit = 0
        self.lengths: set[int] = set()
        self._in_flight = in_flight
        self._queue: list[Any] = []
        update = scheduler._update_after_schedule
        scheduler._update_after_schedule = lambda output: self._look(output, update)

    def step(self, accepted: int = 2) -> Any:
        self._queue.append(self.scheduler.schedule())
        if len(self._queue) < self._in_flight:
            return self._queue[-1]
        output = self._queue.pop(0)
        names = list(output.num_scheduled_tokens)
        drafts = {name: len(output.scheduled_spec_decode_tokens.get(name, ())) for name in names}
        sampled = [[TOKEN] * (1 + min(accepted, drafts[name])) if name in output.samples else [] for name in names]
        rows = {name: row for row, name in enumerate(names)}
        self.scheduler.update_from_output(output, ModelRunnerOutput(names, rows, sampled))
        if self._in_flight == 1:
            hand_over_drafts(self.scheduler, output)
        return output

    def _look(self, output: Any, update: Any) -> None:
        """vLLM's draft model, in a step at K: the step's tokens and one more in its first forward, then K - 1 more."""
        before = {name: self.scheduler.requests[name].num_computed_tokens for name in output.num_scheduled_tokens}
        update(output)
        output.samples = [name for name in before if not self.scheduler.requests[name].is_prefill_chunk]
        work = getattr(output, WORK_ATTRIBUTE, None)
        if not before or (work is not None and not work.runs):
            return
        length = output.num_spec_tokens_to_schedule
        self.steps += 1
        self.lengths.add(length)
        is_past = False
        for name, num_tokens in output.num_scheduled_tokens.items():
            last = before[name] + num_tokens + max(length, 1) - 1
            self.rows_at_the_limit += last >= self.scheduler.max_model_len
            last = min(last, self.scheduler.max_model_len - 1)
            blocks = self.scheduler.kv_cache_manager.get_block_ids(name)
            is_past |= any(last >= len(of_group) * BLOCK_TOKENS for of_group in blocks)
        self.steps_past_blocks += is_past


def start(engines: Engines, **options: Any) -> Watched:
    return Watched(engines.scheduler(**options), engines.in_flight)


@pytest.mark.parametrize("mode", ["off", "pin=1", "pin=3", "shadow"])
def test_a_draft_that_is_kept_in_sync_writes_within_its_requests_blocks(both: Engines, mode: str) -> None:
    engine = start(both)
    engine.scheduler.add_request(make_request("a", prompt_tokens=8))
    steer(engine.scheduler, mode)
    for _ in range(64):
        engine.step()
    assert engine.scheduler.nightjar.fault == ""
    assert (engine.steps, engine.steps_past_blocks) == (64, 0)


@pytest.mark.parametrize(
    ("options", "sleeps"),
    [
        ({"num_blocks": 30}, False),
        ({"num_blocks": 30, "can_be_dormant": True}, True),
        ({"num_blocks": 48, "can_be_dormant": True, "window_tokens": 40}, False),
    ],
    ids=["in_sync", "sleeps", "two_groups"],
)
def test_no_draft_is_written_past_its_requests_blocks_whatever_comes_and_goes(
    both: Engines, options: dict[str, Any], sleeps: bool
) -> None:
    """Requests come, end, are preempted and run into max_model_len; prompts are chunked and found in the cache; K changes."""
    rng = random.Random(3)
    engine = start(both, prefix_caching=True, max_num_batched_tokens=48, max_model_len=100, **options)
    scheduler, preempted = engine.scheduler, 0
    prefix = [rng.randrange(50) for _ in range(48)]
    for step in range(1, 600):
        if rng.random() < 0.3:
            steer(scheduler, rng.choice(("off", "pin=0", "pin=1", "pin=2", "pin=4", "shadow")), step)
        if len(scheduler.requests) < 8 and rng.random() < 0.3:
            prompt = prefix[: rng.randrange(1, 48)] + [rng.randrange(50) for _ in range(4)]
            scheduler.add_request(make_request(f"r{step}", prompt=prompt, max_tokens=rng.choice((5, 40, 200))))
        if scheduler.requests and rng.random() < 0.03:
            scheduler.finish_requests(rng.choice(list(scheduler.requests)), RequestStatus.FINISHED_ABORTED)
        engine.step(rng.randrange(MAXIMUM + 1))
        preempted += sum(request.num_preemptions for request in scheduler.requests.values())
    assert scheduler.nightjar.fault == ""
    assert engine.steps_past_blocks == 0
    assert engine.steps > 100
    assert engine.lengths >= {1, 2, MAXIMUM}
    assert (0 in engine.lengths) is not sleeps
    assert preempted
    assert engine.rows_at_the_limit


@pytest.mark.parametrize("can_be_dormant", [False, True], ids=["in_sync", "sleeps"])
def test_where_vllm_reserves_too_few_slots_steering_ends_before_a_draft_is_written_past_them(
    both: Engines, can_be_dormant: bool
) -> None:
    engine = start(both, can_be_dormant=can_be_dormant)
    scheduler, loop = engine.scheduler, engine.scheduler.nightjar
    own_slots, scheduler.num_lookahead_tokens = scheduler.num_lookahead_tokens, 0
    scheduler.add_request(make_request("a", prompt_tokens=8))
    steer(scheduler, "pin=3")
    scheduled: list[Any] = []
    hand_on = scheduler._update_after_schedule

    def noted(output: Any) -> None:
        scheduled.append(output)
        hand_on(output)

    scheduler._update_after_schedule = noted
    while not loop.fault and len(scheduled) < 20:
        engine.step()
    assert loop.fault.startswith("before_step: RuntimeError: request a: at K = 3 its drafter writes")
    assert scheduled[-1].num_spec_tokens_to_schedule == 0
    assert getattr(scheduled[-1], WORK_ATTRIBUTE) == SLEEP
    assert {output.num_spec_tokens_to_schedule for output in scheduled[:-1]} == {3}
    assert engine.steps_past_blocks == 0
    scheduler.num_lookahead_tokens = own_slots
    for _ in range(40):
        engine.step()
    assert {output.num_spec_tokens_to_schedule for output in scheduled[-40:]} == {MAXIMUM}
    assert engine.steps_past_blocks == 0
    snapshot = loop.snapshot(EngineLoad(num_running_reqs=1), DrafterState.IN_SYNC, scheduler.running, "")
    assert snapshot.counters.draft_slot_breaches == 1


def step_of(*, is_new: bool = False, **rows: tuple[int, int]) -> Any:
    """A step of requests, each with its computed tokens and those that the step computes."""
    computed = {name: tokens for name, (tokens, _) in rows.items()}
    cached = {} if is_new else computed
    return SimpleNamespace(
        num_scheduled_tokens={name: scheduled for name, (_, scheduled) in rows.items()},
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), num_computed_tokens=list(cached.values())),
        scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=computed[name]) for name in computed if is_new],
    )


@pytest.mark.parametrize("is_new", [False, True], ids=["cached", "new"])
@pytest.mark.parametrize(
    ("own_slots", "length", "fits"),
    [(1, 0, 15), (1, 1, 15), (1, 4, 12), (0, 0, 16), (0, 1, 16), (0, 2, 15), (0, 4, 13)],
)
def test_a_draft_model_writes_max_k_1_slots_past_the_step_and_a_head_one_fewer(
    own_slots: int, length: int, fits: int, is_new: bool
) -> None:
    slots = DraftSlots([({"a": [None], "b": [None] * 9}, 16)], own_slots=own_slots, max_model_len=1000)
    assert slots.breach(step_of(b=(30, 20), a=(fits - 6, 6), is_new=is_new), length) == ""
    found = slots.breach(step_of(b=(30, 20), a=(fits - 5, 6), is_new=is_new), length)
    if fits == 16:
        assert found == "", "the step's own tokens are vLLM's to place"
    else:
        assert found.startswith(f"request a: at K = {length} its drafter writes 17 tokens, and its blocks hold 16")


@pytest.mark.parametrize("own_slots", [4, 0], ids=["vllm 0.32", "vllm 0.33"])
@pytest.mark.parametrize("length", range(5))
def test_a_drafter_of_blocks_writes_all_of_its_queries_past_the_step_whatever_k_is(own_slots: int, length: int) -> None:
    slots = DraftSlots([({"a": [None]}, 16)], own_slots=own_slots, max_model_len=1000, block_slots=5)
    assert slots.breach(step_of(a=(7, 4)), length) == ""
    assert slots.breach(step_of(a=(8, 4)), length).endswith(
        "its drafter writes 17 tokens, and its blocks hold 16: vLLM reserved fewer slots than it writes, report this with the "
        "version of vLLM"
    )


@pytest.mark.parametrize(("method", "writes"), [("dflash", 5), ("dspark", 5), ("eagle", 4 - 1)])
def test_a_block_is_as_long_as_what_vllm_reserves_for_it(method: str, writes: int) -> None:
    manager = object.__new__(single_type_kv_cache_manager.FullAttentionManager)
    manager.req_to_blocks, manager.block_size = {"a": [None]}, 16
    config = SimpleNamespace(
        num_lookahead_tokens=5,
        speculative_config=SimpleNamespace(method=method, max_num_new_slots_for_drafting=0),
        model_config=SimpleNamespace(max_model_len=100),
    )
    slots = DraftSlots.of(config, [manager])
    assert slots is not None
    assert [bool(slots.breach(step_of(a=(10, 6 - past)), 4)) for past in (writes, writes - 1)] == [False, True]


def test_a_row_needs_no_slots_past_the_last_position_of_the_model_and_every_group_is_looked_at() -> None:
    roomy, full = ({"a": [None] * 2}, 16), ({"a": [None] * 3}, 8)
    at_limit = DraftSlots([roomy, full], own_slots=1, max_model_len=24)
    step = step_of(a=(19, 4))
    assert at_limit.breach(step, 4) == ""
    assert DraftSlots([roomy], own_slots=1, max_model_len=25).breach(step, 4) == ""
    assert DraftSlots([roomy, full], own_slots=1, max_model_len=25).breach(step, 4)


GROUP_TOKENS = (4, 6)
"""Tokens of a block in each of the two KV cache groups below."""
MAX_MODEL_LEN = 60


class Rows:
    """Requests with blocks in two groups, as vLLM's managers hold them: a list that grows, and goes when its request leaves."""

    def __init__(self, own_slots: int) -> None:
        self.tables: list[dict[str, list[None]]] = [{} for _ in GROUP_TOKENS]
        self.computed: dict[str, int] = {}
        self.slots = DraftSlots(zip(self.tables, GROUP_TOKENS, strict=True), own_slots=own_slots, max_model_len=MAX_MODEL_LEN)
        self.own_slots = own_slots

    def enter(self, name: str, found: int) -> None:
        """New, or back after a preemption, with so many tokens found in the prefix cache."""
        self.computed[name] = found
        for table in self.tables:
            table[name] = []

    def leave(self, name: str) -> None:
        self.slots.leave(name)
        del self.computed[name]
        for table in self.tables:
            del table[name]

    def grow(self, name: str, tokens: int) -> None:
        """Give the request the blocks for so many tokens; those that it has stay its own."""
        for table, block_tokens in zip(self.tables, GROUP_TOKENS, strict=True):
            table[name] += [None] * (-(-tokens // block_tokens) - len(table[name]))

    def short(self, scheduled: Mapping[str, int], length: int) -> set[str]:
        """Rows of the step whose drafter would write past the blocks of one group: every row's blocks, counted anew."""
        past_step = self.own_slots + max(length, 1) - 1
        last = {name: min(self.computed[name] + tokens + past_step, MAX_MODEL_LEN) for name, tokens in scheduled.items()}
        return {
            name
            for table, block_tokens in zip(self.tables, GROUP_TOKENS, strict=True)
            for name in scheduled
            if past_step and len(table[name]) * block_tokens < last[name]
        }


ROW = st.tuples(st.sampled_from("abcde"), st.integers(1, 12), st.sampled_from((0, 0, 0, 0, 1, 2, 5)), st.integers(0, 6))
"""A row of a step: the tokens that it computes, how many of the slots that it needs are missing, and how many are rejected."""
STEP = st.tuples(
    st.integers(0, 4), st.lists(ROW, min_size=1, max_size=5, unique_by=lambda row: row[0]), st.sets(st.sampled_from("abcde"))
)


@given(own_slots=st.integers(0, 1), steps=st.lists(STEP, max_size=25), found=st.sampled_from((0, 3, 45)))
def test_a_breach_is_found_in_the_very_step_in_which_a_look_at_every_rows_blocks_finds_it(
    own_slots: int, steps: Sequence[tuple[int, list[tuple[str, int, int, int]], set[str]]], found: int
) -> None:
    """K changes, rows come, sit out, are cut back, leave and come again, prompts are computed beside; blocks may be too few."""
    rows = Rows(own_slots)
    for length, wanted, leaving in steps:
        for name in leaving & rows.computed.keys():
            rows.leave(name)
        entering = [name for name, _, _, _ in wanted if name not in rows.computed]
        for name in entering:
            rows.enter(name, found)
        scheduled = {name: tokens for name, tokens, _, _ in wanted}
        for name, tokens, missing, _ in wanted:
            rows.grow(name, min(rows.computed[name] + tokens + own_slots + max(length, 1) - 1, MAX_MODEL_LEN) - missing)
        cached = [name for name in scheduled if name not in entering]
        step = SimpleNamespace(
            num_scheduled_tokens=scheduled,
            scheduled_cached_reqs=SimpleNamespace(req_ids=cached, num_computed_tokens=[rows.computed[name] for name in cached]),
            scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=rows.computed[name]) for name in entering],
        )
        breach, short = rows.slots.breach(step, length), rows.short(scheduled, length)
        assert bool(breach) is bool(short)
        assert not breach or breach.split(":")[0].removeprefix("request ") in short
        for name, tokens, _, rejected in wanted:
            rows.computed[name] = max(rows.computed[name] + tokens - min(rejected, tokens - 1), 0) % MAX_MODEL_LEN


@pytest.mark.parametrize(
    ("name", "is_looked_at"),
    [
        ("FullAttentionManager", True),
        ("SlidingWindowManager", True),
        ("ChunkedLocalAttentionManager", True),
        ("MambaManager", False),
        ("CrossAttentionManager", False),
    ],
)
def test_groups_whose_blocks_stand_in_the_order_of_positions_are_looked_at(name: str, is_looked_at: bool) -> None:
    manager = object.__new__(getattr(single_type_kv_cache_manager, name))
    manager.req_to_blocks, manager.block_size = {"a": []}, 16
    config = SimpleNamespace(
        num_lookahead_tokens=3,
        speculative_config=SimpleNamespace(method="draft_model", max_num_new_slots_for_drafting=1),
        model_config=SimpleNamespace(max_model_len=100),
    )
    slots = DraftSlots.of(config, [manager])
    assert slots is not None
    assert bool(slots.breach(step_of(a=(0, 1)), 3)) is is_looked_at


def test_a_drafter_without_kv_of_its_own_is_not_looked_at() -> None:
    assert DraftSlots.of(SimpleNamespace(num_lookahead_tokens=0), []) is None
