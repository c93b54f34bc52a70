"""The report's words on mode off are what the run's replicas said of their drafters."""

from __future__ import annotations

import pytest

from nightjar.loadtests.caption import demo_caption, off_in_words
from nightjar.loadtests.samples import StatusSample
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
    assert f"GPU. {said} The fleet learns" in demo_caption(samples)


def test_a_run_whose_drafters_were_in_several_states_counts_them() -> None:
    samples = [decoding(DrafterState.ACTIVE), decoding(DrafterState.DORMANT), decoding(DrafterState.DORMANT)]
    assert off_in_words(samples) == "With mode off the drafters were sampled in these states: 2 dormant, 1 active."


def test_other_modes_and_idle_replicas_say_nothing_about_off() -> None:
    samples = [decoding(DrafterState.ACTIVE, mode="auto"), decoding(DrafterState.ACTIVE, batch=0), decoding(DrafterState.DORMANT)]
    assert off_in_words(samples) == off_in_words(samples[-1:])
    assert off_in_words(samples[:-1]) == (
        "No replica was sampled decoding with mode off, so nothing is known of its drafter there."
    )
