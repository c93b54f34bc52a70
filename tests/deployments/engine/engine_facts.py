"""Engines as vLLM resolved them, and the arguments that a user gave, for tests of what steering makes of both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nightjar.deployments.engine.start.resolved_facts import EngineFacts

CPU = EngineFacts(
    on_cpu=True,
    async_scheduling=False,
    captures_graphs=False,
    max_num_seqs=8,
    drafter_kind="draft_model",
    max_num_speculative_tokens=4,
)
GPU = replace(CPU, on_cpu=False, async_scheduling=True, captures_graphs=True, runner_is_v1=False)
EAGLE = replace(GPU, drafter_kind="eagle")


def user_kwargs(**speculative: Any) -> dict[str, Any]:
    return {
        "model": "target",
        "max_num_seqs": 8,
        "speculative_config": {"method": "draft_model", "model": "draft", "num_speculative_tokens": 4, **speculative},
    }
