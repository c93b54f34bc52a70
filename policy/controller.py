"""The one loop of the policy: reports go in, and once a period a decision for every replica comes out.

The actor, the simulator, `gpu-proof` and the replay of a recording all run this class, so that evidence comes from the code that
serves (INV-7). It does no I/O and reads no clock: the caller brings the time and the random numbers, and stores, journals and
delivers what comes of a tick. A report that is refused changes nothing. Where deciding raises, state, decisions and versions stay
as they were.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nightjar.policy.decision.fleet import decide
from nightjar.policy.intake import observe
from nightjar.policy.issuer import Issuer
from nightjar.policy.learned import LearnedGroup, LearnedTables
from nightjar.policy.operator.canary.trial import Trial, resumed
from nightjar.policy.operator.freeze import Freeze
from nightjar.policy.operator.overrides import ModeOverride
from nightjar.policy.priors import seeded
from nightjar.policy.state import FleetState, forgotten, learned, with_learned
from nightjar.policy.wire.operator import OperatorSettings
from nightjar.policy.wire.report import LoadReport
from nightjar.policy.wire.settings import IssuedSettings, Settings


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a report: whether its replica gets settings, and why nothing of it was counted, empty where it was."""

    is_admitted: bool
    refused: str


class Controller:
    """One fleet's policy. `settings` and `overrides` are the operator's, `state` is what is known of the fleet, and `decisions` are
    those of the last tick, by replica. `issuer` gives them versions; none is issued to a replica that `take` never admitted.
    `learned` is what was worth storing when `note_learned` was last called.
    """

    def __init__(self, settings: OperatorSettings, issuer: Issuer | None = None) -> None:
        self.settings = settings
        self.overrides: tuple[ModeOverride, ...] = ()
        self.state = FleetState()
        self.decisions: Mapping[str, Settings] = {}
        self.issuer = issuer or Issuer(incarnation=1)
        self.learned = LearnedTables()

    def take(self, report: LoadReport, now_s: float) -> Taken:
        """Take in a report that came over the wire, if its replica and the version that it names are admitted (INV-5)."""
        refused = self.issuer.admit(report)
        if refused:
            return Taken(is_admitted=False, refused=refused)
        return Taken(is_admitted=True, refused=self.observe(report, now_s))

    def observe(self, report: LoadReport, now_s: float) -> str:
        """Take in a report of a replica whose settings come from elsewhere. Returns "" or why nothing of it was counted."""
        self.state, ignored = observe(self.state, report, now_s, self.settings)
        return ignored

    def tick(self, now_s: float, rng: random.Random) -> dict[str, IssuedSettings]:
        """Decide for every replica that still reports. Returns the settings, by replica, that have a new version because their
        content changed. Replicas that fell silent are forgotten.
        """
        self.decisions, self.state = decide(self.state, self.settings, self.overrides, now_s, rng)
        self.issuer.keep_only(self.decisions)
        posted = {replica_id: self.issuer.post(replica_id, settings) for replica_id, settings in self.decisions.items()}
        return {replica_id: issued for replica_id, issued in posted.items() if issued is not None}

    def rise_above(self, stored: int, now_s: float) -> bool:
        """Raise the incarnation above the `stored` one and every foreign one that reports named. False if it is above already.

        After a rise all settings have new versions, and no lease is granted until those of the other policy have ended (INV-6).
        """
        has_risen = self.issuer.raise_incarnation(stored)
        if has_risen:
            self.await_leases(now_s)
        return has_risen

    def await_leases(self, since_s: float) -> None:
        """Grant nothing until every lease has ended that another policy may have granted until `since_s` (INV-6)."""
        self.state = replace(self.state, quiet_since_s=since_s)

    def take_up(
        self,
        tables: LearnedTables | None,
        now_s: float,
        *,
        waiting: Sequence[LearnedGroup] = (),
        canary: Trial | None = None,
        past_canaries: Sequence[str] = (),
    ) -> None:
        """Go on from what an earlier policy stored, except where the fleet itself has learned, or begun a canary, since."""
        if tables is not None:
            self.state = with_learned(self.state, tables)
        self.seed(waiting)
        if self.state.canary is None and canary is not None:
            self.state = replace(self.state, canary=resumed(canary, now_s), past_canaries=tuple(past_canaries))

    def seed(self, groups: Sequence[LearnedGroup]) -> None:
        """Take groups that another fleet learned as a prior, as soon as they have replicas here."""
        self.state = seeded(self.state, groups)

    def forget(self) -> None:
        """Forget what was learned: evidence, plans and measurements of every group."""
        self.state = forgotten(self.state)

    @property
    def freeze(self) -> Freeze | None:
        """The operator's freeze, in force or over."""
        return self.state.freeze

    @freeze.setter
    def freeze(self, freeze: Freeze | None) -> None:
        if freeze is not self.state.freeze:
            self.state = replace(self.state, freeze=freeze)

    def note_learned(self) -> bool:
        """Bring `learned`, what is worth storing, up to date. Returns whether it changed."""
        before, self.learned = self.learned, learned(self.state)
        return self.learned != before
