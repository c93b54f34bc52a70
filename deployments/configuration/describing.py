"""A checked model in words: who is steered, by which runner and graphs, and what it holds in memory."""

from __future__ import annotations

from nightjar.deployments.configuration.checking import ModelReport
from nightjar.deployments.configuration.memory_estimate import GIB, MemoryEstimate, ModelSize
from nightjar.deployments.steering_level import level_at_start
from nightjar.policy.wire.report import SteeringLevel


def describe(report: ModelReport) -> list[str]:
    """Lines for people."""
    config, outlook = report.model.config, report.model.outlook
    facts, arguments = outlook.facts, outlook.arguments
    steered = level_at_start(arguments)
    steering = steered.level.value.replace("_", " ") + (f": {steered.reason}" if steered.reason else "")
    if steered.level in {SteeringLevel.FULLY, SteeringLevel.WITHOUT_SLEEPING}:
        scheduling = "asynchronous" if facts.async_scheduling else "synchronous"
        steering += f"; K from 0 to {facts.max_num_speculative_tokens}, {scheduling} scheduling"
    rows = [
        ("model", f"{config.model_source} as {config.model_loading_config.model_id}"),
        ("drafter", f"{facts.drafter_kind}{f' {config.draft_source}' if config.draft_source else ''}"),
        ("steering", steering),
        ("runner", outlook.runner),
        ("graphs", outlook.graphs),
        *_memory(report.model.memory, _room_is_of(report)),
    ]
    if arguments.notice:
        rows.append(("notice", arguments.notice))
    return [f"application {report.name}", *(f"  {name:<9} {text}" for name, text in rows)]


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
