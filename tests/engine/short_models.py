"""The built models without their upper layers: real weights, prompts and near ties at less than half of the cost.

What they say is of no use to anybody, and need not be: engine tests compare what two engines say. Written beside the models that
they come from, once. Raises FileNotFoundError where those were not built.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from pathlib import Path
from typing import Final

LAYERS: Final = 8
"""Of 30. What is left weighs 57 million parameters instead of 135; half of those are the vocabulary's."""
FROM: Final = {"target": "smollm2-135m", "draft": "smollm2-135m-noise08"}
TARGET: Final = f"{FROM['target']}-first{LAYERS}"
DRAFT: Final = f"{FROM['draft']}-first{LAYERS}"


def build_short_models(models: Path) -> None:
    """Write TARGET and DRAFT into this folder of models, where they are not there already."""
    for name, short in zip(FROM.values(), (TARGET, DRAFT), strict=True):
        if (models / short / "config.json").is_file():
            continue
        with tempfile.TemporaryDirectory(dir=models, prefix=".building-") as scratch:
            made = Path(scratch) / "new"
            _cut(models / name, made)
            try:
                made.rename(models / short)
            except OSError as error:  # another process was as quick, and made the same
                if error.errno != errno.ENOTEMPTY:
                    raise


def _cut(whole: Path, into: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(whole, into, ignore=shutil.ignore_patterns("nightjar.json", "model.safetensors"))
    config = json.loads((whole / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    (into / "config.json").write_text(json.dumps(config))
    weights = load_file(whole / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if _layer_of(name) < LAYERS}
    save_file(kept, into / "model.safetensors", metadata={"format": "pt"})


def _layer_of(name: str) -> int:
    """Of a weight; 0 for those that belong to none.

    >>> _layer_of("model.layers.7.mlp.up_proj.weight"), _layer_of("model.norm.weight")
    (7, 0)
    """
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else 0
