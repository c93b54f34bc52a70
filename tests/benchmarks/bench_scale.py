"""`make bench-scale`: how long the policy decides, how much it remembers, and whether 2,000 replicas learn together.

Three measurements around policy.fleet with coarse engines, in one process that collects garbage as the policy actor's does, and
without a network: the time of a tick for 1,000 replicas in 1, 20 and 1,000 groups (taking in one report of each, and one decision
for all); memory per replica, early and late, at two fleet sizes (INV-8: it neither grows with time nor faster than the fleet); and
a run of 2,000 replicas in 20 groups until they run the K of the best true goodput. Prints against the aim and never fails on
timing.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable

from nightjar.cluster.garbage import collect_seldom
from nightjar.loadtests.simulation.experiments.nominal import Nominal
from nightjar.loadtests.simulation.profiles import Mechanics, read_profile
from nightjar.loadtests.simulation.service.lengths import SHAREGPT
from nightjar.policy.fleet import FleetState, decide, empty_fleet, observe
from nightjar.policy.settings import OperatorSettings, parse_operator_settings
from tests.benchmarks.coarse_engine import CoarseEngine

OUTPUT: Final = Path("runs/scale/latest")
PROFILE: Final = "llama-8b-eagle"
BATCHES: Final = (1, 3, 8, 20, 50, 100, 200)
AIM_MS: Final = 100.0
AUTO: Final = parse_operator_settings({"mode": "auto"})


@dataclass
class Fleet:
    """Coarse engines under one policy; a tick is one second: every engine works and reports, then all are decided for."""

    engines: Sequence[CoarseEngine]
    settings: OperatorSettings
    rng: random.Random
    state: FleetState
    now_s: float = 0.0

    def tick(self) -> tuple[float, float]:
        """Seconds that taking in all reports took, and seconds of the decision."""
        self.now_s += 1.0
        for engine in self.engines:
            engine.run(1.0)
        reports = [engine.report() for engine in self.engines]
        began = perf_counter()
        for report in reports:
            self.state, refused = observe(self.state, report, self.now_s, self.settings)
            assert not refused, refused
        observed = perf_counter()
        decisions, self.state = decide(self.state, self.settings, (), self.now_s, self.rng)
        decided = perf_counter()
        for report, engine in zip(reports, self.engines, strict=True):
            engine.adopt(decisions[report.replica_id])
        return observed - began, decided - observed

    def at_best(self) -> float:
        """Share of the engines whose K has at least 0.98 of the best true goodput at their batch."""
        good = sum(_is_good(engine.batch, engine.length) for engine in self.engines)
        return good / len(self.engines)


def main(
    replicas: Annotated[int, typer.Option(help="Replicas whose decisions are timed.", min=20)] = 1000,
    large: Annotated[int, typer.Option(help="Replicas of the run that learns.", min=20)] = 2000,
    ticks: Annotated[int, typer.Option(help="Timed ticks of each measurement.", min=5)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of noise, acceptance and exploration.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for ticks.jsonl and summary.json.")] = OUTPUT,
    often: Annotated[bool, typer.Option("--often", help="Collect garbage as often as CPython does by itself.")] = False,
) -> None:
    """Decision time and memory of the policy at the size of a fleet."""
    console = Console()
    console.print(f"seed {seed}, {replicas} replicas, profile {PROFILE}, Python {sys.version.split()[0]}")
    if not often:
        collect_seldom()
    rows: list[dict[str, float]] = []
    for groups in (1, 20, replicas):
        rows += time_ticks(replicas, groups, ticks, seed)
    memory = [measure_memory(size, seed) for size in (replicas // 2, replicas)]
    learning = learn(large, 20, seed, console)
    summary = {
        "seed": seed,
        "replicas": replicas,
        "collects_garbage_often": often,
        "aim_ms": AIM_MS,
        "decisions": [summarize(rows, groups) for groups in (1, 20, replicas)],
        "memory": memory,
        "learning": learning,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "ticks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(decision_table([summarize(rows, groups) for groups in (1, 20, replicas)]))
    for entry in memory:
        early, late = (
            f"{entry[f'{when}_kib_per_replica']:.1f} KiB each after {entry[f'{when}_s']:.0f} s" for when in ("early", "late")
        )
        console.print(f"memory: {entry['replicas']:.0f} replicas take {early}, {late}")
    console.print(
        f"{large} replicas in 20 groups: {learning['at_best']:.1%} at the best K after {learning['ticks']:.0f} s, "
        f"decision {learning['decide_ms_median']:.0f} ms, reports {learning['observe_ms_median']:.0f} ms a tick (medians), "
        f"{learning['took_s']:.0f} s of wall time"
    )
    console.print(f"ticks and summary: {output}")


def make_fleet(replicas: int, groups: int, seed: int) -> Fleet:
    """A fleet of coarse engines, spread over groups and batches."""
    nominal = _nominal()
    engines = []
    for number in range(replicas):
        key = nominal.profile.group.model_copy(update={"target": f"model-{number % groups}"})
        batch = BATCHES[number // groups % len(BATCHES)]
        engines.append(CoarseEngine(f"replica-{number}", key, nominal, batch, random.Random(f"{seed}:{number}")))
    return Fleet(engines, AUTO, random.Random(seed), empty_fleet())


def time_ticks(replicas: int, groups: int, ticks: int, seed: int) -> list[dict[str, float]]:
    """One row a tick, the first five left out: they fill what later ticks only extend."""
    fleet = make_fleet(replicas, groups, seed)
    rows: list[dict[str, float]] = []
    for tick in track(range(-5, ticks), description=f"{groups} groups", transient=True):
        observe_s, decide_s = fleet.tick()
        if tick >= 0:
            rows.append({"groups": groups, "tick": tick, "observe_ms": observe_s * 1e3, "decide_ms": decide_s * 1e3})
    return rows


def measure_memory(replicas: int, seed: int, early: int = 10, late: int = 40) -> dict[str, float]:
    """KiB that the policy's state holds per replica after `early` and after `late` ticks, in 20 groups."""
    return {
        "replicas": float(replicas),
        "early_s": float(early),
        "late_s": float(late),
        "early_kib_per_replica": _state_kib(replicas, seed, early),
        "late_kib_per_replica": _state_kib(replicas, seed, late),
    }


def _state_kib(replicas: int, seed: int, ticks: int) -> float:
    """What is freed when the policy forgets everything after so many ticks, per replica."""
    tracemalloc.start()
    fleet = make_fleet(replicas, 20, seed)
    for _ in track(range(ticks), description=f"memory of {replicas} replicas", transient=True):
        fleet.tick()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    fleet.state = empty_fleet()
    gc.collect()
    freed = held - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return freed / replicas / 1024


def learn(replicas: int, groups: int, seed: int, console: Console, seconds: int = 60) -> dict[str, float]:
    """Run a large fleet from nothing; how many of its engines end at a good K."""
    fleet, began = make_fleet(replicas, groups, seed), perf_counter()
    took = [fleet.tick() for _ in track(range(seconds), description=f"{replicas} replicas", console=console, transient=True)]
    return {
        "replicas": float(replicas),
        "groups": float(groups),
        "ticks": float(seconds),
        "at_best": fleet.at_best(),
        "observe_ms_median": statistics.median(observe_s for observe_s, _ in took) * 1e3,
        "decide_ms_median": statistics.median(decide_s for _, decide_s in took) * 1e3,
        "took_s": perf_counter() - began,
    }


def summarize(rows: Sequence[dict[str, float]], groups: int) -> dict[str, float]:
    """Median and worst tick in milliseconds."""
    mine = [row for row in rows if row["groups"] == groups]
    summary: dict[str, float] = {"groups": groups}
    for name in ("observe_ms", "decide_ms"):
        summary[f"{name}_median"] = statistics.median(row[name] for row in mine)
        summary[f"{name}_max"] = max(row[name] for row in mine)
    return summary


def decision_table(summaries: Sequence[dict[str, float]]) -> RichTable:
    """The summary for people."""
    table = RichTable(title="Milliseconds per tick: one report of every replica taken in, one decision for all")
    for column in ("groups", "reports", "max", "decision", "max", "aim", "decision"):
        table.add_column(column, justify="right")
    for entry in summaries:
        verdict = "within" if entry["decide_ms_median"] <= AIM_MS else "above"
        values = (entry[f"{name}_{which}"] for name in ("observe_ms", "decide_ms") for which in ("median", "max"))
        table.add_row(f"{entry['groups']:.0f}", *(f"{value:.1f}" for value in values), f"{AIM_MS:.0f}", verdict)
    return table


@lru_cache(maxsize=1)
def _nominal() -> Nominal:
    return Nominal(read_profile(PROFILE), SHAREGPT, Mechanics.STOCK)


def _is_good(batch: int, length: int) -> bool:
    nominal = _nominal()
    return nominal.goodput(batch, length) >= 0.98 * nominal.goodput(batch, nominal.best_length(batch))


if __name__ == "__main__":
    typer.run(main)
