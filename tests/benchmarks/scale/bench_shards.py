"""`make bench-shards`: what one policy carries, and what 10,000 replicas in 20 groups need: one policy, four, or sixteen.

Nothing in the service shards today. Here so many controllers run, each with whole groups, which share nothing
but the budget of reloads on a node. Engines are coarse, time is virtual, and one process does it all, so a decision takes what the
slowest policy takes, as if each had a processor. Three measurements: decisions and reports at three sizes; learning from nothing;
and a storm, in which every draft of the fleet lies in host memory and is wanted back in one second, with a node under one
policy or under several.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Final, Literal

import typer
from rich.progress import track
from structlog.testing import capture_logs

from nightjar.cluster.service.garbage import collect_seldom
from nightjar.loadtests.report.machine import Effort
from nightjar.loadtests.simulation.evidence.bars import Bar, StrictOption
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.controller import Controller
from nightjar.policy.wire.operator import parse_operator_settings
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.run import BenchRun, sections_to_run
from tests.benchmarks.measuring.statistics import range_of
from tests.benchmarks.scale.bench_scale import AUTO, Fleet, make_fleet, time_ticks
from tests.benchmarks.scale.coarse_engine import KEY_OF_SLEEPERS, Sleeper
from tests.cluster.protocol import running_service

OUTPUT: Final = Path("runs/shards/latest")
SIZES: Final = (1000, 2000, 5000)
REPLICAS: Final = 10_000
GROUPS: Final = 20
POLICIES: Final = (1, 4, 16)
TICKS: Final = 10
LEARNING_S: Final = 20
STORM_S: Final = 90
"""Virtual seconds after which a storm is over, or called unfinished."""
REPLICAS_PER_NODE: Final = 8
NEAR_BEST: Final = 0.95
"""Share of the engines that must run a good K for the fleet to count as having learned."""
STORM: Final = parse_operator_settings(
    {"mode": "auto", "planner": "schedule", "num_speculative_tokens_per_batch_size": [[1, KEY_OF_SLEEPERS.max_num_seqs, 3]]}
)
"""A plan that needs no learning and says that speculation is wanted: what is left to decide is who may come back when."""

Placement = Literal["nodes of one group", "nodes of many groups"]
PLACEMENTS: Final[dict[str, Placement]] = {
    "storms-one-group": "nodes of one group",
    "storms-many-groups": "nodes of many groups",
}
"""The sections that play a storm."""
SECTIONS: Final = ("carries", "learning", *PLACEMENTS)


@dataclass(frozen=True, slots=True)
class Storm:
    """How a storm went, by what the engines did. `back_s` is when the last one was back; None where some were not in time."""

    policies: int
    placement: Placement
    most_on_a_node: int
    """Reloads at once; the operator's `max_reloads_per_node` is 1."""
    most_in_a_group: float
    """Share of a group's replicas that were away at once."""
    back_s: int | None
    share_back: float


def main(
    replicas: Annotated[int, typer.Option(help="Replicas under 1, 4 and 16 policies.", min=160)] = REPLICAS,
    largest: Annotated[int, typer.Option(help="Most replicas of one policy whose decisions are timed.", min=100)] = SIZES[-1],
    only: Annotated[list[str] | None, typer.Option(help=f"Sections to run: {', '.join(SECTIONS)}.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise, acceptance and exploration.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for rows and summary.json.")] = OUTPUT,
    strict: StrictOption = False,
) -> None:
    """What one policy carries, and 10,000 replicas under several. With fewer replicas it is no whole run."""
    sections = sections_to_run(only, SECTIONS, {})
    effort: Effort = "whole" if replicas >= REPLICAS and largest >= SIZES[-1] and sections == SECTIONS else "partial"
    subject = f"policy.controller alone, {replicas} replicas in {GROUPS} groups under {', '.join(map(str, POLICIES))} policies"
    run = BenchRun("shards", seeds=[seed], sections=sections, output=output, effort=effort, subject=subject)
    collect_seldom()
    if "carries" in sections:
        run.found("carries", judge_carries([carry(size, seed) for size in (*(size for size in SIZES if size < largest), largest)]))
    if "learning" in sections:
        run.found("learning", judge_learning([learn(replicas, policies, seed) for policies in POLICIES]))
    for section, where in PLACEMENTS.items():
        if section in sections:
            run.found(section, judge_storms([storm(replicas, policies, where) for policies in POLICIES]))
    raise typer.Exit(run.end(strict=strict))


def carry(replicas: int, seed: int) -> dict[str, float]:
    """One policy with so many replicas in 20 groups: a decision for all, and what a report and a parked call take."""
    ticks = time_ticks(replicas, GROUPS, TICKS, seed)
    decide = [row["decide_ms"] for row in ticks]
    reports_a_second, kib = asyncio.run(_park(replicas, seed))
    return {
        "replicas": float(replicas),
        "decide_ms_median": statistics.median(decide),
        "decide_ms_max": max(decide),
        "reports_a_second": reports_a_second,
        "parked_kib_per_call": kib,
    }


async def _park(replicas: int, seed: int) -> tuple[float, float]:
    """Reports a second that the service takes from bytes to a parked call, and KiB that each call holds while it waits."""
    fleet = make_fleet(replicas, GROUPS, seed)

    def payloads() -> list[bytes]:
        for engine in fleet.engines:
            engine.run(1.0)
        return [engine.report().to_wire() for engine in fleet.engines]

    with capture_logs():
        return await _parked(replicas, payloads)


async def _parked(replicas: int, payloads: Callable[[], list[bytes]]) -> tuple[float, float]:
    """The first report of each replica is answered at once, the second is weighed, and the third is timed."""
    async with running_service() as service:
        await service.configure({"mode": "auto", "exchange_period_s": 10.0, "decision_period_s": 10.0})
        first = [asyncio.create_task(service.exchange(payload)) for payload in payloads()]
        await asyncio.sleep(0)
        service.tick()
        await asyncio.gather(*first)
        second = payloads()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        parked = [asyncio.create_task(service.exchange(payload)) for payload in second]
        await asyncio.sleep(0)
        kib = (tracemalloc.get_traced_memory()[0] - before) / replicas / 1024
        tracemalloc.stop()
        third = payloads()
        began = perf_counter()
        parked += [asyncio.create_task(service.exchange(payload)) for payload in third]
        await asyncio.sleep(0)
        took_s = perf_counter() - began
        for call in parked:
            call.cancel()
        await asyncio.gather(*parked, return_exceptions=True)
    return replicas / took_s, kib


def shards(replicas: int, policies: int, seed: int) -> list[Fleet]:
    """The fleet of bench-scale, cut by group: policy n has every group whose number leaves n."""
    whole = make_fleet(replicas, GROUPS, seed)
    parts = [[engine for number, engine in enumerate(whole.engines) if number % GROUPS % policies == n] for n in range(policies)]
    return [Fleet(part, random.Random(f"{seed}:{n}"), Controller(AUTO)) for n, part in enumerate(parts) if part]


def learn(replicas: int, policies: int, seed: int, seconds: int = LEARNING_S) -> dict[str, float]:
    """The whole fleet from nothing under so many policies. A tick takes as long as its slowest policy."""
    fleets = shards(replicas, policies, seed)
    decide, observe, learned = [], [], dict[str, float]()
    for second in track(range(1, seconds + 1), description=f"{policies} policies learn", transient=True):
        took = [fleet.tick() for fleet in fleets]
        observe.append(max(observe_s for observe_s, _ in took) * 1e3)
        decide.append(max(decide_s for _, decide_s in took) * 1e3)
        at_best = sum(fleet.at_best() * len(fleet.engines) for fleet in fleets) / replicas
        if at_best >= NEAR_BEST:
            learned.setdefault("learned_s", float(second))
    return {
        "policies": float(policies),
        "replicas": float(replicas),
        "decide_ms_median": statistics.median(decide),
        "decide_ms_max": max(decide),
        "observe_ms_median": statistics.median(observe),
        "at_best": at_best,
        **learned,
    }


def storm(replicas: int, policies: int, placement: Placement, seconds: int = STORM_S) -> Storm:
    """Every draft lies in host memory and is wanted back at once; a restart is seen at its replica, not in the policy's books."""
    sleepers = [Sleeper(number, number % GROUPS, _node(number, placement)) for number in range(replicas)]
    by_policy = [[sleeper for sleeper in sleepers if sleeper.group_number % policies == n] for n in range(policies)]
    fleets = [Fleet(part, random.Random(n), Controller(STORM)) for n, part in enumerate(by_policy) if part]
    in_group = Counter(sleeper.group_number for sleeper in sleepers)
    most_on_a_node, most_in_a_group, back_s = 0, 0.0, None
    for second in track(range(1, seconds + 1), description=f"a storm, {policies} policies", transient=True):
        for fleet in fleets:
            fleet.tick()
        away = [sleeper for sleeper in sleepers if sleeper.is_coming_back]
        most_on_a_node = max(most_on_a_node, *Counter(sleeper.node for sleeper in away).values(), 0)
        shares = (count / in_group[group] for group, count in Counter(sleeper.group_number for sleeper in away).items())
        most_in_a_group = max(most_in_a_group, *shares, 0.0)
        if all(sleeper.is_awake for sleeper in sleepers):
            back_s = second
            break
    share_back = sum(sleeper.is_awake for sleeper in sleepers) / replicas
    return Storm(policies, placement, most_on_a_node, most_in_a_group, back_s, share_back)


def _node(number: int, placement: Placement) -> str:
    """Eight replicas a node: of the replica's own group, or of as many groups, one after the other."""
    if placement == "nodes of many groups":
        return f"node-{number // REPLICAS_PER_NODE}"
    return f"node-{number // GROUPS // REPLICAS_PER_NODE}-of-group-{number % GROUPS}"


def judge_carries(measured: Sequence[dict[str, float]]) -> Outcome:
    """What one policy's decisions, reports and parked calls take at each size. Stated: bench-scale has the targets."""
    outcome, lines = Outcome(facts={"sizes": list(measured)}), list[Sequence[str]]()
    for one in measured:
        outcome.bars.append(
            Bar(
                name=f"decision_ms_{one['replicas']:.0f}",
                meaning="milliseconds of one decision for all replicas, median over ticks",
                direction="stated",
                value=one["decide_ms_median"],
                at=f"{one['replicas']:.0f} replicas, {GROUPS} groups, one policy",
                cells=TICKS,
            )
        )
        names = ("replicas", "decide_ms_median", "decide_ms_max", "reports_a_second")
        lines.append([*(f"{one[name]:.0f}" for name in names), f"{one['parked_kib_per_call']:.1f}"])
    heading = ("replicas", "decision ms", "max", "reports a second, and nothing else", "KiB a parked call")
    outcome.tables.append(Grid(f"One policy, {GROUPS} groups", heading, lines))
    return outcome


def judge_learning(measured: Sequence[dict[str, float]]) -> Outcome:
    """A bar for each number of policies: the share of the engines that end at a good K."""
    outcome, lines = Outcome(facts={"runs": list(measured)}), list[Sequence[str]]()
    for one in measured:
        outcome.bars.append(
            Bar(
                name=f"learned_share_{one['policies']:.0f}_policies",
                meaning="share of the fleet's engines whose K has at least 0.98 of the best true goodput",
                direction="at least",
                limit=NEAR_BEST,
                value=one["at_best"],
                at=f"{one['replicas']:.0f} replicas in {GROUPS} groups after {LEARNING_S} s",
                cells=int(one["replicas"]),
            )
        )
        names = ("policies", "decide_ms_median", "decide_ms_max", "observe_ms_median")
        learned = f"{one['learned_s']:.0f}" if "learned_s" in one else f"not in {LEARNING_S}"
        lines.append([*(f"{one[name]:.0f}" for name in names), learned, f"{one['at_best']:.1%}"])
    heading = ("policies", "decision ms, slowest", "max", "reports ms", f"s until {NEAR_BEST:.0%} at the best K", "at the best K")
    outcome.tables.append(Grid("Learning from nothing, a tick a second", heading, lines))
    return outcome


def judge_storms(storms: Sequence[Storm]) -> Outcome:
    """A bar for each storm: where a node's replicas are one policy's, no node reloads more than the operator allows."""
    outcome, lines = Outcome(), list[Sequence[str]]()
    outcome.rows["storms"] = [
        {
            name: getattr(one, name)
            for name in ("policies", "placement", "most_on_a_node", "most_in_a_group", "back_s", "share_back")
        }
        for one in storms
    ]
    for one in storms:
        is_whole = one.placement == "nodes of one group" or one.policies == 1
        outcome.bars.append(
            Bar(
                name=f"reloads_on_a_node_{one.placement.replace(' ', '_')}_{one.policies}",
                meaning="most draft models that one node moved back at the same time, max_reloads_per_node is 1",
                direction="at most" if is_whole else "stated",
                limit=1.0 if is_whole else 0.0,
                value=float(one.most_on_a_node),
                interval=range_of([float(one.most_on_a_node)], "storms"),
                at=f"{one.policies} policies, {one.placement}",
                cells=1,
            )
        )
        back = f"{one.back_s} s" if one.back_s is not None else f"{one.share_back:.0%} after {STORM_S} s"
        lines.append([one.placement, str(one.policies), str(one.most_on_a_node), f"{one.most_in_a_group:.0%}", back])
    heading = ("nodes", "policies", "most reloads on a node", "most of a group away", "all back after")
    outcome.tables.append(Grid("A storm: every draft is wanted back in the same second", heading, lines))
    return outcome


if __name__ == "__main__":
    typer.run(main)
