"""SGLang's workload `transition`: two users whose texts change at short turns between easy and hard to draft for.

Source: SGLang pull requests 21599 and 23336, `benchmark/bench_adaptive_speculative.py`: phases low, high, low, high of four
requests of 128 tokens, two at a time. Published for GLM-4.7 with its MTP head, tokens a second: none 447.2, K = 1 594.7, K = 3
767.8, K = 7 732.3, adaptive 791.2, which is 1.03 of the best static K. What share of the drafts was kept in either phase is not
published there: pull request 24054 has acceptance lengths of about 2.0 and 3.9, and here the hard texts keep each draft half as
often as the profile's own. Forty turns are measured where SGLang has four.

Who learns has met hard texts alone before, or (a variant of the fleet) such turns. What the fleet loses is what the plan of the
hard texts costs until it is left: for llama-8b-eagle3-h100+qwen3.5-mtp, seed 0, 0.043 of the best static K were 0.037 of K = 2
instead of 4, 0.002 of dwell, 0.001 of measurements, 0.003 of changes of K; learned under the turns it loses 0.00 to 0.01. No
plan by batch follows turns of a second: that is worth the 0.02 to 0.06 by which the oracle is above the best static K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant, static_names
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import Simulate, basic
from nightjar.loadtests.simulation.campaign.scenes import Scene, cell, closed_scene, nominal_of
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, ORACLE
from nightjar.loadtests.simulation.profiles import Profile
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal
from nightjar.loadtests.simulation.service.scenario import AcceptanceScaled
from tests.benchmarks.policy.bars import TRANSITION

ADAPTIVE: Final = (FLEET, "sglang", "sglang-zero", "turbospec", ORACLE)
USERS: Final = 2
REQUESTS_A_TURN: Final = 4
TURNS: Final = 40
UNDER_TURNS: Final = "learned under the turns"
PROMPT_TOKENS: Final = 64.0
ANSWER_TOKENS: Final = 128.0
HARD: Final = 0.5


def scene_of(profile: Profile, learn_s: float) -> Scene:
    """The profile's engine under the workload, with `learn_s` of hard texts before."""
    texts = Dataset(TRANSITION, Lognormal(PROMPT_TOKENS, 0.0), Lognormal(ANSWER_TOKENS, 0.0))
    nominal = nominal_of(profile, texts)
    turn_s = REQUESTS_A_TURN * ANSWER_TOKENS / nominal.goodput(USERS, nominal.best_k(USERS))
    whole = closed_scene(nominal, USERS, 1, learn_s + TURNS * turn_s)
    return replace(whole, load=TRANSITION, acceptance=HARD, turn_s=turn_s, measured_s=TURNS * turn_s)


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every static K, and who adapts."""
    learn_s, seeds = choice.effort.learn_s, choice.effort.bars
    found = []
    for scene in (scene_of(profile, learn_s) for profile in choice.profiles):
        wanted = [planner for planner in (*static_names(scene.nominal), *ADAPTIVE) if choice.wants(planner)]
        found += [_run(scene, planner, learn_s, seed) for planner in wanted for seed in seeds]
        found += [_under_turns(scene, learn_s, seed) for seed in seeds if FLEET in wanted]
    return found


def _run(scene: Scene, planner: str, learn_s: float, seed: int, variant: str = "") -> Cell:
    duration_s = learn_s + scene.measured_s
    return cell(TRANSITION, scene, Contestant(planner), seed, basic, warm_up_s=learn_s, duration_s=duration_s, variant=variant)


def _under_turns(scene: Scene, learn_s: float, seed: int) -> Cell:
    """The fleet, which meets the turns from the beginning; what is measured is the same."""
    run = _run(scene, FLEET, learn_s, seed, UNDER_TURNS)
    assert isinstance(run.job, Simulate)
    scenario = run.job.scenario
    turns = range(-int(learn_s // scene.turn_s), 0)
    before = (AcceptanceScaled(learn_s + turn * scene.turn_s, HARD if turn % 2 else 1.0) for turn in turns)
    return replace(run, job=replace(run.job, scenario=replace(scenario, events=(*before, *scenario.events[1:]))))


CHANGING_FAST = Experiment(TRANSITION, "SGLang's workload transition: over the best static K", (runs,))
