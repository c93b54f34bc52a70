"""How many tokens a text has: by the served model's own tokenizer where that is at hand, else by an estimate that says so.

A load test asks for prompts of so many tokens, and only the server's tokenizer knows what a token is. `name` goes into every
output, so that nobody takes an estimate for a count; after a run the server's own count stands beside it.
Fails closed: a tokenizer that cannot be read raises `TokenizerError` with what is allowed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from pathlib import Path
from typing import Final, Protocol

CHARACTERS_PER_TOKEN: Final = 4.0
"""Of English in tokenizers of 32,000 entries and more; code and other languages have fewer characters a token."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be used. The message is one line."""


class TokenCounter(Protocol):
    """Counts tokens without the special ones that a chat template adds."""

    @property
    def name(self) -> str:
        """How tokens are counted, for a reader."""

    @property
    def is_estimate(self) -> bool:
        """Whether a server may count something else."""

    def count(self, text: str) -> int:
        """Tokens of a text."""

    def prefix(self, text: str, tokens: int) -> str:
        """The text's beginning, of at most so many tokens."""


class EstimatedTokens:
    """Characters over CHARACTERS_PER_TOKEN, rounded up."""

    name = f"estimated at {CHARACTERS_PER_TOKEN:g} characters a token (--tokenizer counts)"
    is_estimate = True

    def count(self, text: str) -> int:
        """Tokens of a text, about."""
        return math.ceil(len(text) / CHARACTERS_PER_TOKEN)

    def prefix(self, text: str, tokens: int) -> str:
        """The text's beginning, of at most so many tokens."""
        return text[: int(tokens * CHARACTERS_PER_TOKEN)]


class TokenizerTokens:
    """By a `tokenizer.json`. Each text is encoded once and remembered: few texts make many prompts."""

    is_estimate = False

    def __init__(self, path: Path) -> None:
        """`path` is the file or a model's folder that holds it. Raises TokenizerError."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise TokenizerError("--tokenizer needs the package tokenizers: pip install tokenizers") from error
        if not file.is_file():
            raise TokenizerError(f"tokenizer {path}: allowed is a tokenizer.json, or a model's folder that holds one")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # what tokenizers raises for every file that it cannot read
            raise TokenizerError(f"tokenizer {file} cannot be read ({error})") from error
        self._tokenizer.no_truncation()
        self._ends: dict[str, list[int]] = {}
        self.name = f"counted by the tokenizer {path}"

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._token_ends(text))

    def prefix(self, text: str, tokens: int) -> str:
        """The text's beginning, of at most so many tokens. A character of several tokens is in or out as a whole."""
        ends = self._token_ends(text)
        if tokens >= len(ends):
            return text
        end = ends[tokens - 1] if tokens > 0 else 0
        return text[: end if bisect_right(ends, end) <= tokens else max((one for one in ends if one < end), default=0)]

    def _token_ends(self, text: str) -> list[int]:
        """Where each token ends, in characters."""
        if text not in self._ends:
            self._ends[text] = [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]
        return self._ends[text]


def token_counter(tokenizer: str) -> TokenCounter:
    """The tokenizer at a path, or the estimate where none is named. Raises TokenizerError."""
    return TokenizerTokens(Path(tokenizer)) if tokenizer else EstimatedTokens()
