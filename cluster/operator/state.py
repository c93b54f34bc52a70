"""What the operator asks of the fleet: settings, overrides, a freeze, a canary; and whose word counts when a store is late, or a
predecessor is heard.

Every change is made in the controller, which holds what is in force, and kept for the next policy by the checkpoint. Fails closed:
a wrong set of settings or a wrong mode changes nothing; of what the store gives late, and of what a predecessor hands over, only
what no operator has set anew here is taken up.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from nightjar.cluster.api.operations import CanaryAnswer, ConfigureAnswer, FreezeAnswer, FreezeRequest, ModeAnswer, checked, refused
from nightjar.cluster.operator.canary import answered
from nightjar.cluster.operator.overrides import apply_request, in_words, override_status, parse_mode_request, request_in_words
from nightjar.cluster.storage.checkpoint import Canaries, Checkpoint, Remembered
from nightjar.cluster.storage.handover import FREEZE, MAX_HELD_PLANS, Beginning, ByHand, not_known
from nightjar.cluster.storage.learned_file import About
from nightjar.policy.controller import Controller
from nightjar.policy.operator.canary.trial import Trial, told
from nightjar.policy.operator.freeze import Freeze, HeldPlan
from nightjar.policy.operator.overrides import ModeOverride, live_overrides
from nightjar.policy.state import FleetState
from nightjar.policy.wire.operator import OperatorSettings, SettingsError, parse_operator_settings
from nightjar.policy.wire.record import MAX_NAMED, MAX_REASON_LENGTH, to_plain
from nightjar.policy.wire.status import NO_NEW

log = structlog.get_logger(__name__)


class OperatorState:
    """One fleet's. Methods that change it return the answer to the operator, and the change in words, empty without one.

    They raise OperationError for what is not allowed, which changes nothing. `service` is its cluster's (handover.service_of).
    """

    def __init__(self, checkpoint: Checkpoint, controller: Controller, service: str = "") -> None:
        self._checkpoint = checkpoint
        self._controller = controller
        self._service = service
        self._settings_error = ""
        self._has_said_settings = False
        self._beginning: Beginning | None = None
        self._said: set[tuple[str, str]] = set()  # by hand, while what was said before may still be found or heard

    @property
    def settings_error(self) -> str:
        """Why the set that was asked for last is not in force; empty where it is."""
        return self._settings_error

    def heeds(self, now_s: float) -> bool:
        """Whether a predecessor's word still counts. While the store cannot be read it may: how the fleet began is known later."""
        return not self._checkpoint.has_read or (self._beginning is not None and self._beginning.heeds(now_s))

    def not_known_before(self, now_s: float, *, asks_policy: bool, is_first_reading: bool) -> str:
        """Why nothing is known of what was set by hand before; empty where something is, where there was nothing before, and while
        the first answer may still come.
        """
        if not self._checkpoint.has_read:
            return "the store cannot be read"
        return "" if is_first_reading else not_known(self._beginning, self._service, now_s, asks_policy=asks_policy)

    def by_hand(self, now_s: float) -> ByHand:
        """What is set by hand, for the cluster that takes this one's place; of a freeze the plans of groups that have replicas."""
        fleet = self._controller.state
        freeze, canary = fleet.freeze, fleet.canary
        if freeze is not None:
            group_ids = {replica.group_id for replica in fleet.replicas.values()}
            held = [(group_id, plan) for group_id, plan in freeze.plans.items() if group_id in group_ids]
            freeze = freeze.model_copy(update={"plans": dict(held[:MAX_HELD_PLANS])})
        running = canary.in_words() if canary is not None and canary.is_running else ""
        overrides = live_overrides(self._controller.overrides, now_s)
        return ByHand(service=self._service, overrides=overrides, freeze=freeze, canary=running[:MAX_REASON_LENGTH])

    def take_up(self, remembered: Remembered, now_s: float) -> None:
        """Go on from what the store gave, except where the operator has said something since."""
        if not self._has_said_settings:
            self._controller.settings = remembered.operator_settings
        if FREEZE not in self._said:
            self._controller.freeze = remembered.freeze
        stored = [override for override in remembered.overrides if (override.scope, override.name) not in self._said]
        self._controller.overrides = (*stored, *self._controller.overrides)
        if remembered.beginning is not None:
            beginning = self._beginning = remembered.beginning
            for what in sorted(self._said):
                beginning = beginning.with_said(what)
            self._said.update(beginning.said)
            self._keep_beginning(beginning)
        elif not remembered.fleet_id and self._checkpoint.has_read:
            self._keep_beginning(Beginning(at_s=now_s, said=tuple(sorted(self._said)[:MAX_NAMED])))
        held = [*map(_with_reason, live_overrides(stored, now_s))]
        if held:
            log.warning("set_by_hand_before", holds=held, consequence="it wins over the settings until `nightjar mode default`")

    def hear(self, place: str, about: About, now_s: float) -> list[str]:
        """Hold what is set by hand at the predecessor, which wrote `about`, in place of what it said before.

        Answers what is new of it, in words. What the operator has said here stays, and so does what was heard where another fleet
        answers than did at first.
        """
        before, found = self._beginning, about.by_hand
        if before is None or not before.heeds(now_s) or before.is_another(about.fleet_id):
            return []
        self._keep_beginning(before.having_heard(found, self._service, about.fleet_id))
        if found is None or self._beginning is None or self._beginning.heard != "predecessor":
            return []
        handed = found.for_successor(place, now_s)
        carried = tuple(held for held in handed.overrides if (held.scope, held.name) not in self._said)
        overrides = (*(held for held in self._controller.overrides if not held.carried_from), *carried)
        freeze = self._controller.freeze if FREEZE in self._said else handed.freeze
        is_first = before.heard != "predecessor"
        news = [f"{found.canary}: ended with the cluster before"] if is_first and found.canary else []
        if set(overrides) != set(self._controller.overrides) or freeze != self._controller.freeze:
            self._controller.overrides, self._controller.freeze = overrides, freeze
            self._checkpoint.keep(overrides=overrides, freeze=freeze)
            said = map(_with_reason, carried)
            words = ", ".join([*said, *(["a freeze"] if freeze is not None else [])]) or "nothing"
            news.append(f"set by hand in the cluster before ({place}): {words}")
        return news

    def _keep_beginning(self, beginning: Beginning) -> None:
        if beginning != self._beginning:
            self._beginning = beginning
            self._checkpoint.keep(beginning=beginning)

    def _note_said(self, what: tuple[str, str]) -> None:
        """What was said by hand wins over what a store gives late and over what a predecessor says."""
        if not self._checkpoint.has_read:
            self._said.add(what)
        elif self._beginning is not None:
            self._keep_beginning(self._beginning.with_said(what))
            self._said.update(self._beginning.said)

    def configure(self, values: Mapping[str, object]) -> tuple[ConfigureAnswer, str]:
        """Replace the settings as a whole."""
        try:
            if not isinstance(values, Mapping):
                raise SettingsError(f"settings: {str(values)[:80]!r} is no mapping of names to values")
            wanted = parse_operator_settings(values)
        except SettingsError as error:
            self._settings_error = str(error)
            log.error("operator_settings_refused", error=str(error))
            raise refused(str(error)) from error
        self._settings_error, self._has_said_settings = "", True
        change = ""
        if wanted != self._controller.settings:
            change = f"operator's settings: {changed_fields(self._controller.settings, wanted)}"
            self._controller.settings = wanted
        if change or not self._checkpoint.has_read:  # what a store holds that nobody could read yet may be something else
            self._checkpoint.keep(operator_settings=wanted)
        return {"settings": wanted.model_dump(mode="json")}, change

    def set_mode(self, values: Mapping[str, object], now_s: float) -> tuple[ModeAnswer, str]:
        """Set or take back one override, checked against the replicas that report; forget what was learned, where that is asked."""
        policy = self._controller
        before = policy.overrides
        request = parse_mode_request(values, policy.issuer.slots, policy.settings, before)
        policy.overrides, override = apply_request(before, request, now_s)
        if values.get("learned") == "reset":
            policy.forget()
        self._note_said((request.scope, request.name))
        self._checkpoint.keep(overrides=policy.overrides)
        answer: ModeAnswer = {"override": to_plain(override_status(override, now_s)) if override else None}
        if override is None:
            answer["was_set"] = policy.overrides != before
        return answer, f"override: {request_in_words(request)}"

    def set_freeze(self, values: Mapping[str, object], now_s: float) -> tuple[FreezeAnswer, str]:
        """Begin, prolong or end a freeze. It holds the plans that the fleet runs."""
        request = parse_freeze_request(values)
        before = self._controller.freeze
        freeze = _begun(request, before, self._controller.state, now_s) if request.frozen else None
        self._note_said(FREEZE)
        self._controller.freeze = freeze
        if freeze != before or not self._checkpoint.has_read:
            self._checkpoint.keep(freeze=freeze)
        if freeze is None:
            why = f" ({request.reason})" if request.reason else ""
            return {"freeze": None}, f"freeze ended by hand{why}" if before is not None else ""
        return {"freeze": to_plain(freeze.status(now_s))}, _freeze_in_words(freeze, now_s)

    def canary(self, values: Mapping[str, object], now_s: float) -> tuple[CanaryAnswer, str]:
        """Begin, end or promote a canary. What is promoted is set as an override."""
        before, asked = self._controller.state.canary, answered(values, self._controller, now_s)
        changes = [] if asked.override is None else [self.set_mode(asked.override, now_s)[1]]
        self._controller.state = asked.fleet
        changes += self.keep_canary(before)
        trial = asked.fleet.canary
        return {"canary": None if trial is None else to_plain(trial.status(now_s))}, "; ".join(changes)

    def keep_canary(self, before: Trial | None) -> list[str]:
        """Keep the canary for the next policy where it is not as it was `before`. Answers what is to be told of it, in words."""
        trial = self._controller.state.canary
        if trial is None or not trial.is_worth_storing(before):
            return []
        news = told(before, trial)
        self._checkpoint.keep(canary=Canaries(trial, self._controller.state.past_canaries), soon=bool(news))
        return news

    def drop_expired(self, now_s: float) -> list[str]:
        """Take expired overrides and an expired freeze out; each in words."""
        policy = self._controller
        live = live_overrides(policy.overrides, now_s)
        expired = [f"override expired: {in_words(override)}" for override in policy.overrides if override not in live]
        if expired:
            policy.overrides = live
            self._checkpoint.keep(overrides=live)
        if policy.freeze is not None and not policy.freeze.is_live(now_s):
            policy.freeze = None
            self._checkpoint.keep(freeze=None)
            expired.append("freeze expired")
        return expired


def changed_fields(before: OperatorSettings, after: OperatorSettings) -> str:
    """`name old -> new` of every field that differs."""
    changes = [
        f"{name} {getattr(before, name)} -> {getattr(after, name)}"
        for name in OperatorSettings.model_fields
        if getattr(before, name) != getattr(after, name)
    ]
    return ", ".join(changes)


def parse_freeze_request(values: Mapping[str, object]) -> FreezeRequest:
    """The request that `values` spell. Raises OperationError."""
    request = checked(FreezeRequest, values)
    if not request.frozen and request.for_s is not None:
        raise refused(f"for_s: {request.for_s:g} with frozen false, which ends a freeze at once; leave it out")
    return request


def _begun(request: FreezeRequest, before: Freeze | None, fleet: FleetState, now_s: float) -> Freeze:
    """The freeze that a request begins; one in force goes on with its plans, until the new end and for the new reason."""
    ends_s = None if request.for_s is None else now_s + request.for_s
    if before is not None and before.is_live(now_s):
        return before.model_copy(update={"expires_at_s": ends_s, "reason": request.reason})
    plans = {
        group_id: HeldPlan.of(group.plan, group.planner)
        for group_id, group in fleet.groups.items()
        if group.plan is not None and group.planner
    }
    return Freeze(since_s=now_s, expires_at_s=ends_s, reason=request.reason, plans=plans)


def _freeze_in_words(freeze: Freeze, now_s: float) -> str:
    """`frozen for 1800 s (release): no new plan, measurement or lease`, for the journal."""
    lasting = "" if freeze.expires_at_s is None else f" for {freeze.expires_at_s - now_s:g} s"
    return f"frozen by hand{lasting}{f' ({freeze.reason})' if freeze.reason else ''}: {NO_NEW}"


def _with_reason(override: ModeOverride) -> str:
    return f"{in_words(override)} ({override.reason})" if override.reason else in_words(override)
