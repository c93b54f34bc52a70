"""A canary on its way: baseline, trial, and the end that it comes to. What a tick does to it is a function of values.

First canary and control run the same, for a baseline; then the canary begins. It goes back by itself where it is worse, which acts
also in a frozen fleet; where it is better that is said, and an operator decides. It ends at its time, if it has one. Where
something else changes what the control runs (settings, a mode by hand), what was counted since the baseline is counted anew, and
the looks that were taken stay taken. Fails towards the control: a replica that a person has set something for is no part of it, and
`off` by hand, or in settings that said something else when it began, is stronger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from nightjar.policy.operator.canary.compare import Place, Work, compare, together
from nightjar.policy.operator.canary.order import Arms, CanaryOrder, arms_of
from nightjar.policy.operator.canary.verdict import BASELINE_BLOCKS, GoodputRatio, Sample, blocks_of, judge
from nightjar.policy.operator.overrides import ModeOverride, override_of
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.operator import LEAST_PERIODS, OperatorSettings
from nightjar.policy.wire.status import CanaryStatus, in_utc

MAX_PAST: Final = 10
"""Canaries that are remembered after their end."""

Phase = Literal["baseline", "trial", "better", "rolled back", "expired", "ended", "promoted"]
_BLOCKS: Final = {"baseline", "trial", "better"}


@dataclass(frozen=True, slots=True)
class Trial:
    """One canary and what is known of it. `since` and `at_best` are blocks since it began (verdict.judge), `before` its baseline.

    `members` try it, `controls` are how many are held against them; `against` is a digest of what these run. The block that is
    being counted began at `block_began_s`; what comes while it is `settling` counts nowhere. `last` is the last look's interval,
    of what has been counted since the control changed, if it did.
    """

    order: CanaryOrder
    phase: Phase = "baseline"
    phase_since_s: float = 0.0
    before: Sample = field(default_factory=Sample)
    since: Sample = field(default_factory=Sample)
    at_best: Sample = field(default_factory=Sample)
    looks: int = 0
    last: GoodputRatio | None = None
    members: tuple[str, ...] = ()
    controls: int = 0
    against: str = ""
    block_began_s: float = 0.0
    settling: bool = True
    canary_work: Mapping[Place, Work] = field(default_factory=dict)
    control_work: Mapping[Place, Work] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether it has not come to an end."""
        return self.phase in _BLOCKS

    @property
    def is_applied(self) -> bool:
        """Whether its replicas run what is tried."""
        return self.phase in {"trial", "better"}

    def is_worth_storing(self, stored: Trial | None) -> bool:
        """Whether it has begun, come to another phase or finished a block since `stored`, or what was counted began anew."""
        if self is stored or stored is None:
            return self is not stored
        return bool(told(stored, self)) or (self.before.count, self.at_best.count) != (stored.before.count, stored.at_best.count)

    def override_of(self, replica_id: str, mode: Mode) -> ModeOverride | None:
        """What it has a replica run whose mode is `mode` without it; None for others than its members."""
        return self.order.override(replica_id, mode) if self.is_applied and replica_id in self.members else None

    def ended(self, phase: Phase, now_s: float) -> Trial:
        """Come to this end."""
        return replace(self, phase=phase, phase_since_s=now_s, members=(), canary_work={}, control_work={})

    def in_words(self) -> str:
        """What is tried by whom, and how it stands."""
        tried = f"canary {self.order.what()} on {self.order.whom()}"
        if self.phase == "baseline":
            without = "" if self.controls else ": no group has both a canary and a control"
            return f"{tried}: baseline, {self.before.count} of {BASELINE_BLOCKS} blocks of {self.order.block_s:g} s{without}"
        goodput = f"goodput {self.last} of the control's" if self.last is not None else "no difference known yet"
        if self.is_running and not self.controls:
            goodput = f"nothing is compared now, no group has both a canary and a control; before, {goodput}"
        how = ("runs" if self.phase == "trial" else self.phase) if self.is_running else f"{self.phase} {in_utc(self.phase_since_s)}"
        stands = f"{tried}: {how}, {goodput} after {self.at_best.count} blocks"
        return f"{stands}; `nightjar canary --promote` or `--end`" if self.phase == "better" else stands

    def status(self, now_s: float) -> CanaryStatus:
        """How status shows it."""
        ends_s, last = self.order.expires_at_s, self.last
        return CanaryStatus(
            phase=self.phase,
            what=self.order.what(),
            whom=self.order.whom(),
            words=self.in_words(),
            reason=self.order.reason,
            since_s=self.order.since_s,
            phase_since_s=self.phase_since_s,
            seconds_left=None if ends_s is None or not self.is_running else max(ends_s - now_s, 0.0),
            members=self.members,
            controls=self.controls,
            blocks=self.at_best.count,
            ratio=last.ratio if last is not None else None,
            low=last.low if last is not None else None,
            high=last.high if last is not None else None,
        )


def begin(order: CanaryOrder, now_s: float) -> Trial:
    """A canary that begins with its baseline."""
    return Trial(order, phase_since_s=now_s, block_began_s=now_s)


def resumed(trial: Trial, now_s: float) -> Trial:
    """The canary under a policy that begins anew: what was counted in the block under way is lost.

    A result without a block behind it is none; releases before stored one of what ran before the control changed.
    """
    trial = trial if trial.at_best.count else replace(trial, last=None)
    return _settling(trial, now_s) if trial.is_running else trial


def told(before: Trial | None, now: Trial) -> list[str]:
    """What the journal says of a canary that has become another: its beginning, each phase that it reached, its end."""
    if before is None or before.order != now.order or before.phase != now.phase:
        return [now.in_words()]
    return []


def remembered(past: Sequence[str], trial: Trial) -> tuple[str, ...]:
    """What is remembered of canaries that ended, in words, the latest last."""
    return (*past, trial.in_words())[-MAX_PAST:]


def candidates(
    trial: Trial, applications: Mapping[str, str], modes: Mapping[str, Mode], overrides: Sequence[ModeOverride], now_s: float
) -> Arms:
    """Who tries in a group and who is its control: replicas for which nobody has set anything by hand that is stronger.

    `applications` are those of the group's replicas that may try, `modes` what they have without the canary.
    """
    free = {}
    for replica_id, application in applications.items():
        override = override_of(replica_id, application, overrides, now_s)
        is_stopped = modes[replica_id].kind == "off" and (override is not None or trial.order.over.kind != "off")
        if not is_stopped and (override is None or override.scope != "replica"):
            free[replica_id] = application
    return arms_of(trial.order, free)


def digest(settings: OperatorSettings, modes: Iterable[Mode]) -> str:
    """Of what a control runs: when it changes, blocks before and after it cannot be put together."""
    kinds = ",".join(sorted({str(mode) for mode in modes}))
    return hashlib.sha256(f"{kinds} {settings.model_dump_json()}".encode()).hexdigest()[:16]


def after_tick(
    trial: Trial,
    arms: Arms,
    canary: Iterable[tuple[Place, Work]],
    control: Iterable[tuple[Place, Work]],
    against: str,
    settings: OperatorSettings,
    now_s: float,
    *,
    frozen: bool,
) -> Trial:
    """The canary after a tick in which its replicas and the control did this work. In a frozen fleet none begins."""
    if not trial.is_running:
        return trial
    if not trial.order.is_live(now_s):
        return trial.ended("expired", now_s)
    changed = trial.against not in {"", against}
    trial = replace(trial, members=tuple(sorted(arms.canary)), controls=len(arms.control), against=against)
    if changed:
        return _settling(replace(trial, since=Sample(), at_best=Sample(), last=None), now_s)
    lasted_s = now_s - trial.block_began_s
    if trial.settling:
        settle_s = max(trial.order.block_s, LEAST_PERIODS * settings.exchange_period_s + settings.decision_period_s)
        return replace(trial, settling=False, block_began_s=now_s) if lasted_s >= settle_s else trial
    canary_work, control_work = together(trial.canary_work, canary), together(trial.control_work, control)
    if lasted_s < trial.order.block_s:
        return replace(trial, canary_work=canary_work, control_work=control_work)
    seen, at_best = compare(canary_work, control_work, trial.order.block_s)
    trial = replace(trial, canary_work={}, control_work={}, block_began_s=now_s)
    if trial.phase == "baseline":
        return _after_baseline_block(trial, seen, now_s, frozen=frozen)
    return _after_block(trial, seen, at_best, now_s)


def _settling(trial: Trial, now_s: float) -> Trial:
    return replace(trial, settling=True, block_began_s=now_s, canary_work={}, control_work={})


def _after_baseline_block(trial: Trial, seen: float | None, now_s: float, *, frozen: bool) -> Trial:
    if seen is not None and trial.before.count < BASELINE_BLOCKS:
        trial = replace(trial, before=trial.before.plus(seen))
    if trial.before.count < BASELINE_BLOCKS or frozen:
        return trial
    return _settling(replace(trial, phase="trial", phase_since_s=now_s), now_s)


def _after_block(trial: Trial, seen: float | None, at_best: float | None, now_s: float) -> Trial:
    if at_best is None:
        return trial
    since = trial.since.plus(seen) if seen is not None else trial.since
    trial = replace(trial, since=since, at_best=trial.at_best.plus(at_best))
    if trial.at_best.count < blocks_of(trial.looks):
        return trial
    verdict, found = judge(trial.before, trial.since, trial.at_best, trial.looks)
    looked = replace(trial, looks=trial.looks + 1, last=found or trial.last)
    if verdict == "worse":
        return looked.ended("rolled back", now_s)
    if verdict == "better" and trial.phase == "trial":
        return replace(looked, phase="better", phase_since_s=now_s)
    return looked
