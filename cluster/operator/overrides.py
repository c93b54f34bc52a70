"""What an operator asks for through `set_mode`, checked before it touches anything.

Fails closed: a wrong field, a replica or application that nobody knows, or a pinned K that no engine concerned can run
raises `OperationError` with the field, the value and what is allowed; the overrides in force stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from pydantic import ValidationError

from nightjar.cluster.api.operations import ModeRequest, checked, refused
from nightjar.policy.issuer import Slot
from nightjar.policy.operator.overrides import (
    ModeOverride,
    check_aims,
    check_pin,
    check_planner,
    fleet_override,
    set_override,
)
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.record import MAX_NAMED
from nightjar.policy.wire.status import OverrideStatus, shown_name


def parse_mode_request(
    values: Mapping[str, object], slots: Mapping[str, Slot], settings: OperatorSettings, overrides: Sequence[ModeOverride] = ()
) -> ModeRequest:
    """The request that `values` spell, checked against the replicas that report now, the settings and the `overrides` in force.
    Raises OperationError."""
    if not isinstance(values, Mapping) or "mode" not in values:
        raise refused(f"mode: missing in {str(values)[:80]!r}; allowed are auto, shadow, off, pin=K and default")
    try:
        mode = None if values["mode"] == "default" else Mode.parse(str(values["mode"]))
    except ValidationError as error:
        message = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
        raise refused(f"{message}; default takes an override back") from error
    request = checked(ModeRequest, {**values, "mode": mode})
    try:
        check_aims(request.mode, request.max_step_ms, request.objective)
        check_planner(request.scope, request.mode, request.planner)
        _check_planner_can_run(request, settings)
        if request.mode is None and request.for_s is not None:
            raise ValueError(f"for_s: {request.for_s:g} with mode default, which takes an override back for good; leave it out")
    except ValueError as error:
        raise refused(str(error)) from error
    if (request.scope == "fleet") != (request.name == ""):
        raise refused(f"name: {request.name!r} with scope {request.scope}; scope fleet takes no name, the others need one")
    if request.scope == "replica":
        request = request.model_copy(update={"name": _replica_id(request.name, slots, overrides)})
    if request.mode is not None:
        _check_against_replicas(request, request.mode, slots)
    return request


def apply_request(
    overrides: tuple[ModeOverride, ...], request: ModeRequest, now_s: float
) -> tuple[tuple[ModeOverride, ...], ModeOverride | None]:
    """The overrides after the request, and the one it set. Raises OperationError where there would be more than MAX_NAMED."""
    if request.mode is None:
        return tuple(held for held in overrides if (held.scope, held.name) != (request.scope, request.name)), None
    before = fleet_override(overrides, now_s) if request.scope == "fleet" else None
    times = {
        "anew_at_s": now_s if request.learned == "reset" else before.anew_at_s if before is not None else None,
        "expires_at_s": None if request.for_s is None else now_s + request.for_s,
    }
    override = ModeOverride.model_validate(dict(request) | times)
    changed = set_override(overrides, override)
    if len(changed) > MAX_NAMED:
        raise refused(f"name: {request.name!r} would be override {len(changed)}, at most {MAX_NAMED} hold at once")
    return changed, override


def request_in_words(request: ModeRequest) -> str:
    """`fleet auto, planner nightjar for 1800 s (trial)`, for the journal."""
    lasting = f" for {request.for_s:g} s" if request.for_s else ""
    words = f" ({request.reason})" if request.reason else ""
    learned = ", what was learned is reset" if request.learned == "reset" else ""
    whom = f"{request.scope} {request.name}".rstrip()
    return f"{whom} {request.mode or 'default'}{_aims(request)}{lasting}{learned}{words}"


def in_words(override: ModeOverride) -> str:
    """`fleet auto, planner nightjar`, `replica r1 pin=3`, `application chat auto, max_step_ms 40`."""
    whom = f"{override.scope} {override.name}".rstrip()
    return f"{whom} {override.mode}{_aims(override)}"


def override_status(override: ModeOverride, now_s: float) -> OverrideStatus:
    """How `status` shows an override."""
    seconds_left = None if override.expires_at_s is None else max(override.expires_at_s - now_s, 0.0)
    return OverrideStatus.model_validate(dict(override) | {"seconds_left": seconds_left})


def _aims(said: ModeRequest | ModeOverride) -> str:
    planner = "" if said.planner is None else f", planner {said.planner}"
    limit = "" if said.max_step_ms is None else f", max_step_ms {said.max_step_ms:g}"
    objective = "" if said.objective is None else f", objective {said.objective}"
    return planner + limit + objective


def _check_planner_can_run(request: ModeRequest, settings: OperatorSettings) -> None:
    """Raises ValueError, in words."""
    if request.planner == "schedule" and not settings.num_speculative_tokens_per_batch_size:
        raise ValueError("planner: schedule needs num_speculative_tokens_per_batch_size in the settings, which hold none")
    if request.learned == "reset" and (request.scope != "fleet" or request.mode is None):
        whom = f"{request.scope} {request.name}".rstrip()
        raise ValueError(
            f"learned: reset with {whom} {request.mode or 'default'}; replicas learn together, allowed is a mode of the whole fleet"
        )


def _replica_id(name: str, slots: Mapping[str, Slot], overrides: Sequence[ModeOverride]) -> str:
    """The id of the one replica that `status` shows by this name, also of one that is gone and left an override; else the name.

    An id of Ray Serve's begins with its application.
    """
    applications = {held.name: held.name.partition("#")[0] for held in overrides if held.scope == "replica"}
    applications |= {replica_id: slot.application for replica_id, slot in slots.items()}
    shown = [replica_id for replica_id, application in applications.items() if shown_name(application, replica_id) == name]
    return shown[0] if len(shown) == 1 and name not in applications else name


def _check_against_replicas(request: ModeRequest, mode: Mode, slots: Mapping[str, Slot]) -> None:
    concerned = {
        replica_id: slot
        for replica_id, slot in slots.items()
        if request.scope == "fleet" or request.name == (replica_id if request.scope == "replica" else slot.application)
    }
    if request.scope != "fleet" and not concerned:
        known = sorted(slots if request.scope == "replica" else {slot.application for slot in slots.values()})
        near = get_close_matches(request.name, known, n=3, cutoff=0.3) or known[:3]
        raise refused(f"name: no {request.scope} {request.name!r} reports now; known are {', '.join(near) or 'none'}")
    try:
        check_pin(mode, (slot.max_num_speculative_tokens for slot in concerned.values()))
    except ValueError as error:
        raise refused(str(error)) from error
