"""A tiny Llama pair whose heads can be shared by two ranks: SmolLM's nine query and three KV heads cannot.

Random weights, but not nonsense: the target is the draft with further layers on top that add little, so the draft is often right,
its KV is worth catching up, and both take milliseconds. Only the tokenizer is SmolLM's, so that the usual requests can be sent.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

TARGET: Final = "tiny-target"
DRAFT: Final = "tiny-draft"
DRAFT_LAYERS: Final = 2
UPPER_LAYERS: Final = 4
UPPER_SHARE: Final = 0.2
"""What the target's upper layers add, as a share of what its lower ones do."""
SEED: Final = 0


def build_tiny_models(folder: Path, tokenizer: Path) -> None:
    """Write TARGET and DRAFT into `folder`, with the tokenizer found in the folder `tokenizer`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=DRAFT_LAYERS + UPPER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=128,  # a block of KV is no small thing then beside the weights, most of which are the vocabulary's
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    target = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in target.model.layers[DRAFT_LAYERS:]:
            layer.self_attn.o_proj.weight *= UPPER_SHARE
            layer.mlp.down_proj.weight *= UPPER_SHARE
    _save(target, folder / TARGET, tokenizer)
    target.model.layers = target.model.layers[:DRAFT_LAYERS]
    target.config.num_hidden_layers = DRAFT_LAYERS
    _save(target, folder / DRAFT, tokenizer)


def _save(model: object, folder: Path, tokenizer: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    for file in sorted(tokenizer.glob("*token*.json")) + sorted(tokenizer.glob("*.jinja")):
        shutil.copy(file, folder / file.name)
