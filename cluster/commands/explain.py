"""`nightjar explain REPLICA`: why its K is what it is, now from the running policy, or at some time from a journal."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from nightjar.cluster.api.http_client import DEFAULT_URL
from nightjar.cluster.api.operations import EXPLAIN
from nightjar.cluster.commands.options import Output, OutputOption, UrlOption, call
from nightjar.cluster.commands.replay import moment, replay_errors
from nightjar.cluster.display.explanation import explanation_view
from nightjar.cluster.display.times import format_moment
from nightjar.cluster.storage.recording import RecordingError, RecordingReader, recording_of
from nightjar.cluster.storage.replay import ReplayedTick, Skipped, leading_to, replay
from nightjar.policy.status.explanation import UnknownReplicaError
from nightjar.policy.status.explanation import explain as explained_by
from nightjar.policy.wire.explanation import Explanation

app = typer.Typer()

LONGEST_GAP_S: Final = 60.0
"""A journal whose last tick before the asked time is older says nothing of that time."""


@app.command()
def explain(
    replica: Annotated[str, typer.Argument(metavar="REPLICA", help="Its name as in status, or a part that no other has.")],
    at_s: Annotated[
        float | None,
        typer.Option("--at", parser=moment, metavar="TIME", help="10m (ago) or an ISO time; needs --journal.", show_default="now"),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="FILE",
            help="policy-journal.jsonl (`policy.journal_path` in `nightjar status -o json`): its last tick, or that --at TIME.",
            show_default="the running policy",
        ),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    output: OutputOption = Output.TABLE,
) -> None:
    """Why is this replica's K what it is: who decided, what each K was predicted to give, and what was measured."""
    if journal is not None:
        with replay_errors():
            explanation = _from_journal(replica, journal, at_s)
    elif at_s is not None:
        raise typer.BadParameter("--at needs --journal FILE: the running policy knows the present only")
    else:
        explanation = call(url, "", {}, EXPLAIN, replica)
    if output is Output.JSON:
        typer.echo(explanation.model_dump_json(exclude_none=True))
    else:
        Console(highlight=False).print(explanation_view(explanation))


def _from_journal(replica: str, journal: Path, at_s: float | None) -> Explanation:
    """As of the last tick at `at_s` or before it. Raises RecordingError, OSError."""
    frames = leading_to(RecordingReader(recording_of(journal)), at_s if at_s is not None else math.inf)
    last = deque(replay(frames, Skipped()), maxlen=1)
    return _explained(replica, last[0] if last else None, journal, at_s)


def _explained(replica: str, last: ReplayedTick | None, journal: Path, at_s: float | None) -> Explanation:
    if last is None:
        raise RecordingError(f"{journal} holds no tick that can be replayed up to that time")
    tick_s = last.frame.time_s
    if at_s is not None and at_s - tick_s > LONGEST_GAP_S:
        raise RecordingError(
            f"{journal} holds nothing of {format_moment(at_s)}; its last tick before is of {format_moment(tick_s)}"
        )
    try:
        return explained_by(last.fleet, last.decisions, last.settings, last.overrides, replica, tick_s)
    except UnknownReplicaError as error:
        raise RecordingError(f"{error} at {format_moment(tick_s)}") from error
