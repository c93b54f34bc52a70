"""`make bench-load`: our load generator against `vllm bench serve`, on a plain `vllm serve` and the same requests.

Starts vLLM with a small model, on one core. Each round plays the same evenly spaced requests once with Locust and once with
`vllm bench serve`, each of them first in every other round; lengths are a trace's, shortened, and texts those of a prompts file.
The bars ask whether both see the same TTFT and TPOT. `vllm bench serve` needs pandas beside vLLM. Ends with exit code 1 if
something broke, and with --strict if a bar was missed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from nightjar.deployments.models import BASE_NAME, models_folder
from nightjar.loadtests.arms.arm import TurnError
from nightjar.loadtests.load.openai_stream import Server, served_model
from nightjar.loadtests.load.prompts import PromptsError, read_texts
from nightjar.loadtests.load.traces import TraceError, TraceFit, fit_trace, read_trace
from nightjar.loadtests.report.machine import Effort
from nightjar.loadtests.simulation.evidence.bars import StrictOption
from tests.benchmarks.load.agreement import Round, bars, table
from tests.benchmarks.load.commands import VLLM, Served, ours, read_ours, read_theirs, theirs, write_even_trace
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.repeats import latin_rectangle
from tests.benchmarks.measuring.run import BenchRun
from tests.ports import free_port

OUTPUT: Final = Path("runs/load/latest")
DATA_VARIABLE: Final = "NIGHTJAR_TEST_DATA"
TRACE_FILE: Final = "azure_llm_2023_conv.csv"
PROMPTS_FILE: Final = "spec_bench_shared.jsonl"
MODEL_ID: Final = "smollm2"
MAX_MODEL_LEN: Final = 1024
FIT: Final = TraceFit(length_scale=0.1, max_prompt_tokens=150, max_output_tokens=16)
"""Short enough that an engine on one core answers faster than requests come."""
REQUESTS_PER_S: Final = 1.5
ROUNDS: Final = 8
QUICK_ROUNDS: Final = 2
REQUESTS: Final = 24
STARTS_WITHIN_S: Final = 300.0
RUN_WITHIN_S: Final = 180.0


@contextmanager
def vllm_serve(tokenizer: Path, log: Path) -> Iterator[Served]:
    """A plain server of vLLM, without prefix caching: what the first round sent is not to help the second. Raises TurnError."""
    port = free_port()
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    environment = {
        **os.environ,
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        **({"LD_PRELOAD": str(library)} if library.is_file() else {}),
    }
    command = [
        *VLLM, "serve", str(tokenizer), "--served-model-name", MODEL_ID, "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "16", "--no-enable-prefix-caching",
    ]  # fmt: skip
    served = Served(f"http://127.0.0.1:{port}", MODEL_ID, tokenizer)
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            _wait_until_it_answers(served, process, log)
            yield served
        finally:
            process.terminate()


def _wait_until_it_answers(served: Served, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            served_model(Server(served.url))
        except ConnectionError:
            time.sleep(0.5)
        else:
            return
    raise TurnError(f"vllm serve did not come to answer within {STARTS_WITHIN_S:g} s; its words are in {log}")


def play_round(number: int, order: Sequence[str], served: Served, prompts: Path, folder: Path) -> Round:
    """Both tools, one after the other. The second round on plays the join that the first wrote, which is the same every time."""
    found = {}
    for tool in order:
        if tool == "ours":
            _run("locust", ours(served, folder / "trace.csv", prompts, folder / "ours", MAX_MODEL_LEN), folder)
            found[tool] = read_ours(folder / "ours", REQUESTS)
        else:
            join = folder / "join.jsonl"
            _run("vllm bench serve", theirs(served, join, REQUESTS, REQUESTS_PER_S, folder), folder)
            found[tool] = read_theirs(folder, REQUESTS)
    return Round(number, order[0], found["ours"], found["theirs"])


def _run(tool: str, command: Sequence[str], folder: Path) -> None:
    log = folder / f"{tool.replace(' ', '-')}.log"
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=output, timeout=RUN_WITHIN_S, check=False)
    if done.returncode:
        raise TurnError(f"{tool} ended with exit code {done.returncode}; its words are in {log}")


def _file(named: Path | None, usual: str, option: str) -> Path:
    path = named or Path(os.environ.get(DATA_VARIABLE) or "../shared/data") / usual
    if not path.is_file():
        raise typer.BadParameter(f"{path} is no file: {option} or {DATA_VARIABLE} names one", param_hint=option)
    return path


def measure(run: BenchRun, rounds: int, trace: Path, prompts: Path, folder: Path) -> Outcome:
    """All rounds, after one that warms both tools and the server up and writes the join."""
    tokenizer = models_folder() / BASE_NAME
    if not (tokenizer / "tokenizer.json").is_file():
        raise TurnError(f"no model at {tokenizer}: make models")
    if importlib.util.find_spec("pandas") is None:
        raise TurnError("vllm bench serve needs pandas: .venv/bin/pip install pandas")
    write_even_trace(folder / "trace.csv", fit_trace(read_trace(trace)[:REQUESTS], FIT).rows, REQUESTS_PER_S)
    run.tell("starting vllm serve")
    with vllm_serve(tokenizer, folder / "vllm-serve.log") as served:
        run.tell("a round for warming up")
        _run("locust", ours(served, folder / "trace.csv", prompts, folder / "ours", MAX_MODEL_LEN), folder)
        shutil.copy(folder / "ours" / "latest" / "join.jsonl", folder / "join.jsonl")
        orders, played = latin_rectangle(("ours", "theirs"), rounds, run.rng("order")), list[Round]()
        for number, order in enumerate(orders):
            played.append(play_round(number, order, served, prompts, folder))
            run.tell(f"round {number + 1} of {rounds}: {played[-1].plain()}")
    return Outcome(bars=bars(played, run.seed), rows={"rounds": [one.plain() for one in played]}, tables=[table(played, run.seed)])


def main(
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_ROUNDS} rounds: a look, no evidence.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds, each with both tools.", min=2)] = ROUNDS,
    seed: Annotated[int, typer.Option(help="Draws the order within each round.")] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="CSV whose lengths are played.", show_default=f"{TRACE_FILE} in ${DATA_VARIABLE}")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with texts.", show_default=f"{PROMPTS_FILE} in ${DATA_VARIABLE}")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for summary.json, raw rows and logs.")] = OUTPUT,
    strict: StrictOption = False,
) -> None:
    """Play the same requests with our load generator and with `vllm bench serve`, in turns."""
    trace, prompts = _file(trace, TRACE_FILE, "--trace"), _file(prompts, PROMPTS_FILE, "--prompts")
    try:
        read_trace(trace)
        read_texts(prompts)
    except (TraceError, PromptsError) as error:
        raise typer.BadParameter(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    effort: Effort = "quick" if quick else "whole" if rounds >= ROUNDS else "partial"
    subject = f"SmolLM2-135M on one core, {REQUESTS} requests at {REQUESTS_PER_S:g}/s, answers of up to {FIT.max_output_tokens:g}"
    run = BenchRun("load", seeds=[seed], sections=["agreement"], output=output, effort=effort, subject=subject)
    try:
        run.found("agreement", measure(run, QUICK_ROUNDS if quick else rounds, trace, prompts, output.resolve()))
    except (TurnError, subprocess.TimeoutExpired) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(run.end(strict=strict))


if __name__ == "__main__":
    typer.run(main)
