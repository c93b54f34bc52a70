"""Engines for tests of the elastic KV pool: vLLM's real schedulers, and a worker that knows what every slot of a cache holds.

The worker keeps rows as vLLM's runners do, runs a step as late as possible and releases pages as early as it is allowed
to, so that a lost row, a late copy or a page given back too soon reads something that is not the request's own prefix.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from nightjar.deployments.engine.scheduler.kv_pool import ContractionLimits, ElasticKVPool
from nightjar.deployments.engine.worker.draft_work import ROWS_ATTRIBUTE
from tests.engine.scheduler.scheduler_harness import BLOCK_TOKENS, TOKEN, hand_over_drafts, make_scheduler

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


def _never(request: Request) -> None:
    pytest.fail(f"{request.request_id} was preempted")


def _ignore(source: int, target: int) -> None:
    pass
