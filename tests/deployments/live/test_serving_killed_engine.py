"""An engine killed while its draft's memory is lent or the draft is on its way back, under Serve: replaced, and nothing is left.

That is when most could be left: requests own blocks that the replacement does not have, the draft's KV is half there, the policy
counts a lease, and a killed process cleans up nothing. Contraction and reload take a step or two each, which no status shows for
long enough to aim at; so the way back is cut off where it is longest, in the catch-up that follows them under the same lease.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import httpx
import psutil
import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from nightjar.policy.wire.cause import Code
from nightjar.policy.wire.report import DrafterCounters, DrafterState
from nightjar.policy.wire.status import ReplicaStatus
from tests.deployments import serving

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

NAME = "chat"
KV_CACHE_BYTES = 300 << 20
"""26 blocks of 128 tokens beside the draft, which lends more than 100: six of the requests below fill them."""
LENT_BLOCKS = 24
LEASES_LIVE_S = 120.0
"""A reload that takes longer than a lease lives is never begun, and on two busy cores the weights took 24 s to move. A new policy
grants none for as long (INV-6); most of it is over when the engine has started."""
SILENT_S = 120.0
"""An engine reports between its steps, and on two busy cores the step that moves the weights took longer than 10 s: a policy that
forgets it then shows no state to aim at. Most of it is over when the engine in its place has started."""
SETTINGS = {
    "mode": "auto",
    "planner": "fixed",
    "exchange_period_s": 0.1,
    "decision_period_s": 0.1,
    "dwell_steps": 0,
    "replica_timeout_s": SILENT_S,
    "max_lease_ttl_s": LEASES_LIVE_S,
    "catch_up_slowdown": 0.01,  # many small chunks: the state that is aimed at lasts for dozens of steps
    "draft_offload": "under_memory_pressure",
    "offload_after_s": 0.0,
    "offload_below_free_share": 0.25,
    "reload_above_free_share": 0.26,
}
SHORT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 8}


def long(number: int, max_tokens: int) -> dict[str, Any]:
    """500 to 620 tokens that no other request shares, and `max_tokens` more to generate."""
    words = " ".join(f"{number}.{word}" for word in range(100))
    return SHORT | {"messages": [{"role": "user", "content": words}], "max_tokens": max_tokens, "ignore_eos": True}


CROWD = 18
"""They fill the blocks and end; then there is room for the draft to come back."""
STAYING = 2
"""They ask until the engine is killed: however long the way back takes, the draft misses what they read and write meanwhile."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[serving.ServeCluster]:
    serving.need_models(serving.TARGET, serving.DRAFT)
    with serving.serve_cluster() as running:
        serving.configure(SETTINGS)
        application = serving.application(NAME, draft_offload="under_memory_pressure", kv_cache_memory_bytes=KV_CACHE_BYTES)
        running.deploy(application)
        yield running


@pytest.fixture
def client(cluster: serving.ServeCluster) -> Iterator[httpx.Client]:
    with cluster.http(NAME) as http:
        yield http


@pytest.mark.parametrize("state", [pytest.param(DrafterState.OFFLOADED, marks=pytest.mark.long), DrafterState.CATCHING_UP])
def test_engine_killed_in_mid_transition_is_replaced_and_leaves_nothing(client: httpx.Client, state: DrafterState) -> None:
    serving.set_fleet_mode("off")
    (known,) = serving.until(lambda: serving.replicas(NAME), within_s=60, what="a report")
    (pid,) = serving.replica_pids(NAME)
    engine = serving.engine_processes_of(pid)
    core = serving.engine_core_of(pid)
    everything = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    files = serving.files_of(engine)
    assert any(file.is_socket() for file in files)
    assert any(file.name.startswith("psm_") for file in files)

    is_over = Event()
    with ThreadPoolExecutor(CROWD + STAYING) as pool, _set_at_the_end(is_over):
        crowd = [pool.submit(_ask, client, long(number, max_tokens=60)) for number in range(CROWD)]
        staying = [pool.submit(_ask_until, is_over, client, first) for first in range(CROWD, CROWD + STAYING)]
        serving.until(lambda: _is_offloaded_and_lends(known.replica_id), within_s=180, what="lent blocks in use")
        if state is DrafterState.CATCHING_UP:
            serving.set_fleet_mode("pin=4")
            serving.until(lambda: _catches_up_after_reload(known.replica_id), within_s=240, what="a catch-up after a reload")
        is_over.set()
        core.kill()
        outcomes = {request.result(timeout=60) for request in (*crowd, *staying)}
        assert outcomes <= {200, 500, 503}
        assert outcomes != {200}
    last = _status_of(known.replica_id)
    assert last is not None
    assert last.drafter_state is state
    assert _granted() == (1 if state is DrafterState.CATCHING_UP else 0)

    serving.set_fleet_mode("off")
    _, alive = psutil.wait_procs(engine, timeout=120)
    assert alive == []
    (fresh,) = serving.until(lambda: _others(known.replica_id), within_s=240, what="a report of the replica in its place")
    assert fresh.engine_id != known.engine_id
    assert fresh.drafter_state in {DrafterState.ACTIVE, DrafterState.DORMANT}
    assert fresh.drafter == DrafterCounters()

    _, alive = psutil.wait_procs(everything, timeout=240)
    assert alive == []
    assert serving.existing(files) == set()
    serving.until(lambda: _status_of(known.replica_id) is None, within_s=SILENT_S, what="the policy forgets the dead replica")
    serving.until(lambda: _granted() == 0, within_s=LEASES_LIVE_S, what="the end of its lease")

    serving.set_fleet_mode("pin=4")
    assert serving.post(client, SHORT)["finish_reason"] in {"length", "stop"}
    serving.until(lambda: _drafted(fresh.replica_id), within_s=30, what="drafts of the new engine")


def _status_of(replica_id: str) -> ReplicaStatus | None:
    return next((replica for replica in serving.fleet_status().replicas if replica.replica_id == replica_id), None)


def _others(replica_id: str) -> tuple[ReplicaStatus, ...]:
    return tuple(replica for replica in serving.replicas(NAME) if replica.replica_id != replica_id)


def _is_offloaded_and_lends(replica_id: str) -> bool:
    replica = _status_of(replica_id)
    if replica is None:
        return False
    return replica.drafter_state is DrafterState.OFFLOADED and replica.drafter.borrowed_blocks >= LENT_BLOCKS


def _catches_up_after_reload(replica_id: str) -> bool:
    replica = _status_of(replica_id)
    return replica is not None and replica.drafter_state is DrafterState.CATCHING_UP and replica.drafter.reloads == 1


@contextmanager
def _set_at_the_end(event: Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()


def _ask(client: httpx.Client, body: dict[str, Any]) -> int:
    return client.post("/v1/chat/completions", json=body).status_code


def _ask_until(is_over: Event, client: httpx.Client, number: int) -> int:
    """One request after the other, none with words of another; the status of the last."""
    while (status := _ask(client, long(number, max_tokens=400))) == 200 and not is_over.is_set():
        number += STAYING
    return status


def _granted() -> int:
    """Leases that the policy counts."""
    causes = [cause for group in serving.fleet_status().groups for cause in group.causes]
    return sum(int(cause.numbers["granted"]) for cause in causes if cause.code == Code.RESTARTS)


def _drafted(replica_id: str) -> bool:
    replica = _status_of(replica_id)
    return replica is not None and any(total.draft_tokens for total in replica.totals)
