"""What `status` tells of a group beyond its plan: expectations with their doubt, predicted gain, leases and wishes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nightjar.policy.evidence.gained import Spent
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.state import FleetState
from nightjar.policy.status import fleet as module
from nightjar.policy.status.explanation import explain
from nightjar.policy.status.fleet import fleet_status, predict
from nightjar.policy.wire.batch_buckets import batch_bucket
from nightjar.policy.wire.cause import Code, because, codes
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings, parse_operator_settings
from nightjar.policy.wire.report import SteeringLevel
from nightjar.policy.wire.status import GroupStatus, ReplicaStatus
from tests.policy.engines import ACCEPTANCE, KEY, MAX_NUM_SEQS, Fleet, Replica, best_k, step_seconds
from tests.policy.restarting import LAG_TOKENS, Policy, RestartingReplica


def groups_of(state: FleetState, now_s: float) -> tuple[GroupStatus, ...]:
    """The groups of a status, read back from its wire form."""
    return tuple(GroupStatus.from_wire(group.to_wire()) for group in fleet_status(state, {}, now_s)[0])


@pytest.fixture(scope="module")
def learned() -> Fleet:
    """Two replicas at batch 16 whose group has measured it."""
    fleet = Fleet([Replica("a", 16), Replica("b", 16)])
    fleet.run(8.0)
    return fleet


def test_a_goodput_model_has_a_row_per_batch_bucket_and_a_column_per_k_that_may_run(learned: Fleet) -> None:
    (group,) = groups_of(learned.state, learned.now_s)
    model = group.goodput_model
    assert model is not None
    assert model.num_speculative_tokens == (0, 1, 3, 5)
    assert (model.first_batch_sizes[0], model.last_batch_sizes[-1]) == (1, MAX_NUM_SEQS)
    assert model.first_batch_sizes[1:] == tuple(last + 1 for last in model.last_batch_sizes[:-1])
    for numbers in (model.goodput_tokens_per_s, model.goodput_deviation, model.gain_deviation):
        assert [len(row) for row in numbers] == [4] * len(model.first_batch_sizes)


def test_a_group_beside_adaptive_verification_says_that_its_acceptance_is_censored(learned: Fleet) -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.observe(fleet.replicas[0].report(group=KEY.model_copy(update={"adaptive_verification": True})))
    (censored,), (whole,) = groups_of(fleet.state, fleet.now_s), groups_of(learned.state, learned.now_s)
    assert (censored.censored_acceptance, whole.censored_acceptance) == (True, False)


def test_a_goodput_model_is_what_the_plan_stands_on(learned: Fleet) -> None:
    (group,) = groups_of(learned.state, learned.now_s)
    (known,) = learned.state.groups.values()
    model = group.goodput_model
    assert model is not None
    assert known.estimate is not None
    bucket = model.first_batch_sizes.index(16)
    expected = [known.estimate.goodput_model.goodput_tokens_per_s(bucket, k) for k in (0, 1, 3, 5)]
    assert model.goodput_tokens_per_s[bucket] == pytest.approx(expected, abs=0.01)
    assert model.age_s == pytest.approx(learned.now_s - known.estimate.at_s)


def test_a_group_says_what_it_gained_over_off_and_over_the_engines_own_k_since_it_counts() -> None:
    fleet = Fleet([Replica("a", 16), Replica("b", 16)])
    fleet.run(40.0)
    (group,) = groups_of(fleet.state, fleet.now_s)
    own, off = group.gained
    assert (own.num_speculative_tokens, off.num_speculative_tokens) == (KEY.max_num_speculative_tokens, 0)
    for one in group.gained:
        ran = best_k(16)
        true = 1.0 - true_goodput(16, one.num_speculative_tokens) / true_goodput(16, ran)
        assert one.low is not None
        assert one.share is not None
        assert one.high is not None
        assert one.low <= one.share <= one.high
        assert one.share == pytest.approx(true, abs=0.05), "what was spent on measuring is within it"
        assert one.compared_s == pytest.approx(one.busy_s, rel=0.1)
        assert one.over_s == pytest.approx(40.0, abs=1.0)


def under(mode: str, **more: str) -> OperatorSettings:
    return parse_operator_settings({"mode": mode, "allowed_num_speculative_tokens": (0, 1, 3, 5), **more})


@pytest.mark.parametrize("settings", [under("auto"), under("pin=5"), under("shadow", planner="off")])
def test_another_mode_of_most_replicas_begins_the_count_anew(settings: OperatorSettings) -> None:
    fleet = Fleet([Replica("a", 16), Replica("b", 16)], settings=under("pin=3"))
    fleet.run(20.0)
    fleet.settings = settings
    fleet.run(0.5)
    changed_s = fleet.now_s
    (spent,) = (group.spent for group in fleet.state.groups.values())
    assert spent == Spent(changed_s, under=spent.under if spent else None), "nothing of what ran before"
    fleet.run(20.0)
    (known,) = fleet.state.groups.values()
    (group,) = groups_of(fleet.state, fleet.now_s)
    assert known.spent is not None
    assert {one.over_s for one in group.gained} == {fleet.now_s - changed_s}
    if settings.mode.kind != "auto":
        assert {cell.num_speculative_tokens for cell in known.spent.cells} == {5}, "and not K=3, which ran before"


def test_another_planner_begins_the_count_anew_in_auto_alone() -> None:
    fleet = Fleet([Replica("a", 16)], settings=under("auto"))
    fleet.run(5.0)
    for mode, anew in (("auto", True), ("shadow", True), ("shadow", False)):
        fleet.settings = under(mode, planner="off" if fleet.settings.planner == "fleet" else "fleet")
        fleet.run(0.5)
        (known,) = fleet.state.groups.values()
        assert known.spent is not None
        assert (known.spent.since_s == fleet.now_s) == anew


def test_an_override_of_few_replicas_ends_no_count_and_begins_none() -> None:
    fleet = Fleet([Replica(name, 16) for name in "abc"], settings=under("auto"))
    fleet.run(5.0)
    fleet.overrides = (ModeOverride(scope="replica", name="a", mode=Mode.parse("off")),)
    fleet.run(5.0)
    (group,) = groups_of(fleet.state, fleet.now_s)
    assert group.gained[0].over_s > 9.0
    fleet.overrides = ()
    fleet.run(5.0)
    (group,) = groups_of(fleet.state, fleet.now_s)
    assert group.gained[0].over_s > 14.0


def test_before_anything_was_counted_no_gain_is_told_and_over_a_k_that_may_not_run_it_is_not_known() -> None:
    off = Fleet([Replica("a", 16)], settings=parse_operator_settings({"mode": "off", "allowed_num_speculative_tokens": (0, 3)}))
    off.run(0.5)
    assert groups_of(off.state, off.now_s)[0].gained == ()
    off.run(10.0)
    own, over_off = groups_of(off.state, off.now_s)[0].gained
    assert own.share is None
    assert over_off.share == 0.0, "off itself ran"


def true_goodput(batch: int, k: int) -> float:
    return (1.0 + sum(ACCEPTANCE[:k])) / step_seconds(batch, k)


def test_what_was_measured_is_less_doubtful_than_what_was_not(learned: Fleet) -> None:
    (group,) = groups_of(learned.state, learned.now_s)
    model = group.goodput_model
    assert model is not None
    measured, far = model.first_batch_sizes.index(16), model.first_batch_sizes.index(1)
    assert 0.0 < model.goodput_deviation[measured][0] < model.goodput_deviation[far][0]
    assert model.gain_deviation[measured][0] == 0.0
    assert all(0.0 < doubt < 0.2 for doubt in model.gain_deviation[measured][1:])


def test_a_group_that_has_measured_nothing_yet_has_a_goodput_model_without_an_age() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(1.0)
    (group_id, known), *_ = fleet.state.groups.items()
    assert known.estimate is not None
    cold = replace(fleet.state, groups={group_id: replace(known, estimate=replace(known.estimate, at_s=float("-inf")))})
    (group,) = groups_of(cold, fleet.now_s)
    assert group.goodput_model is not None
    assert group.goodput_model.age_s is None


def test_a_planner_that_does_not_learn_has_no_goodput_model() -> None:
    fleet = Fleet([Replica("a", 16)], settings=parse_operator_settings({"mode": "auto", "planner": "off"}))
    fleet.run(1.0)
    (group,) = groups_of(fleet.state, fleet.now_s)
    assert group.goodput_model is None


def test_a_goodput_model_with_a_number_that_is_none_is_left_out_and_the_status_stands(learned: Fleet) -> None:
    ((group_id, known),) = learned.state.groups.items()
    assert known.estimate is not None
    model = known.estimate.goodput_model
    broken = replace(model, covariance=np.full_like(model.covariance, np.nan))
    state = replace(learned.state, groups={group_id: replace(known, estimate=replace(known.estimate, goodput_model=broken))})
    (group,) = groups_of(state, learned.now_s)
    assert (group.goodput_model, group.replicas) == (None, 2)


def test_only_the_largest_groups_tell_their_goodput_model_so_that_a_status_stays_small(
    learned: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((group_id, known),) = learned.state.groups.items()
    others = {f"empty-{number}": replace(known, key=KEY) for number in range(3)}
    state = replace(learned.state, groups={**others, group_id: known})
    assert [group.goodput_model is not None for group in groups_of(state, learned.now_s)] == [False, False, False, True]
    monkeypatch.setattr(module, "MAX_GOODPUT_MODELS", 0)
    assert all(group.goodput_model is None for group in groups_of(state, learned.now_s))


def test_the_gain_over_off_in_status_is_the_one_of_the_metrics(learned: Fleet) -> None:
    (group,) = groups_of(learned.state, learned.now_s)
    predicted = predict(next(iter(learned.state.groups.values())), learned.state.replicas.values())
    assert predicted is not None
    assert (group.predicted_tokens_per_s, group.predicted_off_tokens_per_s) == (predicted.planned, predicted.off)
    assert predicted.planned > predicted.off


def learned_then_shadow() -> Fleet:
    """A replica at batch 16 whose group measured several K before its operator took to shadow."""
    learned = Fleet([Replica("a", 16)])
    learned.run(30.0)
    fleet = Fleet(
        [Replica("a", 16)], settings=parse_operator_settings({"mode": "shadow"}), state=learned.state, now_s=learned.now_s
    )
    fleet.run(8.0)
    return fleet


@pytest.mark.parametrize(
    ("level", "how"),
    [
        (SteeringLevel.FULLY, "`nightjar mode auto --for 5m` finds out"),
        (SteeringLevel.OBSERVING, "deploy it with mode: auto to find out"),
    ],
)
def test_in_shadow_nothing_is_predicted_while_a_single_k_ever_ran_and_the_way_to_know_is_told(
    level: SteeringLevel, how: str
) -> None:
    fleet = Fleet([Replica("a", 16)], settings=parse_operator_settings({"mode": "shadow"}))
    fleet.run(8.0)
    fleet.observe(fleet.replicas[0].report().model_copy(update={"steering": level}))
    groups, (replica,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    words = f"not known what other K give: only K=5 ever ran here ({how})"
    assert groups[0].not_known == words
    assert replica.reason == f"shadow, nothing is touched: {words}"
    assert (groups[0].predicted_tokens_per_s, groups[0].predicted_off_tokens_per_s) == (None, None)
    assert "tok/s" not in groups[0].reason
    model = groups_of(fleet.state, fleet.now_s)[0].goodput_model
    assert model is not None
    assert (model.num_speculative_tokens, model.gain_deviation) == ((5,), ())
    explained_ks = explain(fleet.state, fleet.decisions, fleet.settings, (), "a", fleet.now_s).arms
    assert [one.num_speculative_tokens for one in explained_ks if one.predicted_tokens_per_s is not None] == [5]
    assert all(one.gain_over_off is None for one in explained_ks)


@pytest.mark.parametrize("mode", ["shadow", "off", "auto"])
def test_a_group_tells_of_the_same_k_as_explain_and_the_same_numbers(mode: str) -> None:
    fleet = Fleet([Replica("a", 16)], settings=under(mode))
    fleet.run(8.0)
    model = groups_of(fleet.state, fleet.now_s)[0].goodput_model
    assert model is not None
    explained_ks = explain(fleet.state, fleet.decisions, fleet.settings, (), "a", fleet.now_s).arms
    bucket = model.first_batch_sizes.index(16)
    told = dict(zip(model.num_speculative_tokens, model.goodput_tokens_per_s[bucket], strict=True))
    explained = {
        one.num_speculative_tokens: one.predicted_tokens_per_s for one in explained_ks if one.predicted_tokens_per_s is not None
    }
    assert told == pytest.approx(explained, abs=0.01)
    gains = {one.num_speculative_tokens for one in explained_ks if one.gain_over_off is not None}
    assert gains == (set(told) - {0} if model.gain_deviation else set())


def test_once_several_k_ran_shadow_predicts_again() -> None:
    fleet = learned_then_shadow()
    (group,), (replica,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert group.not_known == ""
    assert group.predicted_tokens_per_s is not None
    assert "tok/s predicted" in replica.reason


def test_in_shadow_a_gain_within_its_doubt_is_not_known_where_too_little_ran_at_the_batch_and_the_way_to_know_is_told() -> None:
    learned = learned_then_shadow()
    replica = Replica("a", 2)
    fleet = Fleet([replica], settings=learned.settings, state=learned.state, now_s=learned.now_s)
    fleet.run(8.0)
    (group,), (told,) = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert group.not_known.startswith("not known what K=3 gives against K=5: predicted ")
    assert group.not_known.endswith("too little ran at this batch (`nightjar mode auto --for 5m` finds out)")
    assert told.reason == f"shadow, nothing is touched: {group.not_known}"
    by_k = {one.num_speculative_tokens: one for one in explain(
        fleet.state, fleet.decisions, fleet.settings, (), "a", fleet.now_s
    ).arms}  # fmt: skip
    assert [k for k, one in by_k.items() if not one.is_gain_known]


def test_in_shadow_a_group_tells_what_the_k_that_runs_is_predicted_to_give_at_the_same_batch() -> None:
    fleet = learned_then_shadow()
    (known,) = fleet.state.groups.values()
    (replica,) = fleet.state.replicas.values()
    (group,) = groups_of(fleet.state, fleet.now_s)
    runs = replica.report.snapshot.load.num_speculative_tokens
    assert known.estimate is not None
    assert known.plan is not None
    assert runs == KEY.max_num_speculative_tokens != known.plan.num_speculative_tokens(16)
    bucket = batch_bucket(16)
    assert group.predicted_present_tokens_per_s == known.estimate.goodput_model.goodput_tokens_per_s(bucket, runs)
    assert group.predicted_present_tokens_per_s != group.predicted_tokens_per_s


def test_a_group_of_idle_replicas_predicts_nothing() -> None:
    fleet = Fleet([Replica("a", 0)])
    fleet.run(1.0)
    (group,) = groups_of(fleet.state, fleet.now_s)
    assert (group.predicted_tokens_per_s, group.predicted_off_tokens_per_s) == (None, None)


def test_a_replica_tells_in_its_engines_words_why_its_last_step_ran_at_its_k() -> None:
    fleet = Fleet([Replica("a", 16)])
    fleet.run(1.0)
    known = fleet.state.replicas["a"]
    snapshot = known.report.snapshot.model_copy(update={"causes": (because(Code.DWELL),)})
    told = replace(known, report=known.report.model_copy(update={"snapshot": snapshot}))
    state = replace(fleet.state, replicas=fleet.state.replicas.with_item("a", told))
    _, (status,) = fleet_status(state, {}, fleet.now_s)
    heard = ReplicaStatus.from_wire(status.to_wire())
    assert codes(heard.step_causes) == {Code.DWELL}
    assert heard.decision_reason == "a rise waits until the present K was held long enough"


def test_status_lists_the_open_lease_and_the_wishes_that_wait_longest_first() -> None:
    policy = Policy()
    for number, heard_at_s in ((0, 0.5), (2, 1.0), (1, 1.5)):
        replica = RestartingReplica(f"r{number}")
        replica.run_until(heard_at_s)
        policy.take(replica.report(), heard_at_s)
        policy.decide(heard_at_s)
    (group,) = groups_of(policy.state, 2.0)
    (lease,) = group.restarts.open_leases
    assert lease.replica_id == "r0"
    assert 0.0 < lease.seconds_left <= 12.0
    assert [(wish.replica_id, wish.waiting_s) for wish in group.restarts.waiting] == [("r2", 1.0), ("r1", 0.5)]
    assert all(wish.lag_tokens >= LAG_TOKENS for wish in group.restarts.waiting)
    assert group.restarts.frozen_seconds_left == 0.0


def test_a_lease_that_expired_is_not_open_whether_or_not_anybody_decided_since() -> None:
    policy, replica = Policy(), RestartingReplica("a")
    replica.run_until(0.5)
    policy.take(replica.report(), 0.5)
    policy.decide(0.5)
    (group,) = groups_of(policy.state, 1000.0)
    assert group.restarts.open_leases == ()


def test_inv_10_a_replica_that_the_others_contradict_is_named_as_one_whose_measurements_do_not_count() -> None:
    fleet = Fleet([Replica("slow", speed=0.1), *(Replica(f"r{number}") for number in range(3))])
    fleet.run(10.0)
    _, replicas = fleet_status(fleet.state, fleet.decisions, fleet.now_s)
    assert [replica.replica_id for replica in replicas if Code.DISTRUSTED in codes(replica.causes)] == ["slow"]
