"""Reports of a replica that lies, for proving that it moves nobody else (INV-10).

A lie is a function of the honest report, given as it would travel, because most lies are no valid records at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import msgpack

from nightjar.policy.wire.record import to_plain
from nightjar.policy.wire.report import LoadReport

Lie = Literal["times_ten", "tenth", "nan", "negative", "stale"]
"""times_ten: speculating steps took ten times as long and accepted nothing. tenth: they took a tenth and accepted all. nan,
negative: no numbers that a counter can hold. stale: its first report, again and again under new numbers."""

LIES: tuple[Lie, ...] = get_args(Lie)


def liar(lie: Lie) -> Callable[[LoadReport], bytes]:
    """What sends a replica's reports once it lies: honest report in, bytes on the wire out."""
    if lie == "stale":
        return _Stale()
    return lambda report: _packed(_TOLD[lie](to_plain(report)))


class _Stale:
    def __init__(self) -> None:
        self._first: LoadReport | None = None

    def __call__(self, report: LoadReport) -> bytes:
        self._first = self._first or report
        return self._first.model_copy(update={"report_number": report.report_number}).to_wire()


def _slowed(report: dict[str, Any], factor: float, accepted: Callable[[dict[str, Any]], list[int]]) -> dict[str, Any]:
    shift = math.log(factor)
    for cell in report["snapshot"]["counters"]["cells"]:
        if cell["num_speculative_tokens"] and not cell["prefill"]:
            cell["step_seconds"] *= factor
            cell["log_step_seconds_squared"] += 2 * shift * cell["log_step_seconds"] + shift * shift * cell["steps"]
            cell["log_step_seconds"] += shift * cell["steps"]
            cell["accepted"] = accepted(cell)
            cell["generated_tokens"] = cell["decode_rows"] + sum(cell["accepted"])
    return report


def _with_seconds(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    counters = report["snapshot"]["counters"]
    for values in (*counters["cells"], *counters["totals"], counters):
        values["busy_seconds" if values is counters else "step_seconds"] = seconds
    return report


_TOLD: dict[Lie, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "times_ten": lambda report: _slowed(report, 10.0, lambda cell: [0] * len(cell["reached"])),
    "tenth": lambda report: _slowed(report, 0.1, lambda cell: list(cell["reached"])),
    "nan": lambda report: _with_seconds(report, math.nan),
    "negative": lambda report: _with_seconds(report, -1.0),
}


def _packed(values: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(values)
    return packed
