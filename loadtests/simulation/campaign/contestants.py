"""Everybody who can decide in an experiment, by name, and what each may know of a profile beforehand.

Those of the policy that learn start from nothing, and so does the paper's: they run under the policy, with its leases and what it
learns a restart to cost, as on a live service. Tables are tuned once per profile at nominal acceptance on true step times (the
retuned one at that of the texts that come); planners that need a profile of step times share one that is off by up to 20 %, seeded.
The oracle knows the truth, explores nothing and pays its restarts. Unknown names raise ContestantError with the names that exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

from nightjar.loadtests.arms.stock_table import TableRows
from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.engine.acceptance_classes import scaled
from nightjar.loadtests.simulation.evidence.prefill_bars import pair_of
from nightjar.loadtests.simulation.planner_names import NIGHTJAR, OFF, ORACLE, ORACLE_BY_BATCH, TETRIS
from nightjar.loadtests.simulation.profiles import Mechanics, Profile
from nightjar.loadtests.simulation.rivals.registry import ENTRIES, Inputs, inputs, rival_plan
from nightjar.loadtests.simulation.rivals.tables import vllm_text
from nightjar.loadtests.simulation.service.scenario import PlannerChoice
from nightjar.policy.planners import LEARNING_PLANNERS
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.settings import Local

TABLE: Final = "table"
RETUNED_TABLE: Final = "retuned-table"
RIVALS: Final = tuple(entry.name for entry in ENTRIES)
LEARN_NOTHING: Final = frozenset({OFF, TABLE, RETUNED_TABLE, TETRIS}) | {entry.name for entry in ENTRIES if not entry.learns}
"""They and every fixed K decide in their first second as in any other. The oracle learns what prompts cost."""


class ContestantError(ValueError):
    """A planner's name that nobody has."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A planner as it runs: by name, `as_published` (without our dormancy) or on equal mechanics."""

    name: str
    as_published: bool = False

    @property
    def mechanics(self) -> Mechanics:
        """What the engine does at K = 0."""
        return Mechanics.STOCK if self.as_published else Mechanics.DORMANT


def check_name(name: str) -> str:
    """The name itself. Raises ContestantError for one that is no planner's."""
    known = (*LEARNING_PLANNERS, ORACLE, ORACLE_BY_BATCH, OFF, TABLE, RETUNED_TABLE, NIGHTJAR, TETRIS, *RIVALS)
    if name in known or re.fullmatch(r"fixed-\d{1,2}|pair-\d{1,2}-\d{1,2}|oracle-mixed-\d{1,2}", name):
        return name
    near = get_close_matches(name, known, n=1)
    raise ContestantError(
        f"planner {name[:40]!r} is unknown{f', did you mean {near[0]}' if near else ''}; there are {', '.join(known)}, fixed-K, "
        "pair-K-K (of pure decode steps and of those with prefill) and oracle-mixed-K"
    )


def learns(name: str) -> bool:
    """Whether a planner needs a warm-up in which to learn."""
    return name not in LEARN_NOTHING and not name.startswith(("fixed-", "pair-"))


def static_names(nominal: Nominal) -> tuple[str, ...]:
    """Everything that never changes its mind: off, each fixed K and the tuned table."""
    return (OFF, *(f"fixed-{k}" for k in nominal.profile.drafter.arms if k), TABLE)


def choose(
    contestant: Contestant, nominal: Nominal, seed: int, changed: Mapping[str, object], acceptance: float = 1.0
) -> PlannerChoice:
    """How a contestant is run on a profile. `changed` are settings of the policy's operator other than the defaults.

    Its objective is that of what is compared: tokens per busy second.

    `acceptance` times the profile's is the conditional acceptance of the texts that come; the retuned table alone was told.
    """
    name = check_name(contestant.name)
    if name in {*LEARNING_PLANNERS, NIGHTJAR}:
        values: dict[str, object] = {
            "mode": "auto",
            "planner": name,
            "objective": "throughput",
            "allowed_num_speculative_tokens": nominal.profile.drafter.arms,
        }
        return PlannerChoice(name, operator=parse_operator_settings(values | dict(changed)))
    if name == RETUNED_TABLE:
        name, nominal = TABLE, replace(nominal, profile=scaled(nominal.profile, acceptance))
    return PlannerChoice(contestant.name, local=_local(name, nominal, seed))


def _local(name: str, nominal: Nominal, seed: int) -> Local:
    """The plan of everybody who decides within the engine. Static planners are tables there, and restart as they like."""
    most = nominal.profile.limits.max_num_seqs
    if name in {ORACLE, TETRIS}:
        return Local(planner=name)
    if name == ORACLE_BY_BATCH:
        return Local(planner=ORACLE, options={"sees_context": False})
    if name.startswith(ORACLE):
        return Local(planner=ORACLE, options={"mixed_k": int(name.rpartition("-")[2])})
    if name.startswith("pair-"):
        pure_k, mixed_k = pair_of(name)
        return Local(planner="pair", options={"pure_k": pure_k, "mixed_k": mixed_k})
    if name == OFF or name.startswith("fixed-"):
        return _table(((1, most, 0 if name == OFF else int(name.removeprefix("fixed-"))),))
    if name == TABLE:
        return _table(_known(nominal, seed).table)
    entry = next(entry for entry in ENTRIES if entry.name == name)
    return rival_plan(entry, _known(nominal, seed))


def _table(rows: TableRows) -> Local:
    return Local(planner="vllm-table", options={"num_speculative_tokens_per_batch_size": vllm_text(rows)})


def _known(nominal: Nominal, seed: int) -> Inputs:
    return _inputs(nominal.profile.model_dump_json(exclude_unset=True), nominal.mechanics, seed, round(nominal.context_per_row))


@lru_cache(maxsize=1024)
def _inputs(profile: str, mechanics: Mechanics, seed: int, context_tokens_per_row: int) -> Inputs:
    """Profiling an engine takes a while, and every rival of a place and seed uses the same."""
    return inputs(Profile.model_validate_json(profile), mechanics, seed=seed, context_tokens_per_row=context_tokens_per_row)
