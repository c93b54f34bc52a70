"""The life of a drafter as one table: every state against every event, and nothing happens that the table does not hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nightjar.policy.step.drafter import TRANSITIONS, DrafterLife, MemoryOrder
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Lease, OffloadRules
from tests.policy.step.test_drafter import dormant, granted, told

RULES = OffloadRules(free_share_below=0.1, pressure_s=0.0, reload_free_share=0.4)
ROWS = 64
LAG = 500
NOW_S = 10.0
Event = Callable[[DrafterLife], object]

ACTIVE, DORMANT, CATCHING_UP = DrafterState.ACTIVE, DrafterState.DORMANT, DrafterState.CATCHING_UP
PROBING, OFFLOADED, CONTRACTING = DrafterState.PROBING, DrafterState.OFFLOADED, DrafterState.CONTRACTING
RELOADING, IN_SYNC = DrafterState.RELOADING, DrafterState.IN_SYNC


def active() -> DrafterLife:
    life = DrafterLife(can_be_dormant=True, catch_up_chunk_tokens=100)
    life.adopt(told(offload=RULES), 0.0)
    life.after_step(life.before_step(3, 0, 0.0), [ROWS], [ROWS // 2], 0.0)
    return life


def sleeping() -> DrafterLife:
    life = active()
    life.before_step(0, 0, NOW_S)
    return life


def leased(life: DrafterLife, *, reload: bool = False) -> DrafterLife:
    """As it is, with the plan wanting it back and a lease in hand."""
    life.before_step(3, LAG, NOW_S)
    life.memory_step(0.9, 0, NOW_S)
    lease = granted(life.wish(LAG, NOW_S), 50.0)
    life.adopt(told(lease.model_copy(update={"reload": reload}), offload=RULES, sequence=2), NOW_S)
    return life


def catching_up() -> DrafterLife:
    life = leased(sleeping())
    life.before_step(3, LAG, NOW_S)
    return life


def probing() -> DrafterLife:
    life = catching_up()
    life.before_step(3, 0, NOW_S)
    return life


def offloaded() -> DrafterLife:
    life = sleeping()
    assert life.memory_step(0.05, 5, NOW_S) is MemoryOrder.OFFLOAD
    life.transfer_done(NOW_S)
    return life


def contracting() -> DrafterLife:
    life = leased(offloaded(), reload=True)
    assert life.memory_step(0.9, 0, NOW_S) is MemoryOrder.CONTRACT
    return life


def reloading() -> DrafterLife:
    life = contracting()
    life.contracted(NOW_S)
    assert life.memory_step(0.9, 0, NOW_S) is MemoryOrder.RELOAD
    return life


def kept_in_sync() -> DrafterLife:
    life = DrafterLife(can_be_dormant=False)
    life.adopt(told(offload=RULES), 0.0)
    return life


MADE: dict[DrafterState, Callable[[], DrafterLife]] = {
    ACTIVE: active,
    DORMANT: sleeping,
    CATCHING_UP: catching_up,
    PROBING: probing,
    OFFLOADED: offloaded,
    CONTRACTING: contracting,
    RELOADING: reloading,
    IN_SYNC: kept_in_sync,
}


def _verified(hits: int) -> Event:
    def event(life: DrafterLife) -> None:
        order = life.before_step(3, 0, NOW_S)
        life.after_step(order, [4 * ROWS], [hits], NOW_S)

    return event


def _allowed_alone(life: DrafterLife) -> None:
    life.adopt(told(micro=4 * LAG, offload=RULES, sequence=9), NOW_S)
    life.before_step(3, LAG, NOW_S)


def _in_hand(*, reload: bool) -> Event:
    def event(life: DrafterLife) -> None:
        life.before_step(3, LAG, NOW_S)
        life.memory_step(0.9, 0, NOW_S)
        wish = life.wish(LAG, NOW_S)
        if wish is not None:
            lease = Lease(wish_id=wish.wish_id, time_to_live_s=50.0, reload=reload)
            life.adopt(told(lease, offload=RULES, sequence=9), NOW_S)
        life.before_step(3, LAG, NOW_S)
        life.memory_step(0.9, 0, NOW_S)

    return event


def _lease_ends(life: DrafterLife) -> None:
    life.before_step(3, LAG, NOW_S + 60.0)
    life.memory_step(0.9, 0, NOW_S + 60.0)


def _contracted(life: DrafterLife) -> None:
    life.contracted(NOW_S)
    life.memory_step(0.9, 0, NOW_S)


def _plan_says_0(life: DrafterLife) -> None:
    life.before_step(0, LAG, NOW_S)
    life.memory_step(0.9, 0, NOW_S)


EVENTS: dict[str, Event] = {
    "the plan says 0": _plan_says_0,
    "K, and nothing is missing": lambda life: life.before_step(3, 0, NOW_S),
    "K, and more is missing than the allowance": lambda life: life.before_step(3, LAG, NOW_S),
    "K, and the allowance covers what is missing": _allowed_alone,
    "K, and a lease comes": _in_hand(reload=False),
    "K, and a lease for a reload comes": _in_hand(reload=True),
    "the lease ends": _lease_ends,
    "drafts are accepted as before": _verified(2 * ROWS),
    "no draft is accepted": _verified(0),
    "memory is short and requests wait": lambda life: life.memory_step(0.05, 5, NOW_S),
    "memory is free": lambda life: life.memory_step(0.9, 0, NOW_S),
    "the pool has shrunk": _contracted,
    "the weights have moved": lambda life: life.transfer_done(NOW_S),
    "the weights could not be brought back": lambda life: life.reload_failed("no such file", NOW_S),
    "a catch-up broke off": lambda life: life.pass_failed("out of memory", NOW_S),
    "nobody steers": lambda life: life.runs_freely(3, LAG, NOW_S),
}

CHANGES: dict[tuple[DrafterState, str], DrafterState] = {
    (ACTIVE, "the plan says 0"): DORMANT,
    (ACTIVE, "a catch-up broke off"): DORMANT,
    (CATCHING_UP, "a catch-up broke off"): DORMANT,
    (PROBING, "a catch-up broke off"): DORMANT,
    (DORMANT, "K, and nothing is missing"): ACTIVE,
    (DORMANT, "drafts are accepted as before"): ACTIVE,
    (DORMANT, "no draft is accepted"): ACTIVE,
    (DORMANT, "K, and the allowance covers what is missing"): CATCHING_UP,
    (DORMANT, "K, and a lease comes"): CATCHING_UP,
    (DORMANT, "K, and a lease for a reload comes"): CATCHING_UP,
    (DORMANT, "memory is short and requests wait"): OFFLOADED,
    (DORMANT, "nobody steers"): ACTIVE,
    (CATCHING_UP, "the plan says 0"): DORMANT,
    (CATCHING_UP, "K, and nothing is missing"): PROBING,
    (CATCHING_UP, "drafts are accepted as before"): ACTIVE,
    (CATCHING_UP, "no draft is accepted"): DORMANT,
    (CATCHING_UP, "the lease ends"): DORMANT,
    (CATCHING_UP, "nobody steers"): ACTIVE,
    (PROBING, "the plan says 0"): DORMANT,
    (PROBING, "drafts are accepted as before"): ACTIVE,
    (PROBING, "no draft is accepted"): DORMANT,
    (PROBING, "nobody steers"): ACTIVE,
    (OFFLOADED, "K, and a lease for a reload comes"): CONTRACTING,
    (CONTRACTING, "the plan says 0"): OFFLOADED,
    (CONTRACTING, "the lease ends"): OFFLOADED,
    (CONTRACTING, "the pool has shrunk"): RELOADING,
    (RELOADING, "the weights have moved"): DORMANT,
    (RELOADING, "the weights could not be brought back"): OFFLOADED,
}
"""What each event makes of each state; whatever is not listed leaves it as it is."""


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", MADE, ids=str)
def test_every_event_makes_of_every_state_what_the_table_says(state: DrafterState, event: str) -> None:
    life = MADE[state]()
    assert life.state is state
    EVENTS[event](life)
    assert life.state is CHANGES.get((state, event), state)


def test_every_transition_of_the_table_happens_and_no_other() -> None:
    seen = {(before, after) for (before, _), after in CHANGES.items()}
    allowed = {(before, after) for before, reachable in TRANSITIONS.items() for after in reachable}
    # CATCHING_UP -> ACTIVE by drafts that are accepted passes PROBING on its way.
    assert seen == allowed


def test_a_change_that_is_not_in_the_table_is_refused() -> None:
    life = dormant()
    with pytest.raises(ValueError, match="dormant cannot become reloading; allowed: active, catching_up, offloaded"):
        life._become(DrafterState.RELOADING)
