"""What an operator asks for through `canary`, checked before it touches anything: begin one, end it, or promote what it tried.

Fails closed: a wrong field, a setting that two replicas of a group cannot have differently, a canary beside another, or one without
a control raises `OperationError` with the field, the value and what is allowed; what runs goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nightjar.cluster.api.operations import Body, CanaryRequest, checked, refused
from nightjar.policy.controller import Controller
from nightjar.policy.decision.canary import with_canary
from nightjar.policy.issuer import Slot
from nightjar.policy.operator.canary.order import CANARY_SETTINGS, MAX_SHARE, CanaryOrder, arms_of
from nightjar.policy.operator.canary.trial import begin
from nightjar.policy.operator.overrides import BESIDE_ADAPTIVE, ModeOverride, check_aims, check_pin, effective_mode, fleet_override
from nightjar.policy.state import FleetState
from nightjar.policy.wire.operator import OperatorSettings, SettingsError, parse_operator_settings


def parse_canary_request(values: Mapping[str, object]) -> CanaryRequest:
    """The request that `values` spell. Raises OperationError."""
    request = checked(CanaryRequest, values)
    tried = {"mode", "max_step_ms", "objective", "settings"} & request.model_fields_set
    if request.do != "begin":
        beside = request.model_fields_set - {"do", "reason"}
        if beside:
            raise refused(f"{min(beside)}: beside do {request.do}, which takes a reason alone")
        return request
    if not tried:
        raise refused("mode: missing; a canary tries a mode, max_step_ms, objective or settings")
    if request.share is None and not request.application:
        raise refused(f"share: missing; allowed are above 0 to {MAX_SHARE}, or a whole application against the others")
    for name in request.settings:
        if name not in CANARY_SETTINGS:
            known = "is the same for all replicas of a group" if name in OperatorSettings.model_fields else "is no setting"
            raise refused(f"settings: {name} {known}; replicas can differ in {', '.join(CANARY_SETTINGS)}")
    return request


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request leads to: the fleet after it, and the override that promotes what was tried, as `set_mode` takes it."""

    fleet: FleetState
    override: Body | None = None


def answered(values: Mapping[str, object], controller: Controller, now_s: float) -> Asked:
    """What the request that `values` spell leads to. Raises OperationError."""
    request, fleet, settings = parse_canary_request(values), controller.state, controller.settings
    if request.do == "end":
        return Asked(ended(fleet, "ended", now_s))
    if request.do == "promote":
        override = promotion(fleet, settings, controller.overrides, now_s)
        return Asked(ended(fleet, "promoted", now_s), override)
    if fleet.freeze is not None and fleet.freeze.is_live(now_s):
        raise refused(f"no canary begins while the fleet is {fleet.freeze.status(now_s).in_words()}")
    return Asked(begun(request, fleet, settings, controller.issuer.slots, now_s))


def begun(
    request: CanaryRequest, fleet: FleetState, settings: OperatorSettings, slots: Mapping[str, Slot], now_s: float
) -> FleetState:
    """The fleet in which the canary begins. Raises OperationError."""
    if fleet.canary is not None and fleet.canary.is_running:
        raise refused(f"a canary runs already ({fleet.canary.in_words()}); end it first")
    try:
        if request.mode is not None:
            check_aims(request.mode, request.max_step_ms, request.objective)
            concerned = [slot for slot in slots.values() if request.application in {"", slot.application}]
            check_pin(request.mode, (slot.max_num_speculative_tokens for slot in concerned))
        parse_operator_settings({**settings.model_dump(mode="json", exclude_none=True), **request.settings})
    except (SettingsError, ValueError) as error:
        raise refused(str(error)) from error
    expires_at_s = None if request.for_s is None else now_s + request.for_s
    order = CanaryOrder.model_validate(dict(request) | {"since_s": now_s, "expires_at_s": expires_at_s, "over": settings.mode})
    controls = _controls(order, fleet)
    if not controls:
        field, value = ("share", order.share) if order.share is not None else ("application", order.application)
        raise refused(
            f"{field}: {value!r}, and no group has both a canary and a control: {order.whom()} must be one at least and leave one"
        )
    return replace(fleet, canary=replace(begin(order, now_s), controls=controls))


def ended(fleet: FleetState, how: Literal["ended", "promoted"], now_s: float) -> FleetState:
    """The fleet in which the canary that runs has ended; the same one without any."""
    if fleet.canary is None or not fleet.canary.is_running:
        return fleet
    return with_canary(fleet, fleet.canary.ended(how, now_s))


def promotion(fleet: FleetState, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float) -> Body:
    """The override that gives what is tried to all it is meant for: the application, where a share of it tries, else the fleet.

    What was not tried stays as it is by hand: the mode, and the fleet's planner and objective. Raises OperationError.
    """
    trial = fleet.canary
    if trial is None or not trial.is_applied:
        raise refused("there is no canary to promote: none is past its baseline; `nightjar status` shows how it stands")
    order = trial.order
    if order.settings:
        names = ", ".join(order.settings)
        raise refused(f"{names} is a setting, and is promoted by hand: put it into the policy's user_config, then end the canary")
    is_share_of_one = order.share is not None and bool(order.application)
    application = order.application if is_share_of_one else ""
    if order.mode is None and (waiting := _waits_for_a_mode(fleet, application, settings, overrides, now_s)):
        raise refused(
            f"mode: a promotion sets it by hand, and {waiting} waits in shadow for that beside vLLM's adaptive verification; set "
            f"its own mode first: nightjar mode shadow --application {waiting}, or auto"
        )
    mode = order.mode or effective_mode("", application, settings.mode, overrides, now_s)[0]
    request: Body = {"mode": str(mode), "reason": "canary promoted"}
    by_hand = fleet_override(overrides, now_s)
    if is_share_of_one:
        request["scope"], request["name"] = "application", application
    elif by_hand is not None and mode.kind in {"auto", "shadow"}:
        kept = {"planner": by_hand.planner, "objective": by_hand.objective}
        request |= {name: value for name, value in kept.items() if value is not None}
    if order.max_step_ms is not None:
        request["max_step_ms"] = order.max_step_ms
    if order.objective is not None:
        request["objective"] = order.objective
    return request


def _waits_for_a_mode(
    fleet: FleetState, application: str, settings: OperatorSettings, overrides: Sequence[ModeOverride], now_s: float
) -> str:
    """The first application of those concerned (all without a name) that is in shadow because nobody set a mode; else empty."""
    replicas = ((replica_id, replica.report) for replica_id, replica in sorted(fleet.replicas.items()))
    for replica_id, report in replicas:
        adaptive = report.group.adaptive_verification
        _, who = effective_mode(replica_id, report.application, settings.mode, overrides, now_s, adaptive_verification=adaptive)
        if application in {"", report.application} and who == BESIDE_ADAPTIVE:
            return report.application
    return ""


def _controls(order: CanaryOrder, fleet: FleetState) -> int:
    """How many replicas the canary would be held against, before the next decision leaves out those that something is set for."""
    groups: dict[str, dict[str, str]] = {}
    for replica_id, replica in fleet.replicas.items():
        groups.setdefault(replica.group_id, {})[replica_id] = replica.report.application
    return sum(len(arms_of(order, applications).control) for applications in groups.values())
