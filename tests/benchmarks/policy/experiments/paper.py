"""The paper's own comparison, redone on its three pairs of models: Poisson arrivals from 1 to 35 requests a second, and a trace.

One engine of each profile, 480 requests as in the paper, until the last is answered. Planners run as published: AR is plain
decoding without a drafter (off, dormant), SD a chain of three, TETRIS verifies three of four, DSD is TurboSpec's rule, BanditSpec
has no context; Nightjar's drafter sleeps at K = 0. The oracle, which knows the truth, says how much any planner could win on such
an engine. With `--trace` the first 480 requests of a recorded load run as well, at its own pace and three times as fast; which
segment of the Azure trace the paper took is not known.

`paper-offload` is the paper's ablation on the 7B pair: nothing leaves the GPU, or the draft's weights do while speculation is off
and free KV blocks were short for three steps; and its sweep over how few count as short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nightjar.loadtests.load.traces import TraceRow, read_trace
from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import until_the_last_answer
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, nominal_of, workload
from nightjar.loadtests.simulation.evidence.bar_list import PAPER_PROFILES
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.cold import DATASETS, REQUESTS, comparison, drain_s
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR, OFF, ORACLE, TETRIS
from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.service.lengths import SHAREGPT, Dataset, Lognormal
from nightjar.loadtests.simulation.service.workload import Trace
from tests.benchmarks.policy.paper_table import OFFLOAD, OFFLOAD_NEVER, TRACE

PLANNERS: Final = (
    Contestant(OFF),
    Contestant("fixed-3", as_published=True),
    Contestant(TETRIS, as_published=True),
    Contestant("turbospec", as_published=True),
    Contestant("banditspec", as_published=True),
    Contestant(NIGHTJAR),
    Contestant(FLEET),
    Contestant(ORACLE),
)
TRACE_SPEEDS: Final = (1, 3)
"""Times as fast as it was recorded."""
OFFLOAD_PROFILE: Final = "qwen-7b-0.5b-rtx4090"
OFFLOAD_RATES: Final = (30, 35)
"""Requests a second: of the sweep, and of the ablation."""
OFFLOAD_BELOW: Final = (0.02, 0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)
OFFLOAD_AFTER_STEPS: Final = 3


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every data set, rate and planner, from a cold start, and once more after a first pass that is dropped.

    Each run goes on until the last request is answered, as the paper's do. The authors' driver can run a first pass and keep what
    the bandit learned; which one the paper's tables show is not known.
    """
    return [
        run
        for profile in _pairs(choice)
        for nominal in (nominal_of(profile, dataset) for dataset in DATASETS)
        for run in comparison("paper", choice, nominal, PLANNERS)
    ]


def trace_runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every pair and planner on the first requests of the trace that was given, if one was."""
    if choice.trace is None:
        return []
    recorded = read_trace(choice.trace)[:REQUESTS]
    cells = []
    for profile in _pairs(choice):
        for speed in TRACE_SPEEDS:
            nominal = nominal_of(profile, _traffic_of(recorded, profile.limits.num_tokens // 2))
            load = workload(nominal, Trace(choice.trace, time_scale=1.0 / speed, first=REQUESTS))
            asked_s = max(recorded[-1].due_s / speed, 1.0)
            scene = Scene(nominal, f"trace {speed}x", load, 1, nominal.rows_at(len(recorded) / asked_s))
            ends_s = asked_s + drain_s(nominal, asked_s)
            cells += [
                cell(TRACE, scene, contestant, seed, until_the_last_answer, duration_s=ends_s, warm_up_s=0.0, until_answered=True)
                for contestant in PLANNERS
                if choice.wants(contestant.name)
                for seed in choice.effort.others
            ]
    return cells


def _traffic_of(recorded: Sequence[TraceRow], longest: int) -> Dataset:
    """What the engine's capacity is reckoned with."""
    prompts = Lognormal.fitted([row.prompt_tokens for row in recorded], longest)
    return Dataset("trace", prompts, Lognormal.fitted([row.output_tokens for row in recorded], longest))


def offload_runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """The paper's planner and ours on the 7B pair: without offload, and by the share of free blocks below which memory is short."""
    rates = replace(choice, effort=replace(choice.effort, paper_rates=OFFLOAD_RATES))
    return [
        replace(run, variant=OFFLOAD_NEVER if below is None else f"{below:.0%}")
        for profile in _pairs(choice)
        if profile.name == OFFLOAD_PROFILE
        for below in (None, *OFFLOAD_BELOW)
        for run in comparison(
            OFFLOAD,
            rates,
            nominal_of(profile, SHAREGPT),
            (Contestant(NIGHTJAR), Contestant(FLEET)),
            warm_too=False,
            settings=_offload_settings(profile, below),
            offload=below is not None,
        )
    ]


def _offload_settings(profile: Profile, below: float | None) -> dict[str, object]:
    """Weights come back where the pool, as small as it was, would still be above the threshold: as in the authors' notes."""
    if below is None:
        return {}
    nominal = nominal_of(profile, SHAREGPT)
    return {
        "draft_offload": "under_memory_pressure",
        "offload_below_free_share": below,
        "offload_after_s": OFFLOAD_AFTER_STEPS * nominal.step_seconds(nominal.max_rows, 0),
        "reload_above_free_share": below + profile.limits.extra_blocks / profile.limits.num_blocks,
    }


def _pairs(choice: Choice) -> list[Profile]:
    return [profile for profile in choice.profiles if profile.name in PAPER_PROFILES]


PAPER: Final = Experiment("paper", "the paper's own comparison on its three pairs", (runs, trace_runs))
PAPER_OFFLOAD: Final = Experiment("paper-offload", "the paper's ablation of the offload, and its sweep", (offload_runs,))
