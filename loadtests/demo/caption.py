"""What a recorded run says in words: one sentence of what it shows, and what its charts are of.

The sentence is computed from the rows of the table. Where drafting pays nowhere it says so, with the step times that make it so. A
draft model sleeps under mode off, other drafters are kept in sync as vLLM does it, and the two make off cost differently, so the
words on off are taken from the samples. Fails closed: what was not measured is said to be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from nightjar.loadtests.arms.samples import StatusSample, decoding_replicas
from nightjar.loadtests.demo.summary import ALL_PHASES, PhaseSummary
from nightjar.policy.wire.cause import Code
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState
from nightjar.policy.words import step_codes

STAYED_OFF: Final = 0.9
"""Share of its steps from which on auto is said to have stayed off."""
MUCH: Final = 0.1
"""Share of the machine's processor time: what other programs took from there on is said."""
_SYSTEM: Final = (
    "Nothing here is simulated: real replicas of vLLM on Ray Serve answered real requests over HTTP on this machine's CPU. "
    "The target model's cost is inflated by layers that add exactly zero; its function is unchanged. So a small model can draft "
    "for it, as on a GPU. Absolute times say nothing about a GPU."
)
_ALONE: Final = (
    "Intervals are of this run alone: the modes ran one after the other, each once. nightjar compare plays them in turns, and "
    "judges."
)
_OFF: Final = {
    frozenset({DrafterState.DORMANT}): "With mode off the draft model slept: no step ran it.",
    frozenset({DrafterState.OFFLOADED}): "With mode off the draft model slept, its weights in host memory: no step ran it.",
    frozenset({DrafterState.IN_SYNC}): (
        "With mode off the drafter was kept in sync by vLLM (its own K = 0), so off may be slower than serving without one."
    ),
}


def arm_name(mode: str) -> str:
    """A mode as people say it: `pin=3` fixes K at 3.

    >>> arm_name("pin=3"), arm_name("auto")
    ('K=3', 'auto')
    """
    parsed = Mode.parse(mode)
    return f"K={parsed.num_speculative_tokens}" if parsed.kind == "pin" else mode


def arrivals(phases: Sequence[PhaseSummary], mode: str) -> list[PhaseSummary]:
    """A mode's phases with requests. What ran in the others was asked for before them."""
    return [row for row in phases if row.mode == mode and row.phase != ALL_PHASES and row.requests]


def sentence(phases: Sequence[PhaseSummary], modes: Sequence[str], others: Mapping[str, float] | None = None) -> str:
    """What a run shows, in one line, and before it what makes that worth little: `others` is RunSummary's."""
    found = _sentence(phases, modes)
    taken = max((others or {}).values(), default=0.0)
    if taken < MUCH:
        return found
    by_mode = ", ".join(f"{arm_name(mode)} {share:.0%}" for mode, share in (others or {}).items())
    return f"Of little worth, for other programs took up to {taken:.0%} of the processors meanwhile ({by_mode}): {found}"


def _sentence(phases: Sequence[PhaseSummary], modes: Sequence[str]) -> str:
    """One line: tokens per second of engine time of the last mode, and of those between, over the first one's; or that drafting
    does not pay, and why. It is of the first phase and of the busiest one, and of the last mode's last phase: it has learned by
    then, while a fixed K may still answer what the busiest phase left.
    """
    real = arrivals(phases, modes[0]) if modes else []
    if not real:
        return "Nothing was measured."
    busiest = max(real, key=lambda row: row.requests / row.duration_s)
    shown = list(dict.fromkeys((real[0].phase, busiest.phase)))
    found = _Found({(row.mode, row.phase): row for row in phases}, modes[0], shown)
    to_the_end = found._replace(phases=list(dict.fromkeys((*shown, real[-1].phase))))
    *fixed, last = modes[1:] or ("",)
    numbers = [f"{last}: {words}"] if (words := to_the_end.with_intervals(last)) else []
    numbers += [f"{arm_name(mode)}: {words}" for mode in fixed if (words := found.alone(mode))]
    if not numbers:
        return (
            f"Nothing can be compared: in {' and '.join(shown)} not every mode generated tokens, on a machine too slow or too busy."
        )
    said = f"{'; '.join(numbers)} (tokens per second of engine time)"
    if to_the_end.surely_gains(last) or any(found.surely_gains(mode) for mode in fixed):
        return said
    if any(found.gains(mode) for mode in fixed):
        return f"This run is too short to tell whether drafting pays on this processor. {said}"
    why = "".join(f": {words}" for mode in fixed[:1] if (words := found.step_times(mode)))
    return f"On this processor drafting does not pay{why}. {found.what_it_did(last)}{said}"


def demo_caption(samples: Sequence[StatusSample]) -> str:
    """The whole caption of a run with these samples."""
    return f"{_SYSTEM} {off_in_words(samples)} {_ALONE}"


def off_in_words(samples: Sequence[StatusSample]) -> str:
    """What the drafters did under mode off, as their replicas said while they decoded."""
    states = Counter(replica.drafter_state for replica in decoding_replicas(samples, "off"))
    if not states:
        return "No replica was sampled decoding with mode off, so nothing is known of its drafter there."
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return _OFF.get(frozenset(states), f"With mode off the drafters were sampled in these states: {counted}.")


def learning_in_words(samples: Sequence[StatusSample], mode: str) -> str:
    """How much of a mode's run went into measuring, as its replicas said while they decoded."""
    causes = [step_codes(replica) for replica in decoding_replicas(samples, mode)]
    if not causes:
        return f"No replica was sampled decoding with mode {mode}."
    measuring = sum(Code.SEGMENT in codes for codes in causes)
    return (
        f"{mode} began without knowledge. While it learned it measured a K in {measuring} of {len(causes)} samples of a decoding "
        f"replica ({measuring / len(causes):.0%}); that time counts in its numbers."
    )


class _Found(NamedTuple):
    """The table's rows by mode and phase, what they are compared with, and the phases that are told."""

    rows: dict[tuple[str, str], PhaseSummary]
    reference: str
    phases: list[str]

    def _speeds(self, mode: str) -> list[tuple[PhaseSummary, float]]:
        found = [self.rows[mode, phase] for phase in self.phases if (mode, phase) in self.rows]
        return [(row, row.speed) for row in found if row.speed is not None]

    def with_intervals(self, mode: str) -> str:
        """`1.24 of off in quiet (1.17 to 1.31), 0.98 in surge (0.95 to 1.01)`."""
        words: list[str] = []
        for row, speed in self._speeds(mode):
            over = f" ({row.speed_interval.low:.2f} to {row.speed_interval.high:.2f})" if row.speed_interval else ""
            words.append(f"{speed:.2f}{'' if words else f' of {self.reference}'} in {row.phase}{over}")
        return ", ".join(words)

    def alone(self, mode: str) -> str:
        """`1.25 and 0.71`, in the same phases."""
        return " and ".join(f"{speed:.2f}" for _, speed in self._speeds(mode))

    def gains(self, mode: str) -> bool:
        return any(speed > 1 for _, speed in self._speeds(mode))

    def surely_gains(self, mode: str) -> bool:
        return any(row.speed_interval is not None and row.speed_interval.side == "above" for row, _ in self._speeds(mode))

    def step_times(self, mode: str) -> str:
        """Why a K does not pay in the first phase; empty where a step was not timed."""
        mine, theirs = (_step(self.rows.get((arm, self.phases[0]))) for arm in (mode, self.reference))
        if mine is None or theirs is None:
            return ""
        return (
            f"in {self.phases[0]} a step at {arm_name(mode)} takes {mine.seconds * 1e3:.0f} ms for {self.reference}'s "
            f"{theirs.seconds * 1e3:.0f}, {mine.seconds / theirs.seconds:.1f} times as long, and generates "
            f"{mine.tokens / theirs.tokens:.1f} times the tokens"
        )

    def what_it_did(self, mode: str) -> str:
        """Whether a mode stayed off, and what it cost over the whole run; empty where that is not known."""
        row = self.rows.get((mode, ALL_PHASES))
        if row is None or row.speed is None or row.share_of_steps_off is None:
            return ""
        cost = round(100 * (1 - row.speed))
        off = row.share_of_steps_off
        did = f"stayed off ({off:.0%} of its steps)" if off >= STAYED_OFF else f"drafted in {1 - off:.0%} of its steps"
        return f"{mode} {did} and cost {f'{cost} %' if cost > 0 else 'nothing'}. "


class _Step(NamedTuple):
    seconds: float
    tokens: float


def _step(row: PhaseSummary | None) -> _Step | None:
    """The mean step of a phase, over all engines."""
    if row is None or not row.steps or row.engine_seconds_per_token is None:
        return None
    tokens = row.tokens_per_s * row.duration_s / row.steps
    return _Step(row.engine_seconds_per_token * tokens, tokens)
