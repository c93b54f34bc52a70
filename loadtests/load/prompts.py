"""Prompts for load: built in, or from a file of JSON lines.

Short everyday questions, different enough that prefix caching does not answer them, and the same list on every machine.
A file's lines hold `prompt` (a text) or what was said by turns: `turns` (a list of texts, as in Spec-Bench), `messages` (as the
OpenAI API has them) or `conversations` (as in ShareGPT; a file that is one JSON list of such objects is read, too). Only what
people said is taken, not what a model answered.
Fails closed: a line that is none of these raises `PromptsError` with file, line and what is allowed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

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


_PEOPLE: Final = frozenset({"user", "human"})
_FORMS: Final = "'prompt' (a text), 'turns' (texts), 'messages' (OpenAI's) or 'conversations' (ShareGPT's) in which a person speaks"


class PromptsError(ValueError):
    """A file of prompts that cannot be used."""


class Text(NamedTuple):
    """What people said in one line of a file. `line` counts from 1; `category` is empty where the line names none."""

    line: int
    category: str
    turns: tuple[str, ...]


def read_prompts(path: Path) -> tuple[str, ...]:
    """The first turn of every line of a file, in its order. Raises PromptsError; empty lines are skipped."""
    return tuple(text.turns[0] for text in read_texts(path))


def read_texts(path: Path) -> tuple[Text, ...]:
    """Every line of a file with all its turns. Raises PromptsError; empty lines are skipped."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"prompts file {path} cannot be read ({error}): give a file of JSON lines") from error
    texts = tuple(_text(path, number, line) for number, line in _lines(content))
    if not texts:
        raise PromptsError(f"prompts file {path} holds no line; each line is an object with {_FORMS}")
    return texts


def shuffled(prompts: Sequence[str], seed: int) -> tuple[str, ...]:
    """The same prompts in an order that depends on `seed` alone."""
    order = list(prompts)
    random.Random(f"prompts:{seed}").shuffle(order)  # noqa: S311
    return tuple(order)


def _lines(content: str) -> list[tuple[int, Any]]:
    """Number and object of every line, or of every item where the file is one list; a line that is no JSON stays text."""
    if content.lstrip().startswith("["):
        whole = _parsed(content)
        if isinstance(whole, list):
            return list(enumerate(whole, start=1))
    return [(number, _parsed(line)) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _text(path: Path, number: int, values: Any) -> Text:
    turns = _turns(values) if isinstance(values, dict) else ()
    if not turns or not all(turn.strip() for turn in turns[:1]):
        raise PromptsError(f"{path}:{number}: {str(values)[:60]!r} is no object with {_FORMS}")
    category = values.get("category", "")
    if not isinstance(category, str):
        raise PromptsError(f"{path}:{number}: 'category' is {category!r}, allowed is a text")
    return Text(number, category, turns)


def _turns(values: dict[str, Any]) -> tuple[str, ...]:
    """What people said, in order; nothing where a value is of another form."""
    if "prompt" in values:
        said: list[Any] = [values["prompt"]]
    elif isinstance(values.get("turns"), list):
        said = values["turns"]
    elif isinstance(values.get("messages"), list):
        said = [_content(message) for message in values["messages"] if _is_said_by(message, "role")]
    elif isinstance(values.get("conversations"), list):
        said = [message.get("value") for message in values["conversations"] if _is_said_by(message, "from")]
    else:
        said = []
    return tuple(said) if all(isinstance(turn, str) for turn in said) else ()


def _is_said_by(message: Any, key: str) -> bool:
    return isinstance(message, dict) and message.get(key) in _PEOPLE


def _content(message: dict[str, Any]) -> Any:
    """Of an OpenAI message: a text, or the text parts of a list."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content
