"""What the policy actor exports of its groups and of itself."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.telemetry.metrics import PUBLISH_PERIOD_S, Exporter
from nightjar.cluster.telemetry.policy_metrics import POLICY_METRICS, GroupNumbers, PolicyNumbers, group_numbers
from nightjar.policy import controller
from nightjar.policy.operator.canary.order import CanaryOrder
from nightjar.policy.operator.canary.trial import Trial
from nightjar.policy.operator.canary.verdict import GoodputRatio
from nightjar.policy.state import FleetState
from nightjar.policy.status.fleet import Predicted
from nightjar.policy.wire.mode import Mode
from tests.cluster.protocol import Replica, running_service, settled
from tests.cluster.telemetry.exported import MemoryBackend
from tests.policy.engines import MAX_NUM_SEQS, Fleet
from tests.policy.engines import Replica as MeasuredReplica
from tests.policy.restarting import KEY, Policy, RestartingReplica

BUSY = GroupNumbers(
    replicas=3,
    fresh_replicas=2,
    open_leases=1,
    waiting_wishes=4,
    open_segments=5,
    limited_buckets=6,
    limited_replicas=2,
    is_frozen=True,
    predicted=Predicted(planned=150.0, off=100.0),
)
IDLE = GroupNumbers(0, 0, 0, 0, 0, 0, 0, is_frozen=False, predicted=None)
CANARY = Trial(
    CanaryOrder(mode=Mode(kind="off"), share=0.5, since_s=0.0, over=Mode(kind="auto")),
    phase="trial",
    last=GoodputRatio(0.9, 0.8, 1.1),
    members=("a", "b"),
)
LOOK = PolicyNumbers(
    incarnation=7,
    decision_age_s=0.5,
    reports=11,
    refused_reports=2,
    groups={"busy": BUSY, "idle": IDLE},
    is_frozen=True,
    canary=CANARY,
)


def exported(seen: PolicyNumbers) -> MemoryBackend:
    backend = MemoryBackend()
    Exporter(POLICY_METRICS, backend).publish(seen, "")
    return backend


def test_every_metric_of_the_table_is_exported_and_no_other() -> None:
    assert set(exported(LOOK).values) == {metric.name for metric in POLICY_METRICS}
    assert len({metric.name for metric in POLICY_METRICS}) == len(POLICY_METRICS)


def test_a_group_and_the_actor_in_numbers() -> None:
    values = exported(LOOK).values
    assert {name: series[()] for name, series in values.items() if () in series} == {
        "nightjar_policy_incarnation": 7,
        "nightjar_policy_decision_age_seconds": 0.5,
        "nightjar_policy_reports": 11,
        "nightjar_policy_refused_reports": 2,
        "nightjar_policy_frozen": 1,
        "nightjar_canary_replicas": 2,
        "nightjar_canary_goodput_ratio": 0.9,
    }
    assert {name: series["busy",] for name, series in values.items() if ("busy",) in series} == {
        "nightjar_replicas": 3,
        "nightjar_fresh_replicas": 2,
        "nightjar_open_leases": 1,
        "nightjar_waiting_wishes": 4,
        "nightjar_restarts_frozen": 1,
        "nightjar_open_segments": 5,
        "nightjar_limited_batch_buckets": 6,
        "nightjar_limited_replicas": 2,
        "nightjar_predicted_tokens_per_second": 150.0,
        "nightjar_predicted_off_tokens_per_second": 100.0,
        "nightjar_gain_over_off_ratio": 1.5,
    }


def test_nothing_predicted_is_absent_and_not_zero() -> None:
    values = exported(LOOK).values
    assert ("idle",) not in values["nightjar_gain_over_off_ratio"]
    assert values["nightjar_open_leases"]["idle",] == 0.0


def test_a_policy_without_replicas_exports_no_group() -> None:
    assert group_numbers(FleetState(), 5.0, 0.0) == {}


def test_prediction_is_the_plans_over_the_batches_that_run() -> None:
    replicas = [MeasuredReplica("a"), MeasuredReplica("b", 0)]
    fleet = Fleet(replicas)
    fleet.run(8.0)
    (group,) = fleet.state.groups.values()
    assert group.estimate is not None
    assert group.plan is not None
    (seen,) = group_numbers(fleet.state, 5.0, fleet.now_s).values()
    planned = group.plan.num_speculative_tokens(1)
    assert planned > 0
    assert seen.predicted is not None
    assert seen.predicted.planned == pytest.approx(group.estimate.goodput_model.goodput_tokens_per_s(0, planned))
    assert seen.predicted.off == pytest.approx(group.estimate.goodput_model.goodput_tokens_per_s(0, 0))
    assert (seen.replicas, seen.fresh_replicas) == (2, 2)
    (later,) = group_numbers(fleet.state, 5.0, fleet.now_s + 6.0).values()
    assert (later.replicas, later.fresh_replicas) == (2, 0)


def test_replica_that_claims_an_impossible_batch_counts_as_one_at_the_largest() -> None:
    """INV-10."""

    def predicted(batch: int) -> Predicted | None:
        fleet = Fleet([MeasuredReplica("a", 4)])
        fleet.run(2.0)
        (known,) = fleet.state.replicas.values()
        (group_id,) = fleet.state.groups
        report = known.report
        load = report.snapshot.load.model_copy(update={"decode_batch_size": batch})
        snapshot = report.snapshot.model_copy(update={"load": load})
        fleet.observe(report.model_copy(update={"snapshot": snapshot, "report_number": report.report_number + 1}))
        return group_numbers(fleet.state, 5.0, fleet.now_s)[group_id].predicted

    assert predicted(4096) == predicted(MAX_NUM_SEQS) != predicted(4)


def test_leases_and_wishes_of_a_group_whose_replicas_restart() -> None:
    policy = Policy()
    for replica in [RestartingReplica(f"r{number}") for number in range(3)]:
        replica.run_until(0.5)
        policy.take(replica.report(), 0.5)
    policy.decide(0.5)
    seen = group_numbers(policy.state, 5.0, 0.5)[KEY.group_id]
    assert (seen.open_leases, seen.waiting_wishes) == (1, 2)
    assert group_numbers(policy.state, 5.0, 1000.0)[KEY.group_id].open_leases == 0, "expired, whether or not anybody decided since"


@pytest.mark.looptime
async def test_service_shows_itself_every_few_seconds_and_says_when_it_last_decided() -> None:
    seen: list[PolicyNumbers] = []
    async with running_service(publish=seen.append) as service:
        await settled(service, Replica())
        await service.exchange(b"nonsense")
        await asyncio.sleep(3 * PUBLISH_PERIOD_S)
    assert len(seen) >= 4
    assert seen[0].groups == {}
    last = seen[-1]
    assert (last.incarnation, last.reports, last.refused_reports) == (1, 4, 1)
    assert last.decision_age_s <= 1.0
    assert [group.replicas for group in last.groups.values()] == [1]


@pytest.mark.looptime
async def test_decision_age_rises_while_deciding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(*_arguments: object) -> None:
        raise RuntimeError("no decision")

    seen: list[PolicyNumbers] = []
    monkeypatch.setattr(controller, "decide", decide)
    async with running_service(publish=seen.append):
        await asyncio.sleep(30.0)
    assert seen[-1].decision_age_s >= 25.0


@pytest.mark.looptime
async def test_service_outlives_a_publisher_that_raises() -> None:
    """INV-4."""
    calls = 0

    def publish(_seen: PolicyNumbers) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("no metrics")

    with capture_logs():
        async with running_service(publish=publish) as service:
            replica = Replica()
            await settled(service, replica)
            await asyncio.sleep(3 * PUBLISH_PERIOD_S)
    assert replica.settings is not None
    assert calls >= 3
