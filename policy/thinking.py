"""How a group thinks: when its evidence says something new, what it then expects, plans and wants to measure.

Thinking costs half a millisecond and evidence trickles in every second, so a group thinks again only on news: a cell that
became much better known, acceptance that moved, other settings, or REFRESH_S since the last time. A replica whose own
measurements wait for others to confirm them (merging.py) gets a plan of its own from them: it need not wait, and a liar
harms itself only. Fails towards the last thought: what does not change the picture does not change the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from nightjar.policy.evidence import Cell, CellEvidence, Evidence
from nightjar.policy.merging import LEAST_ROWS, Pending, quorum
from nightjar.policy.outlook import Outlook
from nightjar.policy.planners.calibration import Measurement, measurements
from nightjar.policy.planners.fleet import plan_ahead, present_arms
from nightjar.policy.planners.planner import GroupPlan, GroupView
from nightjar.policy.records import GroupKey
from nightjar.policy.settings import OperatorSettings

REFRESH_S: Final = 5.0
"""A group thinks at least this often: drift that comes slowly enough not to be news."""
NEWS_GROWTH: Final = 1.2
"""A cell is news when it stands on this many times the steps of the last thought."""
NEWS_ACCEPTANCE: Final = 0.02
"""A shift of any S_i that is news."""


@dataclass(frozen=True, slots=True)
class Thought:
    """A plan and what it stands on."""

    at_s: float
    steps: Mapping[Cell, float]
    acceptance: tuple[float, ...]
    settings: OperatorSettings
    plan: GroupPlan
    outlook: Outlook
    wanted: Mapping[int, Sequence[Measurement]]


def think(view: GroupView) -> Thought:
    """What `view` lets a group expect, run and want to know."""
    ahead = view.outlook()
    plan = plan_ahead(view, ahead)
    planned = present_arms(view.with_plan(plan))
    return Thought(
        view.now_s,
        {cell: known.steps for cell, known in view.evidence.cells.items()},
        view.evidence.acceptance.acceptance(view.arms[-1]),
        view.settings,
        plan,
        ahead,
        measurements(view, ahead, planned),
    )


def think_cold(view: GroupView) -> Thought:
    """What one thinks of a group of whom nothing is known; the same for all that look alike, and never fresh."""
    return replace(_cold(view.key.max_num_seqs, view.arms, view.settings), at_s=float("-inf"))


@lru_cache(maxsize=64)
def _cold(max_num_seqs: int, arms: tuple[int, ...], settings: OperatorSettings) -> Thought:
    key = GroupKey(target="unknown", max_num_seqs=max_num_seqs, max_num_speculative_tokens=arms[-1])
    return think(GroupView(key, settings, Evidence()))


def is_news(last: Thought | None, view: GroupView) -> bool:
    """Whether the view differs enough from what the last thought stood on."""
    if last is None or view.now_s - last.at_s >= REFRESH_S or last.settings != view.settings:
        return True
    if any(known.steps > NEWS_GROWTH * last.steps.get(cell, 0.0) for cell, known in view.evidence.cells.items()):
        return True
    acceptance = view.evidence.acceptance.acceptance(view.arms[-1])
    return any(abs(new - old) > NEWS_ACCEPTANCE for new, old in zip(acceptance, last.acceptance, strict=True))


def own_evidence(view: GroupView, replicas: int, pending: Pending) -> Evidence | None:
    """The group's evidence with what one of its `replicas` measured and nobody confirmed yet; None where that adds nothing."""
    if quorum(replicas) == 1:
        return None
    alone: dict[Cell, CellEvidence] = {
        cell: waiting for cell, waiting in pending.cells.items() if pending.has_voice(cell) and not view.is_measured(*cell)
    }
    if not alone:
        return None
    known, waits = view.evidence.acceptance, pending.acceptance
    acceptance = known.plus(waits) if not known.reached or known.reached[0] < LEAST_ROWS else known
    return replace(view.evidence, cells={**view.evidence.cells, **alone}, acceptance=acceptance)
