"""What an engine's worker did in each step: the K that it was ordered to draft, and how often the drafter's model really ran.

Looks at the worker, not at the scheduler, whose word is what is to be proved. Wraps two methods of the model runner, and counts the
forwards of the drafter's model: with hooks of torch's on its module or, on runner V2, around the drafter's own call of it. A full
CUDA graph that is replayed runs no module: on runner V2 the replays of the drafter's graphs are counted instead, each of which
holds one forward or all of a step's further ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from nightjar.deployments.engine.worker.draft_work import WORK_ATTRIBUTE

GRAPH_MANAGERS: Final = (
    "prefill_cudagraph_manager",
    "decode_cudagraph_manager",
    "cudagraph_manager",
    "query_cudagraph_manager",
)
"""Of runner V2's drafters (vLLM 0.32, v1/worker/gpu/spec_decode): each replays a graph with `run_fullgraph`."""


@dataclass(frozen=True, slots=True)
class ExecutedStep:
    """One step as the worker saw it."""

    pinned: int | None
    """K as the settings in force have it; None where nobody knows which were."""
    num_speculative_tokens: int
    """K as the scheduler ordered it: drafts to propose for each row."""
    skips_drafts: bool
    """Whether vLLM itself leaves the drafts out, since no row of the step could use them (0.33, SchedulerOutput.skip_drafts)."""
    forwards: int
    """Of the drafter's model, from end to end; 0 where the drafter has none."""
    kv_writes: int
    """Forwards that stopped once they had written their KV (engine/worker/kv_only_head.py)."""
    verified: dict[str, int]
    """Draft tokens of each request that the target verified; requests without any are left out."""
    drafter_state: str
    """Of a drafter that can sleep, as the step was scheduled (policy.wire.report.DrafterState); empty of any other."""
    catches_up: bool
    """Whether the drafter also read again what it had missed."""
    replays: int = 0
    """Of the drafter's full graphs."""
    requests: tuple[str, ...] = ()
    """Those in the step."""
    graph_mode: str = ""
    """How the target ran, as vLLM says it (`NONE`, `PIECEWISE`, `FULL`); empty without the engine argument `cudagraph_metrics`."""
    stray_slot: str = ""
    """A slot that the drafter wrote and that is not its request's; looked for on a CPU."""


class SlotLook(Protocol):
    """What looks at the slots that a drafter writes (drafted_slots.py)."""

    def step(self, scheduler_output: Any) -> None:
        """A step is about to run."""

    def ran(self) -> None:
        """The target has run it."""

    def taken(self) -> str:
        """What was wrong in the step."""


class ExecutedSteps:
    """Records every step of a worker's model runner from now on in `steps`.

    Who changes the engine's settings before each step also sets `pinned`; `drafter_state` says where the drafter is, and `slots`
    looks at what it writes.
    """

    def __init__(self, runner: Any, drafter_state: Callable[[], str] = lambda: "", slots: SlotLook | None = None) -> None:
        self.steps: list[ExecutedStep] = []
        self.pinned: int | None = None
        self._drafter_state = drafter_state
        self._forwards = self._begun = 0
        self._replays = 0
        self._graph_mode = ""
        self._output: Any = None
        self._runner, self._slots = runner, slots
        drafter = getattr(runner, "speculator", None) or getattr(runner, "drafter", None)  # runner V2's name and V1's
        model = getattr(drafter, "model", None)
        if drafter is not None and hasattr(drafter, "_run_model"):
            drafter._run_model = self._counting_forwards(drafter._run_model)
        elif model is not None:
            model.register_forward_pre_hook(self._begin_forward)
            model.register_forward_hook(self._end_forward)
        for name in GRAPH_MANAGERS:
            manager: Any = getattr(drafter, name, None)
            if hasattr(manager, "run_fullgraph"):
                manager.run_fullgraph = self._counting_replays(manager.run_fullgraph)
        self._execute, self._sample = runner.execute_model, runner.sample_tokens
        runner.execute_model, runner.sample_tokens = self._execute_model, self._sample_tokens

    def _execute_model(self, scheduler_output: Any, *arguments: Any, **options: Any) -> Any:
        self._output = scheduler_output
        self._forwards = self._begun = self._replays = 0
        if self._slots is not None:
            self._slots.step(scheduler_output)
        result = self._execute(scheduler_output, *arguments, **options)
        if self._slots is not None:
            self._slots.ran()
        statistics = getattr(getattr(self._runner, "execute_model_state", None), "cudagraph_stats", None)
        self._graph_mode = str(getattr(statistics, "runtime_mode", "")).rpartition(".")[2]
        if result is not None and scheduler_output.total_num_scheduled_tokens:
            self._note()
        return result

    def _sample_tokens(self, *arguments: Any, **options: Any) -> Any:
        result = self._sample(*arguments, **options)
        if self._output is not None and self._output.total_num_scheduled_tokens:
            self._note()
        return result

    def _note(self) -> None:
        output, self._output = self._output, None
        self.steps.append(
            ExecutedStep(
                pinned=self.pinned,
                num_speculative_tokens=output.num_spec_tokens_to_schedule,
                skips_drafts=bool(getattr(output, "skip_drafts", False)),
                forwards=self._forwards,
                kv_writes=self._begun - self._forwards,
                verified={name: len(drafts) for name, drafts in output.scheduled_spec_decode_tokens.items() if drafts},
                drafter_state=self._drafter_state(),
                catches_up=bool(getattr(getattr(output, WORK_ATTRIBUTE, None), "recompute", ())),
                replays=self._replays,
                requests=tuple(output.num_scheduled_tokens),
                graph_mode=self._graph_mode,
                stray_slot="" if self._slots is None else self._slots.taken(),
            )
        )

    def _begin_forward(self, module: Any, arguments: Any) -> None:
        del module, arguments
        self._begun += 1

    def _end_forward(self, module: Any, arguments: Any, output: Any) -> None:
        del module, arguments, output
        self._forwards += 1

    def _counting_forwards(self, run_model: Callable[..., Any]) -> Callable[..., Any]:
        """Of runner V2, where a compiled model calls no hooks."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self._begun += 1
            result = run_model(*arguments, **options)
            self._forwards += 1
            return result

        return counted

    def _counting_replays(self, replay: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._replays += 1
            return replay(*arguments, **options)

        return counted
