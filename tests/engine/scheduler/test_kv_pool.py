"""The elastic KV pool under vLLM's real schedulers: what moves, what waits, who is preempted, and which damage is found (INV-9)."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from nightjar.deployments.engine.scheduler.kv_pool import ContractionLimits, ElasticKVPool
from tests.engine.elastic_engine import (
    BASE,
    BORROWABLE,
    EVERYWHERE,
    PATIENCE,
    Engine,
    _ignore,
    _never,
    grown_engine,
    make_manager,
    make_room,
    prompt_of,
)
from tests.engine.scheduler.scheduler_harness import BLOCK_TOKENS


def test_the_tail_is_withheld_from_the_start_and_vllm_counts_the_base_alone(folder: Path) -> None:
    engine = Engine(folder)
    assert (engine.withheld_blocks, engine.pool.borrowed_blocks_in_use) == (BORROWABLE, 0)
    assert engine.pool.drained
    assert engine.manager.block_pool.get_num_free_blocks() == BASE - 1
    assert engine.manager.usage == 0.0
    engine.pool.check_integrity()


def test_growing_hands_out_the_whole_tail_once_and_after_every_base_block(folder: Path) -> None:
    engine = Engine(folder)
    assert [engine.grow(), engine.grow()] == [BORROWABLE, 0]
    assert (engine.pool.drained, engine.withheld_blocks) == (False, 0)
    queue = engine.manager.block_pool.free_block_queue.get_all_free_blocks()
    assert [block.block_id for block in queue] == list(range(1, BASE + BORROWABLE))
    assert engine.manager.usage == 0.0


def test_a_larger_pool_runs_more_requests(folder: Path) -> None:
    engine = Engine(folder)
    for index in range(6):
        engine.add(f"request-{index}", prompt_of(index, 4 * BLOCK_TOKENS))
    engine.step()
    before = len(engine.running())
    engine.grow()
    engine.step()
    assert before < len(engine.running())


@EVERYWHERE
def test_free_blocks_are_withheld_in_the_first_step_and_drained_with_its_output(in_flight: int, on_v2: bool, folder: Path) -> None:
    engine = Engine(folder, in_flight, on_v2=on_v2)
    engine.grow()
    engine.add("request", prompt_of(0, BLOCK_TOKENS))
    engine.step(3)
    engine.pool.begin_contraction()
    assert engine.withheld_blocks == 0
    carrier = engine.schedule()
    assert (engine.withheld_blocks, engine.pool.drained) == (BORROWABLE, False)
    while carrier not in engine.done:
        assert not engine.pool.drained
        engine.finish_step()
    assert engine.pool.drained
    assert engine.pool.relocated_blocks == 0


@EVERYWHERE
def test_blocks_in_use_move_into_the_base_and_every_row_reads_on(in_flight: int, on_v2: bool, folder: Path) -> None:
    engine = grown_engine(folder, in_flight, on_v2=on_v2)
    make_room(engine)
    lent = engine.pool.borrowed_blocks_in_use
    assert lent
    engine.pool.begin_contraction()
    engine.step(4)
    assert engine.pool.drained
    assert not engine.worker.has_tail
    assert (engine.pool.relocated_blocks, engine.pool.preempted_requests) == (lent, 0)
    assert all(block_id < BASE for name in engine.running() for block_id in engine.table(name))
    engine.step(8)
    assert engine.running() == ["request-2", "request-3"]


def test_a_ledger_hears_of_every_move(folder: Path) -> None:
    engine = grown_engine(folder)
    make_room(engine)
    before = {block_id for name in engine.running() for block_id in engine.table(name)}
    engine.pool.begin_contraction()
    engine.step()
    after = {block_id for name in engine.running() for block_id in engine.table(name)}
    assert engine.moves
    assert {source for source, _ in engine.moves} == before - after
    assert {target for _, target in engine.moves} == after - before


def test_no_step_moves_more_blocks_than_its_limit(folder: Path) -> None:
    engine = grown_engine(folder, limits=ContractionLimits(max_moved_blocks_per_step=1))
    make_room(engine)
    engine.pool.begin_contraction()
    engine.step(6)
    assert {len(output.kv_cache_block_copies or ()) for output in engine.done} == {0, 1}


def test_moving_leaves_a_free_block_for_each_running_request(folder: Path) -> None:
    engine = grown_engine(folder, limits=ContractionLimits(reserve_blocks_per_request=3))
    make_room(engine)
    engine.pool.begin_contraction()
    engine.pool.contract(engine.scheduler.running, may_move=lambda request: True, preempt=_never)
    assert engine.pool.relocated_blocks
    assert engine.pool.borrowed_blocks_in_use
    assert engine.manager.block_pool.get_num_free_blocks() == 3 * 2


def test_a_request_that_finds_a_moved_prefix_in_the_cache_reads_it_in_the_same_step(folder: Path) -> None:
    engine = grown_engine(folder)
    make_room(engine)
    engine.pool.begin_contraction()
    engine.add("sibling", prompt_of(3, 4 * BLOCK_TOKENS))
    engine.step()
    assert engine.moves
    (sibling,) = [new for new in engine.done[-1].scheduled_new_reqs if new.req_id == "sibling"]
    assert sibling.num_computed_tokens == 3 * BLOCK_TOKENS
    assert set(sibling.block_ids[0]) & {target for _, target in engine.moves}


def shared_tail(folder: Path) -> Engine:
    """Two requests share a prompt that lies in the tail, and nothing else runs."""
    engine = grown_engine(folder, requests=3)
    engine.add("first", prompt_of(9, 3 * BLOCK_TOKENS))
    engine.step()
    engine.add("second", prompt_of(9, 3 * BLOCK_TOKENS))
    engine.step()
    for index in range(3):
        engine.abort(f"request-{index}")
    assert [block_id for block_id in set(engine.table("first")) & set(engine.table("second")) if block_id >= BASE]
    return engine


def test_a_shared_block_moves_with_all_its_holders(folder: Path) -> None:
    engine = shared_tail(folder)
    engine.pool.begin_contraction()
    engine.step(2)
    assert engine.pool.drained
    assert set(engine.table("first")) & set(engine.table("second"))
    engine.step(4)


def test_a_shared_block_waits_while_one_of_its_holders_may_not_move(folder: Path) -> None:
    engine = shared_tail(folder)
    shared = {block_id for block_id in set(engine.table("first")) & set(engine.table("second")) if block_id >= BASE}
    engine.scheduler.may_move = lambda request: request.request_id == "first"
    engine.pool.begin_contraction()
    engine.step()
    assert {block_id for block_id in engine.table("first") if block_id >= BASE} == shared
    engine.abort("second")
    engine.step(2)
    assert engine.pool.drained
    assert "first" in engine.running()


def test_a_moved_request_that_is_not_scheduled_is_rewritten_when_it_is(folder: Path) -> None:
    engine = grown_engine(folder)
    make_room(engine)
    request = engine.scheduler.requests["request-3"]
    request.next_decode_eligible_step = engine.scheduler.current_step + 3
    engine.pool.begin_contraction()
    engine.step(3)
    assert "request-3" not in engine.done[-2].num_scheduled_tokens
    assert engine.scheduler.rewritten.count("request-3") == 1
    assert engine.worker.rows["request-3"] == engine.table("request-3")


@pytest.mark.parametrize("end", ["abort", "preempt"])
def test_a_moved_request_that_ends_or_is_preempted_before_its_row_was_rewritten_is_forgotten(end: str, folder: Path) -> None:
    engine = grown_engine(folder)
    make_room(engine)
    engine.scheduler.requests["request-3"].next_decode_eligible_step = engine.scheduler.current_step + 2
    engine.pool.begin_contraction()
    engine.step()
    if end == "abort":
        engine.abort("request-3")
    else:
        engine.scheduler.preempt(engine.scheduler.requests["request-3"])
    engine.step(2)
    assert engine.moves
    assert "request-3" not in engine.scheduler.rewritten
    assert engine.pool.drained
    engine.step(4)


def test_copies_of_a_request_that_vllm_preempts_in_the_same_step_harm_nobody(folder: Path) -> None:
    engine = grown_engine(folder)
    make_room(engine)
    engine.pool.begin_contraction()
    engine.pool.contract(engine.scheduler.running, may_move=lambda request: True, preempt=_never)
    assert engine.moves
    engine.scheduler.preempt(engine.scheduler.requests["request-3"])
    engine.step(6)
    assert engine.pool.drained


@EVERYWHERE
def test_where_nothing_can_move_the_youngest_borrower_is_preempted_after_a_while(in_flight: int, on_v2: bool, folder: Path) -> None:
    engine = grown_engine(folder, in_flight, requests=5, on_v2=on_v2)
    assert engine.manager.block_pool.get_num_free_blocks() < 5
    assert engine.borrowers()
    engine.pool.begin_contraction()
    names = engine.running()
    while not engine.pool.preempted_requests:
        engine.step()
        assert len(engine.done) < 20
    assert engine.running() == names[:-1]
    for _ in range(30):
        engine.step()
    assert engine.pool.drained
    assert "request-0" in names


def test_patience_begins_anew_with_every_block_taken_back(folder: Path) -> None:
    engine = grown_engine(folder, limits=ContractionLimits(max_moved_blocks_per_step=1, patience_steps=PATIENCE))
    make_room(engine)
    engine.pool.begin_contraction()
    engine.step()
    for may_move in (False, False, True, False, False):
        engine.scheduler.may_move = lambda request, answer=may_move: answer
        engine.step()
    assert engine.pool.preempted_requests == 0
    engine.step()
    assert engine.pool.preempted_requests == 1


def test_a_preempted_borrower_does_not_come_back_to_the_blocks_it_shared(folder: Path) -> None:
    engine = shared_tail(folder)
    engine.scheduler.may_move = lambda request: False
    engine.pool.begin_contraction()
    while not engine.pool.preempted_requests:
        engine.step()
    engine.step(2)
    assert engine.running() == ["first", "second"]
    assert engine.borrowers() == ["first"]


@pytest.mark.heavy
def test_blocks_that_free_themselves_in_time_preempt_nobody(folder: Path) -> None:
    engine = grown_engine(folder, requests=5, limits=ContractionLimits(patience_steps=100))
    engine.pool.begin_contraction()
    for _ in range(80):
        engine.step()
    assert engine.pool.drained
    assert engine.pool.preempted_requests == 0


def test_growing_cancels_a_contraction_and_takes_back_what_it_withheld(folder: Path) -> None:
    engine = grown_engine(folder, limits=ContractionLimits(max_moved_blocks_per_step=1))
    make_room(engine)
    engine.pool.begin_contraction()
    engine.step()
    withheld = engine.withheld_blocks
    assert 0 < withheld < BORROWABLE
    assert engine.grow() == withheld
    assert engine.withheld_blocks == 0
    relocated = engine.pool.relocated_blocks
    engine.step(4)
    assert engine.pool.relocated_blocks == relocated


def test_growing_between_a_move_and_its_copy_is_refused(folder: Path) -> None:
    engine = grown_engine(folder)
    make_room(engine)
    engine.pool.begin_contraction()
    engine.pool.contract(engine.scheduler.running, may_move=lambda request: True, preempt=_never)
    with pytest.raises(RuntimeError, match="before they were copied"):
        engine.pool.grow()


@pytest.mark.parametrize("state", ["withheld", "grown", "contracting"])
@pytest.mark.parametrize("with_running", [False, True])
def test_the_prefix_cache_can_be_reset_in_every_state(state: str, with_running: bool, folder: Path) -> None:
    engine = Engine(folder)
    if state != "withheld":
        engine.grow()
    for index in range(5):
        engine.add(f"request-{index}", prompt_of(index, 4 * BLOCK_TOKENS), max_tokens=100 if with_running else 1)
    engine.step(3 if with_running else 8)
    if state == "contracting":
        engine.pool.begin_contraction()
        engine.add("last", prompt_of(8, 10), max_tokens=100 if with_running else 1)
        engine.step()
    if not with_running:
        assert not engine.running()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=with_running)
    engine.pool.check_integrity()
    engine.step(4)


def test_a_cache_of_several_groups_is_refused(folder: Path) -> None:
    config = Engine(folder).scheduler.kv_cache_config
    manager = make_manager(config)
    manager.coordinator.single_type_managers = manager.coordinator.single_type_managers * 2
    with pytest.raises(ValueError, match="exactly one KV cache group, this engine has 2"):
        ElasticKVPool(manager, BORROWABLE, on_move=_ignore)


@pytest.mark.parametrize("borrowable", [0, -1, BASE + BORROWABLE - 8])
def test_a_tail_that_leaves_no_room_for_one_request_is_refused(borrowable: int, folder: Path) -> None:
    manager = make_manager(Engine(folder).scheduler.kv_cache_config)
    with pytest.raises(ValueError, match="one request and the null block need 9"):
        ElasticKVPool(manager, borrowable, on_move=_ignore)


def test_a_tail_in_use_is_refused_and_left_as_it_is(folder: Path) -> None:
    manager = make_manager(Engine(folder).scheduler.kv_cache_config)
    manager.block_pool.get_new_blocks(BASE)
    with pytest.raises(ValueError, match="1 of the KV blocks to withhold are in use"):
        ElasticKVPool(manager, BORROWABLE, on_move=_ignore)
    assert manager.block_pool.num_gpu_blocks == BASE + BORROWABLE


def _lose(engine: Engine) -> None:
    engine.manager.block_pool.free_block_queue.popleft()


def _hand_out_twice(engine: Engine) -> None:
    engine.manager.coordinator.single_type_managers[0].req_to_blocks["stranger"] = list(
        engine.manager.get_blocks("request").blocks[0]
    )


def _free_a_used_block(engine: Engine) -> None:
    engine.manager.block_pool.free_block_queue.append(engine.manager.get_blocks("request").blocks[0][0])


def _queue_a_withheld_block(engine: Engine) -> None:
    engine.manager.block_pool.free_block_queue.append(engine.manager.block_pool.blocks[-1])


def _use_a_withheld_block(engine: Engine) -> None:
    engine.manager.block_pool.blocks[-1].ref_cnt = 1


def _queue_a_block_twice(engine: Engine) -> None:
    queue = engine.manager.block_pool.free_block_queue
    queue.fake_free_list_tail.prev_free_block.next_free_block = queue.fake_free_list_head.next_free_block


def _miscount(engine: Engine) -> None:
    engine.manager.block_pool.num_gpu_blocks += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose, r"neither free, used nor withheld: \[\d+\]"),
        (_hand_out_twice, r"more holders than references: \[\d+"),
        (_free_a_used_block, r"free and used: \[\d+\]"),
        (_queue_a_withheld_block, r"withheld blocks are free: \[25\]"),
        (_use_a_withheld_block, r"withheld blocks are used: \[25\]"),
        (_queue_a_block_twice, r"twice in the free queue: \[\d+\]"),
        (_miscount, "vLLM counts 17 blocks"),
    ],
)
def test_inv_9_damage_is_found_and_named(damage: Callable[[Engine], None], message: str, folder: Path) -> None:
    engine = Engine(folder)
    engine.add("request", prompt_of(0, BLOCK_TOKENS))
    engine.step(2)
    damage(engine)
    with pytest.raises(AssertionError, match=message):
        engine.pool.check_integrity()
