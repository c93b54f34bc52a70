"""What a run of mutants says: counts by module, whether the bar is reached, and what is to be done.

A mutant counts as killed where a test fails or its run hangs. An explained survivor is no kill: it lowers the share like any other,
and is only no longer work to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.mutants.survivors import Explained, unused

WANTED_SHARE: Final = 0.8
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Tried:
    """One mutant and its end: killed, timeout, survived or not run."""

    module: str
    line: int
    operator: str
    before: str
    after: str
    outcome: str
    by: str = ""
    processor_s: float = 0.0

    @property
    def key(self) -> Key:
        """As explained.toml names it."""
        return self.module, self.before, self.after


@dataclass(frozen=True, slots=True)
class Count:
    """Of one module, or of all."""

    name: str
    mutants: int
    killed: int
    timeouts: int
    explained: int
    survived: int
    not_run: int
    processor_s: float

    @property
    def share(self) -> float:
        """Killed or hung, of those that were run."""
        run = self.mutants - self.not_run
        return (self.killed + self.timeouts) / run if run else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`missed` says in words what is wrong; nothing where all is well."""

    counts: tuple[Count, ...]
    total: Count
    survivors: tuple[Tried, ...]
    """Those that nobody explained."""
    stale: tuple[Explained, ...]
    missed: tuple[str, ...]


def verdict_on(tried: Sequence[Tried], explained: Mapping[Key, Explained], *, is_sample: bool = False) -> Verdict:
    """The verdict on a run; of a sample it is not asked that every explanation fits a mutant."""
    modules = list(dict.fromkeys(one.module for one in tried))
    counts = tuple(_count(name, [one for one in tried if one.module == name], explained) for name in modules)
    total = _count("all", tried, explained)
    survivors = tuple(one for one in tried if one.outcome == "survived" and one.key not in explained)
    stale = () if is_sample else tuple(unused(explained.values(), (one.key for one in tried if one.outcome == "survived"), modules))
    return Verdict(counts, total, survivors, stale, tuple(_missed((*counts, total))))


def _count(name: str, tried: Sequence[Tried], explained: Mapping[Key, Explained]) -> Count:
    lived = [one for one in tried if one.outcome == "survived"]
    known = sum(one.key in explained for one in lived)
    by_outcome = {outcome: sum(one.outcome == outcome for one in tried) for outcome in ("killed", "timeout", "not run")}
    return Count(
        name,
        len(tried),
        by_outcome["killed"],
        by_outcome["timeout"],
        known,
        len(lived) - known,
        by_outcome["not run"],
        sum(one.processor_s for one in tried),
    )


def _missed(counts: Iterable[Count]) -> Iterable[str]:
    for count in counts:
        if count.not_run:
            yield f"{count.name}: {count.not_run} of {count.mutants} mutants were not run, the time was over; try --share"
        if count.mutants > count.not_run and count.share < WANTED_SHARE:
            yield f"{count.name}: {count.share:.1%} of its mutants were killed, wanted are {WANTED_SHARE:.0%}"
        if count.survived and count.name != "all":
            yield f"{count.name}: {count.survived} survivors that tests/mutants/explained.toml does not explain"


def markdown(verdict: Verdict) -> str:
    """The table of docs/results/mutants.md."""
    lines = [
        "| module | mutants | killed | hung | explained | survived | killed share |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count in (*verdict.counts, verdict.total):
        name = f"`{count.name}`" if count is not verdict.total else "all"
        numbers = (count.mutants, count.killed, count.timeouts, count.explained, count.survived)
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {count.share:.0%} |")
    return "\n".join(lines) + "\n"


def plain(verdict: Verdict) -> dict[str, Any]:
    """For summary.json."""
    return {
        "modules": {
            count.name: {
                "mutants": count.mutants,
                "killed": count.killed,
                "timeouts": count.timeouts,
                "explained": count.explained,
                "survived": count.survived,
                "not_run": count.not_run,
                "share": round(count.share, 4),
                "processor_s": round(count.processor_s, 1),
            }
            for count in (*verdict.counts, verdict.total)
        },
        "missed": list(verdict.missed),
    }
