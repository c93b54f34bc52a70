"""`nightjar assess`: what a plain vLLM ran by its Prometheus, and what the planner would gain. Reads; changes and sends nothing."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.progress import Progress

from nightjar.loadtests.assessment.findings import Findings, find
from nightjar.loadtests.assessment.history import scraped
from nightjar.loadtests.assessment.prometheus import Found, PrometheusError, open_prometheus, read_recording, read_scrapes
from nightjar.loadtests.assessment.report import render_page, to_markdown
from nightjar.loadtests.assessment.scrapes import MODEL, PREFIXES, Metric
from nightjar.loadtests.report.output import Output, OutputOption, fail
from nightjar.loadtests.simulation.profiles import SHIPPED_NAMES, Profile, ProfileError, read_profile

MOST_HOURS: Final = 24.0 * 90
HOUR_S: Final = 3600.0
SAMPLE: Final = Path(__file__).parent / "sample.json"
SAMPLE_IN_WORDS: Final = "a recording of a simulated service (tests/loadtests/assessment/sample.py), not a measured one"


def assess(
    prometheus: Annotated[
        str, typer.Option(help="Address of the Prometheus that scrapes vLLM, with its path prefix.", show_default=False)
    ] = "",
    sample: Annotated[bool, typer.Option("--sample", help="Read the recording that ships instead: a simulated service.")] = False,
    hours: Annotated[float, typer.Option(help="How far back.", min=0.1, max=MOST_HOURS)] = 24.0,
    until: Annotated[str, typer.Option(help="End of that time: an ISO time, UTC without an offset.", show_default="now")] = "",
    selector: Annotated[
        str, typer.Option(help='Only series with these labels, as in PromQL: \'model_name="chat",namespace=~"prod.*"\'.')
    ] = "",
    profile: Annotated[
        str, typer.Option(help=f"Step times of an engine like these: {', '.join(SHIPPED_NAMES)}, or a file.", show_default="none")
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="File with a bearer token for Prometheus.")] = None,
    page: Annotated[Path | None, typer.Option(help="Also write the findings as one HTML file.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """What would Nightjar gain here? Read from the Prometheus of a plain vLLM or Ray Serve LLM (vllm:*, ray_vllm_*).

    Prints at which batches it ran for how long, with which K and acceptance, what the planner would have run by a profile of step
    times, and the gain with its interval; then what cannot be known from there. It gives no gain where nothing was ever drafted.
    Reads only; nothing but the queries leaves this machine. The table is Markdown.
    """
    console = Console(stderr=True)
    if sample == bool(prometheus):
        fail("give --prometheus ADDRESS, or --sample for the recording that ships, one of them", 2)
    if sample and (selector or until or token_file):
        fail("--sample is read as a whole: it takes no --selector, --until or --token-file", 2)
    try:
        chosen = read_profile(profile) if profile else None
        if sample:
            found, from_s, to_s = read_recording(SAMPLE)
            console.print(f"read from {SAMPLE_IN_WORDS}", highlight=False, soft_wrap=True)
        else:
            to_s = _moment(until) if until else time.time()
            from_s = to_s - hours * HOUR_S
            with open_prometheus(prometheus, _token(token_file)) as client:
                found = _read(client, selector, from_s, to_s, console)
        findings = _findings(found, prometheus or SAMPLE_IN_WORDS, selector, from_s, to_s, chosen)
        if page is not None:
            page.write_text(render_page(findings), encoding="utf-8")
    except (PrometheusError, ProfileError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    typer.echo(findings.model_dump_json(indent=1) if output is Output.JSON else to_markdown(findings), nl=output is Output.JSON)


def _read(client: httpx.Client, selector: str, from_s: float, to_s: float, console: Console) -> Found:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=1.0)
        return read_scrapes(client, selector, from_s, to_s, lambda share: progress.advance(task, share))


def _findings(found: Found, prometheus: str, selector: str, from_s: float, to_s: float, profile: Profile | None) -> Findings:
    """Raises PrometheusError where no engine, or more than one model, was found."""
    models = sorted({engine.model for engine in found.engines})
    if not models:
        names = " or ".join(f"{prefix}{Metric.RUNNING}" for prefix in PREFIXES)
        matching = f" with {selector}" if selector else ""
        raise PrometheusError(
            f"{prometheus}: no series {names}{matching} in {(to_s - from_s) / HOUR_S:g} hours; does this Prometheus scrape vLLM?"
        )
    if len(models) > 1:
        raise PrometheusError(
            f"{len(models)} models were scraped ({', '.join(models[:5])}); choose one: --selector '{MODEL}=\"{models[0]}\"'"
        )
    return find(
        scraped(found.engines),
        prometheus=prometheus,
        selector=selector,
        model=models[0],
        engines=len(found.engines),
        from_s=from_s,
        to_s=to_s,
        profile=profile,
        warnings=tuple(f"Prometheus warns: {warning}" for warning in found.warnings),
    )


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"--until {text[:40]!r} is no time such as 2026-11-25T22:05:00Z") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _token(file: Path | None) -> SecretStr | None:
    """The file's token. Raises OSError, and ValueError for one that is no token."""
    if file is None:
        return None
    text = file.read_text(encoding="utf-8").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{file}: holds no token, one line of printable ASCII is allowed")
    return SecretStr(text)


app = typer.Typer(help="What Nightjar would gain here.")
app.command()(assess)
