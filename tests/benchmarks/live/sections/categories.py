"""What is accepted of prompts of each category, at K = 3 and few requests in flight: why one K does not fit all traffic.

Categories come from a file of JSON lines with `category` and `turns`, as Spec-Bench's; its first turns are asked, long ones left
out. Survival by position is seen by the clients, event by event; the engines' counters tell the mean, and both must agree. One
category is asked at a time, of both replicas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from nightjar.loadtests.arms.samples import StatusSample, all_work
from nightjar.loadtests.arms.statistics import RESAMPLES, Interval, interval_of_resamples
from nightjar.loadtests.load.prompts import PromptsError, read_texts
from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.live.answers import Answer, acceptance_seen
from tests.benchmarks.live.applications import OURS
from tests.benchmarks.live.crowd import Crowd, Deck
from tests.benchmarks.live.effort import Effort
from tests.benchmarks.live.playing import Player, Window
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.measuring.statistics import survival

ARM: Final = "K=3"
LENGTH: Final = 3
MOST_ROWS: Final = 4
"""Requests in flight at each replica."""
MAX_PROMPT_CHARACTERS: Final = 1600
"""About 400 tokens: with the answer they fit the engine's longest context, and reading them does not take the whole time."""
REPORTED_AFTER_S: Final = 1.5
"""What the engines have counted last is known to the policy by then."""


def short_prompts(path: Path) -> dict[str, list[str]]:
    """First turns by what each line names as `category`, without those that are too long. Raises PromptsError."""
    found: dict[str, list[str]] = {}
    for text in read_texts(path):
        if not text.category:
            raise PromptsError(f"{path}:{text.line}: no 'category' is there; allowed is a text")
        if len(text.turns[0]) <= MAX_PROMPT_CHARACTERS:
            found.setdefault(text.category, []).append(text.turns[0])
    if not found:
        raise PromptsError(f"prompts file {path} holds no prompt of at most {MAX_PROMPT_CHARACTERS} characters")
    return found


def measure_categories(player: Player, effort: Effort, categories: Mapping[str, Sequence[str]], seed: int, tell: Tell) -> Outcome:
    """Every category once."""
    outcome = Outcome()
    rows: list[dict[str, Any]] = []
    lines = []
    for category, prompts in sorted(categories.items()):
        seen, answers = _ask(player, effort, prompts)
        accepted = survival(*acceptance_seen(answers, LENGTH))
        length, interval = acceptance_length(answers, seed)
        by_engines = _engines_length(seen)
        told = f"{length:.2f} ({interval.low:.2f} to {interval.high:.2f}, {interval.kind})"
        bar = Bar(
            name=f"acceptance_{category}",
            meaning=f"tokens a step at {ARM}, prompts of the category {category}",
            direction="stated",
            value=length,
            interval=interval,
            at=f"{len(answers)} answers, by position {', '.join(f'{share:.2f}' for share in accepted)}",
            cells=len(answers),
        )
        outcome.bars.append(bar)
        rows.append({
            "category": category, "prompts": len(prompts), "answers": len(answers), "tokens": sum(one.tokens for one in answers),
            "acceptance": [round(share, 4) for share in accepted], "acceptance_length": round(length, 3),
            "interval": interval.model_dump(), "acceptance_length_by_engines": round(by_engines, 3),
        })  # fmt: skip
        lines.append([category, str(len(answers)), *(f"{share:.2f}" for share in accepted), told, f"{by_engines:.2f}"])
        tell(f"category {category}: {told} tokens a step at {ARM}, {by_engines:.2f} by the engines' counters")
    outcome.facts = {row["category"]: {name: row[name] for name in ("acceptance", "acceptance_length", "interval")} for row in rows}
    outcome.rows["categories"] = rows
    positions = [f"S{position + 1}" for position in range(LENGTH)]
    columns = ("category", "answers", *positions, "tokens a step", "by the engines")
    outcome.tables.append(Grid(f"Acceptance by category of prompts at {ARM}", columns, lines))
    return outcome


def acceptance_length(answers: Sequence[Answer], seed: int) -> tuple[float, Interval]:
    """Tokens a step, and an interval from drawing whole answers anew: steps of one answer resemble each other."""
    counts = np.array([_accepted_and_steps(answer) for answer in answers], dtype=float).reshape(-1, 2)
    counts = counts[counts[:, 1] > 0]
    if not len(counts):
        return 1.0, Interval(low=1.0, high=1.0, kind="no answer with drafts")
    drawn = counts[np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))].sum(axis=1)
    accepted, steps = counts.sum(axis=0)
    interval = interval_of_resamples(1.0 + drawn[:, 0] / drawn[:, 1], f"{len(counts)} answers")
    return float(1.0 + accepted / steps), interval


def _accepted_and_steps(answer: Answer) -> tuple[int, int]:
    reached, accepted = acceptance_seen([answer], LENGTH)
    return sum(accepted), reached[0]


def _engines_length(seen: Window) -> float:
    """Tokens a step by the engines' counters: each row that verified drafts verified LENGTH of them, the last ones of an answer
    fewer."""
    work = all_work(seen.work)
    return 1.0 + LENGTH * work.accepted_tokens / work.draft_tokens if work.draft_tokens else 1.0


def _ask(player: Player, effort: Effort, prompts: Sequence[str]) -> tuple[Window, list[Answer]]:
    """The first prompts, at both replicas, until every one is answered."""
    each = max(min(len(prompts), effort.category_requests) // len(OURS), 1)
    users = min(MOST_ROWS, each)
    deck = Deck(lambda number: prompts[number % len(prompts)], 0, users, effort.category_tokens, turns=lambda _: each // users)

    async def script(crowd: Crowd) -> tuple[StatusSample, StatusSample]:
        first = await player.look()
        crowd.resize(users)
        await crowd.finished()
        await asyncio.sleep(REPORTED_AFTER_S)
        return first, await player.look()

    (first, last), answers = player.play(ARM, OURS, deck, script)
    return player.window(answers, first, last), answers
