"""Offload and reload: the host link is shared, the pool grows and shrinks, the draft comes back with nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.engine.draft_memory import HostLink
from nightjar.loadtests.simulation.engine.kv_blocks import BlockPool, BlocksLostError
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.engine.simulated_engine import SimulatedEngine
from nightjar.loadtests.simulation.profiles import Limits
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Lease, OffloadRules
from tests.loadtests.simulation.engine.engines import PAIR, engine, held, settings

TIGHT = PAIR.model_copy(
    update={"limits": Limits(max_num_seqs=32, max_num_batched_tokens=512, block_size=16, num_blocks=100, extra_blocks=40)}
)
RULES = OffloadRules(free_share_below=0.2, pressure_s=0.2, reload_free_share=0.0)


def offloaded(requests: int = 20) -> SimulatedEngine:
    """An engine under memory pressure whose draft has left."""
    pressed = engine(TIGHT, host_link=HostLink(TIGHT.drafter.host_link_bytes_per_s))
    assert pressed.adopt(settings(held(0), offload=RULES)) == ""
    for number in range(requests):
        pressed.submit(SimulatedRequest(number, 0.0, 100, 200, 0))
    while pressed.totals.offloads == 0:
        pressed.step()
    return pressed


def test_transfers_share_the_link_evenly() -> None:
    link = HostLink(100.0)
    first, second = link.begin(100.0, 0.0), link.begin(50.0, 0.5)
    assert link.finished_s(first, 1.0) is None
    assert link.finished_s(second, 2.0) == pytest.approx(1.5)
    assert link.finished_s(first, 2.0) == pytest.approx(1.5)


@given(starts=st.lists(st.tuples(st.floats(0, 10), st.floats(1, 100)), min_size=1, max_size=8))
def test_a_busy_link_moves_its_bandwidth_and_no_more(starts: list[tuple[float, float]]) -> None:
    link = HostLink(10.0)
    transfers = [(link.begin(size, start), start, size) for start, size in sorted(starts)]
    ends = [link.finished_s(transfer, 1000.0) for transfer, _, _ in transfers]
    for end, (_, start, size) in zip(ends, transfers, strict=True):
        assert end is not None
        assert end >= start + size / 10.0 - 1e-6
    assert (
        max(end for end in ends if end is not None)
        <= max(start for _, start, _ in transfers) + sum(size for _, _, size in transfers) / 10.0 + 1e-6
    )


def test_blocks_that_do_not_exist_cannot_be_taken_nor_given_back() -> None:
    pool = BlockPool(10, 2, block_size=16)
    pool.take(10)
    with pytest.raises(BlocksLostError):
        pool.take(1)
    other = BlockPool(10, 2, block_size=16)
    with pytest.raises(BlocksLostError):
        other.give(1)


def test_a_pool_contracts_only_when_what_is_held_fits() -> None:
    pool = BlockPool(10, 2, block_size=16)
    pool.grow()
    pool.take(11)
    pool.begin_contraction()
    assert (pool.size, pool.admission_size, pool.try_contract()) == (12, 10, False)
    pool.give(1)
    assert pool.try_contract()
    assert pool.size == 10


def test_under_memory_pressure_the_draft_leaves_and_the_same_requests_are_done_sooner() -> None:
    busy_s = []
    for link in (None, HostLink(TIGHT.drafter.host_link_bytes_per_s)):
        pressed = engine(TIGHT, host_link=link)
        pressed.adopt(settings(held(0), offload=RULES))
        for number in range(60):
            pressed.submit(SimulatedRequest(number, 0.0, 100, 100, 0))
        while pressed.has_work:
            pressed.step()
        busy_s.append(pressed.totals.busy_s)
        assert pressed.totals.offloads == (link is not None)
    assert busy_s[1] < 0.9 * busy_s[0]


def test_the_draft_comes_back_under_a_lease_after_the_pool_has_shrunk_and_everything_is_lag() -> None:
    pressed = offloaded(requests=12)
    pressed.adopt(settings(held(3), sequence=2, offload=RULES))
    pressed.step()
    wish = pressed.report().snapshot.restart_wish
    assert wish is not None
    assert wish.reload
    lease = Lease(wish_id=wish.wish_id, time_to_live_s=60.0, reload=True)
    pressed.adopt(settings(held(3), sequence=3, leases=[lease], offload=RULES))
    states = []
    while pressed.has_work and pressed.drafter_state is not DrafterState.ACTIVE:
        pressed.step()
        pressed.check_integrity()
        states.append(pressed.drafter_state)
    order = [DrafterState.CONTRACTING, DrafterState.RELOADING, DrafterState.CATCHING_UP, DrafterState.PROBING, DrafterState.ACTIVE]
    assert [state for state in order if state in states] == order
    assert pressed.totals.reloads == 1
    assert pressed.totals.catch_up_tokens >= 100
    assert len(pressed.leased_restarts) == 1
    assert pressed.leased_restarts[0][1] < pressed.now_s
