"""What is looked at while a scenario runs, and the result that comes of it."""

from __future__ import annotations

import math
from array import array

from nightjar.loadtests.load.goodput import Goodput, Timed
from nightjar.loadtests.simulation.engine.leases import LeasedRestart, begun_above, most_at_once
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest
from nightjar.loadtests.simulation.service.control_plane import ControlPlane
from nightjar.loadtests.simulation.service.fleet import Fleet, totals_of
from nightjar.loadtests.simulation.service.results import Quantiles, ReplicaResult, RunResult, Second, Totals
from nightjar.loadtests.simulation.service.scenario import Scenario
from nightjar.loadtests.simulation.service.workload import Demand
from nightjar.policy.restarts.budget import max_leases
from nightjar.policy.state import learned
from nightjar.policy.step.steering import ks_by_batch
from nightjar.policy.wire.batch_buckets import bucket_range, buckets_up_to
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import Plan, Table

RESTARTING = frozenset({DrafterState.CATCHING_UP, DrafterState.PROBING, DrafterState.CONTRACTING, DrafterState.RELOADING})


class Measures:
    """Of one run. Nothing is counted before `begin`."""

    def __init__(self, scenario: Scenario, fleet: Fleet) -> None:
        self._scenario = scenario
        self._fleet = fleet
        self._ttft_s: list[float] = []
        self._tpot_s: list[float] = []
        self._e2e_s: list[float] = []
        self._last_answer_s = 0.0
        self._asked = 0
        self._in_system = 0
        self._request_seconds = 0.0
        self._looked_s = 0.0
        self._in_flight: dict[int, SimulatedRequest] = {}
        self._kept = self._decided = 0
        self._kept_tokens = 0
        self._asked_tokens = 0.0
        self._seconds: list[Second] = []
        self._last: dict[str, Totals] = {}

    def begin(self) -> None:
        """Warm-up is over."""
        for replica in self._fleet:
            replica.before = totals_of(replica.engine)
            replica.outputs_before = len(replica.engine.totals.output_seconds)

    def note_asked(self, demand: Demand, request: SimulatedRequest) -> None:
        """A request was sent."""
        if demand.due_s < self._scenario.warm_up_s:
            return
        if self._scenario.goodput is not None:
            self._in_flight[request.number] = request
        self._asked += 1
        self._move(demand.due_s, 1)
        self._asked_tokens += math.inf if demand.user is not None else demand.output_tokens

    def note_answered(self, request: SimulatedRequest) -> None:
        """A request was answered in full."""
        assert request.first_token_s is not None
        assert request.finish_s is not None
        if request.arrival_s < self._scenario.warm_up_s:
            return
        if (target := self._scenario.goodput) is not None:
            del self._in_flight[request.number]
            self._decided += 1
            if target.is_kept_by(timed(request, request.finish_s)):
                self._kept += 1
                self._kept_tokens += request.output_tokens
        self._ttft_s.append(request.first_token_s - request.arrival_s)
        self._e2e_s.append(request.finish_s - request.arrival_s)
        self._move(request.finish_s, -1)
        self._last_answer_s = max(self._last_answer_s, request.finish_s)
        if request.output_tokens > 1:
            self._tpot_s.append((request.finish_s - request.first_token_s) / (request.output_tokens - 1))

    def _move(self, at_s: float, requests: int) -> None:
        """So many requests more in the system. An engine may tell of an answer before another's arrival that is earlier: the area
        is right all the same, for what one stretch counts too much the next, which goes back, takes off."""
        self._request_seconds += self._in_system * (at_s - self._looked_s)
        self._in_system += requests
        self._looked_s = at_s

    def note_second(self, now_s: float) -> None:
        """One more row of the series."""
        new = Totals()
        for replica in self._fleet:
            measured = replica.measured
            new += measured - self._last.get(replica.replica_id, Totals())
            self._last[replica.replica_id] = measured
        engines = [replica.engine for replica in self._fleet if not replica.has_left]
        self._seconds.append(
            Second(
                at_s=now_s,
                totals=new,
                decode_rows=sum(engine.decode_batch_size for engine in engines),
                waiting=sum(engine.num_waiting for engine in engines),
                restarting=sum(engine.drafter_state in RESTARTING for engine in engines),
                serving=self._fleet.serving,
            )
        )

    def result(self, control: ControlPlane | None) -> RunResult:
        """The run's result, at its end."""
        scenario = self._scenario
        replicas = tuple(
            ReplicaResult(
                replica.replica_id,
                replica.joined_s,
                replica.measured,
                *self._plans(replica.replica_id, control),
            )
            for replica in self._fleet
        )
        total = Totals()
        for replica in replicas:
            total += replica.totals
        restarts = [restart for replica in self._fleet for restart in replica.engine.leased_restarts]
        refused = 0
        if control is not None:
            refused = control.refusals + (control.actor.refusals if control.actor is not None else 0)
        return RunResult(
            planner=scenario.planner.name,
            seed=scenario.seed,
            measured_s=scenario.duration_s - scenario.warm_up_s,
            totals=total,
            replicas=replicas,
            answered=len(self._e2e_s),
            unfinished=self._asked - len(self._e2e_s),
            last_answer_s=self._last_answer_s,
            asked_tokens=self._asked_tokens,
            ttft_s=Quantiles.of(self._ttft_s),
            tpot_s=Quantiles.of(self._tpot_s),
            itl_s=self._itl_s(),
            e2e_s=Quantiles.of(self._e2e_s),
            max_leases_in_flight=most_at_once(restarts),
            budget_violations=begun_above(restarts, self._max_leases) + self._reloads_above(),
            refused_reports=refused,
            guard_trips=sum(replica.engine.guard_trips for replica in self._fleet),
            incarnation=control.store.incarnation if control is not None else 0,
            steps_with_warm_up=sum(replica.engine.totals.steps for replica in self._fleet),
            request_seconds=self._request_seconds + self._in_system * (scenario.duration_s - self._looked_s),
            under_target=self._under_target(),
            seconds=tuple(self._seconds),
            learned=learned(control.actor.controller.state) if control is not None and control.actor is not None else None,
            canary=control.canary if control is not None else None,
        )

    def _under_target(self) -> Goodput | None:
        """Of the answered requests, and of those in flight at the end that can no longer keep the target."""
        target, scenario = self._scenario.goodput, self._scenario
        if target is None:
            return None
        lost = sum(not target.is_kept_by(timed(request, scenario.duration_s)) for request in self._in_flight.values())
        tokens_per_s = self._kept_tokens / (scenario.duration_s - scenario.warm_up_s)
        return Goodput(target=target, requests=self._decided + lost, kept=self._kept, tokens_per_s=tokens_per_s)

    def _itl_s(self) -> Quantiles:
        """From output to output, each decode row of each step counted once."""
        seconds, rows = array("d"), array("l")
        for replica in self._fleet:
            seconds += replica.engine.totals.output_seconds[replica.outputs_before :]
            rows += replica.engine.totals.output_rows[replica.outputs_before :]
        return Quantiles.weighted(seconds, rows)

    def _max_leases(self, at_s: float) -> int:
        """Restarts by lease that the operator allows among the replicas that are there at a time."""
        operator = self._scenario.planner.operator
        present = sum(replica.joined_s <= at_s < replica.left_s for replica in self._fleet)
        return present if operator is None else max_leases(operator, present)

    def _reloads_above(self) -> int:
        """Reloads that began while as many as the operator allows, or more, ran on their node."""
        operator = self._scenario.planner.operator
        by_node: dict[str, list[LeasedRestart]] = {}
        for replica in self._fleet:
            reloads = (restart for restart in replica.engine.leased_restarts if restart.is_reload)
            by_node.setdefault(replica.node_id, []).extend(reloads)
        if operator is None:
            return 0
        return sum(begun_above(reloads, lambda _: operator.max_reloads_per_node) for reloads in by_node.values())

    def _plans(self, replica_id: str, control: ControlPlane | None) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """What a replica runs, and what it would run had the policy not heard its liar."""
        if control is None:
            return None, None
        issued, reference = control.agents[replica_id].reporting.issued, control.reference
        runs = self._ks(issued.settings.plan) if issued is not None else None
        if reference is None:
            return runs, None
        decided = reference.controller.decisions.get(replica_id)
        return runs, self._ks(decided.plan if decided is not None else None)

    def _ks(self, plan: Plan | None) -> tuple[int, ...] | None:
        """K by batch bucket of a table, measurements left out."""
        if not isinstance(plan, Table):
            return None
        most = self._scenario.profile.limits.max_num_seqs
        ks = ks_by_batch(plan, most)
        return tuple(ks[bucket_range(bucket, most)[0]] for bucket in buckets_up_to(most))


def timed(request: SimulatedRequest, end_s: float) -> Timed:
    """A request as a target looks at it, were its last token to come at `end_s`."""
    first_s = end_s if request.first_token_s is None else request.first_token_s
    tokens = request.output_tokens
    tpot_s = (end_s - first_s) / (tokens - 1) if tokens > 1 else None
    return Timed(first_s - request.arrival_s, tpot_s, end_s - request.arrival_s, tokens)
