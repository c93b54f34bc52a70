"""Goodput under a target: which requests were answered as fast as was wanted, and what those brought.

Tokens per second reward a server that lets a few wait for ever. A target names what a request must keep, in the words of
`vllm bench serve`: `ttft:500 tpot:50`, and `e2el` for the whole answer, all in milliseconds. A request counts if it was answered
whole and keeps all of them; one of a single token has no TPOT and keeps any.
Fails closed: words that are no target raise `GoodputError`, in one line with the form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple

from pydantic import Field

from nightjar.policy.wire.record import Record

FORM: Final = "ttft:MS, tpot:MS or e2el:MS, each once, in milliseconds above 0, for example ttft:500 tpot:50"
_Milliseconds = Annotated[float, Field(gt=0.0, le=1e9)]


class GoodputError(ValueError):
    """Words that are no target."""


class Timed(NamedTuple):
    """One request that was answered whole, in seconds and generated tokens."""

    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    tokens: int


class GoodputTarget(Record):
    """What a request must keep; None bounds nothing. At least one is set.

    ttft_ms  to the first token; tpot_ms  per token after it; e2el_ms  to the last one
    """

    ttft_ms: _Milliseconds | None = None
    tpot_ms: _Milliseconds | None = None
    e2el_ms: _Milliseconds | None = None

    def __str__(self) -> str:
        bounds = (("ttft", self.ttft_ms), ("tpot", self.tpot_ms), ("e2el", self.e2el_ms))
        return " ".join(f"{name}:{value:g}" for name, value in bounds if value is not None)

    def is_kept_by(self, one: Timed) -> bool:
        """Whether a request that was answered whole kept every bound."""
        if self.ttft_ms is not None and not (one.ttft_s is not None and one.ttft_s * 1e3 <= self.ttft_ms):
            return False
        if self.tpot_ms is not None and not (one.tpot_s or 0.0) * 1e3 <= self.tpot_ms:
            return False
        return self.e2el_ms is None or one.e2e_s * 1e3 <= self.e2el_ms


class Goodput(Record):
    """How many of `requests` kept the target, and their generated tokens per second of the whole time."""

    target: GoodputTarget
    requests: int
    kept: int
    tokens_per_s: float

    @property
    def share(self) -> float | None:
        """From 0 to 1; None without a request."""
        return self.kept / self.requests if self.requests else None

    def __str__(self) -> str:
        share = "no request" if self.share is None else f"{self.share:.1%} of {self.requests} requests"
        return f"{share} within {self.target}, {self.tokens_per_s:.1f} tokens per second of those"


def goodput_of(target: GoodputTarget, whole: Iterable[Timed], requests: int, duration_s: float) -> Goodput:
    """Of the requests that were answered whole; the others of `requests` did not keep it."""
    kept = [one for one in whole if target.is_kept_by(one)]
    tokens = sum(one.tokens for one in kept)
    return Goodput(target=target, requests=requests, kept=len(kept), tokens_per_s=tokens / duration_s if duration_s > 0 else 0.0)


def pooled(parts: Sequence[tuple[Goodput, float]]) -> Goodput | None:
    """Several stretches of the same target, each with its seconds, as one; None of none.

    >>> target = GoodputTarget(ttft_ms=500)
    >>> one, other = (Goodput(target=target, requests=4, kept=kept, tokens_per_s=10.0 * kept) for kept in (4, 1))
    >>> str(pooled([(one, 10.0), (other, 20.0)]))
    '62.5% of 8 requests within ttft:500, 20.0 tokens per second of those'
    """
    if not parts:
        return None
    tokens = sum(goodput.tokens_per_s * seconds for goodput, seconds in parts)
    return Goodput(
        target=parts[0][0].target,
        requests=sum(goodput.requests for goodput, _ in parts),
        kept=sum(goodput.kept for goodput, _ in parts),
        tokens_per_s=tokens / sum(seconds for _, seconds in parts),
    )


def parse_goodput(words: Sequence[str]) -> GoodputTarget | None:
    """A target from its words, each of which may hold several; None where there is no word. Raises GoodputError.

    >>> str(parse_goodput(["ttft:500", "tpot:50"])), str(parse_goodput(["tpot:50 e2el:2000"])), parse_goodput([])
    ('ttft:500 tpot:50', 'tpot:50 e2el:2000', None)
    """
    bounds: dict[str, float] = {}
    for word in " ".join(words).split():
        name, _, text = word.partition(":")
        value = _milliseconds(text)
        if name not in {"ttft", "tpot", "e2el"} or value is None or f"{name}_ms" in bounds:
            raise GoodputError(f"goodput {word[:40]!r}: allowed are {FORM}")
        bounds[f"{name}_ms"] = value
    return GoodputTarget(**bounds) if bounds else None


def _milliseconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 < value <= 1e9 else None
