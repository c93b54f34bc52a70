"""Who decides a replica's K, and why: a code with its numbers, as reports, settings, `status` and `explain` carry it.

A code says what is so; policy/words.py says it to people, and nothing else does. So a sentence may be reworded and nothing that
reads a cause changes. A code that a newer release invented is kept as the text that it is.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Final

from pydantic import Field, ValidationError

from nightjar.policy.wire.record import MAX_REASON_LENGTH, MOST_SUM, Identifier, Record


class Code(StrEnum):
    """What is so. In brackets the numbers, and what `text` holds; `num_speculative_tokens` is `k` here.

    Those before LAST_STEP an engine gives for its last step (policy.step.steering; REQUESTS, the step loop), SHADOW before and
    OWN_MODE after another of them.
    Those of restarts up to FROZEN say what a replica's drafter may do (policy.restarts.leases).
    """

    NO_SETTINGS = "no_settings"
    OFF = "off"
    PIN = "pin"
    AGED = "aged"  # in an explanation (max_age_s)
    PLAN = "plan"
    LOCAL = "local"
    SEGMENT = "segment"
    WORSE_THAN_OFF = "worse_than_off"
    CHECKING = "checking"
    DWELL = "dwell"  # in an explanation (dwell_steps)
    BESIDE_PREFILL = "beside_prefill"  # in an explanation (k)
    MIXED = "mixed"
    REQUESTS = "requests"  # (k): the most that a row of the step takes
    SHADOW = "shadow"
    OWN_MODE = "own_mode"
    LAST_STEP = "last_step"  # what follows is the engine's

    SERVED_PLAINLY = "served_plainly"  # text: why
    FAULT = "fault"  # text: the error
    KILL_SWITCH = "kill_switch"  # text: the mode
    MODE = "mode"  # text: the mode
    SET_BY = "set_by"  # text: who
    HOLDS_FOR = "holds_for"  # (seconds_left)
    HOLDS_ON = "holds_on"
    LOWERED = "lowered"  # (k)
    SLOWER = "slower"  # text: what it costs
    UNTOUCHED = "untouched"
    IN_SHADOW = "in_shadow"  # what follows would run
    WOULD_RUN = "would_run"  # (k)
    NOT_KNOWN = "not_known"  # (k, only_observes): what other K give, or (planned, gain, doubt) what that one gives
    REFUSED = "refused"  # text: why
    UNDER_WAY = "under_way"  # (incarnation, sequence), (runs_incarnation, runs_sequence) where it runs any
    GUARD = "guard"  # (first_batch_size, last_batch_size)
    MEASURING = "measuring"  # (k, first_batch_size, last_batch_size)
    TO_LEARN = "to_learn"
    DISTRUSTED = "distrusted"
    NOTICE = "notice"  # text
    OLD_REPORT = "old_report"  # (age_s)
    CANARY = "canary"  # text: what is tried, and how it stands
    FREEZE = "freeze"  # text: since when and until when

    DRAFTER_IS = "drafter_is"  # text: where it is in its life
    LENT = "lent"  # (blocks)
    DRAFTER = "drafter"  # text: why it waits
    WISHES = "wishes"  # (lag_tokens), (waiting_s)
    MISSED = "missed"  # (lag_tokens)
    LEASE_HELD = "lease_held"
    WAITS_FOR_LEASE = "waits_for_lease"
    DOES_NOT_PAY = "does_not_pay"
    RELOAD_TOO_LONG = "reload_too_long"
    PROBES_FAILED = "probes_failed"
    NEW_POLICY = "new_policy"
    FROZEN = "frozen"

    NO_DECISION = "no_decision"
    PLANNER = "planner"  # text: its name
    ROW = "row"  # (k, first_batch_size, last_batch_size)
    MIXED_ROW = "mixed_row"  # the same beside prefill
    EVERYWHERE = "everywhere"  # (k), and where another was asked for (asked, maximum), text: those allowed
    PAPER = "paper"
    UNPLANNED = "unplanned"
    OTHER = "other"  # text: the own words of a planner, or what a release before this one said
    AT_BATCH = "at_batch"  # (first_batch_size, last_batch_size): what follows is true there
    UNMEASURED = "unmeasured"  # (k)
    ONE_RAN = "one_ran"  # (k, only)
    BETTER = "better"  # (k, tokens_per_s, off_tokens_per_s), (clean_steps) and (off_clean_steps) where measured
    TOO_SMALL = "too_small"  # the same, and (doubt) or (margin)
    OFF_BEST = "off_best"  # the same, without (k, tokens_per_s) where no other K may run
    FORBIDDEN = "forbidden"  # (k, max_step_ms, most_ms)
    LEAST_TIME = "least_time"  # (k, waiting, prefilling, beside_prefill), requests and a share of the time
    OTHER_OBJECTIVE = "other_objective"  # (k, beside_prefill), text: its name
    OBJECTIVE = "objective"  # (of_application), text: its name
    COSTS_LESS = "costs_less"  # (k): beside prefill
    BY_THE_ODDS = "by_the_odds"  # (only)
    OWN_EVIDENCE = "own_evidence"
    WITHIN = "within"  # (max_step_ms), text: of whom
    LIMITED = "limited"  # the same
    LIMIT = "limit"  # the same
    ALLOWS = "allows"  # the same, and (k, without_limit)
    RESTARTS = "restarts"  # (granted, wished)
    IMPORTED = "imported"  # (cells, of)


MAX_TEXT_LENGTH: Final = 4 * MAX_REASON_LENGTH
"""Two reasons of people fit in, with who they are."""


class Cause(Record):
    """One thing that is so. `numbers` are in the units of their names: seconds, milliseconds, tokens, tokens a second, shares."""

    code: Annotated[Code | Identifier, Field(union_mode="left_to_right")]
    numbers: Annotated[dict[Identifier, int | float], Field(max_length=16)] = Field(default_factory=dict)
    text: Annotated[str, Field(max_length=MAX_TEXT_LENGTH)] = ""

    def __hash__(self) -> int:
        return hash((self.code, self.text))


MAX_CAUSES: Final = 64
"""Of one decision."""
Causes = tuple[Cause, ...]
SomeCauses = Annotated[Causes, Field(max_length=MAX_CAUSES)]
"""As they cross the wire."""


def because(code: Code, text: str = "", /, **numbers: float | None) -> Cause:
    """A cause with those numbers that are known. A text that is too long is cut, and no number is infinite."""
    known = {name: number for name, number in numbers.items() if number is not None}
    try:
        return Cause(code=code, numbers=known, text=text)
    except ValidationError:
        finite = {name: max(-MOST_SUM, min(MOST_SUM, number)) for name, number in known.items()}
        return Cause(code=code, numbers=finite, text=text[:MAX_TEXT_LENGTH])


@lru_cache(maxsize=1024)
def in_batches(code: Code, first_batch_size: int, last_batch_size: int, num_speculative_tokens: int | None = None) -> Cause:
    """A cause that is true from one batch to another. Remembered, since plans are asked every tick and have few."""
    batches = {"first_batch_size": first_batch_size, "last_batch_size": last_batch_size}
    return because(code, **batches, num_speculative_tokens=num_speculative_tokens)


def codes(causes: Causes) -> frozenset[str]:
    """What is so, without numbers."""
    return frozenset(cause.code for cause in causes)
