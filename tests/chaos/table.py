"""A run under faults as a table: one row a fault, then what was counted over all."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from tests.chaos.verdict import Observed


def print_table(console: Console, title: str, observed: Observed) -> None:
    """Print one run. A request stands in the row of the fault after which it ended, before the next began."""
    table = Table(title=title, title_justify="left")
    for name in ("fault", "proof"):
        table.add_column(name, overflow="fold")
    for name in ("requests", "failed in flight", "failed otherwise", "recovered after"):
        table.add_column(name, justify="right")
    endured = observed.endured
    for place, one in enumerate(endured):
        until_s = endured[place + 1].began_s if place + 1 < len(endured) else math.inf
        part = observed.within(one.began_s, until_s)
        numbers = (len(part.answers), len(part.failed.in_flight), len(part.failed.others))
        table.add_row(one.fault.kind, one.proof.words, *map(str, numbers), f"{one.recovered_s - one.over_s:.1f} s")
    console.print(table)
    for words in in_words(observed):
        console.print(f"{title}: {words}")
    for words in observed.broken():
        console.print(f"{title}: BROKEN: {words}", style="red")


def in_words(observed: Observed) -> list[str]:
    """What was counted over all faults."""
    failed, replayed = observed.failed, observed.replayed
    others, restarts = len(failed.others), len(observed.restarts)
    result = "equal" if replayed.is_equal else f"not equal: {replayed.differing_ticks} differ"
    return [
        f"requests: {len(observed.answers)}; failed: {len(failed.in_flight)} in flight on what was killed, {others} others",
        f"stale settings: {observed.stale_delivered} delivered, {len(observed.stale_applied)} applied",
        f"leased restarts: {restarts}, {observed.most_restarts_at_once} at once at most, {observed.over_budget} above the budget",
        f"replay: {replayed.ticks} ticks of {replayed.incarnations} incarnations {result}, {replayed.skipped_ticks} skipped",
    ]
