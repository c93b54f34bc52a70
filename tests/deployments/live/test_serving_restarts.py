"""Restarts of two real replicas under Serve with one lease for both: off, wish, lease, catch-up, probe, on, never two at once.

The plan is a static table: nothing has to be learned first, and its restarts need not pay, they only wait for the budget. What
happened is read from the policy's journal. A probe holds no lease: a drafter that is watched costs no more than one that runs, so
the next replica may catch up meanwhile. Where a moment must not be missed an engine is stopped (SIGSTOP) and the policy decides
only when told, so that no outcome hangs on how fast the machine is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("vllm")
from nightjar.cluster.storage.journal import JournalEntry, read_journal
from nightjar.loadtests.load.openai_stream import ChatResult, StreamParser
from nightjar.policy.wire.cause import Code, codes
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.status import ReplicaStatus
from tests.deployments import serving

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

NAME = "chat"
KV_CACHE_BYTES = 900 << 20
"""Room for all requests of a surge at once: one that is preempted would come back with a lag of its own."""
ROWS_ON = 4
"""The table speculates up to so many rows."""
ROWS_A_REPLICA = 2
MAX_LEASE_TTL_S = 8.0
ONLY_WHEN_TOLD_S = 30.0
"""The longest decision period; every change of settings or mode is decided on at once."""
SETTINGS: dict[str, Any] = {
    "mode": "auto",
    "planner": "schedule",
    "num_speculative_tokens_per_batch_size": [[1, ROWS_ON, 3], [ROWS_ON + 1, 16, 0]],
    "exchange_period_s": 0.1,
    "decision_period_s": 0.1,
    "dwell_steps": 0,
    "max_lease_ttl_s": MAX_LEASE_TTL_S,
    "catch_up_slowdown": 2.0,
}
BURST_REQUESTS, MOST_SURGE_REQUESTS = 4, 24
"""Serve spreads those that come at once by chance, and looks at its replicas again before the next."""
SURGE_TOKENS = 160
"""Each row that lives through the surge falls behind by so many tokens, more than may be recomputed without a lease."""
LIVES_THROUGH_A_SURGE_TOKENS = 480
LONG_PROMPT_WORDS, ENDLESS_TOKENS = 24, 820
"""Behind by its whole prompt if it begins while speculation is off, and longer than any test takes."""
HUNG_UP = "the client hung up"
OFF_AND_ON = re.compile("active dormant wish lease catching_up( dormant wish lease catching_up)*( probing)? active")
"""A catch-up that outlasts its lease goes on with the next one. The journal holds one report per decision: a probe that begins and
passes between two decisions is told by the replica's own count alone."""
ROWS_OF_A_REFERENCE = 50
"""Rows that must have been drafted for, so that a probe has an acceptance to compare with."""
SHORT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 8}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[serving.ServeCluster]:
    """Skipped with the command to run where the models were not built."""
    serving.need_models(serving.TARGET, serving.DRAFT)
    with serving.serve_cluster() as running:
        configure()
        running.deploy(serving.application(NAME, num_replicas=2, kv_cache_memory_bytes=KV_CACHE_BYTES))
        yield running


@pytest.fixture
def client(cluster: serving.ServeCluster) -> Iterator[httpx.Client]:
    """HTTP to the two replicas, both steered by the table."""
    configure()
    serving.set_mode("default")
    serving.until(lambda: running() == [0, 0], within_s=180, what="two replicas without requests")
    with cluster.http(NAME) as http:
        yield http


def test_after_a_surge_two_replicas_restart_one_after_the_other_and_no_request_fails(client: httpx.Client) -> None:
    """INV-6."""
    drafted = {replica.replica_id: draft_tokens(replica) for replica in both()}

    def reference_is_known() -> bool:
        return all(draft_tokens(replica) - drafted[replica.replica_id] >= 3 * ROWS_OF_A_REFERENCE for replica in both())

    with ThreadPoolExecutor(32) as pool:
        long = start_long(pool, client, prompt_words=4, max_tokens=LIVES_THROUGH_A_SURGE_TOKENS)
        serving.until(reference_is_known, within_s=120, what="drafts of both replicas before the surge")
        since_s, before = time.time(), {replica.replica_id: replica for replica in both()}
        surge: list[Future[ChatResult]] = []
        while min(running()) <= ROWS_ON:
            assert len(surge) < MOST_SURGE_REQUESTS, running()
            surge += [pool.submit(stream, client, chat(4, SURGE_TOKENS)) for _ in range(BURST_REQUESTS)]
            until_running(len(long) + len(surge))
        until_both_are(DrafterState.DORMANT)
        assert_whole(surge, SURGE_TOKENS)
        until_both_are(DrafterState.ACTIVE)
        after = both()
        assert_whole(long, LIVES_THROUGH_A_SURGE_TOKENS)
    entries = journal(since_s, *before)
    for replica in after:
        was = before[replica.replica_id]
        assert OFF_AND_ON.fullmatch(" ".join(course(entries, replica.replica_id)))
        assert replica.restarts > was.restarts
        assert replica.drafter.micro_restarts == was.drafter.micro_restarts
        assert replica.drafter.probes - was.drafter.probes == 1
        assert replica.failed_probes == was.failed_probes
    assert {lease.replica_id for lease in leases(entries)} == before.keys()
    assert_never_two_at_once(entries)


def test_policy_killed_between_grant_and_start_lets_one_time_to_live_pass_before_it_grants_again(client: httpx.Client) -> None:
    """INV-6."""
    since_s = time.time()
    serving.set_mode("off")
    with endless_requests(client) as endless:
        until_both_are(DrafterState.DORMANT)
        holder, other = (replica.replica_id for replica in both())
        with granted_to_a_stopped_engine(holder, other):
            killed, killed_s = serving.fleet_status().policy, time.time()
            os.kill(killed.pid, signal.SIGKILL)
        serving.until(lambda: serving.fleet_status().policy.incarnation > killed.incarnation, within_s=60, what="a new policy")
        configure()
        until_both_are(DrafterState.ACTIVE)
    assert {request.result().error for request in endless} == {HUNG_UP}
    entries = journal(since_s, holder, other)
    lost, *granted = leases(entries)
    assert (lost.replica_id, lost.incarnation) == (holder, killed.incarnation)
    assert {lease.replica_id for lease in granted} == {holder, other}
    assert all(lease.incarnation > killed.incarnation and lease.from_s >= killed_s + MAX_LEASE_TTL_S for lease in granted)
    assert_never_two_at_once(entries)


def test_replica_killed_with_a_lease_keeps_the_other_waiting_until_that_lease_is_over(client: httpx.Client) -> None:
    """INV-6. Requests in flight on the killed replica break, as they must; all others succeed. Nothing is left of its
    engine, which stood still as its replica died."""
    since_s = time.time()
    serving.set_mode("off")
    with endless_requests(client) as endless:
        until_both_are(DrafterState.DORMANT)
        killed, other = (replica.replica_id for replica in both())
        with granted_to_a_stopped_engine(killed, other):
            cut_off, pid = status_of(killed).load.num_running_reqs, serving.replica_pid(NAME, killed)
            engine = serving.engine_processes_of(pid)
            assert len(engine) >= 2, "an engine core and its worker"
            files = serving.files_of(engine)
            assert files, "or nothing would be left to tidy up"
            os.kill(pid, signal.SIGKILL)
        configure()

        def answers_and_drafts() -> bool:
            serving.post(client, SHORT)
            return status_of(other).drafter_state is DrafterState.ACTIVE

        serving.until(answers_and_drafts, within_s=120, what="the other replica's drafter runs")
    assert [request.result().error for request in endless].count(HUNG_UP) == len(endless) - cut_off
    entries = journal(since_s, other)
    lost, *granted = leases(entries)
    assert lost.replica_id == killed
    assert {lease.replica_id for lease in granted} == {other}
    assert granted[0].from_s >= lost.from_s + lost.time_to_live_s
    assert_never_two_at_once(entries)
    _, alive = psutil.wait_procs(engine, timeout=120)
    assert alive == []
    assert killed not in {replica.replica_id for replica in both()}, "another is in its place"
    assert serving.existing(files) == set(), "and has tidied up"
    assert serving.post(client, SHORT)["finish_reason"] in {"length", "stop"}


@contextlib.contextmanager
def granted_to_a_stopped_engine(holder: str, other: str) -> Iterator[None]:
    """The fleet, off until now, may speculate again; `holder` has a lease that it cannot use, and `other` waits for one.

    `holder` is stopped when its wish has arrived, and set going at the end if it still lives. The policy still decides only when
    told, so that the lease is not given to `other` meanwhile, however long this takes: `configure` lets it go on.
    """
    configure(decision_period_s=ONLY_WHEN_TOLD_S)
    serving.set_mode("off", scope="replica", name=other)
    serving.set_mode("default")
    serving.until(lambda: wishing() == [holder], within_s=ONLY_WHEN_TOLD_S, what="one replica wishes")
    engine = serving.engine_core_of(serving.replica_pid(NAME, holder))
    engine.suspend()
    try:
        serving.until(lambda: status_of(holder).report_age_s > 0.5, within_s=10, what="silence of the stopped engine")
        serving.set_mode("default", scope="replica", name=other)  # decided on before the other can wish
        configure(decision_period_s=ONLY_WHEN_TOLD_S - 1)
        serving.until(
            lambda: Code.LEASE_HELD in codes(status_of(holder).causes), within_s=10, what="a lease for the stopped engine"
        )
        serving.until(lambda: other in wishing(), within_s=60, what="the other replica wishes")
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            engine.resume()


def configure(**changes: object) -> None:
    """Set the operator's settings of these tests, with changes."""
    serving.configure(SETTINGS | changes)


def steered() -> tuple[ReplicaStatus, ...]:
    """The replicas that report and run the policy's settings, by id."""
    return tuple(replica for replica in serving.replicas(NAME) if replica.settings_version is not None)


def both() -> tuple[ReplicaStatus, ...]:
    """Two of them; waits for one that is being replaced."""
    return serving.until(lambda: found if len(found := steered()) == 2 else (), within_s=180, what="two steered replicas")


def until_both_are(state: DrafterState) -> None:
    serving.until(
        lambda: [replica.drafter_state for replica in steered()] == [state] * 2, within_s=120, what=f"two {state} drafters"
    )


def status_of(replica_id: str) -> ReplicaStatus:
    """A replica as the policy last heard of it, however long ago."""
    (replica,) = (replica for replica in serving.fleet_status().replicas if replica.replica_id == replica_id)
    return replica


def wishing() -> list[str]:
    """Replicas whose engines say that they wait for a lease: their last report holds a wish."""
    return [replica.replica_id for replica in steered() if replica.drafter.reason == "waits for a lease to restart"]


def draft_tokens(replica: ReplicaStatus) -> int:
    return sum(total.draft_tokens for total in replica.totals)


def chat(prompt_words: int, max_tokens: int) -> dict[str, Any]:
    """A prompt that shares no beginning with any other, five tokens or so a word, and exactly `max_tokens` to generate."""
    number = next(_numbers)
    words = " ".join(f"{number}.{word}" for word in range(prompt_words))
    return {
        "model": "chat",
        "messages": [{"role": "user", "content": words}],
        "temperature": 0.0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def stream(client: httpx.Client, body: dict[str, Any], hang_up: threading.Event | None = None) -> ChatResult:
    """One streamed chat completion, until it ends or `hang_up` is set; `error` says what broke it."""
    parser, status, failure = StreamParser(time.monotonic()), 0, ""
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            status = response.status_code
            failure = "" if status == httpx.codes.OK else f"HTTP {status}"
            for line in response.iter_lines():
                parser.feed(line.encode(), time.monotonic())
                if hang_up is not None and hang_up.is_set():
                    failure = HUNG_UP
                    break
    except httpx.HTTPError as error:
        failure = f"{type(error).__name__}: {error}"
    return parser.result(time.monotonic(), status, failure)


@contextlib.contextmanager
def endless_requests(client: httpx.Client) -> Iterator[list[Future[ChatResult]]]:
    """Requests on both replicas whose client hangs up at the end of the block; then all have a result."""
    hang_up = threading.Event()
    with ThreadPoolExecutor(ROWS_ON) as pool:
        try:
            yield start_long(pool, client, LONG_PROMPT_WORDS, ENDLESS_TOKENS, hang_up)
        finally:
            hang_up.set()


def start_long(
    pool: ThreadPoolExecutor, client: httpx.Client, prompt_words: int, max_tokens: int, hang_up: threading.Event | None = None
) -> list[Future[ChatResult]]:
    """Requests one by one, so that Serve spreads them, until both replicas run enough."""
    started: list[Future[ChatResult]] = []
    while min(running()) < ROWS_A_REPLICA:
        assert len(started) < ROWS_ON, running()
        started.append(pool.submit(stream, client, chat(prompt_words, max_tokens), hang_up))
        until_running(len(started))
    return started


def running() -> list[int]:
    """Requests that each of the two replicas runs."""
    return [replica.load.num_running_reqs for replica in both()]


def until_running(requests: int) -> None:
    serving.until(lambda: sum(running()) == requests, within_s=60, what=f"{requests} requests run")


def assert_whole(requests: Iterable[Future[ChatResult]], max_tokens: int) -> None:
    """No request failed, and each got all of its tokens."""
    results = [request.result(timeout=180) for request in requests]
    assert [(result.error, result.completion_tokens) for result in results] == [("", max_tokens)] * len(results)


def journal(since_s: float, *restarted: str) -> list[JournalEntry]:
    """What the policies wrote since a second of the epoch, as soon as it tells that these replicas' drafters run again."""
    path = Path(serving.fleet_status().policy.journal_path)

    def read() -> list[JournalEntry]:
        entries = [entry for entry in read_journal(path) if entry.time_s >= since_s]
        return entries if all(restarted_by_lease(entries, replica_id) for replica_id in restarted) else []

    return serving.until(read, within_s=30, what=f"a journal that tells of leased restarts of {restarted}")


def course(entries: Iterable[JournalEntry], replica_id: str) -> list[str]:
    """What the journal says of one replica, in order: its drafter's states, the first wish in each, and every lease."""
    told: list[str] = []
    state, has_wished, wish_ids = "", False, set[int]()
    for entry in entries:
        for replica in entry.replicas:
            if replica.replica_id != replica_id:
                continue
            if replica.drafter_state != state:
                state, has_wished = replica.drafter_state.value, False
                told.append(state)
            if replica.restart_wish is not None and not has_wished:
                has_wished = True
                told.append("wish")
        if replica_id in entry.decided:
            granted = {lease.wish_id for lease in entry.decided[replica_id].settings.restarts.leases}
            told += ["lease"] * len(granted - wish_ids)
            wish_ids |= granted
    return told


def restarted_by_lease(entries: Iterable[JournalEntry], replica_id: str) -> bool:
    """Whether a replica's drafter runs at last, and by a lease. A probe may pass between two decisions, unseen."""
    told = [event for event in course(entries, replica_id) if event != "probing"]
    return told[-3:] == ["lease", "catching_up", "active"]


@dataclass(frozen=True, slots=True)
class InFlight:
    """A lease as the journal tells it: `until_s` is when the policy that granted it took it off, or the end of its time to live."""

    replica_id: str
    incarnation: int
    from_s: float
    time_to_live_s: float
    until_s: float


def leases(entries: Iterable[JournalEntry]) -> list[InFlight]:
    """Every lease that was granted, in order."""
    found: dict[tuple[str, int], InFlight] = {}
    for entry in entries:
        for replica_id, issued in entry.decided.items():
            held = {(replica_id, lease.wish_id): lease for lease in issued.settings.restarts.leases}
            for key, known in found.items():
                if known.replica_id == replica_id and known.incarnation == entry.incarnation and key not in held:
                    found[key] = replace(known, until_s=min(known.until_s, entry.time_s))
            for key, lease in held.items():
                until_s = entry.time_s + lease.time_to_live_s
                found.setdefault(key, InFlight(replica_id, entry.incarnation, entry.time_s, lease.time_to_live_s, until_s))
    return list(found.values())


def assert_never_two_at_once(entries: Sequence[JournalEntry]) -> None:
    """Neither leases in flight nor drafters that catch up, but for one whose lease ran its whole time: the step under way runs on.

    How long that step takes is the machine's matter, and a lease that was taken off early was used up: its replica has caught up.
    """
    granted = leases(entries)
    for earlier, later in itertools.pairwise(granted):
        assert later.from_s >= earlier.until_s
    for entry in entries:
        catching_up = [replica.replica_id for replica in entry.replicas if replica.drafter_state is DrafterState.CATCHING_UP]
        within_a_lease = [name for name in catching_up if not outlived_its_lease(granted, name, entry.time_s)]
        assert len(within_a_lease) <= 1, (entry.time_s, catching_up, granted)


def outlived_its_lease(granted: Iterable[InFlight], replica_id: str, at_s: float) -> bool:
    """Whether the last lease that a replica had by then ended because its time was over, not because it was used up."""
    had = [lease for lease in granted if lease.replica_id == replica_id and lease.from_s <= at_s]
    return bool(had) and had[-1].until_s == had[-1].from_s + had[-1].time_to_live_s <= at_s
