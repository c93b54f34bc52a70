"""Tables and charts of the experiments of this bench alone, from raw rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean
from typing import Final

from nightjar.loadtests.arms.statistics import geometric_mean
from nightjar.loadtests.report.charts import ChartRow
from nightjar.loadtests.simulation.campaign.contestants import TABLE
from nightjar.loadtests.simulation.evidence.bar_list import ALL_PARTS, THROUGHPUT
from nightjar.loadtests.simulation.evidence.cells import GOODPUT, Cells, by_second, ratios
from nightjar.loadtests.simulation.evidence.grid import Grid, number, ratio, share
from nightjar.loadtests.simulation.evidence.policy_report import Named, mean_series, panel
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.tables import variant_grid
from nightjar.loadtests.simulation.planner_names import FLEET, OFF, ORACLE, ORACLE_BY_BATCH
from tests.benchmarks.policy.bars import CONTEXT, NEVER_OFF, TRANSITION, adaptive_arms, lowest_ratio
from tests.benchmarks.policy.experiments.constants import CONSTANTS
from tests.benchmarks.policy.paper_table import paper_grids

SGLANG_PUBLISHED: Final = 1.03
"""SGLang's adaptive K over its best static one: 791.2 and 767.8 tokens a second (pull request 23336, GLM-4.7 with its MTP head)."""
NEARLY_THE_SAME: Final = 0.95
"""Between K that differ by no more a little evidence decides: a margin of 2 %, and two standard deviations of what is known."""


def grids(rows: Sequence[RunRow]) -> list[Grid]:
    """Every table; those of experiments that were not run are empty."""
    lossy = ("tokens_per_busy_s", "restarts", "max_leases_in_flight", "budget_violations")
    return [
        head_grid(rows),
        storm_grid(rows),
        variant_grid(rows, "drift", "Acceptance halves", ("recovery_s", "lost_share", "tokens_per_busy_s", "mean_k")),
        liar_grid(rows),
        variant_grid(rows, "lossy", "The control plane fails", lossy),
        uneven_grid(rows),
        transition_grid(rows),
        adaptive_grid(rows),
        context_grid(rows),
        constants_grid(rows),
        variant_grid(rows, "regret", "Learners from a cold start", ("lost_share", "done_s", "tokens_per_s")),
        *paper_grids(rows),
    ]


def storm_grid(rows: Sequence[RunRow]) -> Grid:
    """The restart storm: lowest second against the never-restarting fleet, total tokens, most replicas catching up at once."""
    kept = [row for row in rows if row.kind == "storm" and not row.error]
    tokens = {
        (place, who): by_second([row.series["tokens"] for row in kept if (row.place, row.who) == (place, who)])
        for place, who in dict.fromkeys((row.place, row.who) for row in kept)
    }
    lines = []
    for (place, who), values in tokens.items():
        mine = [row for row in kept if (row.place, row.who) == (place, who)]
        never = tokens.get((place, "off"))
        peak = [max(row.series["catching_up"]) for row in mine if row.series.get("catching_up")]
        lines.append(
            (
                place,
                who,
                ratio(lowest_ratio(values, never) if never else None),
                number(fmean(math.fsum(row.series["tokens"]) for row in mine)),
                number(fmean(peak) if peak else None),
            )
        )
    return Grid(
        "Restart storm",
        ("place", "who", "lowest second over off", "tokens after the fall", "most catching up at once"),
        tuple(lines),
    )


def liar_grid(rows: Sequence[RunRow]) -> Grid:
    """One liar of sixteen, by lie: batch sizes whose K differs from what the policy decides without its word, and those where it
    truly gives less than NEARLY_THE_SAME of it."""
    kept = [row for row in rows if row.kind == "liar" and not row.error and "plan" in row.series]
    refused = Cells.of(kept, "refused_reports")
    lines = []
    for place, variant in dict.fromkeys((row.place, row.variant) for row in kept):
        runs = [row.series for row in kept if (row.place, row.variant) == (place, variant)]
        moved = sum(a != b for run in runs for a, b in zip(run["plan"], run["plan_without_liar"], strict=True))
        worse = sum(
            lied < NEARLY_THE_SAME * unheard
            for run in runs
            for lied, unheard in zip(run["true_tokens_per_s"], run["true_tokens_per_s_without_liar"], strict=True)
        )
        looked_at = sum(len(run["plan"]) for run in runs)
        refusals = number(refused.mean(place, f"{FLEET} ({variant})"))
        lines.append((place, variant, str(moved), str(worse), str(looked_at), refusals))
    note = "Without its word: the same policy, in the same run, that hears all reports but the liar's."
    header = ("place", "lie", "K that differ", "and give 5 % less", "of", "refused reports")
    return Grid("One of sixteen lies", header, tuple(lines), note)


def uneven_grid(rows: Sequence[RunRow]) -> Grid:
    """A group whose replicas differ: the fleet over an oracle that knows each of them, and over off."""
    kept = [row for row in rows if row.kind == "uneven" and not row.error]
    cells = {name: Cells.of(kept, name) for name in (THROUGHPUT, "guard_trips", "mean_k")}
    lines = []
    for place, variant in dict.fromkeys((row.place, row.variant) for row in kept):
        fleet, oracle, off = (f"{who} ({variant})" for who in (FLEET, ORACLE, "off"))
        goodput = cells[THROUGHPUT]
        over = (ratio(goodput.ratio(place, fleet, other)) for other in (oracle, off))
        means = (number(cells["mean_k"].mean(place, who)) for who in (fleet, oracle))
        lines.append((place, variant, *over, *means, number(cells["guard_trips"].mean(place, fleet))))
    return Grid(
        "Replicas that differ",
        ("place", "what differs", "over oracle", "over off", "mean K", "oracle's", "guard trips"),
        tuple(lines),
    )


def head_grid(rows: Sequence[RunRow]) -> Grid:
    """A head that writes its KV alone while off: the fleet over the same fleet, and over vLLM's table, whose head runs."""
    kept = [row for row in rows if row.kind == "heads" and not row.error]
    cells, off = Cells.of(kept, GOODPUT), Cells.of(kept, "share_off")
    stock = " as published"
    pairs = (
        (FLEET, FLEET + stock),
        (FLEET, "table" + stock),
        ("table", "table" + stock),
        ("off", "off" + stock),
    )
    return Grid(
        "Heads that write their KV alone at K = 0",
        ("place", "fleet over fleet, stock head", "over table, stock head", "table", "off", "steps off"),
        tuple(
            (place, *(ratio(cells.ratio(place, *pair)) for pair in pairs), share(off.mean(place, FLEET)))
            for place in cells.places()
        ),
        "Tokens per busy engine-second. Stock head: vLLM runs all of it once a step at K = 0. The columns table and off have the "
        "same planner on both sides.",
    )


def transition_grid(rows: Sequence[RunRow]) -> Grid:
    """SGLang's workload `transition`: who adapts, over the static K that is best in hindsight on the same seeds."""
    kept = [row for row in rows if row.kind == TRANSITION and not row.error]
    cells = Cells.of(kept, GOODPUT)
    lines = []
    for place in cells.places():
        means = {who: cells.mean(place, who) or 0.0 for who in cells.planners(place)}
        static = {who: tokens for who, tokens in means.items() if who in {OFF, TABLE} or who.startswith("fixed-")}
        if static:
            best = max(static, key=static.__getitem__)
            lines += [(place, who, ratio(cells.ratio(place, who, best)), best) for who in means if who not in static]
    note = f"Tokens per busy engine-second. SGLang published {SGLANG_PUBLISHED:g} for its own controller (pull request 23336)."
    return Grid("SGLang's workload transition", ("place", "who", "over the best static", "which is"), tuple(lines), note)


def adaptive_grid(rows: Sequence[RunRow]) -> Grid:
    """vLLM's adaptive verification, the fleet, and both."""
    kept = [row for row in rows if row.kind == "adaptive" and not row.error]
    cells, lengths = Cells.of(kept, GOODPUT), Cells.of(kept, "mean_k")
    lines = []
    for place in cells.places():
        for confidence, alone, both in adaptive_arms(cells.planners(place)):
            without, together = cells.ratio(place, alone, FLEET), cells.ratio(place, both, FLEET)
            over_better = together / max(1.0, without) if together and without else None
            ceiling = number(lengths.mean(place, both))
            lines.append((place, confidence, ratio(without), ratio(together), ratio(over_better), ceiling))
    return Grid(
        "vLLM's adaptive verification",
        (
            "place",
            "confidence",
            "adaptive verification over the fleet",
            "both over the fleet",
            "both over the better one",
            "mean ceiling",
        ),
        tuple(lines),
        "Tokens per busy engine-second, in the simulator's model of it: no GPU has run them beside each other.",
    )


def context_grid(rows: Sequence[RunRow]) -> Grid:
    """Chats beside agents: what knowing each step's context is worth over knowing its batch."""
    kept = [row for row in rows if row.kind == CONTEXT and not row.error]
    tokens, times = (Cells.of(kept, measure) for measure in (GOODPUT, "e2e_mean_s"))
    columns = ((tokens, ORACLE), (tokens, FLEET), (times, ORACLE), (times, FLEET), (times, OFF))
    return Grid(
        "Chats beside agents, over an oracle of batch alone",
        ("place", "tokens/s: oracle of batch and context", "fleet", "time of a request: oracle", "fleet", "off"),
        tuple((place, *(ratio(cells.ratio(place, who, ORACLE_BY_BATCH)) for cells, who in columns)) for place in tokens.places()),
        "Tokens per busy engine-second, which tells of users that hold an engine; of an open loop, where all that is asked is "
        "answered, the mean time of a request from end to end tells: below 1 is quicker.",
    )


def constants_grid(rows: Sequence[RunRow]) -> Grid:
    """The planner with one number changed over the planner as it is, the most that it loses first; unchanged rows at the end."""
    kept = [row for row in rows if row.kind == CONSTANTS and not row.error]
    tokens, times = (Cells.of(kept, measure) for measure in (GOODPUT, "e2e_mean_s"))
    full = f"{FLEET} ({ALL_PARTS})"
    as_it_is = {(row.place, row.seed): row.measures for row in kept if row.who == full}
    same: dict[str, int] = {}
    lines: dict[str, tuple[float, tuple[str, ...]]] = {}
    for row in kept:
        same[row.who] = same.get(row.who, 0) + (row.measures == as_it_is.get((row.place, row.seed)))
    for who in same.keys() - {full}:
        over, slower = ratios(tokens, who, full), ratios(times, who, full)
        if over and slower:
            mean, low = geometric_mean([one.value for one in over]), min(over, key=lambda one: one.value)
            runs = sum(row.who == who for row in kept)
            later, at = geometric_mean([one.value for one in slower]), low.at.split(",")[0]
            name = who.removeprefix(f"{FLEET} (").removesuffix(")")
            cells = (name, ratio(mean), ratio(low.value), at, ratio(later), f"{same[who]} of {runs}")
            lines[who] = ((low.value if same[who] < runs else math.inf), cells)
    return Grid(
        "Numbers of the planner, halved and doubled",
        ("number", "tokens/s", "worst", "at", "time of a request", "runs that are the same"),
        tuple(cells for _, cells in sorted(lines.values())),
        "Over the planner as it is, same seeds. Learning is part of each run. A run that is the same to the last bit does not "
        "depend on the number.",
    )


def regret_charts(rows: Sequence[RunRow]) -> ChartRow | None:
    """Of the experiment regret."""
    kept = [row for row in rows if row.kind == "regret" and "lost" in row.series]
    charts = {
        place: {
            who: mean_series([list(accumulate(row.series["lost"])) for row in kept if (row.place, row.who) == (place, who)])
            for who in dict.fromkeys(row.who for row in kept if row.place == place)
        }
        for place in dict.fromkeys(row.place for row in kept)
    }
    return panel("Regret: tokens lost per replica against the oracle's K, cumulative, mean over seeds", charts, "s", shared=False)


def storm_charts(rows: Sequence[RunRow]) -> ChartRow | None:
    """Of the experiment storm."""
    kept = [row for row in rows if row.kind == "storm" and "tokens" in row.series]
    charts: dict[str, Named] = {}
    for place in dict.fromkeys(row.place for row in kept):
        for kind in dict.fromkeys(row.variant.split(",")[0] for row in kept if row.variant):
            whos = {
                "coordinated": f"{FLEET} ({kind}, coordinated)",
                "uncoordinated": f"{FLEET} ({kind}, uncoordinated)",
                "never restarting": OFF,
                "never off": NEVER_OFF,
            }
            curves = {
                name: mean_series([row.series["tokens"] for row in kept if (row.place, row.who) == (place, who)])
                for name, who in whos.items()
            }
            if curves["coordinated"]:
                charts[f"{place}, {kind}"] = curves
    return panel("Restart storm: the service's tokens per second after the load fell", charts, "s", shared=True)
