"""`make bench-model`: the step-time model of the planner against simpler ones, on every engine profile that ships.

A few cells of each profile are measured with noise, as a young group has them; each model then tells the gain of every K over K = 0
in every batch bucket at nominal acceptance. Printed: error of the logarithm of step time over K = 0's, and the goodput that is lost
by running each bucket's K of the best predicted goodput. The models are policy/evidence/step_time.py and what stands in for parts
of it. The bars want the planner's to be at least as good as the best of the simpler ones. How often intervals of predicted gains
hold the truth is in gain_intervals.py. Nothing here is timed: same code, same numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import typer

from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.campaign.scenes import nominal_of
from nightjar.loadtests.simulation.evidence.bars import Bar, StrictOption
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.loadtests.simulation.profiles import PROFILE_NAMES, read_profile
from nightjar.policy.evidence import step_time
from nightjar.policy.evidence.cells import Cell, CellEvidence
from nightjar.policy.evidence.step_time import predict_step_times
from nightjar.policy.wire.batch_buckets import buckets_up_to
from tests.benchmarks import gain_intervals
from tests.benchmarks.gain_intervals import batches
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.run import BenchRun
from tests.benchmarks.measuring.statistics import range_of

OUTPUT: Final = Path("runs/model/latest")
WIDTH: Final = 200
SEEDS: Final = range(40)
MEASURED_CELLS: Final = (4, 8, 16)
STEPS: Final = 12.0
NOISE: Final = 0.05
"""Of the logarithm of one step's time."""

Floats = npt.NDArray[np.float64]
Model = Callable[[Nominal, Mapping[Cell, CellEvidence]], Floats]
"""(buckets, arms): log seconds."""


@dataclass(frozen=True, slots=True)
class Score:
    """One model on one profile: root mean square error of log step time over K = 0's, and share of goodput lost."""

    model: str
    profile: str
    measured_cells: int
    error: float
    lost_share: float


def shape_and_process(nominal: Nominal, cells: Mapping[Cell, CellEvidence]) -> Floats:
    """What the planner uses."""
    arms, buckets = nominal.profile.drafter.arms, buckets_up_to(nominal.max_rows)
    return predict_step_times(cells, arms, buckets, nominal.profile.limits.max_num_seqs, now_s=0.0).log_seconds


def shape_alone(nominal: Nominal, cells: Mapping[Cell, CellEvidence]) -> Floats:
    """Non-negative least squares, and nothing for what it leaves."""
    with patch.object(step_time, "_kernel", lambda one, other: np.zeros((len(one.rows), len(other.rows)))):
        return shape_and_process(nominal, cells)


def process_alone(nominal: Nominal, cells: Mapping[Cell, CellEvidence]) -> Floats:
    """A Gaussian process around the shape that is expected before any evidence."""
    with patch.object(step_time, "_shape", lambda parts, _weights, _noise: np.array(step_time._PRIOR[: parts.shape[1]])):
        return shape_and_process(nominal, cells)


def linear(nominal: Nominal, cells: Mapping[Cell, CellEvidence]) -> Floats:
    """SmartSpec's: seconds = a + b * verified tokens + c * context tokens, least squares (arXiv 2406.14066)."""
    measured = np.array([(1.0, rows(cell) * (1 + length), context(cell)) for (_, length, _), cell in cells.items()])
    seconds = np.array([cell.step_seconds for cell in cells.values()])
    weights, *_ = np.linalg.lstsq(measured / seconds[:, None], np.ones(len(seconds)), rcond=None)
    asked = np.array(
        [
            [(1.0, batch * (1 + arm), batch * nominal.context_per_row) for arm in nominal.profile.drafter.arms]
            for batch in batches(nominal)
        ]
    )
    told: Floats = np.log(np.maximum(asked @ weights, 0.05 * seconds.min()))
    return told


def nearest(nominal: Nominal, cells: Mapping[Cell, CellEvidence]) -> Floats:
    """The nearest measured bucket at the same K, as a table by hand has it; of the nearest K where none was measured."""

    def seconds(bucket: int, arm: int) -> float:
        at = min(cells, key=lambda cell: (abs(cell[1] - arm), abs(cell[0] - bucket), cell))
        return cells[at].step_seconds

    return np.log([[seconds(bucket, arm) for arm in nominal.profile.drafter.arms] for bucket in buckets_up_to(nominal.max_rows)])


PLANNERS: Final = "shape and process (the planner's)"
MODELS: Final[Mapping[str, Model]] = {
    PLANNERS: shape_and_process,
    "shape alone": shape_alone,
    "process alone": process_alone,
    "linear (SmartSpec)": linear,
    "nearest measured cell": nearest,
}


def rows(cell: CellEvidence) -> float:
    """Decode rows of a mean step."""
    return cell.rows / cell.steps


def context(cell: CellEvidence) -> float:
    """Context tokens of a mean step."""
    return cell.context_tokens / cell.steps


def true_log_seconds(nominal: Nominal) -> Floats:
    """(buckets, arms) without noise."""
    return np.log([[nominal.step_seconds(batch, arm) for arm in nominal.profile.drafter.arms] for batch in batches(nominal)])


def measure(nominal: Nominal, count: int, rng: random.Random) -> dict[Cell, CellEvidence]:
    """`count` cells of a group that has been in three neighbouring batch buckets: off once, the others by chance."""
    sizes, arms = batches(nominal), nominal.profile.drafter.arms
    first = rng.randrange(len(sizes))
    near = sorted(range(len(sizes)), key=lambda bucket: (abs(bucket - first), bucket))[: max(3, -(-count // len(arms)))]
    others = [(bucket, arm) for bucket in near for arm in arms if (bucket, arm) != (first, 0)]
    cells = {}
    for bucket, arm in [(first, 0), *rng.sample(others, min(count - 1, len(others)))]:
        log_seconds = math.log(nominal.step_seconds(sizes[bucket], arm)) + rng.gauss(0.0, NOISE / math.sqrt(STEPS))
        tokens = sizes[bucket] * nominal.context_per_row
        squared = STEPS * (log_seconds**2 + NOISE**2)
        cells[Cell(bucket, arm)] = CellEvidence(STEPS, STEPS * log_seconds, STEPS * sizes[bucket], STEPS * tokens, squared)
    return cells


def score(name: str, model: Model, nominal: Nominal, count: int) -> Score:
    """Means over seeds. The buckets that count are the measured ones and their neighbours: nobody plans for others yet."""
    truth, survival = true_log_seconds(nominal), nominal.profile.mean_survival()
    tokens = [1.0 + sum(survival[:arm]) for arm in nominal.profile.drafter.arms]
    errors, lost = [], []
    for seed in SEEDS:
        cells = measure(nominal, count, random.Random(f"{nominal.profile.name}:{count}:{seed}"))
        told = model(nominal, cells)
        seen = {bucket for bucket, _, _ in cells}
        for bucket in range(len(truth)):
            if not any(abs(bucket - other) <= 1 for other in seen):
                continue
            error = (told[bucket] - told[bucket, 0]) - (truth[bucket] - truth[bucket, 0])
            errors.append(float(np.mean(error[1:] ** 2)))
            goodput = np.log(tokens) - truth[bucket]
            chosen = int(np.argmax(np.log(tokens) - told[bucket]))
            lost.append(1.0 - math.exp(float(goodput[chosen] - goodput.max())))
    return Score(name, nominal.profile.name, count, math.sqrt(fmean(errors)), fmean(lost))


def judge(scores: Sequence[Score]) -> Outcome:
    """Two bars for each number of measured cells, and the table: error and loss of every model on each profile, and over all."""
    outcome, lines = Outcome(), list[Sequence[str]]()
    outcome.rows["rows"] = [asdict(one) for one in scores]
    for name in MODELS:
        for count in MEASURED_CELLS:
            mine = [one for one in scores if (one.model, one.measured_cells) == (name, count)]
            errors, losses = [one.error for one in mine], [one.lost_share for one in mine]
            both = [*zip(errors, losses, strict=True), (fmean(errors), fmean(losses))]
            lines.append([name, str(count), *(f"{error:.3f} / {100 * lost:.1f} %" for error, lost in both)])
    for count in MEASURED_CELLS:
        outcome.bars += [
            _bar(scores, count, "lost_share", "share of goodput lost by running the K that the planner's model prefers"),
            _bar(scores, count, "error", "root mean square error of the planner's model: log step time over K = 0's"),
        ]
    title = "Error of log step time over K = 0's, and share of goodput lost by what it makes one run"
    outcome.tables.append(Grid(title, ("model", "measured cells", *PROFILE_NAMES, "mean"), lines))
    return outcome


def _bar(scores: Sequence[Score], count: int, measure: str, meaning: str) -> Bar:
    """Mean over profiles, held against the best of the simpler models."""
    values = {
        name: [getattr(one, measure) for one in scores if (one.model, one.measured_cells) == (name, count)] for name in MODELS
    }
    means = {name: fmean(mine) for name, mine in values.items()}
    rival = min(means.keys() - {PLANNERS}, key=means.__getitem__)
    return Bar(
        name=f"model_{measure}_{count}_cells",
        meaning=f"{meaning}, {count} cells measured: mean over profiles, at most the best simpler model's",
        direction="at most",
        limit=round(means[rival], 6),
        value=round(means[PLANNERS], 6),
        interval=range_of(values[PLANNERS], "profiles"),
        at=f"the best simpler model: {rival}",
        cells=len(values[PLANNERS]),
        seeds=len(SEEDS),
    )


def main(strict: StrictOption = False) -> None:
    """Score every model on every profile, print the table and keep the rows."""
    subject = f"{STEPS:g} steps a cell, {100 * NOISE:g} % of noise a step"
    run = BenchRun("model", seeds=SEEDS, sections=["models", "doubt"], output=OUTPUT, effort="whole", subject=subject, width=WIDTH)
    nominals = [nominal_of(read_profile(name)) for name in PROFILE_NAMES]
    scores = [
        score(name, model, nominal, count) for name, model in MODELS.items() for nominal in nominals for count in MEASURED_CELLS
    ]
    run.found("models", judge(scores))
    run.found("doubt", gain_intervals.judge([one for nominal in nominals for one in gain_intervals.held(nominal)]))
    raise typer.Exit(run.end(strict=strict))


if __name__ == "__main__":
    typer.run(main)
