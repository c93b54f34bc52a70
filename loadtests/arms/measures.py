"""What one turn gave, in sums that rounds can be compared by: from our own rows, or from a result file of `vllm bench serve`.

Every measure is a speed, more is better. Sums and not medians are kept, so that a ratio over rounds weighs each request as it came.
Fails closed: a file that is no result raises ResultError in one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from nightjar.loadtests.arms.statistics import Speed
from nightjar.loadtests.load.figures import LoadFigures, LoadSummary, Spread
from nightjar.loadtests.load.rows import RequestRow
from nightjar.policy.wire.record import Record, describe_validation_error

WARM_UP: Final = "warm-up"
"""Phase of what is sent before a regime."""
WHOLE: Final = "all"
"""Phase of a load that has none: a trace, or another program's."""


class ResultError(ValueError):
    """A file that is no result of `vllm bench serve`."""


class Figures(NamedTuple):
    """Of one turn in one phase. Tokens are generated ones of whole answers; times are sums over those, `seconds` is the clock's."""

    requests: int
    failed: int
    tokens: float
    seconds: float
    answer_seconds: float
    ttft_seconds: float
    decode_tokens: float
    """All but the first token of each answer."""
    decode_seconds: float

    @property
    def whole(self) -> int:
        """Answers that came whole."""
        return self.requests - self.failed


class Measure(NamedTuple):
    """A way to compare two turns: what it is called and what it says, and the speed that it takes of figures."""

    title: str
    meaning: str
    speed: Callable[[Figures], Speed]


MEASURES: Final[Mapping[str, Measure]] = {
    "answer": Measure(
        "answer speed",
        "generated tokens per second of a request, from its sending to its last token",
        lambda one: Speed(one.tokens, one.answer_seconds),
    ),
    "tpot": Measure("TPOT", "tokens per second after the first token", lambda one: Speed(one.decode_tokens, one.decode_seconds)),
    "ttft": Measure("TTFT", "first tokens per second of waiting for them", lambda one: Speed(one.whole, one.ttft_seconds)),
    "throughput": Measure(
        "throughput",
        "generated tokens per second of the clock; where requests arrive by the clock, the arrivals set it",
        lambda one: Speed(one.tokens, one.seconds),
    ),
}
"""By name, the one that verdicts are of first: it moves under open and closed loops alike."""


def figures_by_phase(rows: Sequence[RequestRow], warm_up_s: float) -> dict[str, Figures]:
    """Of our own rows. What is of the phase WARM_UP, or was due before `warm_up_s` where there is no such phase, is left out."""
    has_phase = any(row.phase == WARM_UP for row in rows)
    phases: dict[str, list[RequestRow]] = {}
    for row in rows:
        if row.phase != WARM_UP if has_phase else row.scheduled_s >= warm_up_s:
            phases.setdefault(row.phase, []).append(row)
    return {phase: _figures(mine) for phase, mine in phases.items()}


def _figures(rows: Sequence[RequestRow]) -> Figures:
    whole = [row for row in rows if not row.error]
    tokens = [row.completion_tokens or 0 for row in whole]
    after = [
        (count - 1, row.tpot_s * (count - 1))
        for row, count in zip(whole, tokens, strict=True)
        if row.tpot_s is not None and count > 1
    ]
    return Figures(
        requests=len(rows),
        failed=len(rows) - len(whole),
        tokens=sum(tokens),
        seconds=max(row.start_s + row.e2e_s for row in rows) - min(row.start_s for row in rows),
        answer_seconds=sum(row.e2e_s for row in whole),
        ttft_seconds=sum(row.ttft_s or 0.0 for row in whole),
        decode_tokens=sum(count for count, _ in after),
        decode_seconds=sum(seconds for _, seconds in after),
    )


class BenchResult(Record):
    """What `vllm bench serve --save-result` writes, as far as it is read. The lists are there with `--save-detailed`."""

    duration: float
    completed: int
    failed: int | None = None
    num_prompts: int | None = None
    total_output_tokens: int
    mean_ttft_ms: float
    mean_tpot_ms: float
    model_id: str = ""
    ttfts: tuple[float, ...] = ()
    itls: tuple[tuple[float, ...], ...] = ()
    output_lens: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def asked(self) -> int:
        """Requests that were sent."""
        failed = self.failed if self.failed is not None else (self.num_prompts or self.completed) - self.completed
        return self.completed + max(failed, 0)

    def figures(self) -> Figures:
        """With the lists from single requests; without them from the means, where an answer's TPOT weighs as its request."""
        detailed = list(zip(self.ttfts, self.itls, self.output_lens, strict=False))
        if detailed:
            whole = [one for one, error in zip(detailed, self.errors or ("",) * len(detailed), strict=False) if not error]
            ttft_s = sum(ttft for ttft, _, _ in whole)
            decode_tokens = float(sum(max(count - 1, 0) for _, _, count in whole))
            decode_s = sum(sum(gaps) for _, gaps, _ in whole)
        else:
            ttft_s = self.completed * self.mean_ttft_ms / 1e3
            decode_tokens = float(max(self.total_output_tokens - self.completed, 0))
            decode_s = decode_tokens * self.mean_tpot_ms / 1e3
        return Figures(
            requests=self.asked,
            failed=self.asked - self.completed,
            tokens=self.total_output_tokens,
            seconds=self.duration,
            answer_seconds=ttft_s + decode_s,
            ttft_seconds=ttft_s,
            decode_tokens=decode_tokens,
            decode_seconds=decode_s,
        )


def read_result(path: Path) -> BenchResult:
    """A result file. Raises ResultError."""
    try:
        values: Any = json.loads(path.read_bytes())
        return BenchResult.model_validate(values)
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ResultError(f"{path} is no result of vllm bench serve: {describe_validation_error(error)}") from error
    except ValueError as error:
        raise ResultError(f"{path} is no result of vllm bench serve: it is no JSON ({error})") from error


def load_summary(path: Path, result: BenchResult) -> LoadSummary:
    """A result as `nightjar report` shows a load test. Quantiles need `--save-detailed`; how late requests were is not told."""
    tpots = [sum(gaps) / (count - 1) for gaps, count in zip(result.itls, result.output_lens, strict=False) if count > 1]
    nothing = Spread(n=0)
    figures = LoadFigures(
        processes=1,
        requests=result.asked,
        failed=result.asked - result.completed,
        duration_s=result.duration,
        tokens_per_s=result.total_output_tokens / result.duration if result.duration > 0 else 0.0,
        late=nothing,
        late_requests=0,
        loop_delay=nothing,
        keeps_up=True,
        start_spread_s=0.0,
        ttft=Spread.of(result.ttfts),
        tpot=Spread.of(tpots),
        e2e=nothing,
    )
    return LoadSummary(host="-", model=result.model_id or "-", load=f"vllm bench serve ({path.name})", seed=0, figures=figures)
