"""What the phases ask beside the scenarios, so that one plain engine can answer all of it for comparison."""

from __future__ import annotations

from typing import Final

from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.lending import crowd

CATCH_UP: Final = "catch-up"
LENDING: Final = "lending"
FAULT: Final = "fault"
ACTIVE_STEPS: Final = 6
"""Steps before a drafter is put to sleep."""
CATCH_UP_STEPS: Final = 24
"""Steps, at least, that are left after it is woken."""
BACK_REQUESTS: Final = "back"
STEPS_BEFORE: Final = 12
STEPS_OFF: Final = 48
STEPS_BACK: Final = 24
TOPICS: Final = ("a lighthouse", "the tides", "an old clock", "bread", "a night train", "maps", "a glacier", "the moon")
ASKS: Final = (
    "Write a short story about {}.",
    "Explain to a child what {} means.",
    "List ten facts about {}.",
    "Describe {} in plain words.",
)


def all_requests(chosen: Chosen) -> dict[str, list[GenerationRequest]]:
    """By the phase that asks."""
    asked = {f"{CATCH_UP}-{lag}": catch_up_requests(chosen, lag) for lag in chosen.sizes.lags_tokens}
    asked |= {f"{LENDING}-{cycle}": crowd(chosen.sizes.lending_tokens, cycle) for cycle in range(chosen.sizes.lending_cycles)}
    return asked | {FAULT: fault_requests(), BACK_REQUESTS: back_requests()}


def catch_up_requests(chosen: Chosen, lag_tokens: int) -> list[GenerationRequest]:
    """Long enough that each misses `lag_tokens` and generates on afterwards, whatever was accepted before."""
    most = 4 * ACTIVE_STEPS + lag_tokens + 4 * CATCH_UP_STEPS
    options = {"temperature": 0.0, "max_tokens": min(most, chosen.sizes.max_model_len - 64), "ignore_eos": True}
    return [
        GenerationRequest(f"lag{lag_tokens}-{index}", prompt(index), options)
        for index in range(min(chosen.sizes.batch_sizes[3], 4))
    ]


def back_requests(prefix: str = BACK_REQUESTS) -> list[GenerationRequest]:
    """Long enough for an off stretch and what comes after it, if every draft is accepted before and after."""
    options = {"temperature": 0.0, "max_tokens": 4 * (STEPS_BEFORE + STEPS_BACK) + STEPS_OFF, "ignore_eos": True}
    return [GenerationRequest(f"{prefix}-{index}", prompt(index + 100), options) for index in range(4)]


def fault_requests() -> list[GenerationRequest]:
    """For an engine whose steering fails on the way."""
    options = {"temperature": 0.0, "max_tokens": 32, "ignore_eos": True}
    return [GenerationRequest(f"fault-{index}", prompt(index), options) for index in range(3)]


def prompt(number: int) -> str:
    """One of as many as are needed; the next ones are all different."""
    ask, topic = ASKS[number % len(ASKS)], TOPICS[number // len(ASKS) % len(TOPICS)]
    return f"{ask.format(topic)} ({number})\n"
