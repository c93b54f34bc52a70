"""What an engine's scheduler really did in each step: drafts verified, lag recomputed, who waited and who was preempted.

Tests of opt-out and of memory pressure look here, because a counter of the whole run can be right for another reason. Wraps two
methods of one scheduler for as long as the `with` block lasts; a vLLM that no longer calls them leaves the record empty, and then
the tests that look for drafts and preemptions fail.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nightjar.deployments.engine.worker.draft_work import RUN, WORK_ATTRIBUTE

if TYPE_CHECKING:
    from tests.engine.engine_process import EngineProcess


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as it was sent to the workers. Requests go by the names that the test gave them."""

    state: str
    """The drafter's state, as the step was scheduled."""
    num_speculative_tokens: int
    """Draft tokens of each row that the drafter proposes in the step."""
    rows: list[str]
    """Requests that the target computes in the step."""
    verified: dict[str, int]
    """Draft tokens of each request that the target verifies in the step; requests without any are left out."""
    recomputed: dict[str, int]
    """Tokens of lag of each request that the draft reads again."""
    preempted: list[str]
    """Requests that gave back all their blocks since the step before."""
    waiting_for_blocks: int
    """Requests left waiting although there are rows and tokens left for them: only blocks are missing."""


class StepRecorder:
    """Records every step of an engine of engine_process.py within a `with` block."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._scheduler: Any = process.scheduler
        self._steps: list[StepRecord] = []
        self._preempted: list[str] = []

    def __enter__(self) -> StepRecorder:
        schedule, preempt = self._scheduler.schedule, self._scheduler._preempt_request

        def recorded_schedule(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self._steps.append(self._record(output))
            return output

        def recorded_preempt(request: Any, *args: Any, **kwargs: Any) -> None:
            self._preempted.append(self._name(request.request_id))
            preempt(request, *args, **kwargs)

        self._scheduler.schedule, self._scheduler._preempt_request = recorded_schedule, recorded_preempt
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._scheduler.schedule, self._scheduler._preempt_request

    def plain(self) -> list[dict[str, Any]]:
        """The steps as plain data."""
        return [asdict(step) for step in self._steps]

    def _record(self, output: Any) -> StepRecord:
        scheduler, work = self._scheduler, getattr(output, WORK_ATTRIBUTE, RUN)
        preempted, self._preempted = self._preempted, []
        running, waiting = scheduler.get_request_counts()
        has_room = running < scheduler.max_num_running_reqs
        has_room = has_room and output.total_num_scheduled_tokens < scheduler.max_num_scheduled_tokens
        return StepRecord(
            state=scheduler.nightjar.drafting.life.state.value,
            num_speculative_tokens=output.num_spec_tokens_to_schedule,
            rows=[self._name(name) for name in output.num_scheduled_tokens],
            verified={self._name(name): len(drafts) for name, drafts in output.scheduled_spec_decode_tokens.items() if drafts},
            recomputed={self._name(portion.request_id): len(portion.token_ids) for portion in work.recompute},
            preempted=preempted,
            waiting_for_blocks=waiting if has_room else 0,
        )

    def _name(self, request_id: str) -> str:
        """The name that the client gave a request: vLLM appends to it."""
        return str(self._process.engine.output_processor.request_states[request_id].external_req_id)
