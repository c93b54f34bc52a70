"""Which KV caches the ledger of the draft's tokens can follow: one group of layers, whose blocks stay until their request leaves.

Asked by the scheduler, which keeps the ledger, and by each worker, which plans the blocks that a draft lends: both must give the
same answer. Fails open: for any other cache the drafter is kept in sync as vLLM does it, and its memory stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec


def why_not_followed(groups: Sequence[KVCacheGroupSpec]) -> str:
    """Why no ledger can be kept of these groups' blocks; empty where one can. Raises ImportError where vLLM's names moved."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, UniformTypeKVCacheSpecs

    # Exactly these: vLLM derives others from them that give blocks back while their request runs (R-SWA).
    keeps_every_block = {FullAttentionSpec, MLAAttentionSpec}
    if len(groups) != 1:
        return f"the engine has {len(groups)} KV cache groups, not one"
    spec = groups[0].kv_cache_spec
    of_layers = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else (spec,)
    others = sorted({type(each).__name__ for each in of_layers if type(each) not in keeps_every_block})
    return f"the KV cache is not full attention's ({', '.join(others)})" if others else ""
