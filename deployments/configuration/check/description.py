"""A checked model in words: who is steered, by which runner and graphs, and what it holds in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nightjar.deployments.configuration.check.memory_estimate import GIB, MemoryEstimate, ModelSize
from nightjar.deployments.configuration.check.report import ModelReport
from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.steering_level import Steered, level_at_start
from nightjar.policy.wire.report import Layer, SteeringLevel

TOUCHED: Final[Mapping[Layer, str]] = {
    Layer.STEERING: "scheduler_cls, the table of K by batch size, capture sizes where it has graph tiers, one method of EngineCore",
    Layer.SLEEPING: "worker_cls, the call that drafts, and in steps in which the draft sleeps the scheduler's look-ahead and slots",
    Layer.HEADS: "worker_cls, and the call that drafts",
    Layer.LENDING: "the number of KV blocks, the block pool, the memory of draft and KV cache",
}
"""What each changes of vLLM, beside the user's own arguments."""


def describe(report: ModelReport) -> list[str]:
    """Lines for people."""
    config, outlook = report.model.config, report.model.outlook
    facts, arguments = outlook.facts, outlook.arguments
    steered = level_at_start(arguments)
    steering = steered.in_words()
    if steered.level in {SteeringLevel.FULLY, SteeringLevel.WITHOUT_SLEEPING}:
        scheduling = "asynchronous" if facts.async_scheduling else "synchronous"
        steering += f"; K from 0 to {facts.max_num_speculative_tokens}, {scheduling} scheduling"
    rows = [
        ("model", f"{config.model_source} as {config.model_loading_config.model_id}"),
        ("drafter", f"{facts.drafter_kind}{f' {config.draft_source}' if config.draft_source else ''}"),
        ("steering", steering),
        ("replicas", report.model.deployed.replicas),
        *_layers(report, steered),
        ("runner", outlook.runner),
        ("graphs", outlook.graphs),
        *_memory(report.model.memory, _room_is_of(report)),
    ]
    if arguments.notice:
        rows.append(("notice", arguments.notice))
    return [f"application {report.name}", *(f"  {name:<9} {text}" for name, text in rows)]


def _layers(report: ModelReport, steered: Steered) -> list[tuple[str, str]]:
    """The layers of this drafter, those that are on with what they touch, the others with the reason."""
    config, arguments = report.model.config, report.model.outlook.arguments
    kind = kind_of(report.model.outlook.facts.drafter_kind)
    lines = [f"{layer.value}: {TOUCHED[layer]}" for layer in steered.layers]
    if not lines:
        return [("layers", "none: nothing of vLLM is touched" if arguments.serving_plainly else "none: its steps are observed")]
    if kind.layer is not None and kind.layer not in steered.layers:
        lines.append(f"{kind.layer.value} is off: {arguments.why_never_asleep}")
    if kind.can_sleep and Layer.LENDING not in steered.layers:
        lines.append(f"lending is off: draft_offload is {config.draft_offload}")
    return [("layers" if number == 0 else "", line) for number, line in enumerate(lines)]


def _room_is_of(report: ModelReport) -> str:
    """Where the room for KV comes from, if from a variable."""
    from_variable = report.model.outlook.facts.on_cpu and report.model.kwargs.kv_cache_memory_bytes is None
    return " of VLLM_CPU_KVCACHE_SPACE" if from_variable else ""


def _memory(memory: MemoryEstimate, of_what: str) -> list[tuple[str, str]]:
    rows = []
    if memory.target is not None:
        rows.append(("weights", f"{_gib(memory.target.weight_bytes)} target{_draft(memory.draft)}, on each rank"))
        rows.append(("KV", f"{_per_token(memory.target)} target{_draft_kv(memory.draft)}; blocks of {memory.block_tokens} tokens"))
    if memory.kv_bytes is not None and memory.base_blocks is not None:
        tokens = memory.base_blocks * memory.block_tokens
        room = f"{_gib(memory.kv_bytes)}{of_what}"
        rows.append(("blocks", f"at most {memory.base_blocks} in {room}, {tokens} tokens, before activations and graphs"))
    if memory.lent_blocks is not None:
        rows.append(
            ("offload", f"would lend {memory.lent_blocks} blocks, {memory.lent_blocks * memory.block_tokens} tokens of the target")
        )
    return rows + [("memory", f"not estimated: {reason}") for reason in memory.unknown]


def _draft(size: ModelSize | None) -> str:
    return f", {_gib(size.weight_bytes)} draft" if size else ""


def _draft_kv(size: ModelSize | None) -> str:
    return f", {_per_token(size)} draft" if size else ""


def _per_token(size: ModelSize) -> str:
    return f"{size.kv_bytes_per_token / 1024:.1f} KiB per token"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
