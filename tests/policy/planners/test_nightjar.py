"""The paper's bandit: its blocks, bins, locks and switch penalties are those of a trace worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.evidence.cells import Evidence
from nightjar.policy.planners import LOCAL_PLANNERS, PLANNERS
from nightjar.policy.planners.base import GroupPlan, GroupView
from nightjar.policy.planners.local import LocalContext, LocalOptionsError, StepOutcome, StepView
from nightjar.policy.planners.nightjar import AdaBinGreedy
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import Local
from nightjar.policy.wire.switch_cost import PAPER_SWITCH_COST, SwitchCost, SwitchCostRow, format_rows
from nightjar.policy.words import in_words

KS = (0, 1, 3)
EXPLORE, EXPLOIT = 0.0, 0.999
CONTEXT = LocalContext(max_num_speculative_tokens=3, max_num_seqs=64, allowed=KS, seed=7)


class Script(Random):
    """Coins and K as written down in the test."""

    def __init__(self, coins: Sequence[float], ks: Sequence[int]) -> None:
        super().__init__(0)
        self._coins, self._ks = iter(coins), iter(ks)

    def random(self) -> float:
        return next(self._coins)

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        assert (start, stop) == (len(KS), None)
        return KS.index(next(self._ks))


def bandit(coins: Sequence[float], ks: Sequence[int], rows: Sequence[tuple[int, int, float]] = ((100, 4, 0.03),)) -> AdaBinGreedy:
    return AdaBinGreedy(KS, SwitchCost(rows), Script(coins, ks))


def step(planner: AdaBinGreedy, tokens_per_row_and_s: float, *, batch: int = 4, previous: int = 0, lag: int = 0) -> int:
    """Choose, run and learn one step in which every row gets so many tokens a second; returns K."""
    view = StepView(batch, 100 * batch, previous, lag * batch, lag, 0.0)
    chosen = planner.choose(view)
    learn(planner, chosen, tokens_per_row_and_s, batch=batch)
    return chosen


def learn(planner: AdaBinGreedy, length: int, tokens_per_row_and_s: float, *, batch: int = 4) -> None:
    generated = 2 * batch
    planner.learn(StepOutcome(length, batch, 100 * batch, generated, 2 / tokens_per_row_and_s, [batch] * length, [0] * length))


def test_a_trace_worked_out_by_hand() -> None:
    planner = bandit(
        coins=[EXPLORE, EXPLORE, 0.5, EXPLORE, 0.5, EXPLORE, 0.4999, EXPLOIT, EXPLOIT],
        ks=[3, 0, 1, 0, 3],
    )
    # Block 1, H = 1: one bin of one step explores.
    assert step(planner, 100.0) == 3
    # Block 2, H = 2: two bins of one step. The first explores, the second has p = 1/2 and a coin of exactly 1/2 exploits:
    # K = 0 costs 1/80 = 12.5 ms a token; K = 3 costs 1/100 = 10 ms and, after K = 0 with a lag of 100, 30 ms / 3 more.
    assert step(planner, 80.0, previous=3) == 0
    assert step(planner, 80.0, previous=0, lag=100) == 0
    # Block 3, H = 4: two bins of two steps. The first explores K = 1 and holds it; the second exploits after K = 1, so without
    # penalty: K = 1 and K = 3 both stand at 10 ms, the tie goes to the smaller. It holds K = 1 although that turns out bad.
    assert [step(planner, 90.0, previous=0), step(planner, 110.0, previous=1)] == [1, 1]
    assert [step(planner, 20.0, previous=1), step(planner, 20.0, previous=1)] == [1, 1]
    # Block 4, H = 8: four bins of two. Coin 0.4999 explores in bin 2 (p = 1/2).
    assert [step(planner, 80.0, previous=1), step(planner, 80.0)] == [0, 0]
    assert [step(planner, 100.0), step(planner, 100.0)] == [3, 3]
    # Bin 3 exploits after K = 0 with a lag of 20 tokens: C_switch = 6 ms, 10 + 2 < 12.5, so speculation comes back ...
    assert [step(planner, 100.0, previous=0, lag=20), step(planner, 100.0, previous=3)] == [3, 3]
    # ... and in bin 4, after K = 0 with a lag of 26, it does not: 10 + 7.8 / 3 > 12.5. K = 1 stands at 60 tokens/s by now.
    assert step(planner, 80.0, previous=0, lag=26) == 0
    timeline = planner.timeline(4)
    assert timeline is not None
    assert (timeline.block, timeline.bin, timeline.bin_steps_left, timeline.block_steps_left) == (4, 4, 1, 1)


def test_the_penalty_is_paid_only_for_coming_back_from_off() -> None:
    for previous, wanted in ((0, 0), (1, 3)):
        planner = bandit(coins=[EXPLORE, EXPLORE, EXPLOIT], ks=[3, 0])
        step(planner, 100.0)
        step(planner, 80.0)
        assert step(planner, 1.0, previous=previous, lag=100) == wanted


def test_each_batch_size_has_a_timeline_of_its_own() -> None:
    planner = bandit(coins=[EXPLORE] * 3, ks=[3, 1, 0])
    assert [step(planner, 1.0, batch=4), step(planner, 1.0, batch=5), step(planner, 1.0, batch=4)] == [3, 1, 0]
    assert [timeline.block for timeline in (planner.timeline(4), planner.timeline(5)) if timeline] == [2, 1]


def test_a_k_that_was_never_tried_is_not_exploited() -> None:
    planner = bandit(coins=[EXPLORE, EXPLORE, EXPLOIT], ks=[1, 1])
    assert [step(planner, 1e-3) for _ in range(3)] == [1, 1, 1]


def test_a_bin_explores_while_nothing_was_measured() -> None:
    planner = bandit(coins=[EXPLORE, EXPLORE, EXPLOIT], ks=[0, 1, 3])
    view = StepView(4, 400, 0, 0, 0, 0.0)
    assert [planner.choose(view) for _ in range(3)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("block", "bins"), [(1, [1]), (2, [1] * 2), (3, [2] * 2), (4, [2] * 4), (6, [5] * 6 + [2]), (8, [11] * 11 + [7])]
)
def test_a_block_of_h_steps_is_cut_into_bins_of_the_root_of_h(block: int, bins: list[int]) -> None:
    assert [length for number, length in _bins(block) if number == block] == bins
    assert sum(bins) == 2 ** (block - 1)


def _bins(last_block: int) -> Iterator[tuple[int, int]]:
    """Block and length of every bin up to a block, as the planner walks through them."""
    planner = AdaBinGreedy(KS, SwitchCost(()), Random(1))
    view = StepView(1, 1, 0, 0, 0, 0.0)
    while True:
        planner.choose(view)
        timeline = planner.timeline(1)
        assert timeline is not None
        if timeline.block > last_block:
            return
        length = timeline.bin_steps_left + 1
        yield timeline.block, length
        for _ in range(length - 1):
            planner.choose(view)


STEPS = st.lists(st.tuples(st.integers(1, 6), st.floats(1e-4, 1.0), st.integers(0, 300)), min_size=1, max_size=300)


@given(STEPS, st.integers(0, 2**32))
def test_arms_are_legal_and_held_within_a_bin(steps: list[tuple[int, float, int]], seed: int) -> None:
    planner = LOCAL_PLANNERS["nightjar"]({}, CONTEXT._replace(seed=seed))
    assert isinstance(planner, AdaBinGreedy)
    held: dict[tuple[int, int, int], int] = {}
    previous = 0
    for batch, seconds, lag in steps:
        chosen = planner.choose(StepView(batch, 0, previous, lag * batch, lag, 0.0))
        assert chosen in KS
        timeline = planner.timeline(batch)
        assert timeline is not None
        assert held.setdefault((batch, timeline.block, timeline.bin), chosen) == chosen
        planner.learn(StepOutcome(chosen, batch, 0, batch, seconds, (), ()))
        previous = chosen


@given(st.integers(0, 2**32), st.booleans())
def test_once_off_was_tried_every_bin_that_does_not_explore_runs_it_where_speculation_never_pays(
    seed: int, batch_buckets: bool
) -> None:
    planner = LOCAL_PLANNERS["nightjar"]({"batch_buckets": batch_buckets}, CONTEXT._replace(seed=seed))
    assert isinstance(planner, AdaBinGreedy)
    previous, was_tried, bin_before, must_be_off = 0, False, (0, 0), False
    for _ in range(600):
        chosen = planner.choose(StepView(8, 0, previous, 0, 0, 0.0))
        timeline = planner.timeline(8)
        assert timeline is not None
        if (timeline.block, timeline.bin) != bin_before:
            bin_before = timeline.block, timeline.bin
            must_be_off = was_tried and not timeline.explores
        assert chosen == 0 or not must_be_off
        planner.learn(StepOutcome(chosen, 8, 0, 8, 0.01 * (1 + chosen), (), ()))
        was_tried |= chosen == 0
        previous = chosen


@pytest.mark.parametrize("batch_buckets", [False, True])
def test_off_is_found_where_speculation_never_pays(batch_buckets: bool) -> None:
    """By nearly every engine: a K that was never tried takes no part, and chance may leave off untried for hundreds of steps."""

    def steps_off(seed: int) -> int:
        planner = LOCAL_PLANNERS["nightjar"]({"batch_buckets": batch_buckets}, CONTEXT._replace(seed=seed))
        chosen: list[int] = []
        for _ in range(600):
            chosen.append(planner.choose(StepView(8, 0, chosen[-1] if chosen else 0, 0, 0, 0.0)))
            planner.learn(StepOutcome(chosen[-1], 8, 0, 8, 0.01 * (1 + chosen[-1]), (), ()))
        return chosen[-300:].count(0)

    found = [steps_off(seed) for seed in range(100)]
    assert sum(steps > 150 for steps in found) >= 95


def test_the_same_seed_plans_the_same() -> None:
    def run(seed: int) -> list[int]:
        planner = LOCAL_PLANNERS["nightjar"]({}, CONTEXT._replace(seed=seed))
        return [planner.choose(StepView(1 + number % 3, 0, 0, 0, 0, 0.0)) for number in range(100)]

    assert run(3) == run(3) != run(4)


LEARNED: tuple[SwitchCostRow, ...] = ((32, 1, 0.02), (128, 4, 0.05))


def planned(costs: tuple[SwitchCostRow, ...] = LEARNED, present: GroupPlan | None = None, **settings: object) -> GroupPlan:
    key = GroupKey(target="t", max_num_speculative_tokens=3, max_num_seqs=64)
    changed = OperatorSettings.model_validate({"planner": "nightjar", **settings})
    return PLANNERS["nightjar"](GroupView(key, changed, Evidence(), present, switch_costs=costs))


def table_of(plan: GroupPlan) -> object:
    assert plan.local is not None
    return plan.local.options["switch_cost"]


@pytest.mark.parametrize(
    ("plan", "rows", "said"),
    [
        (planned(()), PAPER_SWITCH_COST, "C_switch of the paper's RTX 4090 until a restart was measured"),
        (planned(), LEARNED, "C_switch as its restarts cost"),
        (planned(switch_cost_table=[[9, 8, 0.5]]), ((9, 8, 0.5),), "C_switch from the settings"),
        (planned(switch_cost_table=[]), (), "C_switch from the settings"),
    ],
)
def test_the_table_is_the_operators_else_what_restarts_cost_else_the_papers_and_the_plan_says_which(
    plan: GroupPlan, rows: tuple[SwitchCostRow, ...], said: str
) -> None:
    assert table_of(plan) == format_rows(rows)
    assert in_words(plan.summary).endswith(said)


def test_a_learned_table_stays_until_a_row_of_it_is_off_by_a_quarter() -> None:
    first = planned()
    assert planned(((32, 1, 0.024), (128, 4, 0.042)), first) == first
    assert table_of(planned(((32, 1, 0.026), (128, 4, 0.05)), first)) == "32x1=0.026,128x4=0.05"


@pytest.mark.parametrize("options", [{}, {"switch_cost": "9999999999x1=0.1"}])
def test_a_plan_whose_table_no_engine_took_gets_the_learned_one(options: dict[str, float | int | str | bool]) -> None:
    assert table_of(planned(present=GroupPlan((), local=Local(planner="nightjar", options=options)))) == format_rows(LEARNED)


def test_another_table_keeps_what_the_bandit_learned_and_another_context_does_not() -> None:
    build = LOCAL_PLANNERS["nightjar"]
    first = build({"switch_cost": "100x4=0.03"}, CONTEXT)
    assert isinstance(first, AdaBinGreedy)
    first.choose(StepView(4, 0, 0, 0, 0, 0.0))
    after = build({"switch_cost": "100x4=0.5"}, CONTEXT._replace(before=first))
    assert after is first
    assert first.switch_cost.seconds(100, 4) == 0.5
    assert build({"batch_buckets": True}, CONTEXT._replace(before=first)) is not first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"switch": "1x1=1"}, "option 'switch' is unknown; allowed are batch_buckets, switch_cost"),
        ({"switch_cost": "128"}, "option switch_cost: switch cost '128' is no row; the form is LAG_TOKENSxBATCH=SECONDS"),
        ({"switch_cost": "128x4=0.1,128x4=0.2"}, "lag 128 at batch 4 is given twice"),
        ({"switch_cost": 3}, "option switch_cost is 3; allowed is text"),
        ({"batch_buckets": "yes"}, "option batch_buckets is 'yes'; allowed are true and false"),
    ],
)
def test_wrong_options_are_named(options: dict[str, float | int | str | bool], message: str) -> None:
    with pytest.raises(LocalOptionsError, match=message):
        LOCAL_PLANNERS["nightjar"](options, CONTEXT)
