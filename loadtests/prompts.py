"""Prompts for load: built in, or from a file of JSON lines.

Short everyday questions, different enough that prefix caching does not answer them, and the same list on every machine.
A file's lines hold `prompt` (a text) or, as in Spec-Bench, `turns` (a list of texts, of which the first is asked).
Fails closed: a line that is neither raises `PromptsError` with file, line and what is allowed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_REQUESTS: Final = (
    "Explain how {} works to someone who has never seen it.",
    "Write the opening paragraph of a story that begins with {}.",
    "Give three practical tips about {} and say why each one helps.",
    "Summarise what most people get wrong about {}.",
    "Write a short, friendly note to a neighbour about {}.",
    "List the steps you would take to learn more about {}.",
    "Compare {} today with the way it was a hundred years ago.",
    "Describe {} in four plain sentences.",
)
_SUBJECTS: Final = (
    "a lighthouse", "baking sourdough bread", "the night train", "keeping bees", "a public library", "tides", "a bicycle",
    "writing letters", "an old clock", "a vegetable garden", "migrating birds", "a power cut", "the village market", "maps",
    "a thunderstorm", "recycling glass", "a chess club", "sewing a button", "the school play", "a mountain hut", "coffee",
    "repairing a radio", "the harbour", "a long walk", "snow", "a water mill", "sleep", "folk songs", "a telescope", "rivers",
    "soap", "a ferry", "the common cold", "paper", "an orchard", "street lamps", "salt", "a compass", "swimming", "wool",
)  # fmt: skip

BUILT_IN_PROMPTS: Final = tuple(request.format(subject) for request in _REQUESTS for subject in _SUBJECTS)

COMPARISON_PROMPTS: Final = BUILT_IN_PROMPTS[:: len(_SUBJECTS) + 3][:8]
"""The fixed set whose text is compared between modes: one prompt of each kind, each about something else."""


class PromptsError(ValueError):
    """A file of prompts that cannot be used."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a JSON-lines file, in its order. Raises PromptsError; empty lines are skipped."""
    return tuple(prompt for _, _, prompt in _rows(path))


def read_prompts_by_category(path: Path) -> dict[str, tuple[str, ...]]:
    """The same by what each line names as `category`, as in Spec-Bench. Raises PromptsError."""
    found: dict[str, list[str]] = {}
    for number, values, prompt in _rows(path):
        category = values.get("category")
        if not isinstance(category, str) or not category:
            raise PromptsError(f"{path}:{number}: 'category' is {category!r}, allowed is a text")
        found.setdefault(category, []).append(prompt)
    return {category: tuple(prompts) for category, prompts in found.items()}


def shuffled(prompts: Sequence[str], seed: int) -> tuple[str, ...]:
    """The same prompts in an order that depends on `seed` alone."""
    order = list(prompts)
    random.Random(f"prompts:{seed}").shuffle(order)  # noqa: S311
    return tuple(order)


def _rows(path: Path) -> list[tuple[int, dict[str, Any], str]]:
    """Number, object and prompt of every line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"prompts file {path} cannot be read ({error}): give a file of JSON lines") from error
    rows = [(number, *_row(path, number, line)) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise PromptsError(f"prompts file {path} holds no line; each line is an object with 'prompt' or 'turns'")
    return rows


def _row(path: Path, number: int, line: str) -> tuple[dict[str, Any], str]:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if isinstance(values, dict):
        turns = values.get("turns")
        prompt = values.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
        if isinstance(prompt, str) and prompt.strip():
            return values, prompt
    raise PromptsError(f"{path}:{number}: {line[:60]!r} is no object with 'prompt' (a text) or 'turns' (a list of texts)")
