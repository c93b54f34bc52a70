"""One vLLM engine in a process of its own, stepped by hand: what `engines.Engine` calls across a pipe.

`python -m tests.benchmarks.engine.engine_host DESCRIPTOR ROLE MODELS`, MODELS being JSON.

Roles: `plain` is vLLM without any speculation, `stock` is vLLM's own K=0 (its draft model runs once in every step), and `nightjar`
has our classes; `plain_with_all`, `stays` and `lends` are plain, ours and ours lending its draft's memory, with few KV blocks. All
get the same target, limits and requests, and are timed in the same way, from outside `LLMEngine.step`. What a step scheduled is
read where the scheduler takes its output in.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from nightjar.deployments.proof.remote import serve
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.policy.wire.report import EngineSnapshot
from nightjar.policy.wire.settings import EngineCommand
from tests.benchmarks.engine.fixture import SYSTEM, Role, engine_arguments
from tests.benchmarks.engine.step_record import RowStep, Step


class EngineHost:
    """The engine of this process. Every public method is called from the other process."""

    def __init__(self, role: Role, models: Mapping[str, str]) -> None:
        self._stepped = SteppedEngine(engine_arguments(role, models))
        self.engine, self.scheduler = self._stepped.engine, self._stepped.scheduler
        self.drafter = getattr(self._stepped.worker, "nightjar_drafter", None)
        self._rows: tuple[RowStep, ...] = ()
        self._note: Any = None
        self._preempted = 0
        self._names: list[str] = []
        self._watch_scheduler()
        gc.collect()
        gc.freeze()

    def start(self) -> None:
        """Come up; everything is done by the first call of any kind."""

    def encode(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of chat prompts."""
        tokenizer = self.engine.get_tokenizer()
        return [
            tokenizer.apply_chat_template(
                [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            for question in questions
        ]

    def add(self, prompts: Mapping[int, Sequence[int]], max_tokens: int) -> None:
        """Add greedy requests that generate exactly `max_tokens`, by row number."""
        from vllm import SamplingParams

        for row, prompt in prompts.items():
            self._names.append(f"row-{row}")
            self.engine.add_request(
                f"row-{row}",
                {"prompt_token_ids": list(prompt)},
                SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False),
            )

    def run(self, steps: int, tokens: int = 0) -> list[Step]:
        """Run at least `steps` steps, and on until `tokens` tokens are generated; end early without requests."""
        taken: list[Step] = []
        generated = 0
        for number in itertools.count():
            if (number >= steps and generated >= tokens) or not self.engine.has_unfinished_requests():
                return taken
            taken.append(self._step())
            generated += taken[-1].generated
        raise AssertionError("unreachable")

    def abort(self) -> None:
        """Drop every request."""
        self.engine.abort_request(self._names)
        self._names = []
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def exchange(self, command: EngineCommand) -> EngineSnapshot:
        """What a replica's agent does between two steps."""
        return self._stepped.exchange(command)

    def probe_forwards(self) -> int:
        """Forwards of the draft model so far."""
        return 0 if self.drafter is None else int(self.drafter.forwards)

    def kv_tokens(self) -> dict[str, int]:
        """Tokens of KV that fit, with the draft loaded and with it offloaded; one block is vLLM's own."""
        blocks, block_size = len(self.scheduler.kv_cache_manager.block_pool.blocks), self.scheduler.block_size
        lending = None if self.drafter is None else self.scheduler.nightjar.drafting.lending
        loaded = blocks if lending is None else lending.pool.base_blocks
        return {"loaded": (loaded - 1) * block_size, "offloaded": (blocks - 1) * block_size}

    def press(self) -> None:
        """To the draft's lending it looks as if the last step had left no block free and requests waiting."""
        lending = self.scheduler.nightjar.drafting.lending
        lending._left_free_share, lending._left_waiting = 0.0, 1

    def lag_tokens(self) -> int:
        """Draft tokens that a restart now would recompute."""
        return int(self.scheduler.nightjar.drafting.lag(self.scheduler.running)[0])

    def catch_up(self, how: str) -> None:
        """`bounded` as the product does, `unbounded` in one step, or `none`: the ledger believes that nothing is missing."""
        from tests.benchmarks.engine.sections.no_catch_up import pretend_in_sync

        life = self.scheduler.nightjar.drafting.life
        life._own_chunk_tokens = None if how == "unbounded" else 2048
        if how == "none":
            pretend_in_sync(self.scheduler.nightjar.drafting)

    def _watch_scheduler(self) -> None:
        take_in = self.scheduler.update_from_output

        def watched(scheduler_output: Any, model_runner_output: Any) -> Any:
            self._rows = tuple(self._row_steps(scheduler_output, model_runner_output))
            self._note = getattr(scheduler_output, "nightjar_note", None)
            self._preempted = len(scheduler_output.preempted_req_ids or ())
            return take_in(scheduler_output, model_runner_output)

        self.scheduler.update_from_output = watched

    def _row_steps(self, scheduler_output: Any, model_runner_output: Any) -> list[RowStep]:
        drafts, index = scheduler_output.scheduled_spec_decode_tokens, model_runner_output.req_id_to_index
        rows = []
        for name, scheduled in scheduler_output.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            sampled = model_runner_output.sampled_token_ids
            rows.append(
                RowStep(
                    row=int(name.split("-")[1]),
                    is_prefill=request.num_computed_tokens - scheduled < request.num_prompt_tokens,
                    scheduled_tokens=scheduled,
                    position=request.num_output_tokens,
                    drafted=len(drafts.get(name, ())),
                    generated=len(sampled[index[name]]) if sampled else 0,
                )
            )
        return rows

    def _step(self) -> Step:
        self._rows, self._note, self._preempted = (), None, 0
        cpu = time.process_time()
        began = time.perf_counter()
        self.engine.step()
        seconds = time.perf_counter() - began
        cpu_seconds = time.process_time() - cpu
        note = self._note
        return Step(
            seconds,
            cpu_seconds,
            0 if note is None else note.num_speculative_tokens,
            0 if note is None else note.recomputed_tokens,
            0 if self.drafter is None else self.drafter.forwards,
            self._rows,
            self._preempted,
            len(self.scheduler.waiting),
            "" if self.drafter is None else str(self.scheduler.nightjar.drafting.life.state.value),
        )


if __name__ == "__main__":
    pipe, role, models = sys.argv[1:]
    serve(pipe, lambda: EngineHost(cast("Role", role), json.loads(models)))
