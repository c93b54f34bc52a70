"""A tokenizer of one token a word and one a mark, written as the file that `--tokenizer` takes."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers


def word_tokenizer(folder: Path) -> Path:
    """The folder, with a `tokenizer.json` in it that knows every word as unknown: what counts is where words end."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
