"""What would have to be otherwise in our model of the paper's engine for speculation to win what the paper says.

The paper's comparison once more (paper.py) on profiles with one thing changed at a time, and a few at once: the oracle over plain
decoding says how much any planner could win there. Which of these are plausible is discussed in docs/results/paper.md; none of
them is a claim about the paper's engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.scenes import nominal_of
from nightjar.loadtests.simulation.evidence.bar_list import PAPER_PROFILES
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.experiments.cold import DATASETS, comparison
from nightjar.loadtests.simulation.planner_names import NIGHTJAR, OFF, ORACLE
from nightjar.loadtests.simulation.profiles import AcceptanceClass, Profile, Roofline
from tests.benchmarks.policy.paper_table import ASSUMPTIONS

Change = Callable[[Profile], Profile]
PLANNERS: Final = (Contestant(OFF), Contestant("fixed-3", as_published=True), Contestant(NIGHTJAR), Contestant(ORACLE))
FEW_ROWS: Final = 8
SMALL_CACHE_BLOCKS: Final = 717
SEEDS: Final = 1
"""A seed moves an average over fifteen cells by less than these assumptions do."""


def unchanged(profile: Profile) -> Profile:
    """As it ships."""
    return profile


def better_drafts(profile: Profile) -> Profile:
    """At each position half of the drafts that would be rejected are accepted."""
    return profile.model_copy(update={"acceptance_classes": tuple(map(_half_rejected, profile.acceptance_classes))})


def free_proposer(profile: Profile) -> Profile:
    """The host's work of proposing takes no time; the draft's own forwards do."""
    return _with_cost(profile, proposer_seconds=0.0, proposer_seconds_per_row=0.0)


def fast_compute(profile: Profile) -> Profile:
    """Four times the FLOP/s, so that verification is nearly free up to larger batches."""
    assert isinstance(profile.step_cost, Roofline)
    return _with_cost(profile, flops_per_s=4.0 * profile.step_cost.flops_per_s)


def few_rows(profile: Profile) -> Profile:
    """At most eight requests decode at once."""
    group = profile.group.model_copy(update={"max_num_seqs": FEW_ROWS})
    return profile.model_copy(update={"group": group, "limits": profile.limits.model_copy(update={"max_num_seqs": FEW_ROWS})})


def small_cache(profile: Profile) -> Profile:
    """The KV cache that the authors' scripts force for the 13B pair, for every pair."""
    return profile.model_copy(update={"limits": profile.limits.model_copy(update={"num_blocks": SMALL_CACHE_BLOCKS})})


def v0_steps(profile: Profile) -> Profile:
    """Prompts in steps of their own, and a step that verifies its own drafts, as in vLLM 0.8."""
    return profile.model_copy(update={"steps": "v0"})


def all_of(*changes: Change) -> Change:
    """Several at once."""

    def change(profile: Profile) -> Profile:
        for each in changes:
            profile = each(profile)
        return profile

    return change


CHANGES: Final[Mapping[str, Change]] = {
    "as the profiles ship": unchanged,
    "half of the rejected drafts accepted": better_drafts,
    "proposing takes the host no time": free_proposer,
    "four times the FLOP/s": fast_compute,
    "at most 8 requests at once": few_rows,
    "717 KV blocks for every pair": small_cache,
    "AR runs the drafter at K = 0": unchanged,
    "vLLM V0's steps": v0_steps,
    "vLLM V0's steps, better drafts": all_of(v0_steps, better_drafts),
    "better drafts, 717 KV blocks": all_of(better_drafts, small_cache),
    "better drafts, free proposing": all_of(better_drafts, free_proposer),
    "better drafts, at most 8 requests": all_of(better_drafts, few_rows),
}
"""By the words of the table."""
TAXED: Final = "AR runs the drafter at K = 0"
"""Here plain decoding is vLLM's own K = 0, which runs the drafter's first forward."""


def runs(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every assumption, pair, data set and rate."""
    few = replace(choice, effort=choice.effort.with_seeds(SEEDS))
    return [
        cell
        for name, change in CHANGES.items()
        for profile in choice.profiles
        if profile.name in PAPER_PROFILES
        for dataset in DATASETS
        for cell in comparison(ASSUMPTIONS, few, nominal_of(change(profile), dataset), _planners(name), f"{name}: ", warm_too=False)
    ]


def _planners(name: str) -> tuple[Contestant, ...]:
    return (Contestant(OFF, as_published=True), *PLANNERS[1:]) if name == TAXED else PLANNERS


def _with_cost(profile: Profile, **changed: float) -> Profile:
    return profile.model_copy(update={"step_cost": profile.step_cost.model_copy(update=changed)})


def _half_rejected(kind: AcceptanceClass) -> AcceptanceClass:
    conditional = (kind.survival[0], *(later / earlier for earlier, later in pairwise(kind.survival)))
    return kind.model_copy(update={"survival": tuple(accumulate((1.0 - 0.5 * (1.0 - one) for one in conditional), mul))})


PAPER_ASSUMPTIONS: Final = Experiment(
    "paper-assumptions", "what would have to be otherwise for the paper's gain over plain decoding", (runs,)
)
