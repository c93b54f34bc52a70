"""A policy whose answers a test changes while the page looks, and the real API in front of it, served as Ray Serve does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final, cast
from unittest.mock import patch

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from nightjar.cluster.api import policy_api
from nightjar.cluster.api.http_client import ROUTE_PREFIX
from nightjar.cluster.api.operations import STATUS, Answer, Operation, OperationError, P
from nightjar.cluster.api.policy_api import create_policy_api
from nightjar.policy.wire.report import DrafterCounters, DrafterState, SteeringLevel, StepTotals
from nightjar.policy.wire.status import (
    CanaryStatus,
    CellStatus,
    FleetStatus,
    FreezeStatus,
    GainedStatus,
    GoodputModelStatus,
    OpenLeaseStatus,
    ReplicaStatus,
    RestartsStatus,
    WaitingWishStatus,
)
from tests.cluster.fleets import some_fleet

STEPS_PER_ANSWER: Final = {0: 10, 5: 30}
"""What the first replica's engine does between two answers, by K."""
DECODE_ROWS: Final = 3


class ChangingPolicy:
    """Answers with `fleet`, its first replica's counters grown since the last answer, unless it is not `reachable`.

    The page asks for its status and for nothing else.
    """

    def __init__(self, fleet: FleetStatus) -> None:
        self.fleet = fleet
        self.reachable = True
        self.answers = 0

    async def call(self, operation: Operation[P, Answer], *arguments: P.args, **_: P.kwargs) -> Answer:
        assert operation.name == STATUS.name
        if not self.reachable:
            raise OperationError(HTTPStatus.SERVICE_UNAVAILABLE, "status: no answer within 10 s")
        self.answers += 1
        return cast("Answer", self._status())

    def _status(self) -> FleetStatus:
        if not self.fleet.replicas:
            return self.fleet
        totals = tuple(
            StepTotals(num_speculative_tokens=length, steps=steps * self.answers, decode_rows=DECODE_ROWS * steps * self.answers)
            for length, steps in STEPS_PER_ANSWER.items()
        )
        first, *others = self.fleet.replicas
        return self.fleet.model_copy(update={"replicas": (first.model_copy(update={"totals": totals}), *others)})


@contextlib.contextmanager
def served(policy: ChangingPolicy) -> Iterator[str]:
    """The address of the real API below Serve's route prefix, on a free port."""
    api = create_policy_api(policy, lambda: None)
    with patch.multiple(policy_api, KEPT_S=0.0, STALE_S=0.0), socket.socket() as listening:  # a page that asks often is told anew
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(behind_prefix(api), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{ROUTE_PREFIX}"
        finally:
            server.should_exit = True
            thread.join()


def behind_prefix(api: ASGIApp) -> ASGIApp:
    """As Serve's proxy hands requests on: the whole path, and the prefix as `root_path`."""

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        await api({**scope, "root_path": ROUTE_PREFIX}, receive, send)

    return proxied


def learned_fleet() -> FleetStatus:
    """some_fleet with what the page can show: an outlook, a lease, a wish, refused settings, a replica served plainly."""
    fleet = some_fleet()
    (group,) = fleet.groups
    first, second = fleet.replicas
    node_id = "4c39ac0f72ae1c4461d3e80274ac2384ad2c6599f5636b3db5188582"
    first = first.model_copy(update={"node_id": node_id, "warning": "the guard holds batch 9 off"})
    starts, ends, lengths = (1, 2, 3, 4, 6, 8, 12, 16), (1, 2, 3, 5, 7, 11, 15, 16), (0, 1, 2, 3, 4, 5)
    goodput = tuple(
        tuple(round(40.0 * batch**0.8 * (1 + (0.28 - 0.032 * batch) * length**0.7), 2) for length in lengths) for batch in starts
    )
    goodput_model = GoodputModelStatus(
        age_s=1.2,
        first_batch_sizes=starts,
        last_batch_sizes=ends,
        num_speculative_tokens=lengths,
        goodput_tokens_per_s=goodput,
        goodput_deviation=tuple(tuple(0.01 + 0.005 * length for length in lengths) for _ in starts),
        gain_deviation=tuple(tuple(0.012 * length for length in lengths) for _ in starts),
    )
    cells = tuple(
        CellStatus(
            first_batch_size=first_size,
            last_batch_size=last_size,
            num_speculative_tokens=length,
            goodput_tokens_per_s=goodput[bucket][length],
            clean_steps=12.0 + 40.0 * bucket,
        )
        for bucket, (first_size, last_size) in enumerate(zip(starts, ends, strict=True))
        for length in lengths
        if (bucket + length) % 3
    )
    asleep = asleep_replica(second, "ghi", lag_tokens=840, reason="waits for a lease")
    reloading = asleep_replica(second, "jkl", lag_tokens=2310, reason="holds a lease to restart")
    plain = second.model_copy(
        update={
            "replica_id": "smollm2#LLM#mno",
            "report_age_s": 0.2,
            "steering": SteeringLevel.PLAINLY,
            "steering_reason": "suffix decoding asserts K",
        }
    )
    restarts = RestartsStatus(
        open_leases=(OpenLeaseStatus(replica_id=reloading.replica_id, reload=True, seconds_left=21.5),),
        waiting=(WaitingWishStatus(replica_id=asleep.replica_id, waiting_s=4.0, lag_tokens=840),),
    )
    update = {
        "replicas": 5,
        "goodput_model": goodput_model,
        "cells": cells,
        "restarts": restarts,
        "gained": (
            GainedStatus(
                num_speculative_tokens=5, over_s=3900.0, busy_s=900.0, compared_s=700.0, share=0.124, low=0.07, high=0.171
            ),
            GainedStatus(num_speculative_tokens=0, over_s=3900.0, busy_s=900.0),
        ),
        "predicted_tokens_per_s": 131.0,
        "predicted_off_tokens_per_s": 104.0,
        "reason": "batch 1: K=5 gives 55.2 tok/s predicted against 40.0 off (52 clean steps); restarts: 1 of 2 granted",
    }
    return fleet.model_copy(
        update={
            "policy": fleet.policy.model_copy(
                update={
                    "settings_error": "modee: no such setting",
                    "decision_age_s": 0.3,
                    "memory_kills": 2,
                    "last_memory_kill": "smollm2/abd at 12:00:00 UTC on node 10.0.0.5, with 22.9GB used / 23.5GB limit",
                    "canary": CanaryStatus(
                        phase="better",
                        what="mode pin=3",
                        whom="25 % of the replicas",
                        words="canary mode pin=3 on 25 % of the replicas: better",
                        since_s=1_700_000_000.0,
                        phase_since_s=1_700_000_060.0,
                    ),
                    "freeze": FreezeStatus(since_s=1_700_000_000.0, reason="release"),
                }
            ),
            "groups": (group.model_copy(update=update),),
            "replicas": (first, second, asleep, reloading, plain),
        }
    )


def asleep_replica(like: ReplicaStatus, name: str, *, lag_tokens: int, reason: str) -> ReplicaStatus:
    """A replica whose drafter sleeps."""
    load = like.load.model_copy(update={"decode_batch_size": 9, "num_running_reqs": 9, "num_speculative_tokens": 0})
    return like.model_copy(
        update={
            "replica_id": f"smollm2#LLM#{name}",
            "report_age_s": 0.3,
            "settings_confirmed": True,
            "load": load,
            "drafter_state": DrafterState.DORMANT,
            "drafter": DrafterCounters(lag_tokens=lag_tokens, recomputed_tokens=700, micro_restarts=3, reason=reason),
            "restarts": 4,
            "catch_up_seconds": 1.25,
            "reason": f"batch 8-11: off gives 210.4 tok/s predicted against 188.0 with K=1 (132 clean steps); {reason}",
        }
    )
