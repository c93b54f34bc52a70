"""What the report of a recorded run says above its charts: what was measured, and what mode off meant for the run's drafters.

A draft model sleeps under mode off, other drafters are kept in sync as vLLM does it, and the two make off cost differently. So the
sentence is taken from the samples. Fails closed: without a decoding replica among the samples of mode off it says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from nightjar.loadtests.samples import StatusSample, decoding_replicas
from nightjar.policy.wire.report import DrafterState

_SYSTEM: Final = (
    "Nothing here is simulated: real replicas of vLLM on Ray Serve answered real requests over HTTP on this machine's CPU. "
    "The target model's cost is inflated by layers that add exactly zero; its function is unchanged. So drafting pays on a CPU "
    "as it does on a GPU, and absolute times say nothing about a GPU."
)
_LEARNING: Final = (
    "The fleet learns in every mode, so auto started with what the runs before it had shown; what was missing it measured while it "
    "served this load."
)
_OFF: Final = {
    frozenset({DrafterState.DORMANT}): "With mode off the draft model slept: no step ran it.",
    frozenset({DrafterState.OFFLOADED}): "With mode off the draft model slept, its weights in host memory: no step ran it.",
    frozenset({DrafterState.IN_SYNC}): (
        "With mode off the drafter was kept in sync by vLLM (its own K = 0), so off may be slower than serving without one."
    ),
}


def demo_caption(samples: Sequence[StatusSample]) -> str:
    """The whole caption of a run with these samples."""
    return f"{_SYSTEM} {off_in_words(samples)} {_LEARNING}"


def off_in_words(samples: Sequence[StatusSample]) -> str:
    """What the drafters did under mode off, as their replicas said while they decoded."""
    states = Counter(replica.drafter_state for replica in decoding_replicas(samples, "off"))
    if not states:
        return "No replica was sampled decoding with mode off, so nothing is known of its drafter there."
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return _OFF.get(frozenset(states), f"With mode off the drafters were sampled in these states: {counted}.")
