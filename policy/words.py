"""Causes in words: the one place that turns codes and numbers into what people read (policy/wire/cause.py).

Fails towards saying less: a code that a newer release invented is said by its name, and a number that is missing counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from nightjar.policy.wire.cause import Cause, Causes, Code, codes
from nightjar.policy.wire.status import NO_NEW, ReplicaStatus

NOT_MEASURED: Final = "~ not measured itself, told by its neighbours"
"""What the mark of a predicted number means; `predicted` sets it."""


def in_words(causes: Iterable[Cause]) -> str:
    """Causes as `status`, its page and a difference of a replay say them.

    >>> from nightjar.policy.wire.cause import because
    >>> who = because(Code.SET_BY, "fleet by hand")
    >>> in_words([because(Code.MODE, "pin=9"), who, because(Code.LOWERED, num_speculative_tokens=5)])
    "mode pin=9 set by fleet by hand, lowered to K=5: the engine's maximum is 5"
    >>> in_words([because(Code.WAITS_FOR_LEASE), because(Code.FROZEN), because(Code.IMPORTED, cells=2, of=9)])
    'waits for a lease: none is granted while the fleet is frozen; 2 of 9 cells imported, not measured here'
    """
    return _joined(causes, _SHORT)


def explained(causes: Iterable[Cause]) -> str:
    """Causes as `explain` says them: at length, each in a statement of its own."""
    return _joined(causes, _AT_LENGTH)


def step_codes(replica: ReplicaStatus) -> frozenset[str]:
    """Why an engine's last step ran its K; of a status of a release before codes by the sentence that it has instead."""
    return codes(replica.step_causes or _STEPS_BY_WORDS.get(replica.decision_reason, ()))


def has_guesses(causes: Iterable[Cause]) -> bool:
    """Whether their words have a number that was not measured itself (NOT_MEASURED)."""
    return any(
        given in cause.numbers and steps not in cause.numbers
        for cause in causes
        if cause.code in {Code.BETTER, Code.TOO_SMALL, Code.OFF_BEST}
        for given, steps in (("tokens_per_s", "clean_steps"), ("off_tokens_per_s", "off_clean_steps"))
    )


def speculation(num_speculative_tokens: int) -> str:
    """K in words: `off` for 0."""
    return f"K={num_speculative_tokens}" if num_speculative_tokens else "off"


def batch_range(first_batch_size: int, last_batch_size: int) -> str:
    """`4-5`, or `3` for a range of one."""
    return f"{first_batch_size}-{last_batch_size}" if first_batch_size < last_batch_size else str(first_batch_size)


def predicted(tokens_per_s: float, *, is_measured: bool) -> str:
    """Predicted tokens a second as every view shows them.

    >>> predicted(34.52, is_measured=False), predicted(34.52, is_measured=True)
    ('~34.5', '34.5')
    """
    return f"{'' if is_measured else '~'}{tokens_per_s:.1f}"


class _Said:
    """A cause's numbers as its words have them."""

    def __init__(self, cause: Cause) -> None:
        self._numbers = cause.numbers
        self.text = cause.text

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def __getitem__(self, name: str) -> float:
        return self._numbers.get(name, 0)

    @property
    def k(self) -> str:
        """`K=3`, or `off`."""
        return self.k_of("num_speculative_tokens")

    def k_of(self, name: str) -> str:
        """The K of another number: `K=3`, or `off`."""
        return speculation(int(self[name]))

    @property
    def batches(self) -> str:
        """`4-5`."""
        return batch_range(int(self["first_batch_size"]), int(self["last_batch_size"]))

    @property
    def limit(self) -> str:
        """A limit of a step, and whose it is."""
        return f"max_step_ms {self['max_step_ms']:g} of {self.text}"

    @property
    def gives(self) -> str:
        """Tokens a second of that K."""
        return predicted(self["tokens_per_s"], is_measured="clean_steps" in self)

    @property
    def against(self) -> str:
        """Tokens a second of off."""
        return predicted(self["off_tokens_per_s"], is_measured="off_clean_steps" in self)

    def basis(self, name: str) -> str:
        """How many steps a number stands on; nothing where none was measured, which its mark says."""
        return f" ({self[name]:.0f} clean steps)" if name in self else ""


_Words = str | Callable[[_Said], str]


class _Phrases(NamedTuple):
    """One way to say causes: words of each, of several of one code together, and what stands before words (else a semicolon)."""

    words: Mapping[str, _Words]
    runs: Mapping[str, Callable[[Sequence[_Said]], str]]
    before: Mapping[str, str]


def _joined(causes: Iterable[Cause], phrases: _Phrases) -> str:
    text, last = "", ""
    for code, alike in groupby(causes, key=lambda cause: cause.code):
        run, together = list(alike), phrases.runs.get(code)
        for said in [together([_Said(cause) for cause in run])] if together else [_said(cause, phrases.words) for cause in run]:
            if code in _ASIDE or (last, code) == (Code.KILL_SWITCH, Code.SLOWER):
                text = f"{text[:-1]}, {said})" if last in _ASIDE else f"{text} ({said})"
            elif text:
                text += (": " if last in _LEADS else phrases.before.get(code, "; ")) + said
            else:
                text = said
            last = code
    return text


def _said(cause: Cause, words: Mapping[str, _Words]) -> str:
    made = words.get(cause.code)
    if made is None:
        return f"{cause.code}: {cause.text}" if cause.text else cause.code
    return made if isinstance(made, str) else made(_Said(cause))


def _rows(run: Sequence[_Said]) -> str:
    return ", ".join(f"{said.k} at batch {said.batches}" for said in run)


def _text(said: _Said) -> str:
    return said.text


def _everywhere(said: _Said) -> str:
    why = f": the settings' K={said['asked']:.0f} may not run here (maximum {said['maximum']:.0f}, allowed {said.text})"
    return f"{said.k} at every batch{why if 'asked' in said else ''}"


def _not_known(said: _Said) -> str:
    how = "deploy it with mode: auto to find out" if said["only_observes"] else "`nightjar mode auto --for 5m` finds out"
    if "planned" not in said:
        return f"not known what other K give: only {said.k} ever ran here ({how})"
    predicted_gain = f"predicted {said['gain']:+.0%} ±{said['doubt']:.0%}"
    return f"not known what {said.k_of('planned')} gives against {said.k}: {predicted_gain}, too little ran at this batch ({how})"


def _one_ran(said: _Said) -> str:
    odds = "" if said.k == said.k_of("only") else " by the odds"
    return f"{said.k}{odds}, what other K give is not known: only {said.k_of('only')} ever ran here"


def _too_small(said: _Said) -> str:
    enough = f"its doubt (±{said['doubt']:.0%})" if "doubt" in said else f"switch_margin ({said['margin']:.1%})"
    return f"off gives {said.against} tok/s predicted; {said.k} may give {said.gives}, a gain smaller than {enough}"


def _least_time(said: _Said) -> str:
    waits = f"{said['waiting']:.1f} wait, {said['prefilling']:.1f} in prefill, prompts {said['beside_prefill']:.0%} of the time"
    return f"{said.k} saves most of the time of all requests ({waits})"


def _beside(said: _Said, pure: str, mixed: str) -> str:
    """The K beside prefill, where it is another."""
    return f" and {said.k_of(mixed)} beside prefill" if said[pure] != said[mixed] else ""


def _off_best(said: _Said) -> str:
    rival = f" against {said.gives} with {said.k}" if "tokens_per_s" in said else ""
    return f"off gives {said.against} tok/s predicted{rival}{said.basis('off_clean_steps')}"


def _under_way(said: _Said) -> str:
    runs = f"{said['runs_incarnation']:.0f}.{said['runs_sequence']:.0f}" if "runs_incarnation" in said else "none"
    return f"it runs settings {runs}, in force are {said['incarnation']:.0f}.{said['sequence']:.0f}: they are on their way"


def _wishes(said: _Said) -> str:
    waited = f", for {said['waiting_s']:.0f} s" if "waiting_s" in said else ""
    return f"it wishes to restart over {said['lag_tokens']:.0f} tokens that its draft missed{waited}"


_WORDS: Final[Mapping[str, _Words]] = {
    Code.NO_SETTINGS: "no settings yet: the engine's own K",
    Code.OFF: "mode off",
    Code.PIN: "mode pin",
    Code.AGED: "settings too old, only off is allowed",
    Code.PLAN: "the plan's K for this decode batch",
    Code.LOCAL: "the engine's own planner chose it",
    Code.SEGMENT: "an exploration segment measures this K",
    Code.WORSE_THAN_OFF: "the guard holds this batch off: speculation measured worse than off",
    Code.CHECKING: "the guard suspects that drafts cost more than they give at this batch, and checks by some steps at K=0",
    Code.DWELL: "a rise waits until the present K was held long enough",
    Code.BESIDE_PREFILL: "the plan's K where the next step also computes prompt tokens",
    Code.MIXED: "a step with prefill keeps the last K and never raises it",
    Code.REQUESTS: lambda said: f"no request of the step takes more than K={said['num_speculative_tokens']:.0f}",
    Code.SHADOW: "shadow, nothing is touched; with auto",
    Code.OWN_MODE: "this replica's own",
    Code.LAST_STEP: "of its last step",
    Code.SERVED_PLAINLY: lambda said: f"serves plainly, not steered: {said.text}",
    Code.FAULT: lambda said: f"the engine runs its own K since an error in the hooks: {said.text}",
    Code.KILL_SWITCH: lambda said: f"mode {said.text} set in the replica's own user_config overrides",
    Code.MODE: lambda said: f"mode {said.text}",
    Code.SET_BY: lambda said: f"set by {said.text}",
    Code.HOLDS_FOR: lambda said: f"for {said['seconds_left']:.0f} s more",
    Code.HOLDS_ON: "until taken back",
    Code.LOWERED: lambda said: f"lowered to {said.k}: the engine's maximum is {said['num_speculative_tokens']:.0f}",
    Code.SLOWER: _text,
    Code.UNTOUCHED: "nothing is touched",
    Code.IN_SHADOW: "shadow, nothing is touched",
    Code.WOULD_RUN: lambda said: f"the plan would run {said.k}",
    Code.NOT_KNOWN: _not_known,
    Code.REFUSED: lambda said: f"the engine refused the newest settings: {said.text}",
    Code.UNDER_WAY: _under_way,
    Code.TO_LEARN: "so that its group learns what it gives",
    Code.DISTRUSTED: "its step times are twice or half the other replicas', so its measurements do not count: look at its card",
    Code.NOTICE: _text,
    Code.OLD_REPORT: lambda said: f"the last report is {said['age_s']:.0f} s old: all of this is as of then",
    Code.CANARY: _text,
    Code.FREEZE: lambda said: f"{said.text}: {NO_NEW}",
    Code.DRAFTER_IS: lambda said: f"the drafter is {said.text.replace('_', ' ')}",
    Code.LENT: lambda said: f"under memory pressure {said['blocks']:.0f} KV blocks of its memory are lent to requests",
    Code.DRAFTER: _text,
    Code.WISHES: _wishes,
    Code.MISSED: lambda said: f"its draft missed {said['lag_tokens']:.0f} tokens",
    Code.LEASE_HELD: "holds a lease to restart",
    Code.WAITS_FOR_LEASE: "waits for a lease",
    Code.DOES_NOT_PAY: "stays off: a restart would not pay",
    Code.RELOAD_TOO_LONG: "stays off: its draft's weights took longer to move than a lease lives (raise max_lease_ttl_s)",
    Code.PROBES_FAILED: "restarts are frozen after failed probes",
    Code.NEW_POLICY: "a new policy grants none yet",
    Code.FROZEN: "none is granted while the fleet is frozen",
    Code.NO_DECISION: "heard of since the last decision",
    Code.PLANNER: _text,
    Code.EVERYWHERE: _everywhere,
    Code.PAPER: lambda said: (
        f"every engine plans for itself with the paper's bandit (arXiv 2512.22420){f', {said.text}' if said.text else ''}"
    ),
    Code.UNPLANNED: "off: the fleet was frozen before this group had a plan",
    Code.OTHER: _text,
    Code.AT_BATCH: lambda said: f"batch {said.batches}",
    Code.UNMEASURED: lambda said: f"{said.k} by the odds, nothing measured yet",
    Code.ONE_RAN: _one_ran,
    Code.BETTER: lambda said: f"{said.k} gives {said.gives} tok/s predicted against {said.against} off{said.basis('clean_steps')}",
    Code.TOO_SMALL: _too_small,
    Code.OFF_BEST: _off_best,
    Code.FORBIDDEN: lambda said: (
        f"{said.k} would give more, but max_step_ms {said['max_step_ms']:g} forbids its steps of up to {said['most_ms']:.1f} ms"
    ),
    Code.LEAST_TIME: _least_time,
    Code.OTHER_OBJECTIVE: lambda said: (
        f"objective {said.text} would run {said.k}{_beside(said, 'num_speculative_tokens', 'beside_prefill')}"
    ),
    Code.OBJECTIVE: lambda said: f"objective {said.text} {'of its application' if said['of_application'] else 'by hand'}",
    Code.COSTS_LESS: lambda said: f"beside prefill {said.k} costs less",
    Code.BY_THE_ODDS: lambda said: f"by the odds: only {said.k_of('only')} ever ran here",
    Code.OWN_EVIDENCE: "its own evidence",
    Code.WITHIN: lambda said: f"within {said.limit}",
    Code.LIMITED: lambda said: f"K limited by {said.limit}",
    Code.LIMIT: lambda said: f"{said.limit}: no K runs whose steps may take longer",
    Code.ALLOWS: lambda said: f"{said.limit} allows {said.k} where {said.k_of('without_limit')} would run",
    Code.RESTARTS: lambda said: f"restarts: {said['granted']:.0f} of {said['wished']:.0f} granted",
    Code.IMPORTED: lambda said: f"{said['cells']:.0f} of {said['of']:.0f} cells imported, not measured here",
}
_RUNS: Final[Mapping[str, Callable[[Sequence[_Said]], str]]] = {
    Code.GUARD: lambda run: (
        f"the guard holds batch {', '.join(said.batches for said in run)} off: speculation measured worse than off"
    ),
    Code.MEASURING: lambda run: ", ".join(
        f"measuring K={said['num_speculative_tokens']:.0f} at batch {said.batches}" for said in run
    ),
    Code.ROW: _rows,
    Code.MIXED_ROW: lambda run: f"beside prefill {_rows(run)}",
}
_BEFORE: Final[Mapping[str, str]] = {
    Code.SET_BY: " ",
    Code.NEW_POLICY: ": ",
    Code.FROZEN: ": ",
    Code.HOLDS_FOR: ", ",
    Code.HOLDS_ON: ", ",
    Code.LOWERED: ", ",
    Code.UNTOUCHED: ", ",
    Code.WOULD_RUN: ", ",
    Code.NOT_KNOWN: ", ",
    Code.TO_LEARN: ", ",
    Code.BY_THE_ODDS: ", ",
}
_SHORT: Final = _Phrases(_WORDS, _RUNS, _BEFORE)
_AT_LENGTH: Final = _Phrases(
    {
        **_WORDS,
        Code.AGED: lambda said: (
            f"its settings are older than {said['max_age_s']:g} s and nobody confirmed them, so that only off may run"
        ),
        Code.DWELL: lambda said: f"a rise waits until the present K was held for {said['dwell_steps']:.0f} steps",
        Code.BESIDE_PREFILL: lambda said: (
            f"the step after its last one also computes prompts, for which the plan has K={said['num_speculative_tokens']:.0f}"
        ),
        Code.MIXED: "its last step also computed prompts: such steps never raise an engine's own K",
        Code.SERVED_PLAINLY: lambda said: f"served plainly, not steered: {said.text}",
        Code.KILL_SWITCH: lambda said: f"mode {said.text} is set in the replica's own user_config, which no policy overrides",
        Code.NO_DECISION: "heard of since the last decision; settings come with the next one",
        Code.OWN_EVIDENCE: "from its own evidence, which differs from its group's",
    },
    {**_RUNS, Code.GUARD: lambda run: f"{_RUNS[Code.GUARD](run)} there"},
    {**_BEFORE, Code.UNTOUCHED: "; "},
)
_LEADS: Final = frozenset({Code.SHADOW, Code.IN_SHADOW, Code.LAST_STEP, Code.PLANNER, Code.AT_BATCH, Code.ALLOWS})
"""What a colon follows."""
_ASIDE: Final = frozenset({Code.OWN_MODE, Code.OWN_EVIDENCE, Code.WITHIN})
"""What stands in brackets."""
_STEPS_BY_WORDS: Final[Mapping[str, Causes]] = {
    in_words(causes): causes
    for code in tuple(Code)[: tuple(Code).index(Code.SHADOW)]
    for shadow in ((), (Cause(code=Code.SHADOW),))
    for whose in ((), (Cause(code=Code.OWN_MODE),))
    for causes in [(*shadow, Cause(code=code), *whose)]
}
"""What an engine can say of a step (policy/step/steering.py), by the sentence of a release before codes."""
