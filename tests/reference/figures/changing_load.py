"""K and throughput while the load rises and falls: the planner, a fixed K and no speculation on the same simulated service.

Four replicas of the 7B profile start knowing nothing; users in closed loops ask, a few at first, then many, then few again. Engines
and time are simulated, what decides is the code that runs in production. A run is a second or two of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.report.charts import Band, Scale, Series
from nightjar.loadtests.simulation.campaign.contestants import Contestant, choose
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, open_scene
from nightjar.loadtests.simulation.planner_names import FLEET, OFF
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.results import Second, Totals
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.policy.wire.record import Record
from tests.reference.figures.picture import Panel, picture

ROWS_FILE: Final = "changing-load.json"
PICTURE_FILE: Final = "changing-load.svg"
PROFILE: Final = "qwen-7b-0.5b-rtx4090"
REPLICAS: Final = 4
USERS_PER_REPLICA: Final = (4, 12, 24, 48, 96, 48, 24, 12, 4)
PHASE_S: Final = 30.0
SPAN_S: Final = 5
"""What one point of a curve is the mean of."""
FIXED: Final = "fixed-3"
SHOWN: Final = {OFF: ("speculation off", "soft"), FIXED: ("K = 3 always", "second"), FLEET: ("Nightjar", "main")}
"""By planner: its name and colour. The last one is drawn on top."""
WIDTH: Final = 520
HEIGHT: Final = 132
HIGHEST_K: Final = 5.0


class Point(Record):
    """What one service did in the seconds up to `at_s`."""

    planner: str
    at_s: float
    tokens_per_s: float
    mean_k: float | None
    """Over the steps that only decode; None without any."""


class Rows(Record):
    """A run, as it is kept."""

    command: str
    profile: str
    replicas: int
    users_per_replica: tuple[int, ...]
    phase_s: float
    seed: int
    points: tuple[Point, ...]


def run(seed: int = 0) -> Rows:
    """Simulate every planner that is shown, on the same requests."""
    return Rows(
        command="make figures",
        profile=PROFILE,
        replicas=REPLICAS,
        users_per_replica=USERS_PER_REPLICA,
        phase_s=PHASE_S,
        seed=seed,
        points=tuple(point for planner in SHOWN for point in _points(planner, _seconds(planner, seed))),
    )


def read(path: Path) -> Rows:
    """The rows that were kept. Raises OSError, and pydantic's ValidationError for what is none."""
    return Rows.model_validate_json(path.read_text(encoding="utf-8"))


def draw(rows: Rows) -> str:
    """The figure, as an SVG file."""
    end_s = rows.phase_s * len(rows.users_per_replica)
    bands = [
        Band(str(users), number * rows.phase_s, (number + 1) * rows.phase_s, shaded=number % 2 == 1)
        for number, users in enumerate(rows.users_per_replica)
    ]
    curves = {planner: [point for point in rows.points if point.planner == planner] for planner in SHOWN}
    off = {point.at_s: point.tokens_per_s for point in curves[OFF]}
    lengths = [_series(planner, [(point.at_s, point.mean_k) for point in curves[planner]]) for planner in SHOWN]
    shares = [
        _series(planner, [(point.at_s, 100.0 * point.tokens_per_s / off[point.at_s]) for point in curves[planner]])
        for planner in SHOWN
    ]
    k_scale = Scale(end_s, HIGHEST_K, (0.0, 1.0, 3.0, 5.0), width=WIDTH, height=HEIGHT)
    share_scale = Scale(end_s, 150.0, (0.0, 50.0, 100.0, 150.0), width=WIDTH, height=HEIGHT)
    return picture(
        "K and throughput of Nightjar, of a fixed K and of no speculation while the load changes, simulated",
        (
            Panel("K: draft tokens per request and step. Grey: requests in flight per replica", lengths, k_scale, bands),
            Panel("Generated tokens per second, in percent of speculation off", shares, share_scale, bands),
        ),
    )


def _seconds(planner: str, seed: int) -> Sequence[Second]:
    nominal = nominal_of(read_profile(PROFILE))
    phases = [Phase(f"step-{number}", PHASE_S, users=users * REPLICAS) for number, users in enumerate(USERS_PER_REPLICA)]
    scene = open_scene(nominal, "changing load", Regime(tuple(phases)), REPLICAS)
    contestant = Contestant(planner)
    scenario = Scenario(
        profile=nominal.profile,
        workload=scene.workload,
        planner=choose(contestant, nominal, seed, {}),
        duration_s=PHASE_S * len(USERS_PER_REPLICA) + 1.0,
        replicas=REPLICAS,
        seed=seed,
        mechanics=nominal.profile.mechanics(contestant.mechanics),
        series=True,
    )
    return simulate(scenario).seconds


def _points(planner: str, seconds: Sequence[Second]) -> list[Point]:
    points = []
    for first in range(0, len(seconds) - SPAN_S + 1, SPAN_S):
        totals = sum((second.totals for second in seconds[first : first + SPAN_S]), Totals())
        mean_k = round(totals.mean_num_speculative_tokens, 2) if totals.decode_steps else None
        points.append(Point(planner=planner, at_s=first + SPAN_S, tokens_per_s=round(totals.tokens / SPAN_S, 1), mean_k=mean_k))
    return points


def _series(planner: str, points: Sequence[tuple[float, float | None]]) -> Series:
    name, style = SHOWN[planner]
    return Series(name, "line", style, points)
