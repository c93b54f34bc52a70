"""How many bytes a draft's weights take, from its checkpoint's headers alone: scheduler and worker must reckon alike.

The scheduler sizes the KV pool by this before any weight is loaded, and a pool that grows by more than the draft gives back ends
in an out-of-memory kill. So the answer errs towards too little: padding that vLLM adds is not counted, a tied output
projection counts once, and ranks are credited with an equal share although some weights are repeated on each. Fails by exception:
a folder without safetensors files has no known size, and its draft is not offloaded.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, Final

_INDEX: Final = "model.safetensors.index.json"
_BITS: Final = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16"), 16),
    **dict.fromkeys(("I32", "U32"), 32),
    **dict.fromkeys(("I64", "U64", "C64"), 64),
}
"""Stored types that vLLM keeps as they are; every other one is a float that it converts."""
_NOT_LOADED: Final = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_INPUT_EMBEDDING: Final = "embed_tokens.weight"
_OUTPUT_PROJECTION: Final = "lm_head.weight"


def draft_weight_bytes(folder: Path, *, bytes_per_value: int, tensor_parallel_size: int = 1) -> int:
    """Bytes of one rank's weights once loaded; `bytes_per_value` is of the type that floats are loaded as (float32: 4)."""
    total_bits: int = sum(
        prod(tensor["shape"]) * _BITS.get(tensor["dtype"], 8 * bytes_per_value) for tensor in _tensors(folder).values()
    )
    return total_bits // 8 // tensor_parallel_size


def _tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Headers of the tensors that vLLM would load, by name."""
    found: dict[str, dict[str, Any]] = {}
    for file in _files(folder):
        found |= _header(file)
    found = {name: tensor for name, tensor in found.items() if not name.endswith(_NOT_LOADED)}
    if _ties_embeddings(folder) and any(name.endswith(_INPUT_EMBEDDING) for name in found):
        found.pop(_OUTPUT_PROJECTION, None)
    return found


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: holds no safetensors file, so the size of its weights is unknown")
    return files


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The format: eight bytes with the length of a JSON object, then that object, then the data."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file}: is no safetensors file")
        header = json.loads(opened.read(length))
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def _ties_embeddings(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("tie_word_embeddings"))
