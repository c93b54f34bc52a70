"""What is measured: models, prompts and engine arguments.

The target's cost is inflated: it is a real small model with layers that add exactly nothing, five times as expensive as the draft,
which is the same small model with weight noise. Their ratio is that of a 7B model and its 1.5B draft; their absolute speed is no
GPU's. Prompts are short questions through the model's own chat template, the same ones for the same numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from nightjar.deployments.engine.memory.offload_config import BlockBytes, OffloadConfig
from nightjar.deployments.engine.memory.sizes import draft_weight_bytes
from nightjar.deployments.models import build_models, models_folder
from tests.benchmarks.engine.environment import has_bfloat16, has_matrix_units

Role = Literal["plain", "stock", "nightjar", "plain_with_all", "stays", "lends"]
"""The last three have equal memory, and little of it."""

COST: Final = 5
NOISE: Final = 0.05
MAX_NUM_SEQS: Final = 128 if has_matrix_units() else 32
"""So many that a full batch lies beyond the crossover: with matrix units every K is still ahead of off at 32."""
MAX_NUM_BATCHED_TOKENS: Final = 1024 if has_matrix_units() else 512
"""A full batch at the longest K, and prompts beside it."""
MAX_MODEL_LEN: Final = 1024
MAX_NUM_SPECULATIVE_TOKENS: Final = 5
ARMS: Final = (0, 1, 2, 3, 5)
DTYPE: Final = "bfloat16" if has_bfloat16() else "float32"
BYTES_PER_VALUE: Final = 2 if DTYPE == "bfloat16" else 4
KV_CACHE_GIB: Final[Mapping[Role, int]] = {"plain": 1, "stock": 1, "nightjar": 3}
"""Enough that nobody ever waits."""
PRESSED_ROLES: Final[tuple[Role, ...]] = ("plain_with_all", "stays", "lends")
PRESSED_NUM_SEQS: Final = 32
PRESSED_NUM_BATCHED_TOKENS: Final = 512
PRESSED_BLOCKS: Final = 56
PRESSED_BLOCK_SIZE: Final = 32
"""With these the draft's memory is one and a half times the KV cache beside it, as where 8B and 1B bfloat16 weights (16.1 and
2.5 GB) share a 24 GB card."""

SYSTEM: Final = "Answer."
"""Short: what is read is paid for by every arm alike, and only makes the benchmark longer."""

_SUBJECTS: Final = (
    "rivers", "bread", "bridges", "winter", "bees", "maps", "clocks", "glass", "forests", "salt", "trains", "the moon", "letters",
    "gardens", "iron", "music", "islands", "rain", "markets", "lamps",
)  # fmt: skip
_QUESTIONS: Final = (
    "Tell me three facts about {}.",
    "Write a short story about {} and a child.",
    "Why are {} important to people? Explain step by step.",
    "List five words that go with {} and use each in a sentence.",
    "What would a scientist ask about {}?",
    "Explain {} to somebody who has never heard of them.",
    "Write a Python function that prints the word {} ten times.",
)


DISTINCT_QUESTIONS: Final = math.lcm(len(_QUESTIONS), len(_SUBJECTS))
BURST_QUESTIONS: Final = 36
BURST_STRIDE: Final = 11
"""Questions between the beginnings of two neighbours' prompts: no divisor of DISTINCT_QUESTIONS, so all begin differently."""


def questions(count: int) -> list[str]:
    """The first `count` questions; neighbours differ in kind and subject, and after DISTINCT_QUESTIONS they begin anew.

    >>> questions(2)
    ['Tell me three facts about rivers.', 'Write a short story about bread and a child.']
    """
    return [_QUESTIONS[number % len(_QUESTIONS)].format(_SUBJECTS[number % len(_SUBJECTS)]) for number in range(count)]


def long_question(number: int) -> str:
    """A prompt of one to three hundred tokens, of many questions."""
    return " ".join(questions(10 + 4 * (number % 4))[number % 5 :])


def burst_question(number: int) -> str:
    """A prompt of about four hundred tokens, of many questions; DISTINCT_QUESTIONS of them differ from their first question on."""
    first = BURST_STRIDE * number % DISTINCT_QUESTIONS
    return " ".join(questions(first + BURST_QUESTIONS)[first:])


def says(noise: float = NOISE) -> str:
    """What the fixture is, in a sentence, with so much noise on the draft's weights."""
    return (
        f"the target's cost is inflated: SmolLM2-135M with no-op layers, {COST} times as expensive as its draft, the same model "
        f"with {noise:.0%} weight noise; {DTYPE}, eager, greedy, max_num_seqs {MAX_NUM_SEQS}, "
        f"max_num_batched_tokens {MAX_NUM_BATCHED_TOKENS}"
    )


def build(noise: float = NOISE) -> dict[str, str]:
    """Paths of target and draft, built if they are missing."""
    _, target, draft = build_models(models_folder(), cost=COST, noises=(noise,))
    return {"target": str(models_folder() / target.name), "draft": str(models_folder() / draft.name)}


def engine_arguments(role: Role, models: Mapping[str, str]) -> dict[str, Any]:
    """vLLM's arguments of an engine."""
    max_num_seqs, max_num_batched_tokens = MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS
    if role in PRESSED_ROLES:
        max_num_seqs, max_num_batched_tokens = PRESSED_NUM_SEQS, PRESSED_NUM_BATCHED_TOKENS
    common: dict[str, Any] = {
        "model": models["target"],
        "dtype": DTYPE,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    if role in PRESSED_ROLES:
        sizes, weights = kv_block_bytes(models), draft_weight_bytes(Path(models["draft"]), bytes_per_value=BYTES_PER_VALUE)
        common |= {"block_size": PRESSED_BLOCK_SIZE, "kv_cache_memory_bytes": PRESSED_BLOCKS * sizes.total}
        if role == "plain_with_all":
            common["kv_cache_memory_bytes"] += weights
        elif role == "lends":
            common["additional_config"] = OffloadConfig(weights).to_additional_config({})
    if role in {"plain", "plain_with_all"}:
        return common
    most = 0 if role == "stock" else MAX_NUM_SPECULATIVE_TOKENS
    common["speculative_config"] = {
        "method": "draft_model",
        "model": models["draft"],
        "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS,
        "num_speculative_tokens_per_batch_size": [[1, max_num_seqs, most]],
    }
    if role != "stock":
        common["scheduler_cls"] = "nightjar.deployments.engine.scheduler.steered.SteeredScheduler"
        common["worker_cls"] = "nightjar.deployments.engine.worker.cpu.SteeredCPUWorker"
    return common


def kv_block_bytes(models: Mapping[str, str]) -> BlockBytes:
    """Bytes of a KV block of PRESSED_BLOCK_SIZE tokens, over all layers of target and draft."""
    return BlockBytes(*(_kv_bytes_per_token(Path(models[name])) * PRESSED_BLOCK_SIZE for name in ("target", "draft")))


def _kv_bytes_per_token(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * BYTES_PER_VALUE)
