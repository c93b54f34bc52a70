"""`make bench-scale`: how long the policy decides, how much it remembers, and whether 2,000 replicas learn together.

Three measurements of policy.controller with coarse engines, in one process that collects garbage as the policy actor's does, and
without a network: the time of a tick for 1,000 replicas in 1, 20 and 1,000 groups (taking in one report of each, and one decision
for all); memory per replica, early and late, at two fleet sizes (INV-8: it neither grows with time nor faster than the fleet); and
a run of 2,000 replicas in 20 groups until they run the K of the best true goodput. A missed bar fails the bench with --strict only.
"""

from __future__ import annotations

import gc
import random
import statistics
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Annotated, Final

import typer
from rich.progress import track

from nightjar.cluster.service.garbage import collect_seldom
from nightjar.loadtests.report.machine import Effort
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.evidence.bars import Bar, StrictOption
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.profiles import Mechanics, read_profile
from nightjar.loadtests.simulation.service.lengths import SHAREGPT
from nightjar.policy.controller import Controller
from nightjar.policy.state import FleetState
from nightjar.policy.wire.operator import parse_operator_settings
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.run import BenchRun
from tests.benchmarks.measuring.statistics import range_of
from tests.benchmarks.scale.coarse_engine import CoarseEngine, Engine

OUTPUT: Final = Path("runs/scale/latest")
PROFILE: Final = "llama-8b-eagle"
BATCHES: Final = (1, 3, 8, 20, 50, 100, 200)
AIM_MS: Final = 100.0
REPLICAS: Final = 1000
LARGE: Final = 2000
TICKS: Final = 20
LEARNING_GROUPS: Final = 20
SECTIONS: Final = ("decisions", "memory", "learning")
AUTO: Final = parse_operator_settings({"mode": "auto"})


@dataclass
class Fleet:
    """Coarse engines under one policy; a tick is one second: every engine works and reports, then all are decided for."""

    engines: Sequence[Engine]
    rng: random.Random
    policy: Controller
    now_s: float = 0.0

    def tick(self) -> tuple[float, float]:
        """Seconds that taking in all reports took, and seconds of the decision."""
        self.now_s += 1.0
        for engine in self.engines:
            engine.run(1.0)
        reports = [engine.report() for engine in self.engines]
        began = perf_counter()
        for report in reports:
            refused = self.policy.observe(report, self.now_s)
            assert not refused, refused
        observed = perf_counter()
        self.policy.tick(self.now_s, self.rng)
        decided = perf_counter()
        for report, engine in zip(reports, self.engines, strict=True):
            engine.adopt(self.policy.decisions[report.replica_id])
        return observed - began, decided - observed

    def at_best(self) -> float:
        """Share of the engines whose K has at least 0.98 of the best true goodput at their batch."""
        good = sum(_is_good(engine.batch, engine.length) for engine in self.engines)
        return good / len(self.engines)


def main(
    replicas: Annotated[int, typer.Option(help="Replicas whose decisions are timed.", min=20)] = REPLICAS,
    large: Annotated[int, typer.Option(help="Replicas of the run that learns.", min=20)] = LARGE,
    ticks: Annotated[int, typer.Option(help="Timed ticks of each measurement.", min=5)] = TICKS,
    seed: Annotated[int, typer.Option(help="Seed of noise, acceptance and exploration.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for ticks.jsonl and summary.json.")] = OUTPUT,
    often: Annotated[bool, typer.Option("--often", help="Collect garbage as often as CPython does by itself.")] = False,
    strict: StrictOption = False,
) -> None:
    """Decision time and memory of the policy at the size of a fleet. With fewer replicas or ticks it is no whole run."""
    is_whole = replicas >= REPLICAS and large >= LARGE and ticks >= TICKS and not often
    effort: Effort = "whole" if is_whole else "partial"
    subject = f"policy.controller alone, {replicas} replicas of {PROFILE}, {large} that learn"
    run = BenchRun("scale", seeds=[seed], sections=SECTIONS, output=output, effort=effort, subject=subject)
    if not often:
        collect_seldom()
    rows = {groups: time_ticks(replicas, groups, ticks, seed) for groups in (1, 20, replicas)}
    run.found("decisions", judge_decisions(rows, replicas))
    run.found("memory", judge_memory([measure_memory(size, seed) for size in (replicas // 2, replicas)]))
    run.found("learning", judge_learning(learn(large, LEARNING_GROUPS, seed)))
    raise typer.Exit(run.end(strict=strict))


def make_fleet(replicas: int, groups: int, seed: int) -> Fleet:
    """A fleet of coarse engines, spread over groups and batches."""
    nominal = _nominal()
    engines = []
    for number in range(replicas):
        key = nominal.profile.group.model_copy(update={"target": f"model-{number % groups}"})
        batch = BATCHES[number // groups % len(BATCHES)]
        engines.append(CoarseEngine(f"replica-{number}", key, nominal, batch, random.Random(f"{seed}:{number}")))
    return Fleet(engines, random.Random(seed), Controller(AUTO))


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
    fleet.policy.state = FleetState()
    gc.collect()
    freed = held - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return freed / replicas / 1024


def learn(replicas: int, groups: int, seed: int, seconds: int = 60) -> dict[str, float]:
    """Run a large fleet from nothing; how many of its engines end at a good K."""
    fleet, began = make_fleet(replicas, groups, seed), perf_counter()
    took = [fleet.tick() for _ in track(range(seconds), description=f"{replicas} replicas", transient=True)]
    return {
        "replicas": float(replicas),
        "groups": float(groups),
        "ticks": float(seconds),
        "at_best": fleet.at_best(),
        "observe_ms_median": statistics.median(observe_s for observe_s, _ in took) * 1e3,
        "decide_ms_median": statistics.median(decide_s for _, decide_s in took) * 1e3,
        "took_s": perf_counter() - began,
    }


def judge_decisions(rows: Mapping[int, Sequence[Mapping[str, float]]], replicas: int) -> Outcome:
    """A bar for each number of groups, from rows by that number: the median decision for all replicas."""
    outcome, lines = Outcome(), list[Sequence[str]]()
    outcome.rows["ticks"] = [dict(row) for measured in rows.values() for row in measured]
    for groups, measured in rows.items():
        decide, observe = ([row[name] for row in measured] for name in ("decide_ms", "observe_ms"))
        named = {1: "one_group", replicas: "own_groups"}.get(groups, f"{groups}_groups")
        bar = Bar(
            name=f"decision_ms_{named}",
            meaning="milliseconds of one decision for all replicas, median over ticks",
            direction="at most",
            limit=AIM_MS,
            value=statistics.median(decide),
            interval=range_of(decide, "ticks"),
            at=f"{replicas} replicas, {named.replace('_', ' ')}",
            cells=len(measured),
        )
        outcome.bars.append(bar)
        outcome.facts[named] = {"reports_ms_median": statistics.median(observe), "reports_ms_max": max(observe)}
        values = (statistics.median(observe), max(observe), statistics.median(decide), max(decide), bar.limit)
        lines.append([str(groups), *(f"{value:.1f}" for value in values), bar.verdict])
    title = "Milliseconds per tick: one report of every replica taken in, one decision for all"
    outcome.tables.append(Grid(title, ("groups", "reports", "max", "decision", "max", "wanted", "decision"), lines))
    return outcome


def judge_memory(measured: Sequence[Mapping[str, float]]) -> Outcome:
    """What a replica's share of the state weighs in the largest fleet, late; and how that compares with early."""
    *_, largest = measured
    growth = largest["late_kib_per_replica"] / largest["early_kib_per_replica"]
    bar = Bar(
        name="memory_kib_per_replica",
        meaning="KiB of the policy's state for each replica (INV-8: neither with time nor faster than the fleet)",
        direction="at most",
        limit=20.0,
        value=largest["late_kib_per_replica"],
        at=f"{largest['replicas']:.0f} replicas after {largest['late_s']:.0f} s, {growth:.2f} times that after "
        f"{largest['early_s']:.0f} s",
        cells=len(measured),
    )
    lines = [
        [f"{one['replicas']:.0f}", *(f"{one[f'{when}_kib_per_replica']:.1f}" for when in ("early", "late"))] for one in measured
    ]
    heading = ("replicas", f"after {largest['early_s']:.0f} s", f"after {largest['late_s']:.0f} s")
    return Outcome(bars=[bar], facts={"sizes": list(measured)}, tables=[Grid("KiB of state per replica", heading, lines)])


def judge_learning(learned: dict[str, float]) -> Outcome:
    """Share of a large fleet that ends at a good K."""
    bar = Bar(
        name="learned_share_at_best",
        meaning="share of a large fleet's engines whose K has at least 0.98 of the best true goodput",
        direction="stated",
        value=learned["at_best"],
        at=f"{learned['replicas']:.0f} replicas in {learned['groups']:.0f} groups after {learned['ticks']:.0f} s",
        cells=int(learned["replicas"]),
    )
    told = [f"{learned[name]:.0f}" for name in ("replicas", "groups", "ticks", "decide_ms_median", "observe_ms_median", "took_s")]
    heading = ("replicas", "groups", "seconds", "decision ms", "reports ms", "wall s", "at the best K")
    lines = [[*told, f"{learned['at_best']:.1%}"]]
    title = "A large fleet learns from nothing (medians of ticks)"
    return Outcome(bars=[bar], facts=dict(learned), tables=[Grid(title, heading, lines)])


@lru_cache(maxsize=1)
def _nominal() -> Nominal:
    return Nominal(read_profile(PROFILE), SHAREGPT, Mechanics.STOCK)


def _is_good(batch: int, length: int) -> bool:
    nominal = _nominal()
    return nominal.goodput(batch, length) >= 0.98 * nominal.goodput(batch, nominal.best_k(batch))


if __name__ == "__main__":
    typer.run(main)
