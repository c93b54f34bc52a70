"""A scene is where planners are compared: a profile, a load and a number of replicas. From it come the cells to run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.load.traces import read_trace
from nightjar.loadtests.simulation.campaign.contestants import Contestant, choose, learns
from nightjar.loadtests.simulation.campaign.efforts import Effort
from nightjar.loadtests.simulation.campaign.experiment import Choice, dataset_of
from nightjar.loadtests.simulation.campaign.loads import ACCEPTANCE, open_load
from nightjar.loadtests.simulation.campaign.measures import Measure, Simulate
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.evidence.runner import Cell
from nightjar.loadtests.simulation.profiles import Mechanics, Profile
from nightjar.loadtests.simulation.service.lengths import Dataset, Lognormal, Traffic
from nightjar.loadtests.simulation.service.scenario import AcceptanceScaled, Scenario
from nightjar.loadtests.simulation.service.workload import Trace, Workload

SHORT_STEP_S: Final = 0.02
LONG_STEP_S: Final = 0.2
"""An engine whose steps are longer makes few of them: its runs scatter more, and cost next to nothing."""

TRACE_SHARE: Final = 0.6
"""Of what the engines carry: what a trace is scaled to."""
TRACE_LEAST_S: Final = 300.0
"""What is measured of a trace at least. It repeats no pattern, so that a backlog at either end counts: over a long time, little."""

LEAST_REQUESTS: Final = 60.0
"""Requests that are asked on average while an open loop is measured, at least: of five, chance decides more than the planner."""
MANY_STEPS: Final = 1000
"""Steps of a busy engine: a fleet has learned from as many before a measure of what it knows begins, and an open loop is measured
for their time at least."""

STEP_S: Final = 18e-6
STEP_S_PER_ROW: Final = 0.16e-6
POLICY_S: Final = 1.2e-3
"""What it takes to simulate a step, each of its rows, and reports and decisions of one replica for a virtual second: seconds of a
core, measured, for the estimate that is printed first. The progress corrects itself."""


@dataclass(frozen=True)
class Scene:
    """Where planners are compared. `rows` is about how many requests an engine decodes at once, for estimating the work.

    `acceptance` scales the conditional acceptance of the profile's texts: all the time, or with `turn_s` until the measure begins
    and then by turns of so many seconds, the profile's own texts first. `measured_s` is what a run measures of a load that
    repeats a pattern or stands still, `own_s` how long a regime of the user's own lasts, 0 for other loads.
    """

    nominal: Nominal
    load: str
    workload: Workload
    replicas: int
    rows: float
    acceptance: float = 1.0
    turn_s: float = 0.0
    measured_s: float = 0.0
    own_s: float = 0.0

    @property
    def place(self) -> str:
        """Name of the place in rows and tables."""
        return f"{self.nominal.profile.name}/{self.load}" + (f"/{self.replicas} replicas" if self.replicas > 1 else "")

    def on(self, mechanics: Mechanics) -> Nominal:
        """The profile's nominal on other mechanics."""
        return replace(self.nominal, mechanics=mechanics)


def nominal_of(profile: Profile, dataset: Traffic | None = None) -> Nominal:
    """A profile's nominal under its own traffic, with what its drafter can leave out at K = 0."""
    return Nominal(profile, dataset or dataset_of(profile), profile.mechanics(Mechanics.DORMANT))


def open_scenes(choice: Choice, replicas: int = 1, loads: Iterable[str] | None = None) -> list[Scene]:
    """Every chosen profile under every chosen open-loop load, the user's own regimes and trace included."""
    scenes = []
    for nominal in map(nominal_of, choice.profiles):
        scenes += [_measured_scene(choice.effort, nominal, name, replicas) for name in (choice.loads if loads is None else loads)]
        scenes += [replace(open_scene(nominal, name, regime, replicas), own_s=regime.duration_s) for name, regime in choice.regimes]
        if choice.trace is not None:
            scenes.append(_trace_scene(nominal, choice, replicas))
    return scenes


def pattern_s(effort: Effort, nominal: Nominal) -> float:
    """Length of an open-loop pattern on a profile: short where steps are, because its engines live through more of them."""
    return effort.pattern_s / 2 if step_s(nominal) < SHORT_STEP_S else effort.pattern_s


def rival_seeds(effort: Effort, nominal: Nominal) -> range:
    """Seeds of rivals on a profile: those of the bars where steps are long."""
    return effort.bars if step_s(nominal) > LONG_STEP_S else effort.rivals


def timing(effort: Effort, scene: Scene, planner: str) -> dict[str, Any]:
    """Warm-up and duration of a run, as fields of a scenario; at least half of a user's regime is measured.

    Users ask from the first second on, whoever plans: they are the same requests in the measure then. What is measured of an open
    loop starts with empty engines, and for planners that learn nothing one pattern is warm-up enough.
    """
    if scene.workload.user_counts() and not scene.own_s:
        return after_learning(effort, scene.nominal, scene.measured_s)
    warm_up_s = min(effort.warm_up_s, scene.own_s / 2) if scene.own_s else effort.warm_up_s
    fields = {"warm_up_s": warm_up_s, "duration_s": scene.own_s or warm_up_s + scene.measured_s, "starts_empty": True}
    if learns(planner):
        return fields
    return fields | {"asked_from_s": max(warm_up_s - pattern_s(effort, scene.nominal), 0.0)}


def after_learning(effort: Effort, nominal: Nominal, measured_s: float) -> dict[str, Any]:
    """Warm-up and duration of a run that measures what a fleet does that has learned."""
    warm_up_s = learn_s(effort, nominal)
    return {"warm_up_s": warm_up_s, "duration_s": warm_up_s + measured_s}


def learn_s(effort: Effort, nominal: Nominal) -> float:
    """Virtual seconds that a fleet gets to learn: some steps at least, where steps are long."""
    return max(effort.learn_s, MANY_STEPS * step_s(nominal))


def step_s(nominal: Nominal) -> float:
    """Seconds of a step of an engine that is a quarter full."""
    rows = nominal.max_rows // 4 or 1
    return nominal.step_seconds(rows, nominal.best_k(rows))


def named_scene(effort: Effort, nominal: Nominal, load: str, replicas: int, duration_s: float) -> Scene:
    """A profile under one of loads.LOADS."""
    return open_scene(nominal, load, open_load(load, nominal, replicas, pattern_s(effort, nominal), duration_s), replicas)


def _measured_scene(effort: Effort, nominal: Nominal, load: str, replicas: int) -> Scene:
    """A profile under one of loads.LOADS for an open loop: as many patterns are measured as bring many steps and requests."""
    one_s = pattern_s(effort, nominal)
    requests = _requests(open_load(load, nominal, 1, one_s, one_s))
    measured_s = one_s * max(math.ceil(MANY_STEPS * step_s(nominal) / one_s), math.ceil(LEAST_REQUESTS / requests))
    scene = named_scene(effort, nominal, load, replicas, effort.warm_up_s + measured_s)
    return replace(scene, measured_s=measured_s)


def open_scene(nominal: Nominal, name: str, regime: Regime, replicas: int) -> Scene:
    """One open-loop scene; rates of the regime are the whole service's."""
    rate = _requests(regime) / regime.duration_s / replicas
    users = max((phase.users or 0 for phase in regime.phases), default=0) / replicas
    scale = ACCEPTANCE.get(name, 1.0)
    return Scene(nominal, name, workload(nominal, regime), replicas, users or nominal.rows_at(rate), acceptance=scale)


def _requests(regime: Regime) -> float:
    """How many a regime's phases ask, on average."""
    return sum(phase.duration_s * _mean_rate(phase) for phase in regime.phases)


def poisson_scene(effort: Effort, nominal: Nominal, name: str, requests_per_s: float, measured_s: float) -> Scene:
    """An open loop of constant load on one engine, measured after the warm-up."""
    regime = Regime((Phase("poisson", effort.warm_up_s + measured_s, requests_per_s=requests_per_s),))
    return replace(open_scene(nominal, name, regime, 1), measured_s=measured_s)


def held_scene(effort: Effort, nominal: Nominal, rows: int, replicas: int, measured_s: float) -> Scene:
    """A closed loop that is measured once a fleet has learned."""
    return replace(closed_scene(nominal, rows, replicas, learn_s(effort, nominal) + measured_s), measured_s=measured_s)


def closed_scene(nominal: Nominal, rows: int, replicas: int, duration_s: float) -> Scene:
    """A closed loop that holds `rows` requests in every engine."""
    regime = Regime((Phase("closed", duration_s, users=rows * replicas),))
    return Scene(nominal, f"batch {rows}", workload(nominal, regime), replicas, rows)


def workload(nominal: Nominal, load: Regime | Trace) -> Workload:
    """The profile's traffic under a load; two of its requests fit into the KV cache at least."""
    shares = tuple(kind.share for kind in nominal.profile.acceptance_classes)
    longest = min(nominal.dataset.max_model_len, nominal.profile.limits.num_tokens // 2)
    return Workload(load, nominal.dataset, shares, max_model_len=longest)


def cell(
    kind: str,
    scene: Scene,
    contestant: Contestant,
    seed: int,
    measure: Measure,
    *,
    duration_s: float,
    warm_up_s: float,
    variant: str = "",
    place: str = "",
    settings: Mapping[str, object] | None = None,
    **scenario: Any,
) -> Cell:
    """One run. `settings` are operator's settings that differ from the defaults, `scenario` other fields of the scenario.

    `place` is the scene's unless given.
    """
    nominal = scene.on(scene.nominal.profile.mechanics(contestant.mechanics))
    planner = choose(contestant, nominal, seed, settings or {}, scene.acceptance)
    if planner.local is not None:
        scenario.setdefault("catch_up_chunk_tokens", scene.nominal.catch_up_chunk_tokens)
    planned = Scenario(
        profile=nominal.profile,
        workload=scene.workload,
        planner=planner,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        replicas=scene.replicas,
        seed=seed,
        **_texts(scene, warm_up_s, duration_s),
        mechanics=nominal.mechanics,
        **scenario,
    )
    return Cell(
        kind=kind,
        place=place or scene.place,
        profile=nominal.profile.name,
        load=scene.load,
        planner=contestant.name,
        mechanics=nominal.mechanics,
        as_published=contestant.as_published and nominal.mechanics is not scene.nominal.mechanics,
        replicas=scene.replicas,
        seed=seed,
        job=Simulate(planned, measure),
        expected_s=_expected_s(scene, duration_s - planned.asked_from_s, has_policy=planned.planner.operator is not None),
        variant=variant,
    )


def _texts(scene: Scene, warm_up_s: float, duration_s: float) -> dict[str, Any]:
    """Which texts come when, as fields of a scenario."""
    if not scene.turn_s:
        return {"acceptance": scene.acceptance}
    turns = range(math.ceil((duration_s - warm_up_s) / scene.turn_s))
    others_first = AcceptanceScaled(0.0, scene.acceptance)
    changes = (AcceptanceScaled(warm_up_s + turn * scene.turn_s, scene.acceptance if turn % 2 else 1.0) for turn in turns)
    return {"events": (others_first, *changes)}


def _expected_s(scene: Scene, asked_s: float, *, has_policy: bool) -> float:
    """Seconds of a core that a run takes, about, in which requests are asked for `asked_s`."""
    rows = max(round(scene.rows), 1)
    busy = min(scene.rows, 1.0)
    steps_per_s = busy / scene.nominal.step_seconds(rows, scene.nominal.best_k(rows))
    return scene.replicas * asked_s * (steps_per_s * (STEP_S + STEP_S_PER_ROW * rows) + POLICY_S * has_policy)


def _trace_scene(nominal: Nominal, choice: Choice, replicas: int) -> Scene:
    """The trace at 60 % of what the engines carry of such requests: they are thinned or repeated, their ups and downs stay."""
    assert choice.trace is not None
    rows = read_trace(choice.trace)
    longest = workload(nominal, Trace(choice.trace)).max_model_len
    prompts = Lognormal.fitted([row.prompt_tokens for row in rows], longest - 1)
    answers = Lognormal.fitted([row.output_tokens for row in rows], longest - 1)
    traced = replace(nominal, dataset=Dataset("trace", prompts, answers))
    requests_per_s = TRACE_SHARE * traced.capacity
    recorded_per_s = len(rows) / max(rows[-1].due_s, 1.0)
    load = Trace(choice.trace, rate_scale=requests_per_s * replicas / recorded_per_s)
    measured_s = max(TRACE_LEAST_S, LEAST_REQUESTS / (requests_per_s * replicas))
    rows_held = traced.rows_at(requests_per_s)
    return Scene(traced, "trace", workload(traced, load), replicas, rows_held, own_s=choice.effort.warm_up_s + measured_s)


def _mean_rate(phase: Phase) -> float:
    first = phase.requests_per_s or 0.0
    return (first + (first if phase.end_requests_per_s is None else phase.end_requests_per_s)) / 2
