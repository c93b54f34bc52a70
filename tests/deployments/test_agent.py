"""The replica loop in virtual time: counters go up, settings come down, and nothing about the policy can hurt the engine."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from nightjar.cluster.telemetry.metrics import PUBLISH_PERIOD_S
from nightjar.deployments.agent import ENGINE_TIMEOUT_S, EXCHANGE_TIMEOUT_S, ReplicaAgent, ReplicaIdentity
from nightjar.deployments.engine_watch import EngineWatch, FrontEnd
from nightjar.deployments.steering_level import ONLY_OBSERVING, Steered
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.record import PROTOCOL_VERSION
from nightjar.policy.wire.report import Counters, EngineLoad, EngineSnapshot, GroupKey, LoadReport, SteeringLevel
from nightjar.policy.wire.settings import EngineCommand, ExchangeReply, IssuedSettings, Settings, SettingsVersion, Table, TableRow

pytestmark = pytest.mark.looptime

PERIOD_S = 0.5
PLAN = Table(rows=(TableRow(first_batch_size=1, last_batch_size=8, num_speculative_tokens=3),))


def settings(incarnation: int, sequence: int, mode: str = "auto", max_age_s: float = 300.0) -> IssuedSettings:
    told = Settings(
        mode=Mode.parse(mode),
        plan=PLAN,
        allowed_num_speculative_tokens=(0, 3),
        exchange_period_s=PERIOD_S,
        settings_max_age_s=max_age_s,
    )
    return IssuedSettings(version=SettingsVersion(incarnation=incarnation, sequence=sequence), settings=told)


class FakeEngine:
    """Adopts what it is told and steps, like the real one; `fail` raises instead of answering, `hang_for_s` answers late."""

    def __init__(self) -> None:
        self.engine_id = "engine-1"
        self.running: SettingsVersion | None = None
        self.commands: list[EngineCommand] = []
        self.fail: Callable[[], None] | None = None
        self.refused = ""
        self.step_count: int | None = None  # None: moves with every command
        self.load = EngineLoad(num_running_reqs=1)
        self.hang_for_s = 0.01

    async def exchange(self, command: EngineCommand) -> EngineSnapshot:
        self.commands.append(command)
        await asyncio.sleep(self.hang_for_s)
        if self.fail is not None:
            self.fail()
        if command.issued is not None and command.issued.version.is_newer_than(self.running):
            self.running = command.issued.version
        step_count = len(self.commands) if self.step_count is None else self.step_count
        return EngineSnapshot(
            counters=Counters(engine_id=self.engine_id, step_count=step_count),
            load=self.load,
            settings_version=self.running,
            refused=self.refused,
            causes=(because(Code.PLAN),),
        )

    def restart(self) -> None:
        self.engine_id, self.running = "engine-2", None


class FakePolicy:
    """Parks a report for `parks_s`, or until `news` is set; `fail` raises instead, `hang` never answers."""

    def __init__(self) -> None:
        self.reports: list[LoadReport] = []
        self.news: IssuedSettings | None = None
        self.incarnation = 1
        self.protocol_version = PROTOCOL_VERSION
        self.refused = ""
        self.fail: Callable[[], None] | None = None
        self.hang = False
        self.parks_s = PERIOD_S
        self.in_flight = self.most_in_flight = 0

    async def exchange(self, report: LoadReport, timeout_s: float) -> ExchangeReply:
        self.reports.append(report)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.fail is not None:
                self.fail()
            if self.hang:
                await asyncio.sleep(timeout_s)
                raise TimeoutError("the policy is silent")
            for _ in range(5):
                if self.news is not None and self.news.version != report.snapshot.settings_version:
                    break
                await asyncio.sleep(self.parks_s / 5)
            news = self.news if self.news is not None and self.news.version != report.snapshot.settings_version else None
            return ExchangeReply(
                protocol_version=self.protocol_version, incarnation=self.incarnation, issued=news, refused=self.refused
            )
        finally:
            self.in_flight -= 1


class FakeMetrics:
    """Keeps when the engine was observed, and the age of its settings then."""

    def __init__(self) -> None:
        self.begun = 0
        self.observed: list[tuple[float, float]] = []

    def begin(self) -> None:
        self.begun += 1

    def observe(self, snapshot: EngineSnapshot, settings_age_s: float) -> None:
        self.observed.append((asyncio.get_running_loop().time(), settings_age_s))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def policy() -> FakePolicy:
    return FakePolicy()


@pytest.fixture
def watch() -> EngineWatch:
    return EngineWatch()


@contextlib.asynccontextmanager
async def running_agent(
    engine: FakeEngine,
    policy: FakePolicy,
    watch: EngineWatch | None = None,
    metrics: FakeMetrics | None = None,
    **identity: object,
) -> AsyncIterator[ReplicaAgent]:
    group = GroupKey(target="t")
    who = ReplicaIdentity(replica_id="r", application="a", deployment="d", node_id="n", group=group, **identity)  # type: ignore[arg-type]
    agent = ReplicaAgent(engine=engine, policy=policy, identity=who, watch=watch or EngineWatch(), metrics=metrics or FakeMetrics())
    task = asyncio.create_task(agent.run())
    try:
        yield agent
        assert not task.done(), "the loop must survive everything"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert policy.in_flight == 0, "a cancelled agent leaves no exchange behind"


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


async def test_reports_once_a_period_with_rising_numbers_and_one_exchange_in_flight(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy):
        await asyncio.sleep(10.1)
    assert [report.report_number for report in policy.reports] == list(range(1, len(policy.reports) + 1))
    assert 18 <= len(policy.reports) <= 21
    assert policy.most_in_flight == 1


@pytest.mark.parametrize(("rank", "name"), [(None, "r"), (0, "r-dp0"), (1, "r-dp1")])
async def test_each_rank_of_data_parallelism_reports_by_a_name_of_its_own(
    engine: FakeEngine, policy: FakePolicy, rank: int | None, name: str
) -> None:
    async with running_agent(engine, policy, rank=rank):
        await asyncio.sleep(1.0)
    assert {report.replica_id for report in policy.reports} == {name}


async def test_a_policy_that_answers_at_once_gets_one_report_a_period(engine: FakeEngine, policy: FakePolicy) -> None:
    policy.parks_s = 0.0
    async with running_agent(engine, policy):
        await asyncio.sleep(10.1)
    assert 18 <= len(policy.reports) <= 21


async def test_news_reach_the_engine_at_once_and_are_confirmed_while_they_hold(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy):
        await asyncio.sleep(2.0)
        policy.news = settings(1, 1)
        await asyncio.sleep(PERIOD_S / 5 + 0.05)
        assert engine.running == policy.news.version
        engine.commands.clear()
        await asyncio.sleep(5.0)
    assert all(command.issued is None for command in engine.commands), "settings that run are not sent again"
    assert sum(command.confirmed == policy.news.version for command in engine.commands) >= 9


@pytest.mark.parametrize("trouble", ["raises", "hangs"])
async def test_policy_without_an_answer_blocks_nothing_and_confirms_nothing(
    engine: FakeEngine, policy: FakePolicy, trouble: str
) -> None:
    async with running_agent(engine, policy) as agent:
        policy.news = settings(1, 1)
        await asyncio.sleep(2.0)
        policy.fail, policy.hang = (raising(RuntimeError("gone")), False) if trouble == "raises" else (None, True)
        await asyncio.sleep(1.0)
        engine.commands.clear()
        with capture_logs() as logs:
            await asyncio.sleep(3 * EXCHANGE_TIMEOUT_S)
            assert all(command.confirmed is None for command in engine.commands)
            agent.set_local_mode(Mode.parse("off"))
            await asyncio.sleep(0.05)
            assert engine.commands[-1].local_mode == Mode.parse("off"), "the kill switch does not pass the policy"
        assert sum(entry["event"] == "policy_unavailable" for entry in logs) <= 1
        policy.fail, policy.hang = None, False
        await asyncio.sleep(EXCHANGE_TIMEOUT_S + 5.0)
        assert engine.commands[-1].confirmed == policy.news.version
    assert policy.most_in_flight == 1


async def test_failing_policy_is_tried_less_and_less_often(engine: FakeEngine, policy: FakePolicy) -> None:
    policy.fail = raising(RuntimeError("gone"))
    async with running_agent(engine, policy):
        await asyncio.sleep(60.0)
    assert 10 <= len(policy.reports) <= 20


async def test_older_settings_are_never_passed_on(engine: FakeEngine, policy: FakePolicy) -> None:
    """INV-5."""
    async with running_agent(engine, policy):
        policy.news, policy.incarnation = settings(2, 7), 2
        await asyncio.sleep(2.0)
        engine.commands.clear()
        policy.news, policy.incarnation = settings(1, 99), 1
        await asyncio.sleep(5.0)
        assert all(command.issued is None and command.confirmed is None for command in engine.commands[1:])
        assert engine.running == SettingsVersion(incarnation=2, sequence=7)
        policy.news, policy.incarnation = settings(3, 0), 3
        await asyncio.sleep(6.0)
        assert engine.running == SettingsVersion(incarnation=3, sequence=0)


async def test_an_older_sequence_of_the_same_incarnation_does_not_take_the_place_of_a_newer_one(
    engine: FakeEngine, policy: FakePolicy
) -> None:
    """INV-5."""
    async with running_agent(engine, policy):
        policy.news = newest = settings(2, 7)
        await asyncio.sleep(2.0)
        policy.news, policy.incarnation = settings(2, 6), 2
        await asyncio.sleep(5.0)
        engine.restart()
        await asyncio.sleep(5.0)
        assert engine.running == newest.version


async def test_policy_of_an_older_incarnation_confirms_nothing(engine: FakeEngine, policy: FakePolicy) -> None:
    """INV-5."""
    async with running_agent(engine, policy):
        policy.news, policy.incarnation = settings(2, 7), 2
        await asyncio.sleep(2.0)
        policy.incarnation = 1
        await asyncio.sleep(1.0)
        engine.commands.clear()
        await asyncio.sleep(5.0)
        assert all(command.confirmed is None for command in engine.commands)


async def test_nothing_of_a_policy_of_another_protocol_is_taken_or_confirmed_and_the_log_says_so_once(
    engine: FakeEngine, policy: FakePolicy
) -> None:
    with capture_logs() as logs:
        async with running_agent(engine, policy):
            policy.news = settings(1, 1)
            await asyncio.sleep(2.0)
            policy.news, policy.protocol_version = settings(1, 2, "off"), PROTOCOL_VERSION + 1
            await asyncio.sleep(2.0)
            engine.commands.clear()
            await asyncio.sleep(20.0)
            assert engine.running == SettingsVersion(incarnation=1, sequence=1)
            assert all(command.confirmed is None for command in engine.commands), "what runs ages until it is off"
    refusals = [entry["error"] for entry in logs if entry["event"] == "report_or_settings_refused"]
    assert refusals == [
        f"the policy speaks protocol {PROTOCOL_VERSION + 1}, this replica {PROTOCOL_VERSION}: nothing of it is taken"
    ]


async def test_new_engine_is_reported_as_such_and_gets_the_settings_again(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy):
        policy.news = settings(1, 1)
        await asyncio.sleep(2.0)
        engine.restart()
        policy.fail = raising(RuntimeError("gone"))
        await asyncio.sleep(10.0)
        assert engine.running == policy.news.version
    assert policy.reports[-1].snapshot.counters.engine_id == "engine-2"


async def test_new_engine_gets_confirmed_settings_however_long_ago_they_came(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy):
        policy.news = settings(1, 1, max_age_s=10.0)
        await asyncio.sleep(30.0)
        engine.restart()
        await asyncio.sleep(2.0)
        assert engine.running == policy.news.version


async def test_settings_unconfirmed_for_too_long_are_kept_from_a_new_engine(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy):
        policy.news = settings(1, 1)
        await asyncio.sleep(2.0)
        policy.fail = raising(RuntimeError("gone"))
        await asyncio.sleep(policy.news.settings.settings_max_age_s + 10.0)
        engine.restart()
        await asyncio.sleep(20.0)
        assert engine.running is None


async def test_engine_that_fails_is_asked_again_and_logged_once(engine: FakeEngine, policy: FakePolicy) -> None:
    with capture_logs() as logs:
        async with running_agent(engine, policy) as agent:
            engine.fail = raising(ConnectionError("dead"))
            await asyncio.sleep(30.0)
            agent.set_local_mode(Mode.parse("pin=2"))
            engine.fail = None
            await asyncio.sleep(6.0)
            assert engine.commands[-1].local_mode == Mode.parse("pin=2")
            reports = len(policy.reports)
            await asyncio.sleep(5.0)
            assert len(policy.reports) > reports
    assert sum(entry["event"] == "engine_control_failed" for entry in logs) == 1
    assert sum(entry["event"] == "trouble_over" for entry in logs) == 1


async def test_refused_report_is_no_confirmation(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy):
        policy.news = settings(1, 1)
        await asyncio.sleep(2.0)
        policy.refused = "absurd"
        await asyncio.sleep(1.0)
        engine.commands.clear()
        await asyncio.sleep(10.0)
        assert all(command.confirmed is None for command in engine.commands)
    assert len(policy.reports) < 20, "a policy that refuses is not pressed"


async def test_settings_that_come_with_a_refusal_are_taken(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy):
        policy.refused, policy.news = "counts that cannot be true", settings(1, 1, "off")
        await asyncio.sleep(5.0)
        assert engine.running == policy.news.version


async def test_a_report_that_cannot_be_made_costs_reports_and_not_the_loop(
    engine: FakeEngine, policy: FakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(agent: ReplicaAgent, snapshot: EngineSnapshot) -> None:
        raise ValueError("a defect")

    with capture_logs() as logs:
        async with running_agent(engine, policy):
            with monkeypatch.context() as patched:
                patched.setattr(ReplicaAgent, "_report", fail)
                await asyncio.sleep(20.0)
                assert policy.reports == []
            await asyncio.sleep(6.0)
            assert policy.reports != []
    assert [entry["event"] for entry in logs if entry["event"] == "agent_turn_failed"] == ["agent_turn_failed"]


async def test_mode_that_could_not_be_taken_shows_with_the_reports(engine: FakeEngine, policy: FakePolicy) -> None:
    def shown() -> tuple[str, str]:
        return str(policy.reports[-1].local_mode), policy.reports[-1].notice

    async with running_agent(engine, policy) as agent:
        agent.set_local_mode(Mode.parse("off"))
        await asyncio.sleep(1.0)
        agent.set_local_mode(agent.local_mode, error="user_config: mode 'fast' is none of auto")
        await asyncio.sleep(2.0)
        assert shown() == ("off", "user_config: mode 'fast' is none of auto")
        agent.set_local_mode(None)
        await asyncio.sleep(2.0)
        assert shown() == ("None", "")


async def test_engine_that_started_in_shadow_stays_there_and_says_so(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy, steered=Steered(SteeringLevel.OBSERVING, ONLY_OBSERVING)) as agent:
        agent.set_local_mode(Mode.parse("off"))
        await asyncio.sleep(2.0)
    assert all(command.local_mode == Mode.parse("shadow") for command in engine.commands)
    assert "needs a new start" in policy.reports[0].notice


async def test_report_says_who_is_served_plainly(engine: FakeEngine, policy: FakePolicy) -> None:
    async with running_agent(engine, policy, steered=Steered(SteeringLevel.PLAINLY, "hooks moved" + 2000 * ".")):
        await asyncio.sleep(1.0)
    assert policy.reports[-1].serving_plainly == ("hooks moved" + 2000 * ".")[:1024], "what a report can hold of it"


@pytest.mark.parametrize("trouble", ["none", "raises", "hangs"])
async def test_metrics_see_the_engine_often_enough_whatever_the_policy_does(
    engine: FakeEngine, policy: FakePolicy, trouble: str
) -> None:
    metrics = FakeMetrics()
    policy.fail, policy.hang = raising(RuntimeError("gone")) if trouble == "raises" else None, trouble == "hangs"
    async with running_agent(engine, policy, metrics=metrics):
        await asyncio.sleep(100.0)
    times_s = [seen_s for seen_s, _ in metrics.observed]
    assert metrics.begun == 1
    assert max(later_s - earlier_s for earlier_s, later_s in itertools.pairwise([*times_s, 100.0])) <= PUBLISH_PERIOD_S + 0.1


async def test_settings_age_counts_from_the_last_confirmation_and_from_the_start_before_any(
    engine: FakeEngine, policy: FakePolicy
) -> None:
    metrics = FakeMetrics()
    policy.hang = True
    async with running_agent(engine, policy, metrics=metrics):
        await asyncio.sleep(60.0)
        assert metrics.observed[-1][1] == pytest.approx(metrics.observed[-1][0], abs=0.1)
        policy.hang, policy.news = False, settings(1, 1)
        await asyncio.sleep(EXCHANGE_TIMEOUT_S + 10.0)
        assert metrics.observed[-1][1] < 2 * PERIOD_S
        policy.refused = "absurd"
        await asyncio.sleep(20.0)
    assert 15.0 < metrics.observed[-1][1] < 25.0


async def seconds_until_hung(watch: EngineWatch, *, within_s: float) -> float:
    """Look every ten seconds, as Serve's health check does, with a request in flight."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    while loop.time() < start_s + within_s:
        if watch.why_hung(FrontEnd(num_unfinished_reqs=1, num_steps=None), loop.time()):
            return loop.time() - start_s
        await asyncio.sleep(10.0)
    return float("inf")


async def test_engine_without_an_answer_is_hung_however_often_it_is_asked_again(
    engine: FakeEngine, policy: FakePolicy, watch: EngineWatch
) -> None:
    async with running_agent(engine, policy, watch):
        assert await seconds_until_hung(watch, within_s=160.0) == float("inf")
        engine.hang_for_s = float("inf")
        engine.commands.clear()
        assert 120.0 <= await seconds_until_hung(watch, within_s=300.0) <= 140.0
    assert len(engine.commands) >= 2, "given up and asked again in the meantime"


async def test_engine_that_answers_late_is_not_hung(engine: FakeEngine, policy: FakePolicy, watch: EngineWatch) -> None:
    engine.hang_for_s = ENGINE_TIMEOUT_S - 1.0
    async with running_agent(engine, policy, watch):
        assert await seconds_until_hung(watch, within_s=1000.0) == float("inf")


@pytest.mark.parametrize("load", [EngineLoad(num_running_reqs=1), EngineLoad(num_waiting_reqs=1)])
async def test_engine_that_answers_without_a_step_is_hung(
    engine: FakeEngine, policy: FakePolicy, watch: EngineWatch, load: EngineLoad
) -> None:
    async with running_agent(engine, policy, watch):
        engine.step_count, engine.load = 17, EngineLoad()
        assert await seconds_until_hung(watch, within_s=160.0) == float("inf"), "an idle engine"
        engine.load = load
        assert 120.0 <= await seconds_until_hung(watch, within_s=300.0) <= 140.0


async def test_engine_is_found_hung_while_the_policy_is_silent(engine: FakeEngine, policy: FakePolicy, watch: EngineWatch) -> None:
    policy.hang = True
    async with running_agent(engine, policy, watch):
        await asyncio.sleep(100.0)
        engine.step_count = 17
        assert 120.0 <= await seconds_until_hung(watch, within_s=300.0) <= 120.0 + 2 * (EXCHANGE_TIMEOUT_S + 10.0)


async def test_engine_that_refuses_every_call_is_not_hung(engine: FakeEngine, policy: FakePolicy, watch: EngineWatch) -> None:
    engine.fail = raising(RuntimeError("no such method"))
    async with running_agent(engine, policy, watch):
        assert await seconds_until_hung(watch, within_s=1000.0) == float("inf")
