"""What our scheduler and workers are told at start: one entry of vLLM's `additional_config`, which reaches all of its processes.

Fails closed: without the entry, or a word in it, nothing is switched on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

ENTRY: Final = "nightjar"
DRAFT_WEIGHT_BYTES: Final = "draft_weight_bytes"
USERS_TABLE: Final = "users_table"
"""vLLM's rows of K by batch size as the user has them, where the table that vLLM is given names graph tiers beside."""


def with_told(users: Mapping[str, Any] | None, **told: object) -> dict[str, Any]:
    """The user's `additional_config` with ours in it, beside what was told already.

    >>> with_told({"theirs": 1, "nightjar": {"users_table": [[1, 8, 3]]}}, draft_weight_bytes=8)
    {'theirs': 1, 'nightjar': {'users_table': [[1, 8, 3]], 'draft_weight_bytes': 8}}
    """
    users = users or {}
    return {**users, ENTRY: {**users.get(ENTRY, {}), **told}}


def told(vllm_config: Any, name: str) -> int | None:
    """What the engine was started with; None where nothing was told."""
    entry = _entry(vllm_config)
    return int(entry[name]) if name in entry else None


def told_table(vllm_config: Any) -> Sequence[Sequence[int]] | None:
    """USERS_TABLE; None where nothing was told."""
    table: Sequence[Sequence[int]] | None = _entry(vllm_config).get(USERS_TABLE)
    return table


def _entry(vllm_config: Any) -> Mapping[str, Any]:
    return (getattr(vllm_config, "additional_config", None) or {}).get(ENTRY) or {}
