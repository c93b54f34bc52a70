"""A cluster takes the place of another, or loses its head: what was set by hand holds on, or `status` says that it is not known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nightjar.cluster.display.fleet import fleet_view
from nightjar.cluster.operator.state import OperatorState
from nightjar.cluster.service.fleet_answers import ActorIdentity
from nightjar.cluster.service.policy_service import PolicyService
from nightjar.cluster.service.seed_from import HEED_PERIOD_S, RETRY_S, NoPolicyThereError
from nightjar.cluster.storage import handover
from nightjar.cluster.storage.checkpoint import Checkpoint, Remembered
from nightjar.cluster.storage.handover import ByHand
from nightjar.cluster.storage.learned_file import LearnedFile, learned_file, parse_learned_file, to_text
from nightjar.policy.controller import Controller
from nightjar.policy.operator.freeze import Freeze, HeldPlan
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.persistent_map import PersistentMap
from nightjar.policy.planners.base import GroupPlan, one_k
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from tests.cluster.protocol import MemoryJournal, MemoryStore, Replica, running_service, settled
from tests.cluster.seeds import some_group

SERVICE = "http://llm-serve-svc:8000/nightjar/learned"
VALUES = {"mode": "auto", "seed_from": SERVICE}
STORE_RETRY_S = 60.0
"""More than a store that did not answer is waited for."""
KUBERAY = ActorIdentity(pid=1, node_id="head", service="llm/nightjar", has_fault_tolerance=True)


class Service:
    """The address that leads to one policy or another; to none where it points at None."""

    def __init__(self, policy: PolicyService | None = None) -> None:
        self.policy = policy
        self.reads = 0

    async def read(self, place: str) -> LearnedFile:
        assert place == SERVICE
        self.reads += 1
        if self.policy is None:
            raise NoPolicyThereError("answered 503, allowed is 200")
        return parse_learned_file(to_text(self.policy.learned_file()))


@asynccontextmanager
async def old_cluster(*said: Mapping[str, object], identity: ActorIdentity = KUBERAY) -> AsyncIterator[PolicyService]:
    """A cluster that serves, in which operators have set these modes."""
    async with running_service(identity=identity) as policy:
        await policy.configure({"mode": "auto"})
        await settled(policy, Replica())
        for request in said:
            await policy.set_mode(request)
        yield policy


@asynccontextmanager
async def new_cluster(
    service: Service, store: MemoryStore | None = None, journal: MemoryJournal | None = None, identity: ActorIdentity = KUBERAY
) -> AsyncIterator[PolicyService]:
    """A cluster with the same values, whose policy has just been configured."""
    async with running_service(store, journal, read_seed=service.read, identity=identity) as policy:
        await policy.configure(VALUES)
        await asyncio.sleep(0.1)
        yield policy


def modes(policy: PolicyService) -> dict[str, str]:
    return {f"{held.scope} {held.name}".rstrip(): str(held.mode) for held in policy.status().overrides}


def shown(policy: PolicyService) -> list[str]:
    """What `nightjar status` prints, a line each."""
    console = Console(width=400)
    with console.capture() as captured:
        console.print(fleet_view(policy.status()))
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.looptime
async def test_a_cluster_that_is_replaced_under_mode_off_is_found_off_whatever_the_new_values_say() -> None:
    journal = MemoryJournal()
    async with old_cluster({"mode": "off", "reason": "incident"}) as old, new_cluster(Service(old), journal=journal) as new:
        replica = Replica("n1")
        await settled(new, replica)
        assert str(replica.mode) == "off"
        assert str(new.starting_mode("n2", "chat")) == "off", "also of a replica whose engine is about to start"
        lines = shown(new)
        assert lines[0].startswith("steering"), "there is nothing that is not known"
        told = (
            f"override: fleet -> off, until taken back (incident), carried over from {SERVICE}; wins over mode auto of the settings"
        )
        assert told in lines
    assert f"set by hand in the cluster before ({SERVICE}): fleet off (incident)" in journal.causes


@pytest.mark.looptime
async def test_a_freeze_and_an_applications_mode_go_along_with_their_ends_and_a_replicas_mode_ends_with_it() -> None:
    said = (
        {"mode": "pin=2", "scope": "application", "name": "chat", "for_s": 600.0},
        {"mode": "off", "scope": "replica", "name": "r1"},
    )
    async with old_cluster(*said) as old:
        await old.freeze({"frozen": True, "for_s": 300.0, "reason": "look"})
        await asyncio.sleep(100.0)
        async with new_cluster(Service(old)) as new:
            (override,) = new.status().overrides
            assert (override.name, str(override.mode), override.carried_from) == ("chat", "pin=2", SERVICE)
            assert override.seconds_left == pytest.approx(500.0, abs=5.0)
            freeze = new.status().policy.freeze
            assert freeze is not None
            assert freeze.seconds_left == pytest.approx(200.0, abs=5.0)
            assert f"by hand (look), carried over from {SERVICE}, for" in freeze.in_words()
            await asyncio.sleep(520.0)
            assert (new.status().overrides, new.status().policy.freeze) == ((), None)


@pytest.mark.looptime
async def test_a_frozen_plan_goes_along_so_that_the_new_cluster_runs_it() -> None:
    async with old_cluster({"mode": "auto"}) as old:
        held = old.status().groups[0].rows
        await old.freeze({"frozen": True})
        async with new_cluster(Service(old)) as new:
            await settled(new, Replica("n1"))
            assert new.status().groups[0].rows == held


@pytest.mark.looptime
async def test_while_the_address_leads_to_the_predecessor_its_operators_are_heard_and_then_no_more() -> None:
    async with old_cluster() as old:
        service = Service(old)
        async with new_cluster(service) as new:
            assert modes(new) == {}
            await old.set_mode({"mode": "off"})
            await asyncio.sleep(HEED_PERIOD_S + 1.0)
            assert modes(new) == {"fleet": "off"}
            await old.set_mode({"mode": "default"})
            await asyncio.sleep(HEED_PERIOD_S + 1.0)
            assert modes(new) == {}
            await old.set_mode({"mode": "off"})
            await asyncio.sleep(HEED_PERIOD_S + 1.0)
            service.policy = None
            await asyncio.sleep(HEED_PERIOD_S + 1.0)
            service.policy = new
            await asyncio.sleep(HEED_PERIOD_S + 1.0)
            reads = service.reads
            await asyncio.sleep(300.0)
            assert (modes(new), service.reads) == ({"fleet": "off"}, reads)


@pytest.mark.looptime
async def test_a_predecessor_is_heard_for_its_time_and_not_looked_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "HEED_FOR_S", 100.0)
    async with old_cluster() as old:
        service = Service(old)
        async with new_cluster(service) as new:
            await asyncio.sleep(60.0)
            service.policy = None
            await asyncio.sleep(60.0)
            reads = service.reads
            service.policy = old
            await old.set_mode({"mode": "off"})
            await asyncio.sleep(100.0)
            assert (service.reads, modes(new)) == (reads, {})


@pytest.mark.looptime
async def test_what_is_set_in_the_new_cluster_wins_over_what_is_carried_over() -> None:
    async with old_cluster({"mode": "off"}) as old:
        await old.freeze({"frozen": True})
        async with new_cluster(Service(old)) as new:
            await new.set_mode({"mode": "default"})
            await new.freeze({"frozen": False})
            await asyncio.sleep(3 * HEED_PERIOD_S)
            assert (modes(new), new.status().policy.freeze) == ({}, None)
            await new.set_mode({"mode": "pin=2"})
            await asyncio.sleep(3 * HEED_PERIOD_S)
            assert modes(new) == {"fleet": "pin=2"}


@pytest.mark.looptime
async def test_what_is_set_in_the_new_cluster_does_not_have_what_was_carried_over_told_again() -> None:
    journal = MemoryJournal()
    async with old_cluster({"mode": "off"}) as old, new_cluster(Service(old), journal=journal) as new:
        await settled(new, Replica())
        await new.set_mode({"mode": "pin=2", "scope": "application", "name": "chat"})
        await asyncio.sleep(3 * HEED_PERIOD_S)
        assert modes(new) == {"fleet": "off", "application chat": "pin=2"}
        assert len([cause for cause in journal.causes if "in the cluster before" in cause]) == 1


@pytest.mark.looptime
async def test_a_policy_that_is_restarted_in_between_keeps_what_it_took_and_still_hears() -> None:
    store = MemoryStore()
    said = {"mode": "pin=2", "scope": "application", "name": "chat"}
    async with old_cluster({"mode": "off"}, said) as old:
        service = Service(old)
        async with new_cluster(service, store) as new:
            await new.set_mode({"mode": "default", "scope": "application", "name": "chat"})
            await asyncio.sleep(20.0)
        service.policy = None
        async with new_cluster(service, store) as new:
            assert modes(new) == {"fleet": "off"}
            service.policy = old
            await old.set_mode({"mode": "pin=3"})
            await asyncio.sleep(70.0)
            assert modes(new) == {"fleet": "pin=3"}, "and what was taken back here stays taken back"
            assert shown(new)[0].startswith("steering")


@pytest.mark.looptime
async def test_a_predecessor_that_loses_its_head_and_its_store_takes_no_off_back() -> None:
    async with old_cluster({"mode": "off"}) as old:
        service = Service(old)
        async with new_cluster(service) as new:
            assert modes(new) == {"fleet": "off"}
            async with old_cluster() as begun_anew:
                service.policy = begun_anew
                await asyncio.sleep(3 * HEED_PERIOD_S)
                assert modes(new) == {"fleet": "off"}
                await begun_anew.set_mode({"mode": "auto"})
                await asyncio.sleep(3 * HEED_PERIOD_S)
                assert modes(new) == {"fleet": "off"}, "what is said there is of another fleet"


@pytest.mark.looptime
async def test_an_off_is_carried_over_too_where_the_new_clusters_store_is_read_late() -> None:
    store = MemoryStore()
    store.is_reachable = False
    async with old_cluster({"mode": "off"}) as old, new_cluster(Service(old), store) as new:
        await asyncio.sleep(3 * HEED_PERIOD_S)
        assert modes(new) == {}
        store.is_reachable = True
        await asyncio.sleep(3 * HEED_PERIOD_S + STORE_RETRY_S)
        assert modes(new) == {"fleet": "off"}


@pytest.mark.looptime
async def test_what_is_said_before_the_store_is_read_wins_over_the_predecessor_after_one_more_restart() -> None:
    store = MemoryStore()
    async with old_cluster({"mode": "off"}) as old:
        service = Service(old)
        async with new_cluster(service, store) as new:
            assert modes(new) == {"fleet": "off"}
        store.is_reachable = False
        service.policy = None
        async with new_cluster(service, store) as new:
            await new.set_mode({"mode": "pin=1"})
            store.is_reachable = True
            await asyncio.sleep(STORE_RETRY_S + 30.0)
        service.policy = old
        async with new_cluster(service, store) as new:
            await asyncio.sleep(3 * HEED_PERIOD_S)
            assert modes(new) == {"fleet": "pin=1"}


@pytest.mark.looptime
async def test_what_is_said_while_an_empty_store_cannot_be_read_wins_after_a_restart_too() -> None:
    store = MemoryStore()
    store.is_reachable = False
    async with old_cluster({"mode": "off"}) as old:
        service = Service()
        async with new_cluster(service, store) as new:
            await new.set_mode({"mode": "pin=1"})
            store.is_reachable = True
            await asyncio.sleep(STORE_RETRY_S + 30.0)
        service.policy = old
        async with new_cluster(service, store) as new:
            await asyncio.sleep(3 * HEED_PERIOD_S)
            assert modes(new) == {"fleet": "pin=1"}


@pytest.mark.looptime
async def test_what_was_carried_over_outlives_a_restart_of_the_policy_though_nobody_answers_any_more() -> None:
    store = MemoryStore()
    async with old_cluster({"mode": "off"}) as old:
        await old.freeze({"frozen": True, "reason": "look"})
        async with new_cluster(Service(old), store):
            await asyncio.sleep(20.0)
    async with new_cluster(Service(), store) as new:
        freeze = new.status().policy.freeze
        assert freeze is not None
        assert (freeze.reason, freeze.carried_from) == ("look", SERVICE)
        assert modes(new) == {"fleet": "off"}


@pytest.mark.looptime
async def test_a_predecessor_that_does_not_answer_for_a_while_is_heard_again() -> None:
    async with old_cluster({"mode": "off"}) as old:
        service = Service(old)
        async with new_cluster(service) as new:
            service.policy = None
            await asyncio.sleep(2 * HEED_PERIOD_S)
            assert modes(new) == {"fleet": "off"}
            service.policy = old
            await old.set_mode({"mode": "pin=3"})
            await asyncio.sleep(HEED_PERIOD_S + 1.0)
            assert modes(new) == {"fleet": "pin=3"}


@pytest.mark.looptime
async def test_a_file_of_a_fleet_that_was_off_takes_no_mode_along() -> None:
    async with old_cluster({"mode": "off"}) as old:

        async def read(place: str) -> LearnedFile:
            return old.learned_file()

        async with running_service(read_seed=read, identity=KUBERAY) as new:
            await new.configure({**VALUES, "seed_from": "/backups/learned.json"})
            await asyncio.sleep(3 * HEED_PERIOD_S)
            assert modes(new) == {}


@pytest.mark.looptime
async def test_a_fleet_that_an_older_release_began_hears_nobody() -> None:
    store = MemoryStore()
    async with new_cluster(Service(), store):
        await asyncio.sleep(20.0)
    (beginning,) = [key for key in store.values if "beginning" in key]
    del store.values[beginning]
    async with old_cluster({"mode": "off"}) as old, new_cluster(Service(old), store) as new:
        await asyncio.sleep(3 * HEED_PERIOD_S)
        assert modes(new) == {}


@pytest.mark.looptime
async def test_a_policy_that_answers_only_after_a_predecessors_time_hands_nothing_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "HEED_FOR_S", 30.0)
    async with old_cluster({"mode": "off"}) as old:
        service = Service()
        async with new_cluster(service) as new:
            await asyncio.sleep(31.0)
            service.policy = old
            await asyncio.sleep(RETRY_S + 1.0)
            assert (service.reads, modes(new)) == (2, {})


@pytest.mark.looptime
async def test_what_a_predecessor_says_is_decided_at_once() -> None:
    async with old_cluster() as old, new_cluster(Service(old)) as new:
        replica = Replica("n1")
        await settled(new, replica)
        slowly = {**VALUES, "decision_period_s": 30.0, "replica_timeout_s": 60.0}
        await new.configure(slowly)
        await old.set_mode({"mode": "off"})
        await asyncio.sleep(HEED_PERIOD_S + 1.0)
        await settled(new, replica)
        assert str(replica.mode) == "off"


def test_a_freeze_that_is_over_is_not_handed_over() -> None:
    by_hand = ByHand(freeze=Freeze(since_s=0.0, expires_at_s=10.0))
    still = by_hand.for_successor(SERVICE, 9.0).freeze
    assert still is not None
    assert still.carried_from == SERVICE
    assert by_hand.for_successor(SERVICE, 10.0).freeze is None


def test_of_a_freeze_the_plans_of_groups_with_replicas_go_along_as_many_as_a_file_holds() -> None:
    most = handover.MAX_HELD_PLANS
    held = HeldPlan.of(GroupPlan(one_k(0, 8)), "off")
    plans = {f"g{number}": held for number in range(most + 2)}
    controller = Controller(OperatorSettings())
    controller.observe(Replica("r").report(), 0.0)
    one = controller.state.replicas["r"]
    members = {group_id: replace(one, group_id=group_id) for group_id in plans if group_id != "g0"}
    controller.state = replace(controller.state, replicas=PersistentMap(members))
    will = OperatorState(Checkpoint(MemoryStore()), controller)
    will.take_up(Remembered(freeze=Freeze(since_s=0.0, plans=plans)), 0.0)
    handed = will.by_hand(0.0).freeze
    assert handed is not None
    assert list(handed.plans) == [f"g{number}" for number in range(1, most + 1)]


@pytest.mark.looptime
async def test_a_canary_ends_with_its_cluster_and_the_next_ones_journal_says_so() -> None:
    journal = MemoryJournal()
    async with old_cluster() as old:
        await settled(old, Replica("r2"))
        await old.canary({"mode": "pin=3", "share": 0.5})
        async with new_cluster(Service(old), journal=journal) as new:
            await settled(new, Replica("n1"))
            assert new.status().policy.canary is None
            await asyncio.sleep(3 * HEED_PERIOD_S)
    (told,) = (cause for cause in journal.causes if "canary" in cause)
    assert told.startswith("canary mode pin=3 on 50 % of the replicas")
    assert told.endswith("ended with the cluster before")


@pytest.mark.looptime
async def test_a_head_that_is_lost_and_comes_back_with_its_store_goes_on_off_and_one_without_says_that_it_cannot_know() -> None:
    store = MemoryStore()
    async with new_cluster(Service(), store) as policy:
        await policy.set_mode({"mode": "off", "reason": "incident"})
    async with new_cluster(Service(), store) as kept:
        assert modes(kept) == {"fleet": "off"}
        assert shown(kept)[0].startswith("steering")
    async with new_cluster(Service()) as lost:
        assert shown(lost)[0] == (
            "what was set by hand before is not known, mode auto of the settings holds: nothing was stored and no policy answered "
            "at seed_from: a first install, a lost head or a replaced cluster"
        )
        await lost.set_mode({"mode": "default"})
        assert shown(lost)[0].startswith("steering"), "an operator who was here knows"


@pytest.mark.looptime
async def test_that_it_cannot_know_is_said_for_a_while_and_of_a_cluster_of_ones_own_machine_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "SHOWN_FOR_S", 100.0)
    async with running_service(identity=KUBERAY) as policy:
        assert "seed_from names no policy to ask" in shown(policy)[0]
        await asyncio.sleep(100.0)
        assert shown(policy)[0].startswith("steering")
    async with running_service() as on_a_laptop:
        assert shown(on_a_laptop)[0].startswith("steering")


@pytest.mark.looptime
async def test_a_store_that_cannot_be_read_is_said_until_it_can() -> None:
    store = MemoryStore()
    async with running_service(store) as policy:
        await policy.set_mode({"mode": "off"})
    store.is_reachable = False
    async with running_service(store) as policy:
        assert shown(policy)[0].endswith("mode shadow of the settings holds: the store cannot be read")
        store.is_reachable = True
        await asyncio.sleep(12.0)
        assert (modes(policy), shown(policy)[0][:8]) == ({"fleet": "off"}, "steering")


@pytest.mark.looptime
async def test_the_policy_of_another_service_gives_what_it_has_learned_and_nothing_of_what_is_set_by_hand_there() -> None:
    staging = ActorIdentity(pid=2, service="staging/nightjar")
    async with old_cluster({"mode": "pin=2"}, identity=staging) as other:
        service = Service(other)
        async with new_cluster(service) as new:
            assert modes(new) == {}
            assert shown(new)[0].endswith("seed_from leads to the policy of another service")
            await asyncio.sleep(100.0)
            assert service.reads == 1


@pytest.mark.looptime
async def test_a_predecessor_of_the_release_before_gives_what_it_has_learned_and_status_says_that_more_is_not_known() -> None:
    file = learned_file((some_group(),), 3, 1.7e9, "older")
    without = json.loads(to_text(file))
    assert "by_hand" not in without["about"], "as that release writes it"

    async def read(place: str) -> LearnedFile:
        return parse_learned_file(to_text(file))

    async with running_service(read_seed=read, identity=KUBERAY) as new:
        await new.configure(VALUES)
        await settled(new, Replica("n1"))
        assert len(new.status().groups[0].cells) == 30
        assert shown(new)[0].endswith("the policy before is of a release that does not hand it over")


@pytest.mark.looptime
async def test_an_import_takes_no_mode_along() -> None:
    async with old_cluster({"mode": "off"}) as old, running_service() as new:
        await new.import_learned(old.learned_file())
        assert modes(new) == {}


OVERRIDES = st.builds(
    ModeOverride,
    scope=st.just("application"),
    name=st.text(min_size=1, max_size=20),
    mode=st.sampled_from([Mode.parse(text) for text in ("off", "auto", "shadow", "pin=3")]),
    expires_at_s=st.none() | st.floats(0.0, 2e9),
    reason=st.text(max_size=40),
)


@given(st.lists(OVERRIDES, max_size=5).map(tuple), st.floats(0.0, 2e9))
def test_a_successor_gets_just_what_holds_and_the_file_carries_it_unchanged(held: tuple[ModeOverride, ...], now_s: float) -> None:
    by_hand = ByHand(overrides=held)
    read = parse_learned_file(to_text(learned_file((), 1, 1.7e9, "f", by_hand))).about.by_hand
    assert read == by_hand
    handed = read.for_successor(SERVICE, now_s)
    assert handed.overrides == tuple(
        override.model_copy(update={"carried_from": SERVICE}) for override in held if override.is_live(now_s)
    )
