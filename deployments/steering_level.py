"""How much of an engine is steered, in one word with its reason: for the start log, `nightjar check`, every report and the metrics.

An engine that is steered less than its operator thinks is no error to anybody: it serves, as plain vLLM would. So the word is said
wherever somebody looks. What the arguments promise may turn out less once the engine runs: a hook that failed, or a KV cache that a
sleeping drafter cannot follow. Beside the word go the layers of Nightjar that work.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nightjar.deployments.drafter_kinds import kind_of
from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.policy.wire.cause import Code, because
from nightjar.policy.wire.report import DrafterState, EngineSnapshot, Layer, SteeringLevel
from nightjar.policy.words import in_words

ONLY_OBSERVING: Final = "an engine that starts in shadow with graphs only observes: leaving shadow needs a new start"


class Steered(NamedTuple):
    """A level, why it is not the highest (empty: it is), and the layers that work."""

    level: SteeringLevel
    reason: str = ""
    layers: tuple[Layer, ...] = ()

    def in_words(self) -> str:
        """The level, with its reason where there is one."""
        return self.level.value.replace("_", " ") + (f": {self.reason}" if self.reason else "")


FULLY: Final = Steered(SteeringLevel.FULLY)


def level_at_start(arguments: EngineArguments) -> Steered:
    """What the arguments promise."""
    if arguments.serving_plainly:
        return Steered(SteeringLevel.PLAINLY, arguments.serving_plainly)
    if arguments.only_observing:
        return Steered(SteeringLevel.OBSERVING, ONLY_OBSERVING)
    if arguments.why_never_asleep:
        return Steered(SteeringLevel.WITHOUT_SLEEPING, arguments.why_never_asleep, _awake(arguments.layers))
    return FULLY._replace(layers=arguments.layers)


def level_now(at_start: Steered, drafter_kind: str, snapshot: EngineSnapshot) -> Steered:
    """What is left of that in the running engine."""
    if at_start.level is SteeringLevel.PLAINLY:
        return at_start
    if snapshot.fault:
        return Steered(SteeringLevel.PLAINLY, in_words((because(Code.FAULT, snapshot.fault),)))
    stays = kind_of(drafter_kind).can_sleep and snapshot.drafter_state is DrafterState.IN_SYNC
    if at_start.level is SteeringLevel.FULLY and stays:
        return Steered(SteeringLevel.WITHOUT_SLEEPING, snapshot.drafter.reason, _awake(at_start.layers))
    return at_start


def _awake(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Of these, where the drafter runs at K = 0."""
    return tuple(layer for layer in layers if layer is Layer.STEERING)
