"""A real vLLM engine that is given requests and, between them, settings.

Settings go through the control channel (control.py), as a replica's do. There are two kinds: one that is stepped by hand in
this process (stepped_engine.py), and one whose core and ranks have processes of their own (spread_engine.py). Fails with vLLM's own
errors.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nightjar.deployments.proof.executed_steps import ExecutedStep
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import (
    EngineCommand,
    IssuedSettings,
    OffloadRules,
    RestartLimits,
    Settings,
    SettingsVersion,
    Table,
    TableRow,
)

ANY_TOKENS: Final = 1 << 40
"""A restart of any size needs no lease."""
IDLE_WITHIN_EXCHANGES: Final = 100


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request of a batch: `options` are keyword arguments of vLLM's SamplingParams."""

    request_id: str
    prompt: str | tuple[int, ...]
    """A text, or its tokens where their number matters."""
    options: Mapping[str, Any]
    json_schema: Mapping[str, Any] | None = None
    regex: str = ""
    adapter: str = ""
    """Folder of a LoRA adapter; empty for the model alone."""

    @property
    def is_greedy(self) -> bool:
        """Whether its text is the same each time."""
        return bool(self.options["temperature"] == 0.0)


class DrivenEngine(ABC):
    """`arguments` are those of vLLM's LLM."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        from vllm import LLM

        self.engine = LLM(**arguments).llm_engine
        self.vllm_config = self.engine.vllm_config
        self.max_num_speculative_tokens: int = self.vllm_config.num_speculative_tokens
        self._sequence = itertools.count(1)
        self.version: SettingsVersion | None = None
        """Of the settings that were put into force last."""

    @abstractmethod
    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """Send a command through the control channel."""

    @abstractmethod
    def steps_of_ranks(self) -> list[list[ExecutedStep]]:
        """What the worker of each rank of a steered engine did since the last call."""

    @abstractmethod
    def shutdown(self) -> None:
        """End the engine's processes."""

    def run(
        self, requests: Sequence[GenerationRequest], before_step: Callable[[int], None] = lambda _: None, **overrides: Any
    ) -> dict[str, Any]:
        """Generate all `requests` together; `before_step` gets the number of the step about to run, from 0.

        `overrides` are options of the greedy requests. Returns each request's answer by its id.
        """
        for request in requests:
            self.add(request, **overrides)
        answers: dict[str, Any] = {}
        for step in itertools.count():
            if not self.engine.has_unfinished_requests():
                return answers
            before_step(step)
            for output in self.engine.step():
                if output.finished:
                    answers[output.request_id] = plain_answer(output)
        raise AssertionError("unreachable")

    def add(self, request: GenerationRequest, **overrides: Any) -> None:
        """Queue a request; greedy ones get `overrides` of their options."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import StructuredOutputsParams

        structure = None
        if request.json_schema is not None:
            structure = StructuredOutputsParams(json=dict(request.json_schema))
        elif request.regex:
            structure = StructuredOutputsParams(regex=request.regex)
        options = {**request.options, **(overrides if request.is_greedy else {})}
        self.engine.add_request(
            request.request_id,
            request.prompt if isinstance(request.prompt, str) else {"prompt_token_ids": list(request.prompt)},
            SamplingParams(**options, structured_outputs=structure),
            lora_request=LoRARequest("adapter", 1, request.adapter) if request.adapter else None,
        )

    def settings(
        self,
        mode: str,
        table: Sequence[tuple[int, int, int]] | None = None,
        *,
        segments: tuple[Any, ...] = (),
        offload: OffloadRules | None = None,
        **limits: Any,
    ) -> Settings:
        """Settings of a mode; `table` has rows of first and last batch size and K (default: the maximum for all),
        `limits` are RestartLimits'.
        """
        most = self.max_num_speculative_tokens
        rows = table or ((1, self.vllm_config.scheduler_config.max_num_seqs, most),)
        return Settings(
            mode=Mode.parse(mode),
            plan=Table(
                rows=tuple(TableRow(first_batch_size=f, last_batch_size=b, num_speculative_tokens=k) for f, b, k in rows),
                segments=segments,
            ),
            allowed_num_speculative_tokens=tuple(range(most + 1)),
            restarts=RestartLimits(**{"micro_restart_tokens": ANY_TOKENS, **limits}),
            offload=offload,
        )

    def adopt(self, settings: Settings) -> EngineSnapshot:
        """Put settings into force before the next step. Raises RuntimeError where the engine does not follow."""
        self.version = SettingsVersion(incarnation=1, sequence=next(self._sequence))
        snapshot = self.exchange(EngineCommand(issued=IssuedSettings(version=self.version, settings=settings)))
        if snapshot.refused:
            raise RuntimeError(f"the engine did not follow: {snapshot.refused}")
        return snapshot

    def steer(self, mode: str, **options: Any) -> EngineSnapshot:
        """Put settings of a mode into force; the options are those of `settings`."""
        return self.adopt(self.settings(mode, **options))

    def pin(self, num_speculative_tokens: int) -> None:
        """Order this K from now on."""
        self.steer(f"pin={num_speculative_tokens}")

    def preemptions(self) -> int:
        """Requests preempted so far, as vLLM counts them."""
        return sum(int(metric.value) for metric in self.engine.get_metrics() if metric.name == "vllm:num_preemptions")

    def is_idle(self) -> bool:
        """Whether a steered engine, soon after its last answer, holds no request and no KV block."""
        for _ in range(IDLE_WITHIN_EXCHANGES):
            load = self.exchange(EngineCommand()).load
            if not load.num_running_reqs and not load.num_waiting_reqs and not load.kv_cache_usage:
                return True
        return False


def plain_answer(output: Any) -> dict[str, Any]:
    """A finished output of vLLM's as plain data."""
    (completion,) = output.outputs
    logprobs = [{str(token): entry.logprob for token, entry in position.items()} for position in completion.logprobs or ()]
    return {
        "token_ids": list(completion.token_ids),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "logprobs": logprobs,
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_tokens": output.num_cached_tokens,
    }
