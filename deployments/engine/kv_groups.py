"""Which KV caches the ledger of the draft's tokens can follow: one group of layers, whose blocks stay until their request leaves.

Asked by the scheduler, which keeps the ledger, and by each worker, which plans the blocks that a draft lends: both must give the
same answer. Fails open: for any other cache the drafter is kept in sync as vLLM does it, and its memory stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, MLAAttentionSpec, UniformTypeKVCacheSpecs

_KEEPS_EVERY_BLOCK: Final = frozenset({FullAttentionSpec, MLAAttentionSpec})
"""Exactly these: vLLM derives others from them that give blocks back while their request runs (R-SWA)."""


def why_not_followed(groups: Sequence[KVCacheGroupSpec]) -> str:
    """Why no ledger can be kept of these groups' blocks; empty where one can."""
    if len(groups) != 1:
        return f"the engine has {len(groups)} KV cache groups, not one"
    spec = groups[0].kv_cache_spec
    of_layers = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else (spec,)
    others = sorted({type(each).__name__ for each in of_layers if type(each) not in _KEEPS_EVERY_BLOCK})
    return f"the KV cache is not full attention's ({', '.join(others)})" if others else ""
