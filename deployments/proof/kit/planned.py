"""One engine of the contest under the product's policy, which runs in its process: settings come down between two steps.

Deciding takes its time from the engine here, which in a cluster it does not: the contest counts that against us.
"""

from __future__ import annotations

import time
from typing import Any

from nightjar.deployments.engine.start.arguments import EngineArguments
from nightjar.deployments.proof.driven_engine import DrivenEngine
from nightjar.deployments.proof.lone_policy import LonePolicy
from nightjar.policy.wire.report import GroupKey
from nightjar.policy.wire.settings import EngineCommand, Settings, SettingsVersion


class PlannedByPolicy:
    """One engine under the fleet planner."""

    def __init__(self, engine: DrivenEngine, arguments: EngineArguments, seed: int) -> None:
        self._engine = engine
        self._policy = LonePolicy(_group(engine.vllm_config, arguments), seed)
        self._in_force: tuple[Settings, SettingsVersion | None] | None = None
        self._next_s = 0.0

    def before_step(self) -> None:
        """Exchange, if the period is over."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._policy.exchange_period_s
        snapshot = self._engine.exchange(EngineCommand(confirmed=self._engine.version))
        wanted = self._policy.decide(snapshot, now_s).without_causes()
        if (wanted, self._engine.version) != self._in_force:  # also where somebody steered by hand meanwhile
            adopted = self._engine.adopt(wanted)
            if adopted.fault:
                raise RuntimeError(f"the engine did not follow: {adopted.fault}")
            self._in_force = wanted, self._engine.version


def _group(config: Any, arguments: EngineArguments) -> GroupKey:
    import vllm

    return GroupKey(
        target="target",
        draft="draft",
        drafter_kind=arguments.drafter_kind,
        accelerator="proof",
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        max_num_speculative_tokens=arguments.max_num_speculative_tokens,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        engine_version=vllm.__version__,
        graph_tiers=arguments.graph_tiers,
        adaptive_verification=bool(getattr(config.speculative_config, "enable_adaptive_verification", False)),
    )
