"""Does the text stay the same whatever speculation does? A fixed set of prompts, one at a time, greedy, token by token.

A first difference is no difference of the policy's where the reference's two best candidates at that place are closer than
NEAR_TIE: float32 sums in another order may then pick the other. What follows such a place is another text and not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nightjar.loadtests.openai_stream import ChatRequest, ChatResult, Server, Token, stream_chat
from nightjar.loadtests.summary import Check

NEAR_TIE: Final = 1e-4
"""Difference of the two best logprobs below which rounding may decide."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens generated for one prompt, or why there are none."""

    prompt: str
    tokens: tuple[Token, ...]
    error: str = ""


def ask(server: Server, model: str, prompt: str, max_tokens: int) -> Answer:
    """The greedy answer to one prompt, with the two best logprobs at every place."""
    result: ChatResult = stream_chat(server, ChatRequest(model, prompt, max_tokens, top_logprobs=2))
    return Answer(prompt, result.tokens, result.error or ("" if result.tokens else "the server sent no logprobs"))


def first_difference(reference: Answer, other: Answer) -> int | None:
    """Place of the first token that differs (or is missing in one of them), or None."""
    for place, (expected, got) in enumerate(zip(reference.tokens, other.tokens, strict=False)):
        if expected.text != got.text:
            return place
    shorter = min(len(reference.tokens), len(other.tokens))
    return None if len(reference.tokens) == len(other.tokens) else shorter


def compare_texts(answers: Mapping[str, Sequence[Answer]]) -> Check:
    """Whether every mode answered as the first one did."""
    (reference_mode, reference), *others = answers.items()
    problems = [f"{mode}: {answer.error}" for mode, given in answers.items() for answer in given if answer.error]
    ties = 0
    for mode, given in others:
        for expected, got in zip(reference, given, strict=True):
            place = first_difference(expected, got)
            if place is None:
                continue
            if _is_near_tie(expected, place):
                ties += 1
            else:
                problems.append(f"{mode}: {expected.prompt[:40]!r} differs from {reference_mode} at token {place}")
    counted = sum(len(answer.tokens) for answer in reference)
    told = f"{len(reference)} prompts, {counted} tokens, the same under {', '.join(answers)}"
    if ties:
        told += f" ({ties} from a near tie of the two best tokens on)"
    return Check(name="equal text", passed=not problems, detail="; ".join(problems[:4]) or told)


def _is_near_tie(reference: Answer, place: int) -> bool:
    best = reference.tokens[place].top_logprobs if place < len(reference.tokens) else ()
    return len(best) > 1 and best[0] - best[1] < NEAR_TIE
