"""vLLM's scheduler without an engine: real scheduling and bookkeeping, model outputs made up.

Serves the tests of the asynchronous scheduler (which no CPU engine can run), `make bench-step` and the trace of the way.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, SpeculativeConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from nightjar.deployments.engine.memory.offload_config import OffloadConfig
from nightjar.deployments.engine.scheduler.steered import SteeredAsyncScheduler, SteeredScheduler
from nightjar.policy.wire.settings import Lease, OffloadRules, Plan, RestartLimits
from tests.policy.step.steering_settings import settings, table

BLOCK_TOKENS: Final = 16
TOKEN: Final = 7
MAX_MODEL_LEN: Final = 2048
UNLIMITED: Final = 1 << 40
MAXIMUM: Final = 4
"""Largest K of the schedulers in these tests."""


def make_scheduler(
    scheduler_class: type[Scheduler],
    folder: Path,
    *,
    max_num_seqs: int = 16,
    max_num_speculative_tokens: int = MAXIMUM,
    max_num_batched_tokens: int = 8192,
    max_model_len: int = MAX_MODEL_LEN,
    num_blocks: int = 4_000,
    prefix_caching: bool = False,
    can_be_dormant: bool = False,
    draft_weight_bytes: int = 0,
    window_tokens: int = 0,
    additional_config: dict[str, Any] | None = None,
    graph_table: Sequence[Sequence[int]] = (),
) -> Any:
    """A scheduler of `scheduler_class` for a model of which only the configuration exists, written into `folder`.

    With `can_be_dormant` its workers are Nightjar's by name; with `draft_weight_bytes` their memory may be lent. With
    `window_tokens` the target has a KV cache group more, of layers that attend to so many tokens.
    """
    _write_model_configuration(folder)
    init_none_hash(sha256)
    config = VllmConfig(
        model_config=ModelConfig(model=str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=max_model_len),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=prefix_caching),
    )
    if can_be_dormant:
        config.additional_config = OffloadConfig(draft_weight_bytes).to_additional_config({}) if draft_weight_bytes else {}
        config.parallel_config.worker_cls = "nightjar.deployments.engine.worker.cpu.SteeredCPUWorker"
    if additional_config is not None:
        config.additional_config = additional_config
    config.speculative_config = SpeculativeConfig(
        method="draft_model",
        model=str(folder),
        num_speculative_tokens=max_num_speculative_tokens,
        num_speculative_tokens_per_batch_size=[list(row) for row in graph_table] or [[1, max_num_seqs, max_num_speculative_tokens]],
        target_model_config=config.model_config,
        target_parallel_config=config.parallel_config,
    )
    config.cache_config.num_gpu_blocks = num_blocks
    shape: dict[str, Any] = {"block_size": BLOCK_TOKENS, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    groups = [KVCacheGroupSpec(["model.layer", "draft_model.layer"], FullAttentionSpec(**shape))]
    if window_tokens:
        groups.append(KVCacheGroupSpec(["model.windowed"], SlidingWindowSpec(**shape, sliding_window=window_tokens)))
    return scheduler_class(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
        log_stats=True,
    )


class Engines(NamedTuple):
    """Schedulers of one of Nightjar's classes; so many of their steps are scheduled before the first is answered."""

    scheduler_class: type[Any]
    in_flight: int
    folder: Path

    def scheduler(self, **options: Any) -> Any:
        """As `make_scheduler`."""
        return make_scheduler(self.scheduler_class, self.folder, **options)


KINDS: Final = {"sync": (SteeredScheduler, 1), "async": (SteeredAsyncScheduler, 2)}


def steer(
    scheduler: Any,
    mode: str,
    sequence: int = 1,
    plan: Plan | None = None,
    *,
    chunk_tokens: int | None = None,
    allowance: int = UNLIMITED,
    leases: tuple[Lease, ...] = (),
    offload: OffloadRules | None = None,
) -> None:
    """Bring settings into force by which every restart is allowed whose lag is at most `allowance` tokens."""
    restarts = RestartLimits(micro_restart_tokens=allowance, catch_up_chunk_tokens=chunk_tokens, leases=leases)
    every_k, k = tuple(range(MAXIMUM + 1)), plan or table((1, 16, MAXIMUM))
    issued = settings(k, mode=mode, sequence=sequence, allowed=every_k, restarts=restarts, offload=offload)
    assert scheduler.nightjar.adopt(issued) == ""


def make_request(
    name: str,
    *,
    prompt_tokens: int = 8,
    max_tokens: int = 1000,
    prompt: Sequence[int] = (),
    extra_args: dict[str, Any] | None = None,
    resumable: bool = False,
    priority: int = 0,
) -> Request:
    """A request with a prompt of `prompt_tokens` equal tokens, or with `prompt`, which a prefix cache then can find again."""
    return Request(
        request_id=name,
        prompt_token_ids=list(prompt) or [TOKEN] * prompt_tokens,
        sampling_params=SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, extra_args=extra_args),
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK_TOKENS, sha256) if prompt else None,
        resumable=resumable,
        priority=priority,
    )


def model_output(scheduler: Any, output: SchedulerOutput, accepted: Callable[[str, int], int]) -> ModelRunnerOutput:
    """What a model could have answered: rows past their prompt get one token and the accepted of their drafts."""
    sampled = []
    for request_id in output.num_scheduled_tokens:
        request = scheduler.requests.get(request_id)
        drafts = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
        samples = request is None or not request.is_prefill_chunk
        sampled.append([TOKEN] * (1 + accepted(request_id, drafts)) if samples else [])
    names = list(output.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=names, req_id_to_index={name: row for row, name in enumerate(names)}, sampled_token_ids=sampled
    )


def hand_over_drafts(scheduler: Any, output: SchedulerOutput) -> None:
    """Without async scheduling the engine gives the drafter's tokens to the scheduler between two steps."""
    names = list(output.num_scheduled_tokens)
    scheduler.update_draft_token_ids(DraftTokenIds(names, [[TOKEN] * output.num_spec_tokens_to_schedule for _ in names]))


def run_steps(
    scheduler: Any, steps: int, accepted: Callable[[str, int], int] = lambda name, drafts: drafts, *, in_flight: int = 1
) -> Sequence[SchedulerOutput]:
    """Run `steps` steps with up to `in_flight` scheduled and not yet answered (1: synchronous)."""
    queue: list[SchedulerOutput] = []
    done = []
    for _ in itertools.repeat(None, steps):
        queue.append(scheduler.schedule())
        if len(queue) < in_flight:
            continue
        output = queue.pop(0)
        scheduler.update_from_output(output, model_output(scheduler, output, accepted))
        done.append(output)
        if in_flight == 1:
            hand_over_drafts(scheduler, output)
    return done


def _write_model_configuration(folder: Path) -> None:
    configuration = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "max_position_embeddings": 4096,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(configuration))
