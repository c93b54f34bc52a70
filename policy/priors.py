"""How what another fleet learned enters this one: it waits for replicas of its group, and stands until somebody here measures.

`seeded` is the only way in, and what waits is a part of the fleet's state, so that a recording holds it (INV-7); `decide` plants it
as soon as its group has a replica. What was measured here wins over what was imported. An imported cell weighs as three
measurements while nobody has measured it here, and as good as nothing from then on; imported acceptance is outvoted by its few
rows, and the imported price of catching up goes with the first catch-up here. Fails towards the cold start: what does not match a
group's key exactly, or waited behind too many others, is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from nightjar.policy.evidence.acceptance import GROUP_ROWS, AcceptanceEvidence
from nightjar.policy.evidence.catch_up import CatchUpEvidence
from nightjar.policy.evidence.cells import MEASURED_SHARE, CellEvidence
from nightjar.policy.evidence.doubt import MEASURED_STEPS
from nightjar.policy.evidence.robust import LEAST_REPLICAS
from nightjar.policy.exploration import LONGEST_PAUSE_S
from nightjar.policy.learned import LearnedCell, LearnedGroup, LearnedMixedCell, could_be_measured, could_be_priced
from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.planners.base import GroupPlan
from nightjar.policy.state import FleetState, GroupState, Imported, ReplicaState, learned

MOST_SEED_STEPS: Final = LEAST_REPLICAS * MEASURED_STEPS
"""Clean steps that an imported cell, or the imported price of catching up, weighs at most: three measurements of eight, 1 % of a
step time. Known well enough that a known K is not measured again, and outvoted by a few seconds of work."""
MOST_SEED_ROWS: Final = GROUP_ROWS
"""Rows that imported acceptance weighs at most at each position: what a group's share weighs in what one replica expects."""
MAX_SEED_GROUPS: Final = 64
"""Groups that may wait for their replicas, and that one export holds, with their vLLM tables (INV-8). The latest are kept."""
MAX_SEED_CELLS: Final = 10_000
"""Of one export: about 300 bytes each in a file for people."""


def exported(state: FleetState, now_s: float) -> tuple[LearnedGroup, ...]:
    """What the fleet knows, for another: the groups with the most evidence where not all fit. Waiting seeds are not passed on."""
    groups: list[LearnedGroup] = []
    cells = 0
    for stored in learned(state).groups[:MAX_SEED_GROUPS]:
        group = state.groups[stored.key.group_id]
        cells += len(group.evidence.cells) + len(group.evidence.mixed_cells)
        if cells > MAX_SEED_CELLS:
            break
        groups.append(_exported(group, now_s))
    return tuple(groups)


def seeded(state: FleetState, groups: Sequence[LearnedGroup]) -> FleetState:
    """The state in which `groups` wait, in place of what waited under the same keys; beyond MAX_SEED_GROUPS the oldest give way."""
    coming = {group.key.group_id: group for group in groups}
    waiting = {group_id: group for group_id, group in state.waiting.items() if group_id not in coming} | coming
    return replace(state, waiting=dict(list(waiting.items())[-MAX_SEED_GROUPS:]))


def with_waiting_priors(state: FleetState, now_s: float, calibration_clean_steps: int) -> FleetState:
    """The state in which every seed whose group has a replica is that group's prior. A measurement is so many clean steps."""
    if not state.waiting:
        return state
    populated = {replica.group_id for replica in state.replicas.values()}
    found = [group_id for group_id in state.waiting if group_id in populated]
    if not found:
        return state
    groups = {
        **state.groups,
        **{
            group_id: with_prior(state.groups[group_id], state.waiting[group_id], now_s, calibration_clean_steps)
            for group_id in found
        },
    }
    left = {group_id: group for group_id, group in state.waiting.items() if group_id not in found}
    return replace(state, groups=groups, waiting=left)


def with_prior(group: GroupState, seed: LearnedGroup, now_s: float, calibration_clean_steps: int) -> GroupState:
    """The group with a prior where it measured nothing itself. What came of an earlier seed, and nobody measured, gives way.

    The plan that came along is the present one of a group without any measurement: its margin and doubt are for a change, not
    for the first second.
    """
    known, before = group.evidence, group.imported
    taken = {one.cell: _planted(one, now_s) for one in seed.cells if one.cell not in known.cells or one.cell in before.cells}
    mixed = {
        one.cell: _planted_mixed(one) for one in seed.mixed_cells if one.cell not in known.mixed_cells or one.cell in before.cells
    }
    measured = [cell for cell in known.cells if cell not in before.cells]
    acceptance, catch_up = known.acceptance, group.restarts.catch_up
    prior_acceptance, prior_catch_up = before.acceptance, before.catch_up
    if _is_untouched(acceptance, before.acceptance) and seed.acceptance.reached:
        acceptance = prior_acceptance = _planted_acceptance(seed.acceptance, now_s)
    if catch_up == before.catch_up and seed.catch_up.steps:
        catch_up = prior_catch_up = _planted_price(seed.catch_up)
    resting = tuple(one.cell for one in seed.cells if one.steps >= MEASURED_SHARE * calibration_clean_steps)
    plan = group.plan
    if seed.plan and not measured:
        plan = GroupPlan(seed.plan)
    return replace(
        group,
        evidence=replace(known, cells={**known.cells, **taken}, mixed_cells={**known.mixed_cells, **mixed}, acceptance=acceptance),
        plan=plan,
        restarts=replace(group.restarts, catch_up=catch_up),
        imported=Imported(
            tuple(sorted({*before.cells, *taken, *mixed})),
            prior_acceptance,
            prior_catch_up,
            resting,
            rests_until_s=now_s + LONGEST_PAUSE_S,
        ),
        estimate=replace(group.estimate, at_s=float("-inf")) if group.estimate is not None else None,
    )


def with_own_price(group: GroupState, members: Mapping[str, ReplicaState]) -> GroupState:
    """The group without its imported price of catching up, once a replica has caught up here: sums of seconds outvote nobody."""
    priced = group.restarts.catch_up
    if not priced.steps or priced != group.imported.catch_up:
        return group
    if not any(replica.new_restarts.catch_up.steps for replica in members.values()):
        return group
    imported = replace(group.imported, catch_up=CatchUpEvidence())
    return replace(group, restarts=replace(group.restarts, catch_up=CatchUpEvidence()), imported=imported)


def _exported(group: GroupState, now_s: float) -> LearnedGroup:
    """The group as it can be taken in elsewhere: what a replica that nobody could outvote claimed against reason is left out, and
    how much single steps scattered, which is measured within seconds."""
    plan = group.plan.rows if group.plan is not None and group.planner in LEARNING_PLANNERS else ()
    catch_up = group.restarts.catch_up if could_be_priced(group.restarts.catch_up) else CatchUpEvidence()
    whole = LearnedGroup.of(group.key, group.evidence, catch_up, plan, now_s if group.decided_at_s is not None else None)
    cells = (one._replace(log_step_seconds_squared=0.0) for one in whole.cells if could_be_measured(one, group.key))
    mixed_cells = (one for one in whole.mixed_cells if could_be_measured(one, group.key))
    return whole.model_copy(update={"cells": tuple(cells), "mixed_cells": tuple(mixed_cells)})


def _planted(one: LearnedCell, now_s: float) -> CellEvidence:
    """A seed's cell as evidence heard at `now_s`, whose weight is at most MOST_SEED_STEPS.

    >>> _planted(LearnedCell(0, 3, steps=96.0, log_step_seconds=-384.0, decode_rows=96.0), 5.0)
    CellEvidence(steps=24.0, log_seconds=-96.0, rows=24.0, context_tokens=0.0, log_seconds_squared=0.0, seconds=0.0, \
prefill_tokens=0.0, draft_tokens=0.0, generated_tokens=0.0, measured_at_s=5.0)
    """
    share = min(1.0, MOST_SEED_STEPS / one.steps)
    return CellEvidence(
        min(one.steps, MOST_SEED_STEPS),
        one.log_step_seconds * share,
        one.decode_rows * share,
        one.context_tokens * share,
        generated_tokens=one.generated_tokens * share,
        measured_at_s=now_s,
    )


def _planted_mixed(one: LearnedMixedCell) -> CellEvidence:
    """A seed's cell of steps with prefill as evidence, whose weight is at most MOST_SEED_STEPS."""
    share, known = min(1.0, MOST_SEED_STEPS / one.steps), one.evidence()
    return known._replace(
        steps=min(one.steps, MOST_SEED_STEPS),
        rows=known.rows * share,
        seconds=known.seconds * share,
        prefill_tokens=known.prefill_tokens * share,
        draft_tokens=known.draft_tokens * share,
    )


def _planted_acceptance(seed: AcceptanceEvidence, now_s: float) -> AcceptanceEvidence:
    """A seed's acceptance as evidence seen at `now_s`, of at most MOST_SEED_ROWS rows a position."""
    shares = [min(1.0, MOST_SEED_ROWS / rows) if rows else 0.0 for rows in seed.reached]
    return AcceptanceEvidence(
        tuple(min(rows, MOST_SEED_ROWS) for rows in seed.reached),
        tuple(kept * share for kept, share in zip(seed.accepted, shares, strict=True)),
    ).at(now_s)


def _planted_price(seed: CatchUpEvidence) -> CatchUpEvidence:
    """A seed's price of catching up, whose weight is at most MOST_SEED_STEPS."""
    return seed.times(MOST_SEED_STEPS / seed.steps) if seed.steps > MOST_SEED_STEPS else seed


def _is_untouched(now: AcceptanceEvidence, prior: AcceptanceEvidence) -> bool:
    return (now.reached, now.accepted) == (prior.reached, prior.accepted)
