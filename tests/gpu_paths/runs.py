"""Runs engines of the rig in processes of their own, each once a session, whichever worker of pytest needs it first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.verdict import Verdict, judge
from tests.engine_run import ran_once
from tests.gpu_paths.engines.combinations import LENDING, STEERED, Combination
from tests.gpu_paths.engines.off_stretch import STRESS_SEED, STRESS_STEPS
from tests.gpu_paths.overlay import OVERLAY_VARIABLE
from tests.rig.environment import rig_environment

TIMEOUT_S: Final = 900
IN_TEST_SLOW: Final = ("v2-async-draft_model-lends",)
"""A draft model, which lends. V2's head is in test_off_on_v2.py; V1 runs in every CPU engine, synchronous there."""
HEADINGS: Final = (
    "runner",
    "scheduling",
    "drafter",
    "executor",
    "compiled",
    "beside",
    "texts equal",
    "K obeyed",
    "forwards at K = 0",
    "at K = 0, 1, 2, 3",
    "steps",
    "seconds",
)


class Rig:
    """Engines that ran, by combination; `folder` is shared by all workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def verdict(self, combination: Combination) -> Verdict:
        """Of an engine against plain decoding."""
        return judge(combination, self.outcome(combination), self.outcome(combination.reference))

    def outcome(self, combination: Combination) -> dict[str, Any]:
        """What an engine did; what it printed is shown where its process failed."""
        program = ("tests.gpu_paths.engines.engine_process", combination.name)
        return self._once(combination, self._folder / f"{combination.name}.json", program)

    def off(self, combination: Combination) -> dict[str, Any]:
        """What an engine on V2 did that was off for a while, by variant (off_process.py)."""
        program = ("tests.gpu_paths.engines.off_process", combination.name, str(STRESS_STEPS), str(STRESS_SEED))
        return self._once(combination, self._folder / f"{combination.name}-off.json", program, TIMEOUT_S + 5 * STRESS_STEPS)

    def failing(self, combination: Combination) -> dict[str, Any]:
        """What an engine did whose optional passes raise (failing_passes.py)."""
        program = ("tests.gpu_paths.engines.failing_passes", combination.name)
        return self._once(combination, self._folder / f"{combination.name}-failing.json", program)

    def _once(self, combination: Combination, output: Path, program: Sequence[str], timeout_s: int = TIMEOUT_S) -> dict[str, Any]:
        def environment() -> Mapping[str, str]:
            return self._environment(combination, output)

        return ran_once([*program, str(self._folder / "models")], output, environment, timeout_s)

    def _environment(self, combination: Combination, output: Path) -> dict[str, str]:
        base = dict(os.environ)
        if overlay := base.get(OVERLAY_VARIABLE):
            base["PYTHONPATH"] = os.pathsep.join(filter(None, (overlay, base.get("PYTHONPATH"))))
        environment = base | rig_environment(
            self._folder / f"rig-{output.stem}",
            runner=combination.runner,
            asynchronous=combination.scheduling == "async",
            in_one_process=combination.in_one_process,
            kv_cache_is_sized=combination.lends,
            environ=base,
        )
        environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if combination.compiled:
            environment["VLLM_CACHE_ROOT"] = str(self._folder / "vllm-cache")
        return environment


def is_in_test_slow(combination: Combination) -> bool:
    """Whether `make test-slow` runs it."""
    assert set(IN_TEST_SLOW) <= {each.name for each in (*STEERED, *LENDING)}
    return combination.name in IN_TEST_SLOW


def row(combination: Combination, verdict: Verdict, seconds: float) -> list[str]:
    """A line of the table that `make test-gpu-paths` prints."""
    by_k = verdict.forwards if combination.forwards_at_zero is not None else {}
    at_zero = "/".join(map(str, by_k.get(0, ()))) or "no model"
    every = ", ".join("/".join(map(str, by_k[length])) for length in sorted(by_k)) or "no model"
    return [
        f"V{combination.runner}",
        combination.scheduling,
        combination.drafter + (f", {combination.ranks} ranks" if combination.ranks > 1 else ""),
        combination.executor or "vLLM's choice",
        combination.compiled or "eager",
        combination.beside or "nothing",
        f"{verdict.compared - len(verdict.texts)} of {verdict.compared}",
        f"{verdict.steps - len(verdict.wrong_steps)} of {verdict.steps}",
        at_zero,
        every,
        str(verdict.steps),
        f"{seconds:.0f}",
    ]
