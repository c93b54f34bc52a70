"""A simulated service as a Prometheus would have scraped it: vLLM's series of engines that ran a fixed K or none, and the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from nightjar.loadtests.assessment.scrapes import MODEL, POSITION, Metric
from nightjar.loadtests.load.regimes import Phase, Regime
from nightjar.loadtests.simulation.campaign.contestants import Contestant, choose
from nightjar.loadtests.simulation.campaign.scenes import nominal_of, open_scene
from nightjar.loadtests.simulation.engine.random_numbers import draws_of
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.profiles import read_profile
from nightjar.loadtests.simulation.service.fleet import ALL_LOCAL_PLANNERS, replica_name
from nightjar.loadtests.simulation.service.results import Totals
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.simulate import simulate
from nightjar.policy.step.drafter import Order
from nightjar.policy.wire.batch_buckets import batch_bucket

PERIOD_S: Final = 15.0
Key = tuple[Metric, int]
"""A series of one engine, and the draft position where it has one."""


@dataclass
class Recorded:
    """What was scraped of one engine, at times from the run's beginning, and what it really did."""

    planner: str
    samples: dict[Key, list[tuple[float, float]]] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    batch_seconds: dict[int, float] = field(default_factory=dict)
    """Seconds of steps by the bucket of their decode rows."""
    reached: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def note(self, at_s: float, values: Mapping[Key, float]) -> None:
        """One scrape."""
        for key, value in values.items():
            self.samples.setdefault(key, []).append((at_s, value))

    def restarted(self, at_s: float) -> Recorded:
        """The same engine where its process began anew at a time: its counters count from 0 there."""
        samples = {}
        for key, series in self.samples.items():
            before = max((value for time_s, value in series if time_s < at_s), default=0.0)
            offset = 0.0 if key[0] is Metric.RUNNING else before
            samples[key] = [(time_s, value - offset * (time_s >= at_s)) for time_s, value in series]
        return replace(self, samples=samples)


class ScrapedEngine(SimulatedEngine):
    """A simulated engine that is scraped every PERIOD_S and remembers the truth."""

    recorded: Recorded
    _next_s = 0.0
    _answers = _answer_tokens = _prompt_tokens = 0
    _seen_steps = 0
    _row_seconds = 0.0
    _rows_of_steps = 0

    def step(self) -> Sequence[SimulatedRequest]:
        """Run a step; scrape where one is due."""
        answered = super().step()
        for request in answered:
            self._answers += 1
            self._answer_tokens += request.output_tokens
            self._prompt_tokens += request.prompt_tokens
        self._scrape_until(self.now_s)
        return answered

    def wait_until(self, now_s: float) -> None:
        """Idle on; scrapes see no request meanwhile."""
        if not self.has_work:
            self._scrape_until(now_s)
        super().wait_until(now_s)

    def _scrape_until(self, now_s: float) -> None:
        while self._next_s <= now_s:
            self.recorded.note(self._next_s, self._exported())
            self._next_s += PERIOD_S

    def _exported(self) -> dict[Key, float]:
        snapshot = self.report().snapshot
        totals, recorded = snapshot.counters.totals, self.recorded
        self._add_steps()
        values = {
            Metric.RUNNING: snapshot.load.num_running_reqs,
            Metric.GENERATED_TOKENS: sum(one.generated_tokens for one in totals),
            Metric.PROMPT_TOKENS: sum(one.prefill_tokens for one in totals),
            Metric.STEP_SECONDS: self._row_seconds,
            Metric.STEP_ROWS: self._rows_of_steps,
            Metric.ANSWERS: self._answers,
            Metric.ANSWER_TOKENS: self._answer_tokens,
            Metric.ANSWERED_PROMPT_TOKENS: self._prompt_tokens,
        }
        exported = {(metric, 0): float(value) for metric, value in values.items()}
        if recorded.planner != "off":
            drafted = {
                Metric.DRAFTS: recorded.reached[0] if recorded.reached else 0,
                Metric.DRAFT_TOKENS: sum(recorded.reached),
                Metric.ACCEPTED_TOKENS: sum(recorded.accepted),
            }
            exported |= {(metric, 0): float(value) for metric, value in drafted.items()}
            exported |= {(Metric.ACCEPTED_AT, place): float(count) for place, count in enumerate(recorded.accepted)}
        return exported

    def _add_steps(self) -> None:
        seconds, rows = self.totals.output_seconds, self.totals.output_rows
        for at in range(self._seen_steps, len(seconds)):
            self._row_seconds += seconds[at] * rows[at]
            self._rows_of_steps += rows[at]
            bucket = batch_bucket(rows[at])
            held = self.recorded.batch_seconds
            held[bucket] = held.get(bucket, 0.0) + seconds[at]
        self._seen_steps = len(seconds)

    def _follow_life(self, order: Order, reached: Sequence[int], accepted: Sequence[int], began_s: float) -> None:
        for sums, counted in ((self.recorded.reached, reached), (self.recorded.accepted, accepted)):
            sums.extend([0] * (len(counted) - len(sums)))
            for place, count in enumerate(counted):
                sums[place] += count
        super()._follow_life(order, reached, accepted, began_s)


def run(planner: str, *, profile: str, users: Sequence[int], phase_s: float, seed: int = 0) -> Recorded:
    """One engine under so many closed-loop users, phase after phase. `planner`: off, fixed-K, or fleet, which is not scraped."""
    nominal = nominal_of(read_profile(profile))
    phases = tuple(Phase(f"phase-{number}", phase_s, users=count) for number, count in enumerate(users))
    scene = open_scene(nominal, "changing load", Regime(phases), 1)
    contestant = Contestant(planner)
    scenario = Scenario(
        profile=nominal.profile,
        workload=scene.workload,
        planner=choose(contestant, nominal, seed, {}),
        duration_s=phase_s * len(users),
        replicas=1,
        seed=seed,
        mechanics=nominal.profile.mechanics(contestant.mechanics),
    )
    recorded = Recorded(planner)
    result = simulate(scenario, None if planner == "fleet" else _builder(scenario, recorded))
    recorded.totals = result.totals
    return recorded


def _builder(scenario: Scenario, recorded: Recorded) -> Callable[[int, float], SimulatedEngine]:
    def build(number: int, speed: float) -> SimulatedEngine:
        engine = ScrapedEngine(
            scenario.profile,
            replica_id=replica_name(number),
            mechanics=scenario.mechanics,
            seed=int(np.random.SeedSequence((scenario.seed, number)).generate_state(1)[0]),
            local_planners=ALL_LOCAL_PLANNERS,
            speed=speed,
            catch_up_chunk_tokens=scenario.catch_up_chunk_tokens,
            draws=draws_of(scenario.seed),
        )
        engine.recorded = recorded
        return engine

    return build


def write_openmetrics(file: Path, engines: Iterable[tuple[Mapping[str, str], str, Recorded]], begin_s: float) -> None:
    """What `promtool tsdb create-blocks-from openmetrics` reads: labels, prefix of the names, and samples of each engine, whose run
    began at `begin_s`, seconds since the epoch."""
    with file.open("w") as written:
        for labels, prefix, recorded in engines:
            for (metric, place), samples in recorded.samples.items():
                own = {**labels, POSITION: str(place)} if metric is Metric.ACCEPTED_AT else labels
                text = ",".join(f'{name}="{value}"' for name, value in own.items())
                written.writelines(f"{prefix}{metric}{{{text}}} {value:.9g} {begin_s + at_s:.3f}\n" for at_s, value in samples)
        written.write("# EOF\n")


def labelled(recorded: Recorded, **labels: str) -> Iterator[tuple[dict[str, str], list[tuple[float, float]]]]:
    """The same as `scrapes.Collector` takes it."""
    for (metric, place), samples in recorded.samples.items():
        own = {POSITION: str(place)} if metric is Metric.ACCEPTED_AT else {}
        yield {"__name__": f"vllm:{metric}", MODEL: "chat", **labels, **own}, samples
