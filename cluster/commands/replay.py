"""`nightjar replay JOURNAL`: decide everything again that the policy decided, off-line, and say whether it is the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from nightjar.cluster.commands.options import Output, OutputOption, escaped, fail
from nightjar.cluster.display.times import format_moment, parse_moment
from nightjar.cluster.storage.recording import RecordingError, RecordingReader, recording_of, this_version
from nightjar.cluster.storage.replay import Difference, ReplayedTick, Skipped, between, replay

app = typer.Typer()

SHOWN_TICKS: Final = 5
SHOWN_REPLICAS: Final = 5


def moment(text: str) -> float:
    """Parser of a point in time, in typer's terms."""
    try:
        return parse_moment(text, time.time())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


JournalArgument = Annotated[
    Path,
    typer.Argument(
        metavar="JOURNAL",
        help="policy-journal.jsonl (`policy.journal_path` in `nightjar status -o json`), or its folder.",
        show_default=False,
    ),
]


@app.command("replay")
def replay_journal(
    journal: JournalArgument,
    from_s: Annotated[
        float | None,
        typer.Option("--from", parser=moment, metavar="TIME", help="10m (ago) or an ISO time.", show_default="its start"),
    ] = None,
    to_s: Annotated[
        float | None,
        typer.Option("--to", parser=moment, metavar="TIME", help="10m (ago) or an ISO time.", show_default="its end"),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Decide every recorded tick again, with this release's code, and compare. Needs no cluster.

    Exit code 0 if all decisions are equal, 1 with the first differences in words, or where nothing can be replayed.
    """
    with replay_errors():
        result = _replayed(journal, from_s, to_s)
    if output is Output.JSON:
        typer.echo(json.dumps(asdict(result)))
    else:
        _show(result)
    raise typer.Exit(0 if result.is_equal else 1)


@contextmanager
def replay_errors() -> Iterator[None]:
    """Turn what is wrong with a journal into one line on stderr and exit code 1."""
    try:
        yield
    except (OSError, RecordingError) as error:
        fail(str(error))


@dataclass(slots=True)
class ReplayResult:
    """What a replay found. `differing` are the first ticks that differ, `skipped` and `unreadable_lines` what was left out."""

    recording: str
    ticks: int = 0
    reports: int = 0
    most_replicas: int = 0
    first_time_s: float | None = None
    last_time_s: float | None = None
    incarnations: list[int] = field(default_factory=list)
    differing_ticks: int = 0
    differing: list[dict[str, Any]] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    unreadable_lines: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether something was replayed and every decision is the same."""
        return self.ticks > 0 and not self.differing_ticks

    def count(self, tick: ReplayedTick) -> None:
        """Take in one tick."""
        frame = tick.frame
        self.ticks += 1
        self.reports += tick.reports
        self.most_replicas = max(self.most_replicas, len(tick.fleet.replicas))
        self.first_time_s = frame.time_s if self.first_time_s is None else self.first_time_s
        self.last_time_s = frame.time_s
        if frame.incarnation not in self.incarnations:
            self.incarnations.append(frame.incarnation)
        if tick.differences:
            self.differing_ticks += 1
            if len(self.differing) < SHOWN_TICKS:
                self.differing.append(
                    {
                        "incarnation": frame.incarnation,
                        "tick": frame.tick,
                        "time_s": frame.time_s,
                        "replicas": [asdict(one) for one in tick.differences],
                    }
                )


def _replayed(journal: Path, from_s: float | None, to_s: float | None) -> ReplayResult:
    reader = RecordingReader(recording_of(journal))
    result = ReplayResult(str(reader.path))
    begin_s, end_s = from_s if from_s is not None else float("-inf"), to_s if to_s is not None else float("inf")
    with Console(stderr=True).status("replaying") as status:
        for tick in replay(between(reader, begin_s, end_s), result.skipped):
            if tick.frame.time_s >= begin_s:
                result.count(tick)
            if result.ticks % 100 == 1:
                status.update(f"replaying: {format_moment(tick.frame.time_s)}, {result.ticks} ticks")
    result.unreadable_lines = reader.unreadable_lines
    return result


def _show(result: ReplayResult) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in _skipped_lines(result):
        console.print(f"[yellow]{escaped(line)}[/yellow]")
    if result.first_time_s is None or result.last_time_s is None:
        console.print(f"{escaped(result.recording)}: nothing to replay in that time")
        return
    incarnations = ", ".join(str(incarnation) for incarnation in result.incarnations)
    console.print(
        f"{result.ticks} ticks of incarnation {incarnations}, {format_moment(result.first_time_s)} to "
        f"{format_moment(result.last_time_s)}; {result.reports} reports of up to {result.most_replicas} replicas"
    )
    if result.is_equal:
        console.print("[green]all decisions are equal[/green]")
        return
    console.print(f"[red]{result.differing_ticks} ticks differ[/red] (decided here with {escaped(this_version())}); the first:")
    for tick in result.differing:
        console.print(f"tick {tick['tick']} of incarnation {tick['incarnation']}, {format_moment(tick['time_s'])}")
        for one in tick["replicas"][:SHOWN_REPLICAS]:
            console.print(escaped(_in_words(Difference(**one))))
        if len(tick["replicas"]) > SHOWN_REPLICAS:
            console.print(f"  and {len(tick['replicas']) - SHOWN_REPLICAS} replicas more")


def _in_words(difference: Difference) -> str:
    whose = f"replica {difference.replica_id}" if difference.replica_id else "the whole fleet"
    return f"  {whose}\n    then: {difference.decided_then}\n    now:  {difference.decided_now}"


def _skipped_lines(result: ReplayResult) -> Iterator[str]:
    if result.unreadable_lines:
        yield f"lines left out, torn or of something else: {result.unreadable_lines}"
    if result.skipped.before_first_key:
        ticks = result.skipped.before_first_key
        yield f"ticks skipped before the first whole state (what they follow was rotated away): {ticks}"
    if result.skipped.after_a_gap:
        yield f"ticks skipped after a lost one, up to the next whole state: {result.skipped.after_a_gap}"
