"""One summary a bench, kept in the repository: its bars and how they came about, without raw rows.

A number in the README can be looked up here without an hour of measuring. Only a whole run that ended is evidence, so any other is
refused, or kept with what it is. Fails closed: what cannot be read as a bench's summary is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from nightjar.loadtests.simulation.evidence.bars import BenchSummary
from nightjar.policy.wire.record import describe_validation_error

RESULTS: Final = Path(__file__).parents[3] / "docs/results"
SUMMARY: Final = "summary.json"

BENCHES: Final[Mapping[str, str]] = {
    "policy": "the planner against the paper's, static settings, published rivals and an oracle, in virtual time",
    "latency": "what users wait for under bursts of long prompts, against static settings, in virtual time",
    "engine": "off, the crossover, bursts of long prompts, restarts, KV pressure and the simulator's error, on real engines",
    "live": "the planner on a live system: Ray Serve, two real replicas, requests over HTTP",
    "scale": "decision time and memory of the policy for thousands of replicas",
    "health": "an operator's write beside many who ask for health and status",
    "shards": "what one policy carries, and 10,000 replicas under one, four and sixteen policies",
    "model": "the planner's model of step times against simpler ones",
    "load": "our load generator against vLLM's, on the same requests and a plain vLLM",
    "serve": "`nightjar serve` beside `vllm serve`, and two of them under one policy that is killed",
    "step": "what the scheduler's hooks add to a step",
}
"""What each `make bench-NAME` asks, in the order of the page."""


class KeptError(Exception):
    """A summary that cannot be kept or read. The message is one line."""


def keep(run_folder: Path, results: Path = RESULTS, *, anyway: bool = False) -> Path:
    """Write a run's summary to `results` and return its path. Raises KeptError for one that is no evidence, unless `anyway`."""
    summary = read_summary(run_folder / SUMMARY)
    if not anyway and (reason := why_no_evidence(summary)):
        raise KeptError(
            f"{run_folder / SUMMARY} is of {reason}: kept are whole runs that ended. "
            f"Run `make bench-{summary.run.bench}`, or say --anyway to keep it marked as what it is"
        )
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{summary.run.bench}.json"
    path.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def read_kept(results: Path = RESULTS) -> dict[str, BenchSummary]:
    """The kept summaries by bench, in the order of BENCHES. Raises KeptError."""
    paths = {bench: results / f"{bench}.json" for bench in BENCHES}
    return {bench: read_summary(path) for bench, path in paths.items() if path.is_file()}


def read_summary(path: Path) -> BenchSummary:
    """What every bench tells of a run. Raises KeptError."""
    try:
        summary = BenchSummary.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KeptError(f"{path} cannot be read: {error.strerror}; name the folder of a run, such as runs/policy/latest") from error
    except ValidationError as error:
        raise KeptError(f"{path} is no summary of a bench: {describe_validation_error(error)}; run the bench again") from error
    if summary.run.bench not in BENCHES:
        raise KeptError(f"{path} is of the bench {summary.run.bench[:60]!r}: there are {', '.join(BENCHES)}")
    return summary


def why_no_evidence(summary: BenchSummary) -> str:
    """What kind of run it is, where it is not a whole one that ended; else empty."""
    if not summary.run.has_ended:
        return "a run that broke off"
    return "" if summary.run.effort == "whole" else f"a {summary.run.effort} run"
