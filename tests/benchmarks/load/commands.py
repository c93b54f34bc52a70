"""The two command lines that are compared, and how what they measured is read.

Both get the same requests: our run writes its join, and the other tool takes that very file as its data set. Both send evenly
spaced, at temperature 0, answers of exactly the asked length.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightjar.loadtests.arms.arm import TurnError
from nightjar.loadtests.arms.load import locust_command
from nightjar.loadtests.load.rows import read_rows
from nightjar.loadtests.load.traces import TraceRow

VLLM: Final = (sys.executable, "-m", "tests.benchmarks.load.vllm_command")


@dataclass(frozen=True, slots=True)
class Served:
    """The server under load: its URL, the id of its model and the folder of that model's tokenizer."""

    url: str
    model: str
    tokenizer: Path


@dataclass(frozen=True, slots=True)
class Times:
    """Of one run's requests, in seconds and in any order. A request of one token has no TPOT."""

    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]

    def of(self, measure: str) -> tuple[float, ...]:
        """`ttft` or `tpot`."""
        return self.ttft_s if measure == "ttft" else self.tpot_s


def ours(served: Served, trace: Path, prompts: Path, folder: Path, max_model_len: int) -> list[str]:
    """The command that plays a trace. It leaves requests.jsonl and join.jsonl in `folder`/latest."""
    options = {
        "--model": served.model, "--trace": str(trace), "--prompts": str(prompts), "--tokenizer": str(served.tokenizer),
        "--max-model-len": str(max_model_len), "--runs": str(folder),
    }  # fmt: skip
    return locust_command(served.url, options, "--ignore-eos")


def theirs(served: Served, join: Path, requests: int, requests_per_s: float, folder: Path) -> list[str]:
    """`vllm bench serve` with the same requests. It leaves result.json in `folder`."""
    return [
        *VLLM, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", served.url,
        "--model", str(served.tokenizer), "--served-model-name", served.model, "--tokenizer", str(served.tokenizer),
        "--dataset-name", "custom", "--dataset-path", str(join), "--custom-output-len", "-1", "--skip-chat-template",
        "--disable-shuffle", "--num-prompts", str(requests), "--request-rate", str(requests_per_s), "--burstiness", "inf",
        "--ignore-eos", "--temperature", "0", "--disable-tqdm", "--save-result", "--save-detailed",
        "--result-dir", str(folder), "--result-filename", "result.json",
    ]  # fmt: skip


def read_ours(folder: Path, requests: int) -> Times:
    """What our run left. Raises TurnError unless every request was answered whole."""
    rows = read_rows(folder / "latest" / "requests.jsonl")
    failed = [row.error for row in rows if row.error]
    if failed or len(rows) != requests:
        raise TurnError(f"locust: {len(rows)} of {requests} requests, {len(failed)} failed; the first: {failed[:1]}")
    return Times(_known(row.ttft_s for row in rows), _known(row.tpot_s for row in rows))


def read_theirs(folder: Path, requests: int) -> Times:
    """What `vllm bench serve` left; TPOT as it computes it. Raises TurnError unless every request was answered whole.

    Its list of gaps has one per event and not per token, so the length of an answer is the one that it counted.
    """
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    errors = [error for error in result["errors"] if error]
    if errors or result["completed"] != requests:
        raise TurnError(f"vllm bench serve: {result['completed']} of {requests} requests; the first error: {errors[:1]}")
    tpots = (
        sum(gaps_s) / (tokens - 1) if tokens > 1 else None
        for gaps_s, tokens in zip(result["itls"], result["output_lens"], strict=True)
    )
    return Times(tuple(result["ttfts"]), _known(tpots))


def write_even_trace(path: Path, rows: Sequence[TraceRow], requests_per_s: float) -> None:
    """A trace of these lengths whose requests are due 1 / `requests_per_s` apart: both tools can play that."""
    lines = (f"{number / requests_per_s:.6f},{row.prompt_tokens},{row.output_tokens}\n" for number, row in enumerate(rows))
    path.write_text("time,prompt_tokens,output_tokens\n" + "".join(lines), encoding="utf-8")


def _known(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(value for value in values if value is not None)
