"""The longest step while a draft leaves and while it comes back, over the OFF steps around it, with the same rows in flight.

In turns: OFF steps, those in which the draft leaves, OFF steps, those in which it comes back (the pool shrinks first), OFF steps.
Memory is said to be short before one step, instead of filling it; everything after that is the product's. Moves in which somebody
else had the core for long are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from nightjar.loadtests.simulation.evidence.bars import Bar
from nightjar.loadtests.simulation.evidence.grid import Grid
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.wire.settings import OffloadRules
from tests.benchmarks.engine.effort import Effort
from tests.benchmarks.engine.engines import Engine, held
from tests.benchmarks.engine.fixture import questions
from tests.benchmarks.engine.measured import LEAST_CORE_SHARE
from tests.benchmarks.engine.step_record import Step, core_share
from tests.benchmarks.measuring.outcome import Outcome, Tell
from tests.benchmarks.measuring.statistics import range_of

RULES: Final = OffloadRules(free_share_below=0.9, pressure_s=0.0, reload_free_share=0.0)
OFF_STEPS: Final = 8
LENGTH: Final = 2
MAX_TOKENS: Final = 180
"""Of a row: it outlasts both moves, and all rows' blocks fit beside the loaded draft."""
MOST_STEPS: Final = 120
MOST_TRIES: Final = 3
LONGEST_WANTED: Final = 1.5


@dataclass(frozen=True, slots=True)
class Move:
    """One of the two, and the OFF steps around it."""

    name: str
    batch: int
    around: tuple[Step, ...]
    beside: tuple[Step, ...]

    @property
    def longest_over_off(self) -> float:
        """The longest step beside the move over the median OFF step."""
        return max(step.seconds for step in self.beside) / median(step.seconds for step in self.around)

    @property
    def longest_off_over_off(self) -> float:
        """What the longest OFF step is over the median one: how far the machine alone goes."""
        return max(step.seconds for step in self.around) / median(step.seconds for step in self.around)

    @property
    def core_share(self) -> float:
        """Of all its steps."""
        return core_share([*self.around, *self.beside])

    def plain(self) -> dict[str, Any]:
        """For the raw rows."""
        return {
            "move": self.name,
            "batch": self.batch,
            "off_seconds": [round(step.seconds, 5) for step in self.around],
            "seconds": [round(step.seconds, 5) for step in self.beside],
            "off_cpu_seconds": [round(step.cpu_seconds, 5) for step in self.around],
            "cpu_seconds": [round(step.cpu_seconds, 5) for step in self.beside],
            "states": [step.drafter_state for step in self.beside],
            "longest_over_off": round(self.longest_over_off, 4),
            "core_share": round(self.core_share, 4),
        }


def measure_moves(engine: Engine, effort: Effort, tell: Tell) -> Outcome:
    """The bars of leaving and coming back, on an engine whose draft lends its memory."""
    moves: list[Move] = []
    for batch in effort.restart_batches:
        for _ in range(effort.move_rounds):
            moves += _undisturbed(engine, batch)
            tell(f"batch {batch}: " + ", ".join(f"longest step {one.longest_over_off:.2f} while {one.name}" for one in moves[-2:]))
    return _outcome(moves)


def _undisturbed(engine: Engine, batch: int) -> list[Move]:
    for _ in range(MOST_TRIES):
        moves = _round(engine, batch)
        if min(move.core_share for move in moves) >= LEAST_CORE_SHARE:
            break
    return moves


def _round(engine: Engine, batch: int) -> list[Move]:
    engine.adopt(held(0).model_copy(update={"offload": RULES}))
    engine.add(engine.encode(questions(batch)), MAX_TOKENS)
    engine.run_prefill()
    engine.run()
    before = engine.run(OFF_STEPS)
    offloads, reloads = engine.moves()
    engine.press()
    leaving = _until(engine, lambda: engine.moves()[0] > offloads)
    between = engine.run(OFF_STEPS)
    _grant(engine)
    coming = _until(engine, lambda: engine.moves()[1] > reloads)
    engine.adopt(held(0).model_copy(update={"offload": RULES}))
    engine.run()
    after = engine.run(OFF_STEPS)
    engine.abort()
    return [
        Move("leaving", batch, (*before, *between), tuple(leaving)),
        Move("coming back", batch, (*between, *after), tuple(coming)),
    ]


def _until(engine: Engine, is_done: Callable[[], bool]) -> list[Step]:
    taken: list[Step] = []
    while not is_done():
        taken += engine.run()
        if len(taken) > MOST_STEPS:
            raise RuntimeError(f"no end of the move in {MOST_STEPS} steps: the draft is {taken[-1].drafter_state}")
    return taken


def _grant(engine: Engine) -> None:
    """Want drafts, and have the lease that the engine then wishes for. Where it wishes for none, that of an earlier move holds."""
    wanted = held(LENGTH).model_copy(update={"offload": RULES})
    engine.adopt(wanted)
    engine.run()
    engine.grant(wanted)


def _outcome(moves: Sequence[Move]) -> Outcome:
    bars = []
    for name, bar in (("leaving", "offload_longest_step"), ("coming back", "reload_longest_step")):
        longest = [move.longest_over_off for move in moves if move.name == name]
        bars.append(
            Bar(
                name=bar,
                meaning=f"longest step while a draft is {name} over an OFF step around it, median over moves",
                direction="at most",
                limit=LONGEST_WANTED,
                value=median(longest),
                interval=range_of(longest, "moves"),
                at=f"{len(longest)} moves",
                cells=len(longest),
            )
        )
    lines = [
        [
            move.name,
            str(move.batch),
            f"{median(step.seconds for step in move.around):.3f}",
            str(len(move.beside)),
            str(sum(step.drafter_state == DrafterState.CONTRACTING.value for step in move.beside)),
            f"{sum(step.seconds for step in move.beside):.2f}",
            f"{move.longest_over_off:.2f}",
            f"{move.longest_off_over_off:.2f}",
        ]
        for move in moves
    ]
    heading = ("move", "batch", "OFF step s", "steps", "contracting", "seconds", "longest", "longest OFF")
    outcome = Outcome(bars=bars, rows={"moves": [move.plain() for move in moves]})
    outcome.facts = {
        "longest_off_step_over_off": round(median(move.longest_off_over_off for move in moves), 3),
        "longest_step_of_all_moves": round(max(move.longest_over_off for move in moves), 3),
    }
    outcome.tables.append(Grid("A draft that leaves and comes back: steps beside it over an OFF step", heading, lines))
    return outcome
