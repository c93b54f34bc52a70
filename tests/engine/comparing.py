"""How far an engine's output may be from plain vLLM's: not at all, but for near ties of two tokens (INV-1)."""

from __future__ import annotations

from typing import Any

from nightjar.deployments.proof import verdict
from nightjar.deployments.proof.driven_engine import GenerationRequest


def difference(request: GenerationRequest, expected: dict[str, Any], found: dict[str, Any]) -> str:
    """What is wrong with a greedy row, or ""."""
    wrong = verdict.difference(expected[request.request_id], found[request.request_id])
    return f"{request.request_id}: {wrong}" if wrong else ""
