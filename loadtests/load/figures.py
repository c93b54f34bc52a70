"""What a load was and what came of it, in numbers that every load process adds to: `load.json`, and the lines printed last.

A load generator that was too slow measured itself. So how late each request was sent, and how late each process woke, stand beside
the latencies, and where either is more than LATE_S for more than LATE_SHARE of them the figures say that it could not keep up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Self

from nightjar.loadtests.load.goodput import Goodput, GoodputTarget, Timed, goodput_of
from nightjar.loadtests.load.rows import RequestRow, timed
from nightjar.loadtests.load.trace_join import JoinShares
from nightjar.policy.wire.record import Record

LOAD_FILE: Final = "load.json"
LATE_S: Final = 0.05
LATE_SHARE: Final = 0.01


class Spread(Record):
    """Of `n` durations in seconds; None where there is none. Quantiles are the least value that so many did not exceed."""

    n: int
    p50_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> Self:
        """Of what was timed; None was not.

        >>> Spread.of([0.3, None, 0.1, 0.2])
        Spread(n=3, p50_s=0.2, p99_s=0.3, max_s=0.3)
        """
        known = sorted(one for one in seconds if one is not None)
        if not known:
            return cls(n=0)
        p50, p99 = (known[math.ceil(share * len(known)) - 1] for share in (0.5, 0.99))
        return cls(n=len(known), p50_s=p50, p99_s=p99, max_s=known[-1])

    def __str__(self) -> str:
        if self.p50_s is None or self.p99_s is None or self.max_s is None:
            return "-"
        return " / ".join(f"{value * 1e3:.1f}" for value in (self.p50_s, self.p99_s, self.max_s))


class Seen(NamedTuple):
    """What the figures need of one request; small, for there may be millions."""

    start_s: float
    lag_s: float
    e2e_s: float
    ttft_s: float | None
    tpot_s: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    asked_prompt_tokens: int | None
    asked_output_tokens: int | None
    is_whole: bool

    @classmethod
    def of(cls, row: RequestRow) -> Self:
        """Of a request's row."""
        return cls(
            row.start_s, row.schedule_lag_s, row.e2e_s, row.ttft_s, row.tpot_s, row.prompt_tokens, row.completion_tokens,
            row.asked_prompt_tokens, row.asked_output_tokens, not row.error,
        )  # fmt: skip

    @property
    def timed(self) -> Timed:
        """What a target looks at."""
        return Timed(self.ttft_s, self.tpot_s, self.e2e_s, self.completion_tokens or 0)


class ProcessReport(NamedTuple):
    """One load process at its end: when it began on the wall clock, how late its ticks were, what it sent."""

    began_s: float
    delays_s: list[float]
    seen: list[Seen]

    def plain(self) -> dict[str, Any]:
        """For Locust's messages."""
        return {"began_s": self.began_s, "delays_s": self.delays_s, "seen": [list(one) for one in self.seen]}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """From `plain`."""
        return cls(data["began_s"], list(data["delays_s"]), [Seen(*one) for one in data["seen"]])


class LoadFigures(Record):
    """Of all load processes together.

    duration_s      from the first request's sending to the last one's end
    tokens_per_s    generated tokens of whole answers, as the server counts, over `duration_s`
    late            how much later than due requests were sent; users of closed loops are never late
    loop_delay      how much later than due the processes woke
    start_spread_s  between the first process's begin and the last one's: their shares are so much apart
    prompt_tokens_over_asked, prompt_tokens_above_asked  the server's count against the join's: their ratio, and how many more a
                    request; None without a trace
    short_answers   share of whole answers with fewer tokens than recorded; None without a trace
    """

    processes: int
    requests: int
    failed: int
    duration_s: float
    tokens_per_s: float
    late: Spread
    late_requests: int
    loop_delay: Spread
    keeps_up: bool
    start_spread_s: float
    ttft: Spread
    tpot: Spread
    e2e: Spread
    prompt_tokens_over_asked: float | None = None
    prompt_tokens_above_asked: float | None = None
    short_answers: float | None = None
    goodput: Goodput | None = None


class LoadSummary(Record):
    """`load.json`: what was played against what, and the figures."""

    host: str
    model: str
    load: str
    seed: int
    token_counting: str = ""
    shares: JoinShares | None = None
    figures: LoadFigures

    def with_goodput(self, target: GoodputTarget, rows: Sequence[RequestRow]) -> LoadSummary:
        """The same with the goodput of all its rows under a target. A worker on another machine kept its rows there."""
        whole = (timed(row) for row in rows if not row.error)
        goodput = goodput_of(target, whole, len(rows), self.figures.duration_s)
        return self.model_copy(update={"figures": self.figures.model_copy(update={"goodput": goodput})})


def figures_of(reports: Sequence[ProcessReport], target: GoodputTarget | None = None) -> LoadFigures:
    """Of everything that the load processes sent, with the goodput under a target where there is one."""
    seen = [one for report in reports for one in report.seen]
    whole = [one for one in seen if one.is_whole]
    duration_s = max((one.start_s + one.e2e_s for one in seen), default=0.0) - min((one.start_s for one in seen), default=0.0)
    delays_s = [delay_s for report in reports for delay_s in report.delays_s]
    lags_s = [one.lag_s for one in seen]
    began = [report.began_s for report in reports]
    over, above = _against_asked(whole)
    tokens = sum(one.completion_tokens or 0 for one in whole)
    return LoadFigures(
        processes=len(reports),
        requests=len(seen),
        failed=len(seen) - len(whole),
        duration_s=duration_s,
        tokens_per_s=tokens / duration_s if duration_s > 0 else 0.0,
        late=Spread.of(lags_s),
        late_requests=_above(lags_s),
        loop_delay=Spread.of(delays_s),
        keeps_up=all(_above(times_s) <= LATE_SHARE * len(times_s) for times_s in (lags_s, delays_s)),
        start_spread_s=max(began, default=0.0) - min(began, default=0.0),
        ttft=Spread.of(one.ttft_s for one in whole),
        tpot=Spread.of(one.tpot_s for one in whole),
        e2e=Spread.of(one.e2e_s for one in whole),
        prompt_tokens_over_asked=over,
        prompt_tokens_above_asked=above,
        short_answers=_short_share(whole),
        goodput=goodput_of(target, (one.timed for one in whole), len(seen), duration_s) if target else None,
    )


def lines_of(summary: LoadSummary) -> list[tuple[str, str]]:
    """What a person reads last: a name and its value a line."""
    figures = summary.figures
    lines = [
        ("load", f"{summary.load}, seed {summary.seed}, against {summary.model} at {summary.host}"),
        (
            "requests",
            f"{figures.requests} in {figures.duration_s:.1f} s by {figures.processes} processes, {figures.failed} failed",
        ),
        ("generated tokens per second", f"{figures.tokens_per_s:.1f}"),
        ("TTFT ms p50 / p99 / max", str(figures.ttft)),
        ("TPOT ms p50 / p99 / max", str(figures.tpot)),
        ("sent late ms p50 / p99 / max", str(figures.late)),
    ]
    if figures.goodput:
        lines.append(("goodput", str(figures.goodput)))
    if figures.processes > 1:
        lines.append(("processes began apart ms", f"{figures.start_spread_s * 1e3:.0f}"))
    if summary.shares is not None:
        lines += [("changed", str(summary.shares)), ("prompt tokens", _prompt_tokens(summary))]
    if figures.short_answers:
        lines.append(("answers", f"{figures.short_answers:.1%} ended before the recorded length (--ignore-eos has vLLM go on)"))
    if not figures.keeps_up:
        lines.append(("TOO SLOW", too_slow(figures)))
    return lines


def too_slow(figures: LoadFigures) -> str:
    """Why the latencies of a load generator that could not keep up are no measurement of the server."""
    sent = f"{figures.late_requests} of {figures.requests} requests were sent more than {LATE_S * 1e3:g} ms late"
    return (
        "this load generator could not keep up: "
        + (f"{sent} (p99 {_ms(figures.late.p99_s)} ms), and " if figures.late_requests else "")
        + f"its processes woke {_ms(figures.loop_delay.max_s)} ms late at most (p99 {_ms(figures.loop_delay.p99_s)} ms), so "
        "latencies contain its own; give it more --processes or cores"
    )


def _prompt_tokens(summary: LoadSummary) -> str:
    over, above = summary.figures.prompt_tokens_over_asked, summary.figures.prompt_tokens_above_asked
    if over is None or above is None:
        return f"{summary.token_counting}; the server told none"
    return f"{summary.token_counting}; with its chat template the server counted {above:+.0f} a request, {over:.3f} of that"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f}"


def _above(times_s: Sequence[float]) -> int:
    return sum(one > LATE_S for one in times_s)


def _against_asked(seen: Sequence[Seen]) -> tuple[float | None, float | None]:
    """The server's prompt tokens over those of the join, and how many more a request."""
    pairs = [
        (one.prompt_tokens, one.asked_prompt_tokens)
        for one in seen
        if one.prompt_tokens is not None and one.asked_prompt_tokens is not None
    ]
    counted, asked = (sum(pair[place] for pair in pairs) for place in (0, 1))
    return (counted / asked, (counted - asked) / len(pairs)) if asked else (None, None)


def _short_share(seen: Sequence[Seen]) -> float | None:
    pairs = [
        (one.completion_tokens, one.asked_output_tokens)
        for one in seen
        if one.completion_tokens is not None and one.asked_output_tokens is not None
    ]
    return sum(given < asked for given, asked in pairs) / len(pairs) if pairs else None
