"""Joins a trace, which has lengths and no text, with texts, which have no arrivals.

Every request of the trace gets texts of one category, put one after the other until they have the tokens that were recorded; the
last one is cut. Each prompt begins with its request's number: few texts make many prompts, and a prefix cache that answers half of
one would show a load that never was. The same files, limits and seed give the same prompts, in every load process; the join
is written out, so that another tool can send the very same requests.

Only the server's tokenizer knows what a token is. Where that is not at hand tokens are estimated, and the counter's `name` says so
in every output; after a run the server's own count stands beside it. A tokenizer that cannot be read raises `TokenizerError` with
what is allowed.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Protocol

from pydantic import Field

from nightjar.loadtests.load.prompts import Text
from nightjar.loadtests.load.traces import FittedTrace, TraceRow
from nightjar.policy.wire.record import Count, Record

CHARACTERS_PER_TOKEN: Final = 4.0
"""Of English in tokenizers of 32,000 entries and more; code and other languages have fewer characters a token."""
SEPARATOR: Final = "\n\n"
TEMPLATE_ROOM_TOKENS: Final = 64
"""Left free in the context for what a chat template adds."""
ESTIMATE_ROOM: Final = 1.5
"""A server may count so many times what was estimated before a prompt no longer fits its context."""


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


class JoinedRequest(Record):
    """One request to send. `lines` are those of the texts in their file; `prompt_tokens` as the join's counter counts them."""

    number: Count
    due_s: Annotated[float, Field(ge=0.0)]
    category: str
    lines: tuple[int, ...]
    prompt_tokens: Count
    output_tokens: Count
    prompt: str


class JoinShares(Record):
    """How the played load differs from the recorded one and from the texts, in shares of all requests.

    clipped_prompts, clipped_outputs  cut at the engine's limit
    cut_texts        one text, cut to the recorded length
    stretched_texts  several texts put together to reach it; `repeated_texts` of those had to take one twice
    """

    clipped_prompts: float
    clipped_outputs: float
    cut_texts: float
    stretched_texts: float
    repeated_texts: float

    def __str__(self) -> str:
        return (
            f"lengths clipped to limits: {self.clipped_prompts:.1%} of prompts, {self.clipped_outputs:.1%} of answers; "
            f"texts cut to the recorded length: {self.cut_texts:.1%}, stretched by further ones: {self.stretched_texts:.1%} "
            f"(with repeats {self.repeated_texts:.1%})"
        )


class TraceJoin(NamedTuple):
    """Requests in the order in which they are due."""

    requests: tuple[JoinedRequest, ...]
    shares: JoinShares
    token_counting: str


class ContextLimits(NamedTuple):
    """The longest prompt and answer that an engine's context holds, in tokens."""

    max_prompt_tokens: int
    max_output_tokens: int


def context_limits(max_model_len: int, counter: TokenCounter) -> ContextLimits:
    """Half of the context for the answer, the rest, with room for the chat template and an estimate's error, for the prompt."""
    output_tokens = max(max_model_len // 2, 1)
    room = max_model_len - output_tokens - TEMPLATE_ROOM_TOKENS
    return ContextLimits(max(int(room / ESTIMATE_ROOM) if counter.is_estimate else room, 1), output_tokens)


def join_trace(trace: FittedTrace, texts: Sequence[Text], counter: TokenCounter, rng: random.Random) -> TraceJoin:
    """Every request of a trace with a prompt of its length.

    The category of a request is that of a text drawn at random; its further texts are those that follow in the same category, from
    its first again after its last.
    """
    by_category: dict[str, list[Text]] = {}
    places = [(by_category.setdefault(text.category, []), text) for text in texts]
    starts = []
    seen: dict[str, int] = {}
    for same, text in places:
        starts.append((same, place := seen.get(text.category, 0)))
        seen[text.category] = place + 1
        same.append(text)
    requests, cut, stretched, repeated = [], 0, 0, 0
    for number, row in enumerate(trace.rows):
        same, first = rng.choice(starts)
        request = _request(number, row, same, first, counter)
        requests.append(request)
        stretched += len(request.lines) > 1
        repeated += len(request.lines) > len(same)
        cut += len(request.lines) == 1 and counter.count(_whole(same[first])) > request.prompt_tokens
    of = len(requests)
    shares = JoinShares(
        clipped_prompts=trace.clipped_prompts / of,
        clipped_outputs=trace.clipped_outputs / of,
        cut_texts=cut / of,
        stretched_texts=stretched / of,
        repeated_texts=repeated / of,
    )
    return TraceJoin(tuple(requests), shares, counter.name)


def write_join(path: Path, join: TraceJoin) -> None:
    """One JSON line per request, in their order."""
    path.write_bytes(_lines(join))


def digest(join: TraceJoin) -> str:
    """The same for the same requests: load processes compare it."""
    return hashlib.sha256(_lines(join)).hexdigest()[:16]


def _lines(join: TraceJoin) -> bytes:
    return b"".join(request.model_dump_json().encode() + b"\n" for request in join.requests)


def _request(number: int, row: TraceRow, same: Sequence[Text], first: int, counter: TokenCounter) -> JoinedRequest:
    head = f"{number + 1}. "
    pieces: list[str] = []
    lines: list[int] = []
    counted = counter.count(head)
    separator_tokens = counter.count(f"word{SEPARATOR}word") - 2 * counter.count("word")  # alone it may be another token
    while counted < row.prompt_tokens:
        text = same[(first + len(lines)) % len(same)]
        left = row.prompt_tokens - counted - (separator_tokens if pieces else 0)
        tokens = counter.count(_whole(text))
        piece = _whole(text) if tokens <= left else counter.prefix(_whole(text), left)
        if not piece:
            break
        counted += (separator_tokens if pieces else 0) + min(tokens, left)
        pieces.append(piece)
        lines.append(text.line)
    return JoinedRequest(
        number=number,
        due_s=row.due_s,
        category=same[first].category,
        lines=tuple(lines),
        prompt_tokens=counted,
        output_tokens=row.output_tokens,
        prompt=(head + SEPARATOR.join(pieces)).strip(),
    )


def _whole(text: Text) -> str:
    return SEPARATOR.join(text.turns)
