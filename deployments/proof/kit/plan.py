"""The phases of the proof, in their order."""

from __future__ import annotations

from typing import Final

from nightjar.deployments.proof.kit.phases.catch_up import CATCH_UP
from nightjar.deployments.proof.kit.phases.coming_back import COMING_BACK
from nightjar.deployments.proof.kit.phases.contest import CONTEST
from nightjar.deployments.proof.kit.phases.correctness import CORRECTNESS
from nightjar.deployments.proof.kit.phases.facts import FACTS
from nightjar.deployments.proof.kit.phases.failing_open import FAILING_OPEN
from nightjar.deployments.proof.kit.phases.lending import LENDING
from nightjar.deployments.proof.kit.phases.off import OFF
from nightjar.deployments.proof.kit.phases.random_k import RANDOM_K
from nightjar.deployments.proof.kit.phases.start_up import START_UP
from nightjar.deployments.proof.kit.tasks import Phase

PHASES: Final = (OFF, FACTS, START_UP, CORRECTNESS, RANDOM_K, COMING_BACK, CATCH_UP, LENDING, FAILING_OPEN, CONTEST)
NEED_PLAIN_ANSWERS: Final = frozenset(phase.name for phase in (COMING_BACK, CATCH_UP, LENDING, FAILING_OPEN))
"""Of a task of the correctness phase."""


def phase_named(name: str) -> Phase:
    """Raises StopIteration for a name that is none."""
    return next(phase for phase in PHASES if phase.name == name)
