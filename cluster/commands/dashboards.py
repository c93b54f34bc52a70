"""`nightjar dashboards`: folder, data source and dashboards in a Grafana, as the code says they are, and what happened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

import typer

from nightjar.cluster.api.access import TokenError, configured_token
from nightjar.cluster.commands.options import Output, OutputOption, as_it_is, fail
from nightjar.cluster.dashboards import DASHBOARDS
from nightjar.cluster.dashboards.annotations import Annotation, RowsError, happened, phases, read_load_rows
from nightjar.cluster.dashboards.grafana import Change, GrafanaError, GrafanaServer, annotate, checked_address, push
from nightjar.cluster.dashboards.without_ray import PLAIN_DASHBOARDS
from nightjar.cluster.storage.journal import read_journal

TOKEN_VARIABLE: Final = "NIGHTJAR_GRAFANA_TOKEN"  # noqa: S105 - a variable's name

app = typer.Typer(no_args_is_help=True, help="Grafana dashboards of the fleet and of one replica.")


UrlOption = Annotated[
    str,
    typer.Option("--url", envvar="NIGHTJAR_GRAFANA_URL", help="Address of Grafana, with its path if any.", show_envvar=True),
]
JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        help="Annotate restarts, from the policy's journal (`policy.journal_path` in `nightjar status -o json`).",
        metavar="FILE",
        show_default="no annotations",
    ),
]
LoadOption = Annotated[
    Path | None,
    typer.Option(
        "--load",
        help="Annotate the phases of a load test, from its rows (Locust's --rows, a demo's requests.jsonl).",
        metavar="FILE",
        show_default="no annotations",
    ),
]
DEFAULT_URL: Final = "http://127.0.0.1:3000"


@app.command("push")
def push_dashboards(
    url: UrlOption = DEFAULT_URL,
    prometheus: Annotated[
        str,
        typer.Option(
            "--prometheus",
            help="Also provision a data source for the Prometheus at this address, as Grafana's server reaches it.",
            metavar="URL",
            show_default="none: choose one of Grafana's at the top of a dashboard",
        ),
    ] = "",
    without_ray: Annotated[
        bool,
        typer.Option("--without-ray", help="The dashboards for servers of `nightjar serve`; both kinds may be in one Grafana."),
    ] = False,
    journal: JournalOption = None,
    load: LoadOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Provision folder, data source, dashboards and annotations. What is there already and the same is not written again.

    The token of a service account (role Admin with --prometheus, else Editor) comes from NIGHTJAR_GRAFANA_TOKEN, or from the
    file that NIGHTJAR_GRAFANA_TOKEN_FILE names. What somebody changed in these dashboards by hand is overwritten.
    """
    try:
        if prometheus:
            checked_address("--prometheus", prometheus)
        with _grafana(url) as grafana:
            annotations = _annotations(journal, load)
            _show(
                chain(push(grafana, PLAIN_DASHBOARDS if without_ray else DASHBOARDS, prometheus), annotate(grafana, annotations)),
                output,
            )
    except (GrafanaError, OSError, RowsError, TokenError) as error:
        fail(str(error))


@app.command("annotate")
def annotate_dashboards(
    url: UrlOption = DEFAULT_URL,
    journal: JournalOption = None,
    load: LoadOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Write annotations alone, for dashboards that something else provisioned (the chart's, which Grafana refuses to change).

    The token is that of a service account with the role Editor, from NIGHTJAR_GRAFANA_TOKEN or NIGHTJAR_GRAFANA_TOKEN_FILE.
    """
    if journal is None and load is None:
        fail("nothing to annotate: name --journal, --load, or both")
    try:
        with _grafana(url) as grafana:
            _show(annotate(grafana, _annotations(journal, load)), output)
    except (GrafanaError, OSError, RowsError, TokenError) as error:
        fail(str(error))


def _grafana(url: str) -> GrafanaServer:
    """The Grafana of the command line, with the environment's token. Raises TokenError, GrafanaError."""
    token = configured_token(variable=TOKEN_VARIABLE)
    if token is None:
        raise TokenError(f"no token: set {TOKEN_VARIABLE}, or {TOKEN_VARIABLE}_FILE to a file that holds it")
    return GrafanaServer(url, token)


def _annotations(journal: Path | None, load: Path | None) -> list[Annotation]:
    """What happened, by the files that were named. Raises OSError, RowsError."""
    return [*(happened(read_journal(journal)) if journal else ()), *(phases(read_load_rows(load)) if load else ())]


def _show(changes: Iterable[Change], output: Output) -> None:
    """One line a thing, as soon as it is done."""
    console = as_it_is()
    for change in changes:
        if output is Output.JSON:
            typer.echo(json.dumps(asdict(change)))
        else:
            console.print(f"{change.outcome:<10}{change.kind} {change.name}")
