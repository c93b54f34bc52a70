"""The elastic KV pool under vLLM's real schedulers, with a worker made up that knows what every slot of the KV cache holds.

The worker keeps rows as vLLM's runners do, runs a step as late as possible and releases pages as early as it is allowed
to, so that a lost row, a late copy or a page given back too soon reads something that is not the request's own prefix.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from nightjar.deployments.engine.draft_work import ROWS_ATTRIBUTE
from nightjar.deployments.engine.kv_pool import ContractionLimits, ElasticKVPool, IntegrityError
from tests.engine.scheduler_harness import BLOCK_TOKENS, TOKEN, hand_over_drafts, make_scheduler

BASE: Final = 16
BORROWABLE: Final = 10
MAX_MODEL_LEN: Final = 8 * BLOCK_TOKENS
PATIENCE: Final = 3
EVERYWHERE = pytest.mark.parametrize(
    ("in_flight", "on_v2"),
    [(1, False), (2, False), (1, True), (2, True)],
    ids=["runner V1, sync", "runner V1, async", "runner V2, sync", "runner V2, async"],
)


class _Elastic:
    """The calls that a scheduler makes, and the rule by which it holds a borrower back for one step under async scheduling."""

    pool: ElasticKVPool
    rewritten: list[str]
    may_move: Callable[[Request], bool] = staticmethod(lambda request: request.num_in_flight_tokens == 0)

    def schedule(self: Any, throttle_prefills: bool = False) -> Any:
        for request in self.pool.borrowers_to_move(self.running):
            if not self.may_move(request):
                request.next_decode_eligible_step = self.current_step + 2
        self.pool.contract(self.running, may_move=self.may_move, preempt=self.preempt)
        output = super().schedule(throttle_prefills)  # type: ignore[misc]
        self.rewritten += self.pool.write_moves(output)
        return output

    def preempt(self: Any, request: Request) -> None:
        self.running.remove(request)
        self._preempt_request(request, 0.0)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        self.pool.step_done(scheduler_output)
        return outputs


class ElasticScheduler(_Elastic, Scheduler):
    pass


class ElasticAsyncScheduler(_Elastic, AsyncScheduler):
    pass


class Worker:
    """Rows and slots of a KV cache; a slot holds the prefix it was computed from."""

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async
        self.has_tail = False
        self.rows: dict[str, list[int]] = {}
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.batch: set[str] = set()
        self.blocks: dict[int, dict[int, object]] = {}

    def release_tail(self) -> None:
        self.has_tail = False
        self.blocks = {block_id: slots for block_id, slots in self.blocks.items() if block_id < BASE}

    def run(self, output: Any) -> None:
        for name in output.finished_req_ids:
            self.rows.pop(name, None)
            self.batch.discard(name)
        copies = output.kv_cache_block_copies or []
        assert len({copy.dst_block_id for copy in copies}) == len(copies)
        for block_id, slots in [(copy.dst_block_id, dict(self._block(copy.src_block_id))) for copy in copies]:
            self._block(block_id)
            self.blocks[block_id] = slots
        starts = {}
        self._take_moved_rows(output)
        for new in output.scheduled_new_reqs:
            self.rows[new.req_id], self.prompts[new.req_id] = list(new.block_ids[0]), tuple(new.prompt_token_ids)
            starts[new.req_id] = new.num_computed_tokens
        for index, name in enumerate(output.scheduled_cached_reqs.req_ids):
            self._update_row(output.scheduled_cached_reqs, index, name)
            starts[name] = output.scheduled_cached_reqs.num_computed_tokens[index]
        ends = {name: start + output.num_scheduled_tokens[name] for name, start in starts.items()}
        for name, start in starts.items():
            for position in range(start, ends[name]):
                self._block(self._block_id(name, position))[position % BLOCK_TOKENS] = self._prefix(name, position)
        for name, end in ends.items():
            for position in range(end):
                assert self._slot(name, position) == self._prefix(name, position), f"{name} reads a stranger at {position}"
        self.batch = set(output.num_scheduled_tokens)

    def _update_row(self, rows: Any, index: int, name: str) -> None:
        resumed, block_ids = name in rows.resumed_req_ids, rows.new_block_ids[index]
        if resumed:
            self.rows[name] = block_ids[0]
        elif block_ids is not None:
            self.rows[name].extend(block_ids[0])
        if self.is_async and (resumed or name not in self.batch):
            assert len(rows.all_token_ids[name]) == len(self.prompts[name]) + rows.num_output_tokens[index]

    def _take_moved_rows(self, output: Any) -> None:
        """To runner V1 a request that moved is one that was resumed."""
        assert not hasattr(output, ROWS_ATTRIBUTE)

    def _block(self, block_id: int) -> dict[int, object]:
        assert self.has_tail or block_id < BASE, f"block {block_id} has no memory"
        return self.blocks.setdefault(block_id, {})

    def _block_id(self, name: str, position: int) -> int:
        return self.rows[name][position // BLOCK_TOKENS]

    def _slot(self, name: str, position: int) -> object:
        return self._block(self._block_id(name, position)).get(position % BLOCK_TOKENS)

    def _prefix(self, name: str, position: int) -> object:
        """What names the prefix up to `position`: prompts of one family are prefixes of each other, and all outputs are alike."""
        prompt = self.prompts[name]
        return prompt[0], min(position + 1, len(prompt)), position


class WorkerOnV2(Worker):
    """Whose rows ours replaces before vLLM's own come, and to which a request that was preempted is a new one."""

    def _take_moved_rows(self, output: Any) -> None:
        for name, block_ids in getattr(output, ROWS_ATTRIBUTE, {}).items():
            assert name in self.rows
            self.rows[name] = list(block_ids[0])
        for name in output.preempted_req_ids or ():
            self.rows.pop(name, None)

    def _update_row(self, rows: Any, index: int, name: str) -> None:
        assert name not in rows.resumed_req_ids
        if (block_ids := rows.new_block_ids[index]) is not None:
            self.rows[name].extend(block_ids[0])


class Engine:
    def __init__(
        self,
        folder: Path,
        in_flight: int = 1,
        *,
        on_v2: bool = False,
        limits: ContractionLimits | None = None,
        max_num_batched_tokens: int = 512,
    ) -> None:
        self.in_flight = in_flight
        self.scheduler = make_scheduler(
            ElasticAsyncScheduler if in_flight > 1 else ElasticScheduler,
            folder,
            max_num_seqs=6,
            max_num_speculative_tokens=2,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=MAX_MODEL_LEN,
            num_blocks=BASE + BORROWABLE,
        )
        if on_v2:
            self.scheduler.use_v2_model_runner = True
            self.scheduler.may_move = lambda request: True
        self.manager = make_manager(self.scheduler.kv_cache_config)
        self.scheduler.kv_cache_manager = self.manager
        self.moves: list[tuple[int, int]] = []
        self.pool = ElasticKVPool(
            self.manager,
            BORROWABLE,
            on_move=lambda source, target: self.moves.append((source, target)),
            limits=limits or ContractionLimits(patience_steps=PATIENCE),
            runner_is_v2=on_v2,
        )
        self.scheduler.pool, self.scheduler.rewritten = self.pool, []
        self.worker = (WorkerOnV2 if on_v2 else Worker)(is_async=in_flight > 1)
        self.queue: list[tuple[Any, set[str]]] = []
        self.accepted = itertools.cycle((2, 0, 1))
        self.done: list[Any] = []

    def add(self, name: str, prompt: Sequence[int], max_tokens: int = 50) -> None:
        self.scheduler.add_request(
            Request(
                request_id=name,
                prompt_token_ids=list(prompt),
                sampling_params=SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
                pooling_params=None,
                block_hasher=get_request_block_hasher(BLOCK_TOKENS, sha256),
            )
        )

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            if self.scheduler.has_requests():
                self.schedule()
            if len(self.queue) == self.in_flight or not self.scheduler.has_requests():
                self.finish_step()

    def schedule(self) -> Any:
        output = self.scheduler.schedule()
        self.pool.check_integrity()
        samples = {name for name in output.num_scheduled_tokens if not self.scheduler.requests[name].is_prefill_chunk}
        self.queue.append((output, samples))
        return output

    def finish_step(self) -> None:
        if not self.queue:
            return
        output, samples = self.queue.pop(0)
        self.worker.run(output)
        names = list(output.num_scheduled_tokens)
        tokens = [1 + min(next(self.accepted), len(output.scheduled_spec_decode_tokens.get(name, ()))) for name in names]
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: row for row, name in enumerate(names)},
                sampled_token_ids=[[TOKEN] * count if name in samples else [] for name, count in zip(names, tokens, strict=True)],
            ),
        )
        if self.in_flight == 1:
            hand_over_drafts(self.scheduler, output)
        self.done.append(output)
        if self.pool.drained and self.worker.has_tail:
            self.worker.release_tail()
        self.pool.check_integrity()

    def grow(self) -> int:
        self.worker.has_tail = True
        return self.pool.grow()

    def table(self, name: str) -> list[int]:
        ids: list[int] = self.manager.get_block_ids(name)[0]
        return ids

    @property
    def withheld_blocks(self) -> int:
        """Blocks that vLLM knows nothing of."""
        blocks = self.manager.block_pool
        return len(blocks.blocks) - int(blocks.num_gpu_blocks)

    def borrowers(self) -> list[str]:
        return [name for name in self.running() if max(self.table(name)) >= BASE]

    def running(self) -> list[str]:
        return [request.request_id for request in self.scheduler.running]


def make_manager(config: KVCacheConfig) -> KVCacheManager:
    return KVCacheManager(
        config,
        max_model_len=MAX_MODEL_LEN,
        scheduler_block_size=BLOCK_TOKENS,
        hash_block_size=BLOCK_TOKENS,
        enable_caching=True,
        log_stats=True,
    )


def prompt_of(family: int, tokens: int) -> list[int]:
    """Prompts of one family are prefixes of each other; no token is one that the model generates."""
    return [TOKEN + 1 + family] * tokens


def grown_engine(folder: Path, in_flight: int = 1, *, requests: int = 4, **options: Any) -> Engine:
    """Each request's 4 blocks of prompt fill the base and more."""
    engine = Engine(folder, in_flight, **options)
    engine.grow()
    for index in range(requests):
        engine.add(f"request-{index}", prompt_of(index, 4 * BLOCK_TOKENS))
    engine.step(2)
    assert len(engine.running()) == requests
    return engine


def make_room(engine: Engine) -> None:
    """Free as many base blocks as those that stay hold in the tail, and their reserve."""
    engine.abort("request-0")
    engine.abort("request-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    init_none_hash(sha256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield tmp_path_factory.mktemp("model")


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
    with pytest.raises(IntegrityError, match=message):
        engine.pool.check_integrity()


class AnySequence(RuleBasedStateMachine):
    """INV-9 and right rows after any sequence; the engine checks integrity after each schedule and each output."""

    in_flight = 1
    on_v2 = False
    folder: Path

    @initialize(moved_per_step=st.integers(1, 6), reserve=st.integers(0, 1), tokens_per_step=st.sampled_from([48, 512]))
    def start(self, moved_per_step: int, reserve: int, tokens_per_step: int) -> None:
        limits = ContractionLimits(
            reserve_blocks_per_request=reserve, max_moved_blocks_per_step=moved_per_step, patience_steps=PATIENCE
        )
        self.engine = Engine(self.folder, self.in_flight, on_v2=self.on_v2, limits=limits, max_num_batched_tokens=tokens_per_step)
        self.names = itertools.count()

    @precondition(lambda self: len(self.engine.scheduler.requests) < 12)
    @rule(family=st.integers(0, 3), tokens=st.integers(1, 70), max_tokens=st.integers(20, 57), count=st.integers(1, 3))
    def add_and_step(self, family: int, tokens: int, max_tokens: int, count: int) -> None:
        for _ in range(count):
            self.engine.add(f"request-{next(self.names)}", prompt_of(family, tokens), max_tokens)
        self.engine.step(2)

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        self.engine.step(steps)

    @rule(steps=st.integers(0, 2))
    def grow(self, steps: int) -> None:
        self.engine.grow()
        self.engine.step(steps)

    @precondition(lambda self: self.engine.pool.borrowed_blocks_in_use)
    @rule(steps=st.integers(0, 4))
    def contract(self, steps: int) -> None:
        self.engine.pool.begin_contraction()
        self.engine.step(steps)

    @precondition(lambda self: self.engine.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(data.draw(st.sampled_from(sorted(self.engine.scheduler.requests))))

    @precondition(lambda self: len(self.engine.done) % 8 == 7)
    @rule()
    def reset_prefix_cache_and_running_requests(self) -> None:
        assert self.engine.scheduler.reset_prefix_cache(reset_running_requests=True)

    @invariant()
    def integrity_holds(self) -> None:
        self.engine.pool.check_integrity()
        assert all(source >= BASE > target for source, target in self.engine.moves)

    def teardown(self) -> None:
        """A contraction ends whatever runs, and long before the requests do."""
        self.engine.pool.begin_contraction()
        for _ in range(12 * (PATIENCE + 2)):
            self.engine.step()
        assert self.engine.pool.drained or not self.engine.scheduler.requests
        assert not self.engine.pool.borrowed_blocks_in_use
        self.engine.step(500)
        assert not self.engine.scheduler.requests


@EVERYWHERE
def test_inv_9_any_sequence_of_growing_contracting_preempting_and_aborting_conserves_blocks_and_rows(
    in_flight: int, on_v2: bool, folder: Path
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("AnySequenceHere", (AnySequence,), {"in_flight": in_flight, "on_v2": on_v2, "folder": folder})
    run_state_machine_as_test(
        machine, settings=hypothesis_settings(max_examples=30, stateful_step_count=40, deadline=None, derandomize=True)
    )


def _never(request: Request) -> None:
    pytest.fail(f"{request.request_id} was preempted")


def _ignore(source: int, target: int) -> None:
    pass
