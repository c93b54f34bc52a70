"""The section `bursts` of `make bench-engine`, on an engine made up: when requests come, what they waited, and who is compared."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import cast

import pytest

from tests.benchmarks.engine.effort import FULL, QUICK, Bursts
from tests.benchmarks.engine.engines import Engine
from tests.benchmarks.engine.fixture import ARMS, DISTINCT_QUESTIONS, burst_question
from tests.benchmarks.engine.fleet_link import FleetLink
from tests.benchmarks.engine.measured import AUTO, OFF
from tests.benchmarks.engine.sections import bursts
from tests.benchmarks.engine.sections.bursts import (
    ANSWER_TOKENS,
    BURST_SHARE,
    LOAD,
    Answer,
    Run,
    arrivals,
    best_fixed,
    burst_bars,
    burst_outcome,
    measure_bursts,
    play,
)
from tests.benchmarks.engine.step_record import RowStep, Step
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.repeats import Repeats

PREFILL_S, DECODE_S, DRAFT_S = 4.0, 0.5, 0.01
PLANNED = 5
FEW = Bursts(lengths=(0, 1, 5), size=3, count=2, saturating=3, lessons=Repeats(1, 1, 0.0), rounds=Repeats(2, 2, 0.0))


class ReadingEngine:
    """Reads one prompt a step, and generates K + 1 tokens a step for each answer that has begun: also past its end."""

    def __init__(self) -> None:
        self.num_speculative_tokens = 0
        self.generated: dict[int, int] = {}
        self.asked: list[tuple[int, str]] = []
        self.now_s = 0.0
        self._numbers = itertools.count()

    def hold(self, num_speculative_tokens: int) -> None:
        self.num_speculative_tokens = num_speculative_tokens

    def encode(self, questions: Sequence[str]) -> list[str]:
        return list(questions)

    def add(self, prompts: Sequence[str], max_tokens: int) -> list[int]:
        assert max_tokens == ANSWER_TOKENS
        self.asked += [(self.num_speculative_tokens, prompt) for prompt in prompts]
        rows = [next(self._numbers) for _ in prompts]
        self.generated |= dict.fromkeys(rows, 0)
        return rows

    def submit(self, numbers: range) -> list[int]:
        return self.add(["" for _ in numbers], ANSWER_TOKENS)

    def wait(self, seconds: float) -> None:
        assert seconds > 0.0
        assert not self.generated

    def step(self) -> Step | None:
        return next(iter(self.run()), None)

    def run(self) -> list[Step]:
        if not self.generated:
            return []
        length, rows, seconds = self.num_speculative_tokens, [], DECODE_S
        reading = next((row for row, tokens in self.generated.items() if not tokens), None)
        for row, tokens in self.generated.items():
            if row == reading:
                rows.append(RowStep(row, True, 400, 0, 0, 1))
                seconds += PREFILL_S
            elif tokens:
                rows.append(RowStep(row, False, 1 + length, tokens, length, 1 + length))
        seconds += DRAFT_S * length
        for one in rows:
            self.generated[one.row] += one.generated
        self.generated = {row: tokens for row, tokens in self.generated.items() if tokens < ANSWER_TOKENS}
        self.now_s += seconds
        return [Step(seconds, seconds, length, 0, 0, tuple(rows))]


class PlanningLink:
    """A planner that always plans the same."""

    def __init__(self, engine: ReadingEngine) -> None:
        self._engine = engine

    def take_over(self) -> None:
        self._engine.num_speculative_tokens = PLANNED

    def report(self) -> None:
        pass

    def after(self, step: Step) -> None:
        assert step.num_speculative_tokens == PLANNED or not step.rows

    def beside(self, step: Step) -> None:
        pass


def run(number: int, arm: str, e2e_s: float, steps: Sequence[Step] = ()) -> Run:
    """One with a single request."""
    taken = tuple(steps) or (Step(1.0, 1.0, 0, 0, 0, ()),)
    return Run(number, arm, (Answer(0.0, e2e_s / 2, e2e_s),), taken)


def measured(monkeypatch: pytest.MonkeyPatch, effort: Bursts = FEW) -> tuple[Outcome, ReadingEngine, list[Run]]:
    """The whole section on an engine made up, and its runs."""
    engine, runs = ReadingEngine(), []
    played = bursts.BurstRounds.run

    def noted(self: bursts.BurstRounds, number: int, arm: str, count: int, what: str = "") -> Run:
        runs.append(played(self, number, arm, count, what))
        return runs[-1]

    monkeypatch.setattr(bursts.BurstRounds, "run", noted)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    link = cast("FleetLink", PlanningLink(engine))
    told: list[str] = []
    outcome = measure_bursts(cast("Engine", engine), link, effort, random.Random(0), 0, told.append, lambda: engine.now_s)
    return outcome, engine, runs


def test_requests_come_in_the_first_part_of_each_bursts_time_and_at_the_wanted_rate() -> None:
    due_s = arrivals(5, 4, 0.5, random.Random(0))
    assert due_s[0] == 0.0
    assert due_s == sorted(due_s)
    for burst in range(5):
        own = due_s[4 * burst : 4 * burst + 4]
        assert own[-1] - own[0] <= BURST_SHARE * 4 / 0.5
        assert abs(own[0] - burst * 4 / 0.5) <= BURST_SHARE * 4 / 0.5


def test_a_request_waits_from_when_it_was_due_also_while_a_step_runs() -> None:
    answers, steps = play(ReadingEngine(), [0.0, 1.0, 100.0])
    reads = PREFILL_S + DECODE_S
    assert [answer.ttft_s for answer in answers] == pytest.approx([reads, 2 * reads - 1.0, reads])
    assert answers[0].tpot_s == pytest.approx((reads + 6 * DECODE_S) / 7)
    assert answers[2].e2e_s == pytest.approx(reads + 7 * DECODE_S)
    assert len(steps) == 9 + 8


def test_drafts_past_the_end_of_an_answer_do_not_delay_it() -> None:
    engine = ReadingEngine()
    engine.hold(5)
    (answer,), steps = play(engine, [0.0])
    assert len(steps) == 3
    assert answer.last_s == pytest.approx(PREFILL_S + 3 * (DECODE_S + 5 * DRAFT_S))


def test_a_request_without_its_whole_answer_breaks_the_section() -> None:
    class Forgetful(ReadingEngine):
        def step(self) -> Step | None:
            self.generated.clear()
            return None

    with pytest.raises(RuntimeError, match="1 of 1 requests got less than 8 tokens"):
        play(Forgetful(), [0.0])


def test_every_arm_of_a_round_gets_the_same_prompts_at_the_same_times(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, runs = measured(monkeypatch)
    asked = iter(engine.asked[FEW.saturating :])
    prompts = [[next(asked)[1] for _ in one.answers] for one in runs]
    rounds: dict[int, list[tuple[list[str], list[float]]]] = {}
    for one, own in zip(runs, prompts, strict=True):
        rounds.setdefault(one.number, []).append((own, [answer.due_s for answer in one.answers]))
    assert [len(arms) for arms in rounds.values()] == [3, 1, 3, 3]
    assert all(arm == arms[0] for arms in rounds.values() for arm in arms)
    firsts = [arms[0] for arms in rounds.values()]
    assert len({prompt for own, _ in firsts for prompt in own}) == sum(len(own) for own, _ in firsts)
    assert len({tuple(due_s) for _, due_s in firsts}) == len(firsts)


def test_the_best_k_is_picked_in_a_round_that_does_not_score_and_lessons_do_not_score(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _, runs = measured(monkeypatch)
    assert [one.number for one in runs] == [0] * 3 + [1] + [2] * 3 + [3] * 3
    assert {one.arm for one in runs[:3]} == {"K=0", "K=1", "K=5"}
    assert runs[3].arm == AUTO
    assert {one.arm for one in runs[4:7]} == {one.arm for one in runs[7:]} == {OFF, "K=5", AUTO}
    assert outcome.facts["bursts_best_fixed"] == "K=5"
    told = outcome.facts["bursts_by_arm"]
    assert {arm: one["requests"] for arm, one in told.items()} == dict.fromkeys((OFF, "K=5", AUTO), 2 * FEW.size * FEW.count)
    assert told[AUTO]["request_seconds"] == pytest.approx(
        sum(answer.e2e_s for one in runs[4:] if one.arm == AUTO for answer in one.answers), abs=0.01
    )
    over_best, over_off = (bar for bar in outcome.bars if bar.name.startswith("bursts_e2e"))
    assert over_best.value == pytest.approx(1.0)
    assert over_best.verdict == "reached"
    assert over_off.value == pytest.approx(told[OFF]["e2e_mean_s"] / told[AUTO]["e2e_mean_s"], abs=1e-3)
    assert over_off.value is not None
    assert over_off.value > 1.0


def test_the_rate_is_a_share_of_what_off_carries_while_it_reads_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _, _ = measured(monkeypatch)
    assert outcome.facts["bursts_requests_per_s"] == pytest.approx(LOAD / (PREFILL_S + DECODE_S), abs=1e-4)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (300.0, 2), (1e9, 4)], ids=["least", "what fits", "most"])
def test_a_round_begins_only_where_it_will_end_within_the_sections_time(
    seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, engine, runs = measured(monkeypatch, replace(FEW, rounds=Repeats(1, 4, seconds)))
    assert outcome.facts["bursts_by_arm"][AUTO]["rounds"] == rounds
    if rounds == 2:
        assert engine.now_s <= seconds
        assert engine.now_s + sum(step.seconds for one in runs[-3:] for step in one.steps) > seconds


def test_off_is_the_best_fixed_k_where_requests_took_least_under_it() -> None:
    assert best_fixed([run(0, OFF, 3.0), run(0, "K=1", 4.0), run(0, "K=5", 3.5)]) == OFF
    picking, scoring = [run(0, OFF, 3.0), run(0, "K=5", 3.5)], [run(1, OFF, 3.0), run(1, "K=5", 1.0), run(1, AUTO, 2.0)]
    outcome = burst_outcome(picking, [], scoring, OFF, 1.0, seed=0)
    ratios = {bar.name: bar.value for bar in outcome.bars}
    assert ratios["bursts_e2e_over_best"] == ratios["bursts_e2e_over_off"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("planner_s", "verdict"),
    [((10.0, 10.1, 9.9, 10.0), "reached"), ((12.0, 12.1, 11.9, 12.0), "MISSED"), ((9.0, 12.0, 9.5, 11.5), "not shown")],
    ids=["as fast", "slower", "now faster, now slower"],
)
def test_a_planner_is_held_against_the_best_k_by_its_rounds(planner_s: Sequence[float], verdict: str) -> None:
    runs = [
        one
        for number, s in enumerate(planner_s)
        for one in (run(number, OFF, 11.0), run(number, "K=5", 10.0), run(number, AUTO, s))
    ]
    judged, *stated = burst_bars(runs, "K=5", seed=0)
    assert judged.name == "bursts_e2e_over_best"
    assert judged.verdict == verdict
    assert judged.value == pytest.approx(10.0 / fmean(planner_s))
    assert judged.interval is not None
    assert judged.interval.kind.startswith("95 % by resampling 4 rounds")
    assert judged.at == f"K=5 10 s, planner {fmean(planner_s):.3g} s"
    assert {bar.verdict for bar in stated} == {"stated"}


def test_what_the_planner_drafted_is_told_with_prefill_and_without() -> None:
    reads = Step(1.0, 1.0, 5, 0, 0, (RowStep(0, True, 400, 0, 0, 1),))
    decodes = Step(1.0, 1.0, 1, 0, 0, (RowStep(0, False, 2, 1, 1, 2),))
    scoring = [run(1, OFF, 3.0), run(1, AUTO, 2.0, [reads, decodes, decodes, decodes])]
    told = burst_outcome([run(0, OFF, 3.0)], [], scoring, OFF, 1.0, seed=0).facts["bursts_share_of_the_planners_steps"]
    assert told == {"all": {"K=1": 0.75, "K=5": 0.25}, "with_prefill": {"K=5": 1.0}, "without_prefill": {"K=1": 1.0}}


def test_no_two_prompts_of_a_run_begin_alike() -> None:
    prompts = [burst_question(number) for number in range(DISTINCT_QUESTIONS)]
    assert len({prompt[:80] for prompt in prompts}) == DISTINCT_QUESTIONS
    for effort in (FULL.bursts, QUICK.bursts):
        rounds = 1 + effort.lessons.most + effort.rounds.most
        assert rounds * effort.size * effort.count <= DISTINCT_QUESTIONS
        assert set(effort.lengths) <= set(ARMS)
        assert 0 in effort.lengths
