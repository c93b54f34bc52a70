"""How often the interval of a predicted gain holds the truth: what `status` and `explain` tell, and what the planner acts on.

A part of `make bench-model`. Of each profile a group has seen some cells (batch bucket and K), with the profile's noise and stalls,
and the drafts of the requests that ran in them, each of one class for LIFE_STEPS steps. Asked is the gain of every K over off, and
over the longest K, in every bucket: the truth is the profile's step time and its mean acceptance. Nothing here is timed.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Final

import numpy as np
import numpy.typing as npt

from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.evidence.doubt import DOUBT_DEVIATIONS
from nightjar.policy.planners.base import GroupView
from nightjar.policy.wire.batch_buckets import bucket_range, buckets_up_to
from nightjar.policy.wire.operator import OperatorSettings
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.statistics import range_of

SEEDS: Final = range(10)
LEAST_HELD: Final = 0.9
LONG_STEPS: Final = 200
"""Of a cell whose K ran all along; a measurement has SHORT_STEPS."""
SHORT_STEPS: Final = 12
CHUNK_STEPS: Final = 12
"""Steps after which acceptance is reported."""
LIFE_STEPS: Final = 60
MOST_ROWS: Final = 64
"""Rows whose drafts are drawn: of more, acceptance is known as well as it can be."""

Floats = npt.NDArray[np.float64]
Seen = Sequence[tuple[int, int, int]]
"""Batch bucket, K and steps."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a group that knows `state` of a profile is told: shares of gains whose interval holds the truth, by the doubt that is
    told and by the planner's own, and of those that are told to be other than nothing."""

    state: str
    profile: str
    gains: int
    told: float
    planners: float
    known: float


def batches(nominal: Nominal) -> list[int]:
    """A batch in the middle of each bucket that the engine reaches."""
    ranges = (bucket_range(bucket, nominal.max_rows) for bucket in buckets_up_to(nominal.max_rows))
    return [round(math.sqrt(first * last)) for first, last in ranges]


def states(nominal: Nominal, rng: random.Random) -> dict[str, Seen]:
    """What a group may have seen, all of it in three neighbouring buckets or a few more."""
    arms, sizes = nominal.profile.drafter.arms, batches(nominal)
    first, longest, middle = rng.randrange(len(sizes)), arms[-1], arms[len(arms) // 2]
    nearest = sorted(range(len(sizes)), key=lambda bucket: (abs(bucket - first), bucket))
    ran = {length: [(bucket, length, LONG_STEPS) for bucket in nearest[:3]] for length in (0, longest)}
    found: dict[str, Seen] = {
        "nothing": [],
        "the longest K": ran[longest],
        "off": ran[0],
        "the longest K, two steps of off": [*ran[longest], (first, 0, 2)],
        "the longest K, off measured once": [*ran[longest], (first, 0, SHORT_STEPS)],
        "the longest K, off measured in each": ran[longest] + [(bucket, 0, SHORT_STEPS) for bucket in nearest[:3]],
        "the longest K, a middle K once": [*ran[longest], (first, middle, SHORT_STEPS)],
        "off, the longest K once": [*ran[0], (first, longest, SHORT_STEPS)],
        "off, the shortest K once": [*ran[0], (first, arms[1], SHORT_STEPS)],
    }
    for count in (4, 8, 16):
        near = nearest[: max(3, -(-count // len(arms)))]
        others = [(bucket, arm, SHORT_STEPS) for bucket in near for arm in arms if (bucket, arm) != (first, 0)]
        found[f"{count} cells"] = [(first, 0, SHORT_STEPS), *rng.sample(others, min(count - 1, len(others)))]
    return found


def evidence_of(nominal: Nominal, seen: Seen, rng: random.Random) -> Evidence:
    """What engines of the profile report of these cells, with noise."""
    noise, sizes = nominal.profile.step_noise, batches(nominal)
    cells: dict[Cell, CellEvidence] = {}
    acceptance = AcceptanceEvidence()
    for bucket, length, steps in seen:
        rows, clean_s = sizes[bucket], nominal.step_seconds(sizes[bucket], length)
        stalls = (noise.stall_seconds if rng.random() < noise.stall_share else 0.0 for _ in range(steps))
        logs = [math.log(clean_s * math.exp(rng.gauss(0.0, noise.lognormal_sd)) + stall_s) for stall_s in stalls]
        squared = sum(one * one for one in logs)
        cells[Cell(bucket, length)] = CellEvidence(
            steps, sum(logs), steps * rows, steps * rows * nominal.context_per_row, squared, sum(map(math.exp, logs))
        )
        for drawn in _drafts(nominal, min(rows, MOST_ROWS), length, steps, rng):
            acceptance = acceptance.plus(drawn)
    return Evidence(cells, acceptance)


def _drafts(nominal: Nominal, rows: int, length: int, steps: int, rng: random.Random) -> Iterator[AcceptanceEvidence]:
    """Of each CHUNK_STEPS steps: how many rows accepted more than i drafts. A row's request leaves after LIFE_STEPS on average."""
    kinds = nominal.profile.acceptance_classes
    shares = [kind.share for kind in kinds]
    classes = rng.choices(range(len(kinds)), shares, k=rows)
    drawing = np.random.default_rng(rng.getrandbits(32))
    for begun in range(0, steps if length else 0, CHUNK_STEPS):
        count = min(CHUNK_STEPS, steps - begun)
        survival = np.array([kinds[kind].survival[:length] for kind in classes])
        kept = (drawing.random((count, rows))[:, :, None] < survival[None, :, :]).sum(axis=(0, 1))
        yield AcceptanceEvidence((float(count * rows),) * length, tuple(map(float, kept)), (0.0,) * length)
        leaves = [rng.random() < CHUNK_STEPS / LIFE_STEPS for _ in classes]
        classes = [rng.choices(range(len(kinds)), shares)[0] if left else kind for kind, left in zip(classes, leaves, strict=True)]


def true_log_goodput(nominal: Nominal, rows: Floats) -> Floats:
    """(buckets, arms) at these rows, but for what all arms of a bucket have in common; between two whole rows in proportion."""
    survival, arms = nominal.profile.mean_survival(), nominal.profile.drafter.arms
    tokens = np.log([1.0 + sum(survival[:arm]) for arm in arms])

    def log_seconds(at: int) -> Floats:
        return np.log([nominal.step_seconds(max(at, 1), arm) for arm in arms])

    between = [(math.floor(row), math.ceil(row), row % 1.0) for row in rows.tolist()]
    return np.array([tokens - (1.0 - part) * log_seconds(low) - part * log_seconds(high) for low, high, part in between])


def held(nominal: Nominal) -> list[Held]:
    """Of every state, over seeds, buckets, K and both references."""
    profile = nominal.profile
    count, last = len(batches(nominal)), len(profile.drafter.arms) - 1
    found: dict[str, list[Floats]] = defaultdict(list)
    for seed in SEEDS:
        name = f"{profile.name}:{seed}"
        for state, seen in states(nominal, random.Random(name)).items():
            evidence = evidence_of(nominal, seen, random.Random(f"{name}:{state}"))
            settings = OperatorSettings(allowed_num_speculative_tokens=profile.drafter.arms)
            model = GroupView(profile.group, settings, evidence).goodput_model()
            truth = true_log_goodput(nominal, np.minimum(model.rows[:count], nominal.max_rows))
            for reference in (0, last):
                others = [arm for arm in range(last + 1) if arm != reference]
                at = np.full(len(model.rows), reference, dtype=np.int64)
                gain, own = (one[:count, others] for one in model.gain(at))
                told = model.told_deviation[:count, others, reference]
                off_by = np.abs(truth[:, others] - truth[:, [reference]] - gain)
                known = np.abs(gain) > DOUBT_DEVIATIONS * told
                columns = [off_by <= DOUBT_DEVIATIONS * told, off_by <= DOUBT_DEVIATIONS * own, known]
                found[state].append(np.array([one.ravel() for one in columns], dtype=float))
    shares = {state: np.concatenate(parts, axis=1) for state, parts in found.items()}
    return [Held(state, profile.name, part.shape[1], *map(float, part.mean(axis=1))) for state, part in shares.items()]


def judge(found: Sequence[Held]) -> Outcome:
    """A bar for the doubt that is told, in the worst of all states and profiles; the planner's own is stated."""
    outcome = Outcome(rows={"doubt": [asdict(one) for one in found]})
    by_state: Mapping[str, list[Held]] = defaultdict(list)
    for one in found:
        by_state[one.state].append(one)
    profiles = list(dict.fromkeys(one.profile for one in found))
    for name, meaning, limit in (
        ("told_gain_held", "gains whose interval, as status and explain tell it, holds the truth", LEAST_HELD),
        ("planner_gain_held", "the same by the doubt that the planner acts on, which is its own affair", None),
    ):
        shares = [one.told if name == "told_gain_held" else one.planners for one in found]
        worst = min(range(len(found)), key=shares.__getitem__)
        outcome.bars.append(
            Bar(
                name=name,
                meaning=f"share of {meaning}: the worst profile and state of knowledge",
                direction="stated" if limit is None else "at least",
                limit=limit or 0.0,
                value=round(shares[worst], 4),
                interval=range_of(shares, "profiles and states"),
                at=f"{found[worst].profile}, which has seen {found[worst].state}",
                cells=len(found),
                seeds=len(SEEDS),
            )
        )
    lines = [
        [
            state,
            *(f"{one.planners:.0%} / {one.told:.0%} / {one.known:.0%}" for one in ones),
            f"{fmean(one.planners for one in ones):.0%} / {fmean(one.told for one in ones):.0%}",
        ]
        for state, ones in by_state.items()
    ]
    title = "Gains whose interval holds the truth, by the planner's own doubt / as told / told to be other than nothing"
    outcome.tables.append(Grid(title, ("seen", *profiles, "mean"), lines))
    return outcome
