"""Routers: everybody's share, nothing for those who drain, counts that add up."""

from __future__ import annotations

import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.service.router import Router, RouterKind

kinds = st.sampled_from(get_args(RouterKind))


def router(kind: RouterKind, replicas: int) -> Router:
    made = Router(kind, random.Random(1))
    for replica in range(replicas):
        made.join(replica)
    return made


@given(kinds, st.integers(2, 9), st.lists(st.sampled_from("pad"), max_size=60), st.integers(0, 8))
def test_only_replicas_in_service_are_picked_and_what_is_in_flight_adds_up(
    kind: RouterKind, replicas: int, moves: list[str], drained: int
) -> None:
    service = router(kind, replicas)
    service.drain(drained)
    sent: list[int] = []
    for user, move in enumerate(moves):
        if move == "a" and sent:
            service.answered(sent.pop())
        else:
            sent.append(service.pick(user if move == "d" else None))
            assert sent[-1] in service.serving
            assert drained not in service.serving
    assert [service.in_flight(replica) for replica in range(replicas)] == [Counter(sent)[replica] for replica in range(replicas)]


@given(st.sampled_from(["round_robin", "least_loaded"]), st.integers(1, 9), st.integers(0, 50))
def test_without_answers_everybody_gets_the_same_share(kind: RouterKind, replicas: int, requests: int) -> None:
    service = router(kind, replicas)
    counts = Counter(service.pick(None) for _ in range(requests))
    assert max(counts.values(), default=0) - min(counts[replica] for replica in range(replicas)) <= 1


def test_a_sticky_user_stays_and_users_spread_evenly() -> None:
    service = router("sticky", 4)
    assert [service.pick(user) for user in (0, 1, 2, 3, 4, 0, 1)] == [0, 1, 2, 3, 0, 0, 1]


def test_the_least_loaded_replica_gets_the_request() -> None:
    service = router("least_loaded", 3)
    for _ in range(3):
        service.pick(None)
    service.answered(1)
    assert service.pick(None) == 1


def test_two_choices_never_take_the_more_loaded_of_two_replicas_for_long() -> None:
    service = router("two_choices", 8)
    for _ in range(800):
        service.pick(None)
    loads = [service.in_flight(replica) for replica in range(8)]
    assert max(loads) - min(loads) < 15


def test_a_replica_that_leaves_keeps_its_count_and_may_come_back() -> None:
    service = router("round_robin", 2)
    service.pick(None)
    service.drain(0)
    service.drain(0)
    assert {service.pick(None) for _ in range(5)} == {1}
    service.join(0)
    assert service.serving == (0, 1)
    assert service.in_flight(0) + service.in_flight(1) == 6


def test_without_a_replica_there_is_nowhere_to_send() -> None:
    service = router("round_robin", 1)
    service.drain(0)
    with pytest.raises(ValueError, match="no replica is in service"):
        service.pick(None)
