"""`make status-times`: how soon `nightjar status`, its API and the page answer beside engines that keep every core busy.

Starts `nightjar run FILE`, keeps completions in flight, and asks from sessions of its own, as another terminal does, in turns: the
command, and what it asks for, `GET /nightjar/status` and `/nightjar`, through curl, whose own start costs nothing. Once with the
session as nice as `nightjar run` makes it, once as nice as any (0), on the very load. Prints seconds; judges nothing. Other busy
processes of the machine count as well: run it beside nothing.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from nightjar.cluster.local.cluster import SESSION_NICENESS
from tests.cluster.nightjar_run import ROOT, Run

READY_S: Final = 400.0
WARM_UP_S: Final = 15.0
MAX_TOKENS: Final = 200


def keep_busy(url: str, model: str, in_flight: int, stop: threading.Event) -> None:
    """Keep so many completions in flight until `stop` is set. Run in a thread."""

    async def one(client: httpx.AsyncClient) -> None:
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": MAX_TOKENS, "ignore_eos": True}
        while not stop.is_set():
            (await client.post(f"{url}/v1/completions", json=body)).raise_for_status()

    async def all_of_them() -> None:
        async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=in_flight)) as client:
            sending = [asyncio.create_task(one(client)) for _ in range(in_flight)]
            await asyncio.to_thread(stop.wait)
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)

    asyncio.run(all_of_them())


def timed(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command in a session of its own. Raises CalledProcessError where it fails."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, start_new_session=True, cwd=ROOT)
    wall_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Serve YAML with the policy's application.")] = ROOT
    / "cluster/configs/local-cpu.yaml",
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, help="Completions in flight.")] = 64,
    times: Annotated[int, typer.Option("--times", min=1, help="Questions of each kind and part.")] = 10,
    model: Annotated[str, typer.Option("--model", help="Name in requests.")] = "smollm2",
) -> None:
    """Time status, API and page beside a full load."""
    values: Mapping[str, object] = yaml.safe_load(file.read_text())
    stop = threading.Event()
    rows: list[tuple[str, str, list[tuple[float, float]]]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), dict(values))
        try:
            url = run.ready(READY_S)["url"]
            command = [sys.executable, "-c", "from nightjar.cluster.cli import main; main()", "status", "--url", url]
            asked = {
                "nightjar status": command,
                "GET /nightjar/status": ["curl", "-sf", f"{url}/nightjar/status"],
                "GET /nightjar (page)": ["curl", "-sf", f"{url}/nightjar"],
            }
            parts = {"idle": SESSION_NICENESS, "full load": SESSION_NICENESS, "full load, session not nice": 0}
            load = threading.Thread(target=keep_busy, args=(url, model, in_flight, stop))
            for part, niceness in parts.items():
                if part != "idle" and not load.is_alive():
                    load.start()
                    time.sleep(WARM_UP_S)
                Path(f"/proc/{run.session}/autogroup").write_text(str(niceness))
                for what, ask in asked.items():
                    rows.append((part, what, [timed(ask) for _ in range(times)]))
            subprocess.run(command, check=True, cwd=ROOT)
        finally:
            stop.set()
            run.stop()
    table = Table(box=box.SIMPLE_HEAD, title=f"{file.name}, {in_flight} in flight, {os.cpu_count()} cores, {times} times each")
    for name in ("load", "asked", "median, s", "worst, s", "processor, s"):
        table.add_column(name, justify="left" if name in {"load", "asked"} else "right")
    for part, what, seconds in rows:
        walls, works = [wall for wall, _ in seconds], [work for _, work in seconds]
        table.add_row(part, what, f"{statistics.median(walls):.2f}", f"{max(walls):.2f}", f"{statistics.median(works):.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
