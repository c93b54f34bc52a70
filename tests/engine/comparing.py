"""How far an engine's output may be from plain vLLM's: not at all, but for near ties of two tokens (INV-1)."""

from __future__ import annotations

from typing import Any, Final

from tests.engine.requests import TestRequest

NEAR_TIE: Final = 1e-4


def difference(request: TestRequest, expected: dict[str, Any], found: dict[str, Any]) -> str:
    """What is wrong with a greedy row, or "": its first other token must be a near tie of the reference's logits."""
    theirs, ours = expected[request.request_id], found[request.request_id]
    for position, (their_token, our_token) in enumerate(zip(theirs["token_ids"], ours["token_ids"], strict=False)):
        if their_token != our_token:
            logprobs = theirs["logprobs"][position]
            gap = logprobs[str(their_token)] - logprobs.get(str(our_token), float("-inf"))
            return "" if abs(gap) < NEAR_TIE else f"{request.request_id}: token {position} differs, gap {gap}"
    same_end = (len(theirs["token_ids"]), theirs["text"], theirs["finish_reason"]) == (
        len(ours["token_ids"]),
        ours["text"],
        ours["finish_reason"],
    )
    return "" if same_end else f"{request.request_id}: {theirs['text']!r} became {ours['text']!r}"
