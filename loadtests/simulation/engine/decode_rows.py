"""The rows of a simulated engine that decode: what each still has to generate, holds and lacks, as arrays over the rows.

A step must cost microseconds, so nothing here loops over rows except where one joins or leaves: acceptance is drawn for many steps
at once, steps that verify no drafts only move one common offset, and a row that leaves is replaced by the last one. Growth of a
row's blocks is booked in arrears (`try_book_blocks`); the scheduler bounds it from above in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nightjar.loadtests.simulation.engine.acceptance_classes import AcceptanceClasses
from nightjar.loadtests.simulation.engine.random_numbers import PLACES, RequestDraws
from nightjar.loadtests.simulation.engine.requests import SimulatedRequest

DRAWN_STEPS: Final = 64
"""Steps for which acceptance is drawn at once."""
FIRST_CAPACITY: Final = 16
NEVER: Final = 1 << 60
UNKNOWN: Final = (-1, 0, 0)
"""No composition of the rows."""

Integers = NDArray[np.int64]
_STEPS: Final[Integers] = np.arange(DRAWN_STEPS)[:, None]


class DecodeRows:
    """All decoding rows of one engine."""

    def __init__(self, classes: AcceptanceClasses, draws: RequestDraws) -> None:
        self.requests: list[SimulatedRequest] = []
        self.count = 0
        self.context_tokens = 0
        """Sum over the rows of their tokens in the KV cache."""
        self.lag_tokens = 0
        """Those of them whose draft KV is missing."""
        self.class_counts = [0] * len(classes)
        self.composition = 0
        """Rises whenever a row joins or leaves."""
        self._classes = classes
        self._source = draws
        self._longest = classes.survival.shape[1]
        self._offset = 0
        self._least_left = NEVER
        self._drawn_at = DRAWN_STEPS
        self._capacity = 0
        self._state: Integers = np.zeros((6, 0), dtype=np.int64)
        self._drawn: Integers = np.ones((DRAWN_STEPS, 0), dtype=np.int64)
        self._grow()
        self._one_more: list[Integers] = [np.array(k + 1, dtype=np.int64) for k in range(self._longest + 1)]
        self._behind = False  # whether some draft KV is missing; only then `valid` means anything
        self._caught_up: NDArray[np.bool_] | None = None
        self._longest_lag = UNKNOWN

    @property
    def any_finished(self) -> bool:
        """Whether a row has generated all that it should."""
        return self._least_left <= self._offset

    @property
    def longest_lag_tokens(self) -> int:
        """The largest lag of one row; asked for before every step, and one more after each that drafted nothing."""
        if not self._behind or not self.count:
            return 0
        composition, lag_tokens, offset = self._longest_lag
        if composition != self.composition:
            lag_tokens, offset = int((self._contexts() - self._valid[: self.count]).max()), self._offset
            self._longest_lag = self.composition, lag_tokens, offset
        return lag_tokens + self._offset - offset

    @property
    def held_blocks(self) -> int:
        """Blocks booked for all rows."""
        return int(self._held[: self.count].sum())

    def join(self, request: SimulatedRequest) -> None:
        """Add a row for a request whose prompt (and earlier output) is computed and whose next token was just sampled."""
        row, kind = self.count, request.acceptance_class
        if row == self._capacity:
            self._grow()
        left = request.output_tokens - request.generated_tokens
        context = request.prefill_tokens - 1
        if not self._behind and request.draft_tokens < context:
            self._fall_behind()
        self.count += 1
        self.requests.append(request)
        drawn_from, to_draw = self._source.place(request.number, request.draws), DRAWN_STEPS - self._drawn_at
        draft_tokens = min(request.draft_tokens, context)
        self._state[:, row] = (left + self._offset, context + left, draft_tokens, request.held_blocks, kind, drawn_from + to_draw)
        self._least_left = min(self._least_left, left + self._offset)
        self.context_tokens += context
        if self._behind:
            self.lag_tokens += context - draft_tokens
        self.class_counts[kind] += 1
        self.composition += 1
        if to_draw:
            rises = self._classes.survival[kind][::-1]
            missed = np.searchsorted(rises, self._source.numbers[drawn_from : drawn_from + to_draw], side="right")
            self._drawn[self._drawn_at :, row] = self._longest + 1 - missed

    def survival(self, drafted: int) -> NDArray[np.float64]:
        """(rows, K): the probability that more than i of so many drafts of each row would be accepted, by its class."""
        survival: NDArray[np.float64] = self._classes.survival[self._class[: self.count], :drafted]
        return survival

    def advance(
        self, verified: int, *, draft_runs: bool, best_of: int = 0, admit: Callable[[Integers], Integers] | None = None
    ) -> tuple[int, list[int]]:
        """Run a step that verifies `verified` drafts per row: tokens generated, and accepted[i] as in StepCount.

        `draft_runs`: whether the drafter takes the step's tokens in, where it lacks nothing before them. With `best_of` each row
        has so many drafts, and of all of them as many are verified as make `verified` per row, the likeliest of their classes;
        accepted ends with the mean then. `admit` says how many drafts of each row are verified, given how many would be accepted if
        all were. A row may generate more than it should; `take_finished` gives the surplus back.
        """
        rows = self.count
        if not draft_runs and not self._behind:
            self._fall_behind()
        if verified:
            accepted = self._verify(verified, best_of, admit)
            generated = rows + sum(accepted)
            accepted = accepted[:verified]
        else:
            accepted = []
            generated = rows
            self._offset += 1
        self.context_tokens += generated
        if self._behind:
            self._lag_behind(generated)
        return generated, accepted

    def catch_up(self, tokens: int) -> None:
        """Let the draft compute up to `tokens` of the lag in the step about to advance, row after row.

        Beside them it reads the newest token of each row that misses nothing else, and as many missing ones where a row does: so
        does engine.scheduler.catch_up_plan.
        """
        if tokens >= self.lag_tokens:
            self._behind = False
            self.lag_tokens = 0
            return
        lags = self._contexts() - self._valid[: self.count]
        filled = np.clip(tokens + self.count - (np.cumsum(lags + 1) - lags - 1), 0, lags)
        self._valid[: self.count] += filled
        self._caught_up = filled == lags

    def forget_draft(self) -> None:
        """The draft's KV is gone: everything is lag."""
        self._behind = True
        self._longest_lag = UNKNOWN
        self._valid[: self.count] = 0
        self.lag_tokens = self.context_tokens

    def take_finished(self) -> tuple[list[SimulatedRequest], int]:
        """Remove the rows that are done: their requests, and how many tokens they generated beyond what they should."""
        finished, surplus = [], 0
        while self._least_left <= self._offset:
            surplus += self._offset - self._least_left
            finished.append(self.remove(int(self._left[: self.count].argmin())))
        return finished, surplus

    def remove(self, row: int) -> SimulatedRequest:
        """Take one row out: its request, with its tokens and blocks up to date."""
        left, final, valid, held, kind, next_draw = self._state[:, row].tolist()
        request = self.requests[row]
        request.draws = (next_draw - (DRAWN_STEPS - self._drawn_at) - self._source.place(request.number, 0)) % PLACES
        context = final - left + self._offset
        self.context_tokens -= context
        if self._behind:
            self.lag_tokens -= context - valid
        request.generated_tokens = request.output_tokens - max(left - self._offset, 0)
        request.held_blocks = held
        self.class_counts[kind] -= 1
        self.composition += 1
        last = self.count = self.count - 1
        if row != last:
            self._state[:, row] = self._state[:, last]
            self._drawn[self._drawn_at :, row] = self._drawn[self._drawn_at :, last]
            self.requests[row] = self.requests[last]
        self.requests.pop()
        remaining = self._left[:last]
        self._least_left = int(remaining[remaining.argmin()]) if last else NEVER
        return request

    def try_book_blocks(self, tokens_ahead: int, block_size: int, free_blocks: int) -> int | None:
        """Bring every row's blocks up to its context and `tokens_ahead` more: blocks that took, or None for more than are free."""
        held = self._held[: self.count]
        wanted = np.maximum(held, (self._contexts() + (tokens_ahead + block_size - 1)) // block_size)
        grown = int(wanted.sum()) - int(held.sum())
        if grown > free_blocks:
            return None
        held[:] = wanted
        return grown

    def generated_tokens(self) -> int:
        """Sum of what the rows have generated."""
        outputs = sum(request.output_tokens for request in self.requests)
        return outputs - int((self._left[: self.count] - self._offset).sum())

    def check_integrity(self) -> None:
        """Raise AssertionError where the sums are not those of the rows (SIM-6 among them)."""
        contexts = self._contexts()
        lags = contexts - self._valid[: self.count] if self._behind else 0 * contexts
        assert len(self.requests) == self.count == sum(self.class_counts)
        assert self.context_tokens == contexts.sum()
        assert self.lag_tokens == lags.sum()
        assert (lags >= 0).all()
        assert self.longest_lag_tokens == (lags.max() if self.count else 0)
        assert (self._left[: self.count] > self._offset).all()

    def draw_anew(self) -> None:
        """What is drawn already counts by the acceptance that was: draw it again."""
        self._next_draw[: self.count] -= DRAWN_STEPS - self._drawn_at
        self._drawn_at = DRAWN_STEPS

    def _grow(self) -> None:
        """Make room for twice as many rows: most engines of a large fleet need few."""
        added = max(self._capacity, FIRST_CAPACITY)
        self._capacity += added
        self._state = np.pad(self._state, ((0, 0), (0, added)))
        self._drawn = np.pad(self._drawn, ((0, 0), (0, added)))
        self._scratch: Integers = np.empty(self._capacity, dtype=np.int64)
        # Row i still generates left[i] - offset tokens and has final[i] - left[i] + offset tokens in the cache.
        self._left, self._final, self._valid, self._held, self._class, self._next_draw = self._state

    def _contexts(self) -> Integers:
        contexts: Integers = self._final[: self.count] - self._left[: self.count] + self._offset
        return contexts

    def _verify(self, verified: int, best_of: int, admit: Callable[[Integers], Integers] | None) -> list[int]:
        rows, at = self.count, self._drawn_at
        self._longest_lag = UNKNOWN
        if at == DRAWN_STEPS:
            self._draw()
            at = 0
        self._drawn_at = at + 1
        tokens = self._drawn[at, :rows]
        if best_of > verified:
            tokens = np.minimum(tokens, 1 + self._likeliest(verified, best_of), out=self._scratch[:rows])
        elif admit is not None:
            tokens = np.minimum(tokens, 1 + admit(tokens - 1), out=self._scratch[:rows])
        elif verified < self._longest:
            tokens = np.minimum(tokens, self._one_more[verified], out=self._scratch[:rows])
        if self.lag_tokens:
            tokens = np.where(self._contexts() > self._valid[:rows], 1, tokens)  # a draft with a hole in its KV guesses wrong
        left = self._left[:rows]
        left -= tokens
        self._least_left = int(left[left.argmin()])
        rows_by_tokens = np.bincount(tokens, minlength=max(verified, best_of) + 2).tolist()
        return list(accumulate(reversed(rows_by_tokens[2:])))[::-1]

    def _likeliest(self, verified: int, best_of: int) -> Integers:
        """How many drafts of each row are verified where the likeliest of all are; an earlier one of a row is never less likely."""
        rows = self.count
        survival = self._classes.survival[self._class[:rows], :best_of]
        chosen = np.argsort(-survival.T, axis=None, kind="stable")[: rows * verified]
        return np.bincount(chosen % rows, minlength=rows)

    def _draw(self) -> None:
        """Tokens that each row would generate in each of the next steps if it verified the longest drafts."""
        rows = self.count
        tokens = self._drawn[:, :rows]
        tokens.fill(1)
        next_draw = self._next_draw[:rows]
        next_draw %= PLACES
        draws = self._source.numbers[_STEPS + next_draw]
        next_draw += DRAWN_STEPS
        for survival in self._classes.survival[self._class[:rows]].T:
            tokens += draws < survival

    def _fall_behind(self) -> None:
        self._behind = True
        self._longest_lag = UNKNOWN
        self._valid[: self.count] = self._contexts()

    def _lag_behind(self, generated: int) -> None:
        if self._caught_up is None:
            self.lag_tokens += generated
            return
        contexts, valid = self._contexts(), self._valid[: self.count]
        valid[self._caught_up] = contexts[self._caught_up]
        self.lag_tokens = int((contexts - valid).sum())
        self._caught_up = None
        self._longest_lag = UNKNOWN
