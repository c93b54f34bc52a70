"""What happens when the world changes or fails: acceptance halves, a replica lies, the control plane loses messages and dies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.simulation.campaign.contestants import Contestant
from nightjar.loadtests.simulation.campaign.experiment import Choice, Experiment
from nightjar.loadtests.simulation.campaign.measures import basic
from nightjar.loadtests.simulation.campaign.scenes import after_learning, cell, held_scene, learn_s, named_scene, nominal_of
from nightjar.loadtests.simulation.evidence.rows import RunRow
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.planner_names import FLEET, NIGHTJAR
from nightjar.loadtests.simulation.service.control_plane import PERFECT, Network
from nightjar.loadtests.simulation.service.lies import LIES, Lie
from nightjar.loadtests.simulation.service.scenario import AcceptanceScaled, ReplicaLies
from tests.benchmarks.policy.bars import HONEST, LOSSLESS, SLY_LIE
from tests.benchmarks.policy.measures import drift, honest, plan

DRIFT_REPLICAS: Final = 4
DRIFT_FACTOR: Final = 0.5
LIE_REPLICAS: Final = 16
FAULTY_REPLICAS: Final = 4
FAULTY_S: Final = 120.0
LOSSY_REPLICAS: Final = 4

VARIANT_OF: Final[dict[Lie, str]] = {
    "times_ten": "times ten",
    "tenth": SLY_LIE,
    "nan": "NaN",
    "negative": "negative",
    "stale": "stale",
}


def drifts(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Acceptance of all classes halves once the fleet knows."""
    effort = choice.effort
    return [
        cell(
            "drift",
            held_scene(effort, nominal, max(nominal.crossover_rows // 2, 1), DRIFT_REPLICAS, effort.drift_s),
            Contestant(planner),
            seed,
            drift,
            router="sticky",
            events=(AcceptanceScaled(learn_s(effort, nominal), DRIFT_FACTOR),),
            series=True,
            track_regret=True,
            **after_learning(effort, nominal, effort.drift_s),
        )
        for nominal in map(nominal_of, choice.profiles)
        for planner in (FLEET, NIGHTJAR, "turbospec")
        if choice.wants(planner)
        for seed in (effort.bars if planner == FLEET else effort.others)
    ]


def liars(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """One of sixteen replicas lies from the start, in each way."""
    effort = choice.effort
    cells: list[Cell] = []
    for nominal in map(nominal_of, choice.few(1)):
        scene = named_scene(effort, nominal, "diurnal", LIE_REPLICAS, effort.lie_s)
        cells += [
            cell(
                "liar",
                scene,
                Contestant(FLEET),
                seed,
                plan,
                duration_s=effort.lie_s,
                warm_up_s=effort.lie_s / 2,
                variant=VARIANT_OF[lie],
                events=(ReplicaLies(0.0, LIE_REPLICAS - 1, lie),),
            )
            for lie in LIES
            if choice.wants(FLEET)
            for seed in effort.bars
        ]
    return cells


def faulty(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """One of four replicas is faulty from the start, in each way and in none: what that costs the other three (INV-10), in the
    first two minutes and from the second minute on."""
    effort = choice.effort
    return [
        cell(
            kind,
            named_scene(effort, nominal, "poisson-60%", FAULTY_REPLICAS, FAULTY_S),
            Contestant(FLEET),
            seed,
            honest,
            duration_s=FAULTY_S,
            warm_up_s=warm_up_s,
            variant=VARIANT_OF[lie] if lie else HONEST,
            events=(ReplicaLies(0.0, FAULTY_REPLICAS - 1, lie),) if lie else (),
            router="sticky",
            track_regret=True,
        )
        for nominal in map(nominal_of, choice.few(2))
        if choice.wants(FLEET)
        for lie in (None, *LIES)
        for kind, warm_up_s, seeds in (("faulty", 0.0, effort.bars), ("faulty-late", FAULTY_S / 2, effort.others))
        for seed in seeds
    ]


def networks(duration_s: float) -> dict[str, Network]:
    """Ways in which a control plane fails, by name; all at once at the end."""
    deaths_s = tuple(duration_s * share for share in (0.3, 0.55, 0.6, 0.8))
    return {
        LOSSLESS: PERFECT,
        "slow": Network(delay_s=1.0, on_the_wire=True),
        "loses a third": Network(delay_s=0.05, loss=0.3, exchange_timeout_s=5.0, on_the_wire=True),
        "doubles and reorders": Network(delay_s=0.5, delay_sigma=1.5, duplication=0.5, on_the_wire=True),
        "actor dies": Network(deaths_s=deaths_s, down_s=10.0, on_the_wire=True),
        "all of it": Network(
            delay_s=0.5,
            delay_sigma=1.5,
            loss=0.2,
            duplication=0.3,
            exchange_timeout_s=5.0,
            on_the_wire=True,
            deaths_s=deaths_s,
            down_s=10.0,
        ),
    }


def lossy(choice: Choice, _rows: Sequence[RunRow]) -> list[Cell]:
    """Every kind of failure under a load that goes back and forth across the crossover, where leases are asked for all the time."""
    effort = choice.effort
    duration_s = effort.lossy_s
    return [
        cell(
            "lossy",
            named_scene(effort, nominal, "oscillation", LOSSY_REPLICAS, duration_s),
            Contestant(FLEET),
            seed,
            basic,
            duration_s=duration_s,
            warm_up_s=effort.learn_s,
            variant=variant,
            network=network,
        )
        for nominal in map(nominal_of, choice.few(1))
        if choice.wants(FLEET)
        for variant, network in networks(duration_s).items()
        for seed in effort.bars
    ]


DRIFT = Experiment("drift", "acceptance halves in mid-run", (drifts,), bars=("drift_recovery_s",))
LIAR = Experiment("liar", "one replica of sixteen lies", (liars,), bars=("liar_changed", "sly_liar_changed"))
FAULTY = Experiment(
    "faulty", "what one faulty replica of four costs the others", (faulty,), bars=("faulty_goodput_ratio", "faulty_late_ratio")
)
LOSSY = Experiment(
    "lossy",
    "the control plane loses, delays, reorders; the actor dies",
    (lossy,),
    bars=("lossy_goodput_ratio", "budget_violations"),
)
