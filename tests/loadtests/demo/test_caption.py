"""A run's words: one sentence computed from its table, and of mode off what its replicas said of their drafters."""

from __future__ import annotations

import pytest

from nightjar.loadtests.arms.samples import StatusSample
from nightjar.loadtests.arms.statistics import Interval
from nightjar.loadtests.demo.caption import demo_caption, learning_in_words, off_in_words, sentence
from nightjar.loadtests.demo.summary import ALL_PHASES, PhaseSummary, Times
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.report import DrafterState, EngineLoad
from tests.loadtests.recorded import replica, sample


def decoding(state: DrafterState, *, mode: str = "off", batch: int = 2) -> StatusSample:
    one = replica("r1", load=EngineLoad(decode_batch_size=batch), mode=mode)
    return sample(1.0, mode, one.model_copy(update={"drafter_state": state}))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (DrafterState.DORMANT, "With mode off the draft model slept: no step ran it."),
        (DrafterState.OFFLOADED, "With mode off the draft model slept, its weights in host memory: no step ran it."),
        (
            DrafterState.IN_SYNC,
            "With mode off the drafter was kept in sync by vLLM (its own K = 0), so off may be slower than serving without one.",
        ),
    ],
)
def test_a_run_whose_drafters_were_in_one_state_says_what_that_meant(state: DrafterState, said: str) -> None:
    samples = [decoding(state), decoding(state)]
    assert off_in_words(samples) == said
    assert f"GPU. {said} Intervals are of this run alone" in demo_caption(samples)


def test_a_run_whose_drafters_were_in_several_states_counts_them() -> None:
    samples = [decoding(DrafterState.ACTIVE), decoding(DrafterState.DORMANT), decoding(DrafterState.DORMANT)]
    assert off_in_words(samples) == "With mode off the drafters were sampled in these states: 2 dormant, 1 active."


def test_other_modes_and_idle_replicas_say_nothing_about_off() -> None:
    samples = [decoding(DrafterState.ACTIVE, mode="auto"), decoding(DrafterState.ACTIVE, batch=0), decoding(DrafterState.DORMANT)]
    assert off_in_words(samples) == off_in_words(samples[-1:])
    assert off_in_words(samples[:-1]) == (
        "No replica was sampled decoding with mode off, so nothing is known of its drafter there."
    )


MODES = ("off", "pin=3", "auto")


def phase(
    mode: str,
    name: str,
    speed: float | None = None,
    over: tuple[float, float] | None = None,
    *,
    requests: int = 20,
    off: float = 0.5,
) -> PhaseSummary:
    """20 s of 10 tokens a second. A step of off takes 100 ms for a token, one of another mode generates two."""
    tokens_of_a_step = 1 if mode == "off" else 2
    return PhaseSummary(
        mode=mode,
        phase=name,
        duration_s=20.0,
        requests=requests,
        errors=0,
        tokens_per_s=10.0,
        engine_seconds_per_token=0.1 / (speed or 1.0),
        ttft=Times(n=0),
        tpot=Times(n=0),
        mean_num_speculative_tokens=1.0,
        share_of_steps_off=off,
        steps=200 // tokens_of_a_step,
        speed=speed,
        speed_interval=Interval(low=over[0], high=over[1], kind="a test") if over else None,
    )


def table(
    fixed: tuple[float, float], quiet: tuple[float, float, float], surge: tuple[float, float, float], off: float = 0.5
) -> tuple[PhaseSummary, ...]:
    return (
        *(phase("off", name, requests=count) for name, count in (("quiet", 20), ("surge", 80), ("calm", 20), (ALL_PHASES, 120))),
        *(phase("pin=3", name, speed, (speed, speed)) for name, speed in zip(("quiet", "surge"), fixed, strict=True)),
        *(phase("auto", name, one[0], one[1:]) for name, one in (("quiet", quiet), ("surge", surge))),
        phase("auto", ALL_PHASES, surge[0], off=off),
    )


def test_where_drafting_pays_the_sentence_has_every_mode_in_quiet_and_in_the_busiest_phase() -> None:
    assert sentence(table((1.25, 0.71), (1.24, 1.17, 1.31), (0.98, 0.95, 1.01)), MODES) == (
        "auto: 1.24 of off in quiet (1.17 to 1.31), 0.98 in surge (0.95 to 1.01); K=3: 1.25 and 0.71 "
        "(tokens per second of engine time)"
    )


def test_where_drafting_pays_nowhere_the_sentence_says_so_with_the_step_times_that_make_it_so() -> None:
    assert sentence(table((0.8, 0.5), (0.98, 0.96, 1.0), (0.99, 0.9, 1.1), off=0.97), MODES) == (
        "On this processor drafting does not pay: in quiet a step at K=3 takes 250 ms for off's 100, 2.5 times as long, and "
        "generates 2.0 times the tokens. auto stayed off (97% of its steps) and cost 1 %. auto: 0.98 of off in quiet "
        "(0.96 to 1.00), 0.99 in surge (0.90 to 1.10); K=3: 0.80 and 0.50 (tokens per second of engine time)"
    )
    drafted = sentence(table((0.8, 0.5), (0.98, 0.96, 1.0), (1.01, 0.9, 1.1), off=0.4), MODES)
    assert "auto drafted in 60% of its steps and cost nothing." in drafted


def test_what_the_last_mode_gains_once_it_has_learned_is_told_and_a_fixed_k_that_is_behind_there_is_not() -> None:
    rows = (
        *table((1.1, 0.7), (1.05, 0.9, 1.2), (1.0, 0.9, 1.1)),
        phase("pin=3", "calm", 1.9, (1.8, 2.0)),
        phase("auto", "calm", 1.28, (1.23, 1.33)),
    )
    assert sentence(rows, MODES) == (
        "auto: 1.05 of off in quiet (0.90 to 1.20), 1.00 in surge (0.90 to 1.10), 1.28 in calm (1.23 to 1.33); K=3: 1.10 and 0.70 "
        "(tokens per second of engine time)"
    )


def test_a_gain_that_the_interval_does_not_confirm_is_said_to_be_open() -> None:
    rows = table((1.1, 0.7), (1.05, 0.9, 1.2), (1.0, 0.9, 1.1))
    rows = tuple(one.model_copy(update={"speed_interval": None}) if one.mode == "pin=3" else one for one in rows)
    assert sentence(rows, MODES).startswith("This run is too short to tell whether drafting pays on this processor. auto: 1.05 of")


def test_a_run_without_numbers_says_that() -> None:
    assert sentence((), ()) == sentence((), MODES) == "Nothing was measured."
    assert sentence((phase("off", "quiet"),), MODES).startswith("Nothing can be compared: in quiet not every mode generated tokens")


def test_what_went_into_measuring_is_counted_among_the_samples_that_decode() -> None:
    load = EngineLoad(decode_batch_size=1)
    measuring = replica("r1", load=load).model_copy(update={"step_causes": (because(Code.SEGMENT),)})
    samples = [
        sample(1.0, "auto", measuring),
        *[sample(2.0, "auto", replica("r1", load=load))] * 3,
        sample(3.0, "auto", replica("r1")),
    ]
    assert "it measured a K in 1 of 4 samples of a decoding replica (25%)" in learning_in_words(samples, "auto")
    assert learning_in_words([], "auto") == "No replica was sampled decoding with mode auto."


def test_what_other_programs_took_stands_before_what_they_spoiled() -> None:
    rows = table((1.25, 0.71), (1.24, 1.17, 1.31), (0.98, 0.95, 1.01))
    alone = sentence(rows, MODES)
    assert sentence(rows, MODES, {"off": 0.02, "pin=3": 0.09, "auto": 0.01}) == alone
    assert sentence(rows, MODES, {"off": 0.446, "pin=3": 0.02, "auto": 0.31}) == (
        f"Of little worth, for other programs took up to 45% of the processors meanwhile (off 45%, K=3 2%, auto 31%): {alone}"
    )
