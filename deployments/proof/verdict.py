"""What an engine's run proves: texts equal to plain decoding's, K obeyed, and what a step at K = 0 costs.

Pure functions of what engine_process.py wrote. An answer may differ from plain decoding only where two tokens were nearly as likely
(`margin` in logprobs; exact where plain logprobs are not known): batches of other shapes round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from nightjar.deployments.proof.scenarios import CAPPED_SCENARIO, MAX_NUM_SPECULATIVE_TOKENS
from nightjar.loadtests.arms.texts import NEAR_TIE, first_difference
from nightjar.policy.wire.report import DrafterState

SAME_LOGPROB: Final = 1e-3
ACTIVE: Final = DrafterState.ACTIVE.value
AWAKE: Final = (ACTIVE, DrafterState.PROBING.value)

Outcome = Mapping[str, Any]


class Judged(Protocol):
    """An engine, as far as its verdict depends on which it is."""

    @property
    def lends(self) -> bool:
        """Whether it was only run to lend its memory."""

    @property
    def forwards_at_zero(self) -> int | None:
        """Forwards of the drafter's model that a step of K = 0 takes; None where it has no model."""

    def forwards(self, num_speculative_tokens: int) -> int | None:
        """The same of a step of this K."""

    @property
    def writes_kv_alone(self) -> bool:
        """Whether a step of K = 0 runs the drafter's model once, as far as its KV."""


@dataclass(slots=True)
class Verdict:
    """Of one engine. Each list names what is wrong, and is empty where all is well."""

    engine: Judged
    served_plainly: str
    """Why the engine is not steered at all; then nothing else is judged."""
    texts: list[str] = field(default_factory=list)
    wrong_steps: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Scenarios that failed, or did not meet what they are for."""
    forwards: dict[int, list[int]] = field(default_factory=dict)
    """For each K, the counts of forwards of the drafter's model that were seen in its steps, but for those that also caught up or
    whose drafts vLLM left out."""
    steps: int = 0
    compared: int = 0
    """Answers that were held against plain decoding's."""
    near_ties: int = 0
    """Of those, how many went another way from a near tie on; the rest of such an answer is not compared."""
    tokens: int = 0
    """Tokens that were compared."""


def judge(engine: Judged, outcome: Outcome, reference: Outcome, near_tie: float = NEAR_TIE) -> Verdict:
    """Hold one engine's run against that of plain decoding."""
    plain = str(outcome["serving_plainly"])
    if plain:
        return Verdict(engine, plain)
    found = Verdict(engine, "")
    found.missed += [f"{what}: {outcome[what]}" for what in ("aborted", "fault") if outcome[what]]
    for name, part in outcome["scenarios"].items():
        if "error" in part:
            found.missed.append(f"{name}: {part['error'].strip().splitlines()[-1]}")
            continue
        if part["missed"]:
            found.missed.append(f"{name}: {part['missed']}")
        judge_texts(found, name, part, reference["scenarios"][name]["answers"], near_tie)
        judge_steps(found, name, part["ranks"])
    unseen = set() if engine.lends else set(range(MAX_NUM_SPECULATIVE_TOKENS + 1)) - found.forwards.keys()
    found.wrong_steps += [f"K = {k} was never ordered" for k in sorted(unseen)]
    return found


def judge_texts(found: Verdict, name: str, part: Outcome, expected: Outcome, near_tie: float = NEAR_TIE) -> None:
    """Hold the greedy answers of one scenario against plain decoding's."""
    for request_id in part["greedy"]:
        found.compared += 1
        theirs, ours = expected[request_id], part["answers"][request_id]
        if wrong := difference(theirs, ours, near_tie):
            found.texts.append(f"{name}, {request_id}: {wrong}")
        elif theirs["token_ids"] != ours["token_ids"]:
            found.near_ties += 1
        place = first_difference(theirs["token_ids"], ours["token_ids"])
        found.tokens += len(ours["token_ids"]) if place is None else place


def judge_steps(found: Verdict, name: str, ranks: Sequence[Sequence[Outcome]]) -> None:
    """Look at every step of one scenario."""
    first_rank, *others = ranks
    if any(rank != first_rank for rank in others):
        found.wrong_steps.append(f"{name}: the ranks' steps differ")
    drafted: dict[str, int] = {}
    for index, step in enumerate(first_rank):
        if wrong := _disobeyed(found.engine, step, drafted, is_capped=name == CAPPED_SCENARIO):
            found.wrong_steps.append(f"{name}, step {index}: {wrong}")
        if step["stray_slot"]:
            found.wrong_steps.append(f"{name}, step {index}: the drafter wrote past its request's blocks: {step['stray_slot']}")
        k = step["num_speculative_tokens"]
        drafted |= dict.fromkeys(step["requests"], k)
        if not step["catches_up"] and not step["skips_drafts"]:
            found.forwards[k] = sorted({*found.forwards.get(k, ()), ran(step)})
    found.steps += len(first_rank)


def difference(expected: Mapping[str, Any], found: Mapping[str, Any], near_tie: float = NEAR_TIE) -> str:
    """What is wrong with a greedy answer, or "": its first other token must be a near tie of the reference's logprobs."""
    theirs, ours = expected["token_ids"], found["token_ids"]
    for position, (their_token, our_token) in enumerate(zip(theirs, ours, strict=False)):
        logprobs = expected["logprobs"][position] if expected["logprobs"] else {}
        if their_token != our_token:
            gap = logprobs.get(str(their_token), 0.0) - logprobs.get(str(our_token), float("-inf"))
            return "" if abs(gap) < near_tie else f"token {position} is {our_token}, plain decoding's {their_token} (gap {gap:.3g})"
        if found["logprobs"] and abs(logprobs[str(their_token)] - found["logprobs"][position][str(our_token)]) > max(
            SAME_LOGPROB, near_tie
        ):
            return f"token {position} has another logprob than in plain decoding"
    ends = [f"after {len(answer['token_ids'])} tokens ({answer['finish_reason']})" for answer in (expected, found)]
    if ends[0] != ends[1]:
        return f"ends {ends[1]}, plain decoding's {ends[0]}"
    return "" if expected["text"] == found["text"] else "has plain decoding's tokens and another text"


def ran(step: Mapping[str, Any]) -> int:
    """How often the drafter's model ran in a step, with each replay of a graph counted once."""
    return int(step["forwards"]) + int(step["replays"])


def _disobeyed(engine: Judged, step: Mapping[str, Any], drafted: Mapping[str, int], *, is_capped: bool) -> str:
    """Why a step did not run as it was told, or "". A drafter that is not active may still wait, or read what it missed, and vLLM
    itself leaves drafts out where no row could use them.

    `drafted` has for each request the K of the last step that it was in, which made the drafts that this one verifies: a request
    that finds no blocks is left out of a step and keeps its drafts.
    """
    pinned, ordered, forwards = step["pinned"], step["num_speculative_tokens"], ran(step)
    waits = step["drafter_state"] not in ("", ACTIVE) or step["catches_up"] or step["skips_drafts"]
    if pinned is not None and ordered != pinned and not (is_capped and ordered < pinned) and not (waits and ordered == 0):
        return f"settings pinned K = {pinned}, the scheduler ordered {ordered}"
    for request_id, most in step["verified"].items():
        if most > drafted.get(request_id, 0):
            return f"{most} drafts of a request were verified after a step of K = {drafted.get(request_id, 0)}"
    expected = engine.forwards(ordered)
    if expected == 0 and step["skips_drafts"] and not engine.writes_kv_alone:
        # A draft model that is awake reads the step's tokens all the same; a rank in a process of its own does not know.
        expected = min(forwards, 1) if not step["drafter_state"] else int(step["drafter_state"] in AWAKE)
    if expected is not None and not step["catches_up"] and not _may_be(forwards, expected, ordered, replays=step["replays"]):
        return f"K = {ordered} took {forwards} forwards of the drafter, expected {expected}"
    kv_writes = int(engine.writes_kv_alone and not ordered)
    if expected is not None and step["kv_writes"] != kv_writes:
        return f"K = {ordered} wrote the drafter's KV alone {step['kv_writes']} times, expected {kv_writes}"
    return ""


def _may_be(forwards: int, expected: int, ordered: int, *, replays: int) -> bool:
    """One replay may hold all forwards of a step but its first; without one, and at K = 0, the count is exact."""
    return forwards == expected or bool(replays and ordered and 0 < forwards <= expected)
