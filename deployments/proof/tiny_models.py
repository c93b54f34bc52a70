"""Tiny models made by code: a target, one drafter of every kind that has weights, and a LoRA adapter.

The drafters are right often but not always, since one that never errs, or always does, would hide most faults. The target makes
that easy: its next token depends mostly on the present one (embeddings of size 1, layers that add as much as LAYER_SHARES says), so
a drafter that knows the embedding and one layer often agrees.

* `target`, and `draft`: a separate draft model, the target's weights with noise.
* `sliding`: the target, whose first and last layers attend to the latest SLIDING_WINDOW tokens alone.
* `eagle`: its layer is the target's first, its projection passes the embedding on and a little of the hidden state.
* `eagle3`: reads the embedding through an attention in which each position attends to itself.
* `dflash`: two layers in which each position attends to the one before it, and a little to its neighbours. The first passes on the
  token, whose successor the vocabulary tells; the second passes on the successor's own, as far as a linear map can tell. Norms of
  keys have no weights: a CPU's kernel would take the first layer's for every layer.
* `dspark`: the first of these layers, and a Markov head that knows what follows each token.
* `mimo`: the target once more as a MiMoForCausalLM (Qwen2's layers, biases of 0; texts are the same) with one MTP module.
* `adapter`: a LoRA adapter of the target's query and value projections, large enough to change texts.

Two more families are for heads that are off for a while, whose damage would not show in the usual ones: in those the first layer's
attention decides nearly everything, and a block looks at all of its context nearly alike (ATTENTIVE; ATTENTIVE_EAGLE3, whose head
has no residual of the embedding).

Seeded: every run makes the same files. The tokenizer has a token per byte, so that grammars and texts work.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from nightjar.deployments.proof.model_names import (
    ADAPTER,
    ADAPTER_RANK,
    DFLASH,
    DRAFT,
    DSPARK,
    EAGLE,
    EAGLE3,
    MIMO,
    SLIDING,
    TARGET,
)

HIDDEN: Final = 64
HEADS: Final = 2
INTERMEDIATE: Final = 128
NUM_BYTES: Final = 256
BOS: Final = 256
EOS: Final = 257
PAD: Final = 258
VOCABULARY: Final = 259
SPECIAL_TOKENS: Final = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
"""After the bytes, in this order."""
LAYER_SHARES: Final = (0.4, 0.08, 0.08)
"""How much each of the target's layers adds to a residual stream of root mean square 1."""
LAYER_TYPES: Final = ("sliding_attention", "full_attention", "sliding_attention")
SLIDING_WINDOW: Final = 48
DRAFT_NOISE: Final = 0.07
"""Of the draft's weights, in their own standard deviations."""
HIDDEN_STATE_SHARE: Final = 0.012
"""What EAGLE's and MTP's projections pass on of the target's hidden state: little, so that they err now and then."""
EAGLE3_GAIN: Final = 5.0
"""How much the embedding that EAGLE-3's attention brings outweighs the hidden state in its residual stream."""
BLOCK_GAINS: Final = (4.0, 4.0)
"""What each layer of a block adds, in sizes of the embedding."""
MASK_SIZE: Final = 0.02
"""Of the embedding of a position that nothing is known of, beside 1."""
MARKOV_BASE: Final = 0.3
"""What a block's own logits count beside its Markov head's."""
ADAPTER_SHARE: Final = 0.5

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """How much each of the target's layers adds, by attention and by its MLP, to embeddings of a size."""

    attention_shares: tuple[float, ...] = LAYER_SHARES
    mlp_shares: tuple[float, ...] = LAYER_SHARES
    embedding_size: float = 1.0
    eagle3_attends_as_target: bool = False
    """Else each position of its attention attends to itself."""
    block_sharpness: float = 9.5
    """Of the attention of a block's positions: at 9.5 one that is one place off gets about a tenth."""


USUAL: Final = Family()
ATTENTIVE: Final = Family(attention_shares=(2.1, 0.03, 0.03), mlp_shares=(0.5, 0.03, 0.03), block_sharpness=2.0)
ATTENTIVE_EAGLE3: Final = Family((2.1, 0.03, 0.03), (0.5, 0.03, 0.03), embedding_size=0.1, eagle3_attends_as_target=True)


def build_tiny_models(folder: Path, family: Family = USUAL) -> Path:
    """All models in folders of `folder`; those of an earlier call stay. Returns `folder`."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    target = _target(family)
    _save(scratch / TARGET, target, _config())
    _save(scratch / SLIDING, target, _config(layer_types=LAYER_TYPES, sliding_window=SLIDING_WINDOW))
    _save(scratch / DRAFT, _draft(target), _config())
    _save(scratch / EAGLE, _eagle(target), _config(num_hidden_layers=1))
    eagle3 = {
        "num_hidden_layers": 1,
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": VOCABULARY,
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [0, 1, 2]},
        "norm_output": True,
    }
    _save(scratch / EAGLE3, _eagle3(target, family), _config(**eagle3))
    block = {
        "model_type": "qwen3",
        "attention_bias": True,
        "layer_types": None,
        "dflash_config": {"mask_token_id": PAD, "target_layer_ids": [0]},
    }
    _save(scratch / DFLASH, _block(target, family, 2), _config(**block, num_hidden_layers=2, architectures=["DFlashDraftModel"]))
    torch.save({"embedding": _mask(), "mask_token_id": PAD}, scratch / DFLASH / "mask_embedding.pt")
    markov = {"num_hidden_layers": 1, "architectures": ["Qwen3DSparkModel"], "markov_rank": HIDDEN}
    _save(scratch / DSPARK, _dspark(target, family), _config(**block, **markov))
    mimo = {"model_type": "qwen2", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
    _save(scratch / MIMO, _mimo(target), _config(**mimo))
    _save_adapter(scratch / ADAPTER)
    try:
        scratch.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
    return folder


def _config(**other: object) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": len(LAYER_SHARES),
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "float32",
        "use_cache": True,
    } | other


def _normal(generator: torch.Generator, rows: int, columns: int, scale: float) -> torch.Tensor:
    """A matrix that gives outputs of size `scale` for inputs of size 1."""
    return torch.randn(rows, columns, generator=generator) * scale / columns**0.5


def _target(family: Family) -> Weights:
    generator = torch.Generator().manual_seed(7)
    embedding = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    weights = {
        "model.embed_tokens.weight": embedding * (family.embedding_size * HIDDEN**0.5) / embedding.norm(dim=1, keepdim=True),
        "lm_head.weight": torch.randn(VOCABULARY, HIDDEN, generator=generator),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for index, (attention, mlp) in enumerate(zip(family.attention_shares, family.mlp_shares, strict=True)):
        layer = {
            "self_attn.q_proj.weight": _normal(generator, HIDDEN, HIDDEN, 1.5),
            "self_attn.k_proj.weight": _normal(generator, HIDDEN, HIDDEN, 1.5),
            "self_attn.v_proj.weight": _normal(generator, HIDDEN, HIDDEN, 1.0),
            "self_attn.o_proj.weight": _normal(generator, HIDDEN, HIDDEN, 1.5 * attention),
            "mlp.gate_proj.weight": _normal(generator, INTERMEDIATE, HIDDEN, 1.0),
            "mlp.up_proj.weight": _normal(generator, INTERMEDIATE, HIDDEN, 1.0),
            "mlp.down_proj.weight": _normal(generator, HIDDEN, INTERMEDIATE, 1.5 * mlp),
            "input_layernorm.weight": torch.ones(HIDDEN),
            "post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
        weights |= {f"model.layers.{index}.{name}": value for name, value in layer.items()}
    return weights


def _draft(target: Weights) -> Weights:
    generator = torch.Generator().manual_seed(11)
    return {
        name: value if "norm" in name else value + DRAFT_NOISE * value.std() * torch.randn(value.shape, generator=generator)
        for name, value in target.items()
    }


def _first_layer(target: Weights) -> Weights:
    prefix = "model.layers.0."
    return {name.removeprefix(prefix): value for name, value in target.items() if name.startswith(prefix)}


def _little(columns: int, seed: int) -> torch.Tensor:
    return torch.randn(HIDDEN, columns, generator=torch.Generator().manual_seed(seed)) * HIDDEN_STATE_SHARE


def _eagle(target: Weights) -> Weights:
    layer = _first_layer(target)
    del layer["input_layernorm.weight"]  # EAGLE's heads have none; embeddings of size 1 make up for it
    weights = {f"layers.0.{name}": value for name, value in layer.items()}
    return weights | {"fc.weight": torch.cat([torch.eye(HIDDEN), _little(HIDDEN, 13)], dim=1)}


def _eagle3(target: Weights, family: Family) -> Weights:
    layer = _first_layer(target)
    layer["hidden_norm.weight"] = torch.ones(HIDDEN)
    if family.eagle3_attends_as_target:
        for part in "qkv":
            name = f"self_attn.{part}_proj.weight"
            layer[name] = torch.cat([layer[name], _little(HIDDEN, 17)], dim=1)
        weights = {f"midlayer.{name}": value for name, value in layer.items()}
        return weights | {"fc.weight": _little(3 * HIDDEN, 19), "norm.weight": torch.ones(HIDDEN)}
    for part, scale in (("q", 1.3), ("k", 1.3), ("v", 1.0)):
        layer[f"self_attn.{part}_proj.weight"] = torch.cat([scale * torch.eye(HIDDEN), _little(HIDDEN, 17)], dim=1)
    layer["self_attn.o_proj.weight"] = EAGLE3_GAIN * torch.eye(HIDDEN)
    layer["mlp.down_proj.weight"] = EAGLE3_GAIN * layer["mlp.down_proj.weight"]
    weights = {f"midlayer.{name}": value for name, value in layer.items()}
    return weights | {"fc.weight": _little(3 * HIDDEN, 19), "norm.weight": torch.ones(HIDDEN)}


def _mask() -> torch.Tensor:
    return MASK_SIZE * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(31))


def _block(target: Weights, family: Family, num_layers: int) -> Weights:
    """A DFlash draft: its keys say nothing but where they stand, and its values are tokens' embeddings, the mask's left out."""
    embedding, logits = target["model.embed_tokens.weight"].double(), target["lm_head.weight"].double()
    head_size, half = HIDDEN // HEADS, HIDDEN // HEADS // 2
    mask = _mask().double()
    without_mask = torch.eye(HIDDEN).double() - torch.outer(mask, mask) / mask.dot(mask)
    next_token = (embedding @ logits.T).argmax(dim=1)
    maps = (torch.eye(HIDDEN).double(), torch.linalg.lstsq(embedding, logits[next_token[next_token]]).solution.T)
    angles = 10000.0 ** -(torch.arange(half) / half)  # of rotary positions: each key is the same, each query is turned back by one
    key = torch.cat([torch.ones(half), torch.zeros(half)]).repeat(HEADS)
    query = torch.cat([angles.cos(), -angles.sin()]).repeat(HEADS)
    weights = {"fc.weight": torch.eye(HIDDEN), "hidden_norm.weight": torch.ones(HIDDEN), "norm.weight": torch.ones(HIDDEN)}
    for index, (values, gain) in enumerate(zip(maps[:num_layers], BLOCK_GAINS, strict=False)):
        layer = {
            "self_attn.q_proj.weight": torch.zeros(HIDDEN, HIDDEN),
            "self_attn.q_proj.bias": query,
            "self_attn.k_proj.weight": torch.zeros(HIDDEN, HIDDEN),
            "self_attn.k_proj.bias": key,
            "self_attn.v_proj.weight": ((values @ without_mask).round(decimals=5) + 0.0).float(),  # the last bits are the machine's
            "self_attn.v_proj.bias": torch.zeros(HIDDEN),
            "self_attn.o_proj.weight": gain * torch.eye(HIDDEN),
            "self_attn.o_proj.bias": torch.zeros(HIDDEN),
            "self_attn.q_norm.weight": torch.full((head_size,), family.block_sharpness),
            "self_attn.k_norm.weight": torch.ones(head_size),
            "mlp.gate_proj.weight": torch.zeros(INTERMEDIATE, HIDDEN),
            "mlp.up_proj.weight": torch.zeros(INTERMEDIATE, HIDDEN),
            "mlp.down_proj.weight": torch.zeros(HIDDEN, INTERMEDIATE),
            "input_layernorm.weight": torch.ones(HIDDEN),
            "post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
        weights |= {f"layers.{index}.{name}": value for name, value in layer.items()}
    return weights


def _dspark(target: Weights, family: Family) -> Weights:
    weights = _block(target, family, 1)
    weights["norm.weight"] = MARKOV_BASE * weights["norm.weight"]
    weights["markov_head.markov_w1.weight"] = target["model.embed_tokens.weight"]
    weights["markov_head.markov_w2.weight"] = target["lm_head.weight"]
    return weights


def _mimo(target: Weights) -> Weights:
    biases = {f"self_attn.{part}_proj.bias": torch.zeros(HIDDEN) for part in "qkv"}
    weights = dict(target)
    for index in range(len(LAYER_SHARES)):
        weights |= {f"model.layers.{index}.{name}": value for name, value in biases.items()}
    module = _first_layer(target) | biases
    module |= {f"{norm}_layernorm.weight": torch.ones(HIDDEN) for norm in ("token", "hidden", "final")}
    module["input_proj.weight"] = torch.cat([_little(HIDDEN, 23), torch.eye(HIDDEN)], dim=1)
    return weights | {f"model.mtp_layers.0.{name}": value for name, value in module.items()}


def _save(folder: Path, weights: Weights, config: dict[str, object]) -> None:
    folder.mkdir()
    _save_tensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": BOS, "eos_token_id": EOS}))
    _save_tokenizer(folder)


def _save_tensors(file: Path, weights: Weights) -> None:
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, file, {"format": "pt"})


def _save_adapter(folder: Path) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(29)
    weights = {}
    for index in range(len(LAYER_SHARES)):
        for part in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{index}.self_attn.{part}"
            weights[f"{name}.lora_A.weight"] = torch.randn(ADAPTER_RANK, HIDDEN, generator=generator) * ADAPTER_SHARE
            weights[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, ADAPTER_RANK, generator=generator) * ADAPTER_SHARE
    _save_tensors(folder / "adapter_model.safetensors", weights)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": TARGET,
        "r": ADAPTER_RANK,
        "lora_alpha": ADAPTER_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # GPT-2's byte-level vocabulary has printable stand-ins: such bytes stand for themselves, the others from U+0100 on.
    themselves = [*range(33, 127), *range(161, 173), *range(174, NUM_BYTES)]
    names = {byte: chr(byte) for byte in themselves}
    others = (byte for byte in range(NUM_BYTES) if byte not in names)
    names |= {byte: chr(NUM_BYTES + index) for index, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={names[byte]: byte for byte in range(NUM_BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS).save_pretrained(folder)
