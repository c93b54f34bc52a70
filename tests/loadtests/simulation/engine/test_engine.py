"""One simulated engine: batching, mechanics of K=0, and what it reports."""

from collections.abc import Sequence

import pytest

from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.truth import Oracle, Truth
from nightjar.loadtests.simulation.profiles import Mechanics
from nightjar.policy.evidence.catch_up import CatchUpCost
from nightjar.policy.planners.local import StepView
from nightjar.policy.restarts.price import Engine as PricedEngine
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Local
from tests.loadtests.simulation.engine.engines import EAGLE, PAIR, engine, held, keep_busy, settings, table


def one(output_tokens: int = 50, prompt_tokens: int = 100, arrival_s: float = 0.0) -> SimulatedRequest:
    return SimulatedRequest(1, arrival_s, prompt_tokens, output_tokens, 0)


def test_a_request_gets_its_first_token_with_its_prompt_and_its_last_when_it_is_done() -> None:
    alone, request = engine(plan=held(0)), one(output_tokens=3)
    alone.submit(request)
    assert list(alone.step()) == []
    assert request.first_token_s == alone.now_s
    assert list(alone.step()) == []
    assert list(alone.step()) == [request]
    assert request.finish_s == alone.now_s
    assert not alone.has_work
    assert list(alone.step()) == []


def test_what_the_prefix_cache_holds_is_not_computed_again_and_takes_its_blocks() -> None:
    spent = []
    for cached_tokens in (0, 960):
        alone = engine(plan=held(0))
        alone.submit(SimulatedRequest(1, 0.0, 1000, 3, 0, cached_tokens))
        alone.step()
        spent.append(alone.now_s)
        assert alone.load().kv_cache_usage == pytest.approx(63 / PAIR.limits.num_blocks), "1,000 tokens in blocks of 16"
        alone.check_integrity()
    assert spent[1] < spent[0]
    assert sum(totals.prefill_tokens for totals in alone.report().snapshot.counters.totals) == 1000 - 960


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_draft_has_what_is_cached_where_it_runs_when_the_request_begins(chunks: int) -> None:
    for length, lag_tokens in ((3, 0), (0, 6000)):
        alone = engine(plan=held(length))
        alone.submit(SimulatedRequest(1, 0.0, 6000, 30, 0, 6000 - chunks * 1500))
        while not alone.decode_batch_size:
            alone.step()
        wished = alone.report().snapshot.restart_wish
        assert (wished.lag_tokens if wished else 0) == 0, "nothing is wished for at K = 0"
        assert alone.adopt(settings(held(3), sequence=2, micro_restart_tokens=0)) == ""
        alone.step()
        wished = alone.report().snapshot.restart_wish
        assert (wished.lag_tokens if wished else 0) >= lag_tokens


def test_after_a_preemption_a_prefix_is_found_in_the_cache_again() -> None:
    tight = PAIR.model_copy(update={"limits": PAIR.limits.model_copy(update={"num_blocks": 130})})
    full, requests = engine(tight, held(0)), [SimulatedRequest(n, 0.0, 900, 300, 0, 800) for n in (1, 2)]
    for request in requests:
        full.submit(request)
    while any(request.finish_s is None for request in requests):
        full.step()
        full.check_integrity()
    computed = sum(totals.prefill_tokens for totals in full.report().snapshot.counters.totals)
    assert full.totals.preemptions == 1
    assert 2 * 100 + 100 < computed < 2 * 100 + 100 + 300, "the second once more, with what it had generated"


def test_an_idle_engine_waits_for_a_request_and_that_is_not_busy_time() -> None:
    idle = engine(plan=held(0))
    idle.submit(one(output_tokens=1, arrival_s=7.0))
    idle.step()
    assert idle.now_s == pytest.approx(7.0 + idle.totals.busy_s)


def test_a_request_from_a_busy_engines_future_or_too_long_for_the_cache_is_refused() -> None:
    busy = engine(plan=held(0))
    busy.submit(one())
    with pytest.raises(ValueError, match="the engine is busy at"):
        busy.submit(one(arrival_s=5.0))
    with pytest.raises(ValueError, match="never fit into 4112 blocks"):
        busy.submit(one(prompt_tokens=70_000))


def test_a_step_verifies_what_the_step_before_drafted() -> None:
    drafting = engine(plan=held(3))
    keep_busy(drafting, users=4, steps=100)
    drafting.adopt(settings(held(0), sequence=2))
    drafts, rows = [], []
    for _ in range(3):
        off = [total for total in drafting.report().snapshot.counters.totals if total.num_speculative_tokens == 0]
        drafts.append(sum(total.draft_tokens for total in off))
        rows.append(sum(total.decode_rows for total in off))
        drafting.step()
    assert drafts[1] - drafts[0] == 3 * (rows[1] - rows[0]) > 0
    assert drafts[2] == drafts[1]


def test_stock_pays_its_tax_at_off_and_dormant_does_not() -> None:
    busy_s = {}
    for mechanics in Mechanics:
        off = engine(plan=held(0), mechanics=mechanics)
        keep_busy(off, users=16, steps=300)
        busy_s[mechanics] = off.totals.busy_s
    assert 1.1 < busy_s[Mechanics.STOCK] / busy_s[Mechanics.DORMANT] < 1.3


def test_a_head_has_no_lag_and_never_restarts() -> None:
    eagle = engine(EAGLE, held(0))
    keep_busy(eagle, users=16, steps=200, profile=EAGLE)
    eagle.adopt(settings(held(3), sequence=2))
    keep_busy(eagle, users=1, steps=50, profile=EAGLE)
    assert eagle.drafter_state is DrafterState.IN_SYNC
    assert eagle.totals.restarts == eagle.totals.catch_up_tokens == 0
    assert eagle.totals.k_sum > 0


def test_a_restart_catches_up_what_was_missed_and_then_drafts() -> None:
    dormant = engine(plan=held(0))
    keep_busy(dormant, users=8, steps=100)
    assert dormant.drafter_state is DrafterState.DORMANT
    dormant.adopt(settings(held(3), sequence=2))
    states = set()
    for _ in range(40):
        dormant.step()
        states.add(dormant.drafter_state)
    assert states == {DrafterState.CATCHING_UP, DrafterState.PROBING, DrafterState.ACTIVE}
    assert dormant.totals.restarts == 1
    assert dormant.totals.catch_up_tokens > 8 * 40
    assert dormant.report().snapshot.counters.restarts == 1


@pytest.mark.parametrize(("rows", "chunk_tokens", "off_steps"), [(4, 24, 12), (4, 24, 32), (8, 32, 32)])
def test_a_simulated_engine_catches_up_in_as_many_steps_as_the_price_of_a_restart_counts(
    rows: int, chunk_tokens: int, off_steps: int
) -> None:
    dormant = engine(plan=held(0), catch_up_chunk_tokens=chunk_tokens)
    for number in range(rows):
        dormant.submit(SimulatedRequest(number, 0.0, 20, 500, 0))
    for _ in range(off_steps):
        dormant.step()
    dormant.adopt(settings(held(2), sequence=2, micro_restart_tokens=0))
    dormant.step()
    wish = dormant.report().snapshot.restart_wish
    assert wish is not None
    dormant.adopt(settings(held(2), sequence=3))
    states = []
    for _ in range(60):
        dormant.step()
        states.append(dormant.drafter_state)
    priced = PricedEngine(0.02, 200.0, rows, CatchUpCost(0.0, 1.0), chunk_tokens)
    assert states.count(DrafterState.CATCHING_UP) == priced.catch_up_steps(wish.lag_tokens)


def test_without_allowance_or_lease_a_dormant_drafter_wishes_and_stays_off() -> None:
    dormant = engine()
    assert dormant.adopt(settings(held(0), micro_restart_tokens=0)) == ""
    keep_busy(dormant, users=8, steps=60)
    dormant.adopt(settings(held(3), sequence=2, micro_restart_tokens=0))
    dormant.step()
    wish = dormant.report().snapshot.restart_wish
    assert wish is not None
    assert wish.lag_tokens > 0
    assert dormant.drafter_state is DrafterState.DORMANT


def test_acceptance_that_falls_yields_fewer_tokens_per_step() -> None:
    tokens = {}
    for factor in (1.0, 0.5):
        drafting = engine(plan=held(3))
        drafting.scale_acceptance(factor)
        keep_busy(drafting, users=16, steps=300)
        tokens[factor] = drafting.totals.tokens / drafting.totals.steps
    assert tokens[0.5] < 0.75 * tokens[1.0]


def test_a_slow_card_takes_longer_for_the_same_steps() -> None:
    busy_s = []
    for speed in (1.0, 0.5):
        card = engine(plan=held(2), speed=speed)
        keep_busy(card, users=8, steps=100)
        busy_s.append(card.totals.busy_s)
    assert busy_s[1] == pytest.approx(2.0 * busy_s[0])


def test_what_is_reported_is_clean_steps_of_the_plan_and_the_load() -> None:
    busy = engine(plan=table((1, 3), (12, 0)))
    keep_busy(busy, users=16, steps=400)
    report = busy.report()
    load = report.snapshot.load
    cells = [cell for cell in report.snapshot.counters.cells if not cell.prefill]
    assert report.group == PAIR.group
    assert load.decode_batch_size == busy.decode_batch_size
    assert 0.0 < load.kv_cache_usage < 0.2
    assert {cell.num_speculative_tokens for cell in cells} <= {0, 3}
    assert 50 < sum(cell.steps for cell in cells) < 400


def test_the_oracle_speculates_at_low_load_and_is_off_at_high_load() -> None:
    lengths = {}
    for users in (4, 100):
        knowing = engine(plan=Local(planner="oracle"))
        keep_busy(knowing, users=users, steps=200)
        lengths[users] = knowing.totals.k_sum / knowing.totals.decode_steps
    assert lengths[4] > 2.0
    assert lengths[100] < 0.1


def test_an_oracle_told_so_drafts_one_length_in_every_step_with_prefill() -> None:
    plan = Local(planner="oracle", options={"mixed_k": 2})
    knowing = engine(plan=plan)
    knowing.submit(SimulatedRequest(1, 0.0, 2 * PAIR.limits.max_num_batched_tokens, 40, 0))
    lengths = []
    while knowing.has_work:
        knowing.step()
        lengths.append(knowing.load().num_speculative_tokens)
    assert lengths[:2] == [2, 2]
    assert 2 not in lengths[2:-1], "not the best of a single row"


def test_an_oracle_by_batch_takes_the_mean_context_that_rows_of_such_a_batch_held_so_far() -> None:
    contexts = {"oracle": (1000, 3000, 7000, 5000), "by batch": (1000, 2000, 7000, 3000)}
    for who, expected in contexts.items():
        knowing = Oracle(truth := AskedTruth(), (0, 3), 20.0, None, sees_context=who == "oracle")
        for rows, context in ((4, 1000), (4, 3000), (5, 7000), (4, 5000)):
            knowing.choose(StepView(rows, context, 0, 0, 0, 0.0, 0))
        assert truth.contexts == list(expected), who


class AskedTruth(Truth):
    """Notes which contexts the oracle asks for."""

    ks = (0, 3)

    def __init__(self) -> None:
        self.contexts: list[int] = []

    def best(self, decode_rows: int, context_tokens: int, ks: Sequence[int]) -> int:
        self.contexts.append(context_tokens)
        return 0


def test_regret_is_what_the_best_length_would_have_yielded_more() -> None:
    ratios = []
    for plan in (held(5), Local(planner="oracle")):
        tracked = engine(plan=plan, track_regret=True)
        keep_busy(tracked, users=64, steps=200)
        ratios.append(tracked.totals.expected_tokens / tracked.totals.best_tokens)
    assert ratios[0] < 0.85
    assert ratios[1] == pytest.approx(1.0, abs=0.02)


def test_an_engine_of_v0_computes_prompts_alone_and_verifies_in_the_step_that_drafts() -> None:
    later, own = (engine(PAIR.model_copy(update={"steps": steps}), held(3)) for steps in ("v1", "v0"))
    for one in (later, own):
        one.submit(SimulatedRequest(0, 0.0, 100, 50, 0))
        one.step()
        one.submit(SimulatedRequest(1, one.now_s, 100, 50, 0))
        assert one.totals.tokens == 1
    later.step()
    assert later.totals.tokens > 2, "drafts of the step before are verified beside the second prompt"
    own.step()
    assert own.totals.tokens == 2, "a step of the second prompt alone"
    own.step()
    assert own.totals.tokens > 4, "drafts of this very step are accepted"
