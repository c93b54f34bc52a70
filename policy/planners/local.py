"""Planners that run inside the engine and decide step by step, as published single-engine controllers do.

A group planner (base.py) answers once a second with a table; the controllers of the literature look at every decode step
and learn from it. A `settings.Local` plan names one of these, `Steering` builds and asks it, and bounds what it answers. Such
a planner sees one engine only. It holds state, so it belongs to the step loop's thread, and it may raise: the step loop fails
open. What it cannot be built from is refused with one line, and the settings in force stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

LocalOptions = Mapping[str, float | int | str | bool]
"""`settings.Local.options`: flat, because they travel in settings."""


class LocalOptionsError(ValueError):
    """Options that a local planner cannot be built from. The message names the option, the value seen and what is allowed."""


class StepView(NamedTuple):
    """What is known before a step."""

    decode_batch_size: int
    context_tokens: int
    """Sum over the decode rows of their tokens in the KV cache."""
    previous_num_speculative_tokens: int
    """K of the step before, with or without prefill."""
    lag_tokens: int
    """Sum over the decode rows of tokens whose draft KV is missing; 0 where unknown or in sync."""
    longest_lag_tokens: int
    """The largest lag of one row."""
    now_s: float
    prefill_tokens: int = 0
    """Prompt tokens that the step computes."""


class StepOutcome(NamedTuple):
    """What a pure decode step did. A step that recomputed draft KV (catch-up) is none of these: its time belongs to no K."""

    num_speculative_tokens: int
    decode_rows: int
    context_tokens: int
    generated_tokens: int
    step_seconds: float
    reached: Sequence[int]
    """reached[i]: decode rows that verified more than i draft tokens."""
    accepted: Sequence[int]
    """accepted[i]: decode rows of which more than i draft tokens were accepted."""
    settled: bool = True
    """Whether K was held long enough that time and output belong to it: a step verifies the drafts of the step before."""


class LocalPlanner(Protocol):
    """One engine's planner. Deterministic for a seed."""

    plans_mixed_steps: bool
    """Whether it chooses K for steps with prefill, too. Published planners do not: there their K never rises."""

    def choose(self, view: StepView) -> int:
        """K for the step about to run, a pure decode step unless `plans_mixed_steps`. Steering lowers it to an allowed one."""

    def in_mixed_step(self, view: StepView) -> int:
        """K that a step with prefill may fall to, unless `plans_mixed_steps`. Moves nothing and draws nothing."""

    def learn(self, outcome: StepOutcome) -> None:
        """Take in a finished step. With async scheduling it may not be the one chosen last."""


class LocalContext(NamedTuple):
    """The engine that a local planner is built for.

    `before` is the planner of the same name whose options alone changed: one may go on with what that has learned.
    """

    max_num_speculative_tokens: int
    max_num_seqs: int
    allowed: tuple[int, ...]
    """The K that may run, ascending, 0 first."""
    seed: int
    before: LocalPlanner | None = None


LocalPlannerFactory = Callable[[LocalOptions, LocalContext], LocalPlanner]
"""Raises LocalOptionsError for options that it does not know or that are out of range."""


def refuse_unknown(options: LocalOptions, known: Sequence[str]) -> None:
    """Raise LocalOptionsError if `options` names one that the planner does not have.

    >>> refuse_unknown({"widow": 3}, ("window", "prior"))
    Traceback (most recent call last):
    nightjar.policy.planners.local.LocalOptionsError: option 'widow' is unknown; allowed are prior, window
    """
    for name in options:
        if name not in known:
            raise LocalOptionsError(f"option {name!r} is unknown; allowed are {', '.join(sorted(known)) or 'none'}")


def number_option(options: LocalOptions, name: str, default: float, least: float, most: float) -> float:
    """The number that an option holds, or `default`. Raises LocalOptionsError outside `least`..`most`.

    >>> number_option({"window": 5}, "window", 10, 1, 100), number_option({}, "window", 10, 1, 100)
    (5, 10)
    """
    value = options.get(name, default)
    if isinstance(value, bool | str) or not least <= value <= most:
        raise LocalOptionsError(f"option {name} is {value!r}; allowed is a number from {least} to {most}")
    return value


def text_option(options: LocalOptions, name: str, default: str) -> str:
    """The text that an option holds, or `default`. Raises LocalOptionsError for anything that is no text."""
    value = options.get(name, default)
    if not isinstance(value, str):
        raise LocalOptionsError(f"option {name} is {value!r}; allowed is text")
    return value


def flag_option(options: LocalOptions, name: str, default: bool) -> bool:
    """The truth value that an option holds, or `default`. Raises LocalOptionsError for anything else."""
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise LocalOptionsError(f"option {name} is {value!r}; allowed are true and false")
    return value
