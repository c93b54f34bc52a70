"""An engine whose speed is measured, in a process of its own that another one calls (remote.py).

`python -m nightjar.deployments.proof.kit.metered DESCRIPTOR CHOSEN.json SPEC.json`. All engines are timed alike, from outside the
engine's step.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.engine.process_guard import end_with_replica
from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import EngineSpec, engine_arguments
from nightjar.deployments.proof.kit.environment import engine_environment
from nightjar.deployments.proof.kit.phases.asked import prompt
from nightjar.deployments.proof.kit.planned import PlannedByPolicy
from nightjar.deployments.proof.remote import Remote, serve
from nightjar.deployments.proof.stepped_engine import SteppedEngine

MODULE: Final = "nightjar.deployments.proof.kit.metered"


class MeteredEngine(Remote):
    """One engine in its own process; its output goes to `log`. Raises RuntimeError with the other side's error."""

    def __init__(self, spec: EngineSpec, chosen: Chosen, work: Path, log: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=work)
        folder = Path(self._folder.name)
        files = {"chosen": chosen.to_plain(), "spec": spec.to_plain()}
        for name, plain in files.items():
            (folder / f"{name}.json").write_text(json.dumps(plain), encoding="utf-8")
        environment = os.environ | engine_environment(spec, chosen, folder)
        super().__init__(f"engine {spec.name}", MODULE, [str(folder / f"{name}.json") for name in files], log, environment)
        self.call("start")

    def kv_tokens(self) -> int:
        """Tokens that its KV cache holds."""
        return int(self.call("kv_tokens"))

    def decode(self, rows: int, prompt_tokens: int, tokens: int, seed: int) -> dict[str, float]:
        """`tokens` and `seconds` of the steps in which all of `rows` requests decode; each answers `tokens` at most."""
        answer: dict[str, float] = self.call("decode", rows, prompt_tokens, tokens, seed)
        return answer

    def hold(self, num_speculative_tokens: int) -> None:
        """Pin K of a steered engine; 0 is off."""
        self.call("hold", num_speculative_tokens)

    def flow(self, rows: int, seconds_s: float, *, planned: bool) -> dict[str, float]:
        """`tokens` and `seconds` while `rows` requests are kept in flight; `planned` by the policy."""
        answer: dict[str, float] = self.call("flow", rows, seconds_s, planned)
        return answer

    def empty(self) -> None:
        """Drop every request."""
        self.call("empty")

    def close(self) -> None:
        """End the process."""
        super().close()
        self._folder.cleanup()


class Metered:
    """The other side. Each public method is called from the other process."""

    def __init__(self, spec: EngineSpec, chosen: Chosen) -> None:
        arguments = engine_arguments(spec, chosen)
        if arguments.serving_plainly and not spec.stock:
            raise RuntimeError(f"not steered: {arguments.serving_plainly}")
        self._engine = SteppedEngine(arguments.kwargs)
        self._steered = not spec.stock
        self._planned = PlannedByPolicy(self._engine, arguments, chosen.seed) if self._steered else None
        self._numbers = itertools.count()
        self._generated: dict[str, int] = {}
        self._rng = random.Random(chosen.seed)

    def start(self) -> None:
        """The engine is up; a first batch warms what compiles at the first use."""
        self.decode(1, 8, 8, 0)

    def hold(self, num_speculative_tokens: int) -> None:
        """See MeteredEngine."""
        if self._steered:
            self._engine.steer(f"pin={num_speculative_tokens}" if num_speculative_tokens else "off")

    def kv_tokens(self) -> int:
        """See MeteredEngine."""
        cache = self._engine.vllm_config.cache_config
        return int(cache.num_gpu_blocks or 0) * int(cache.block_size)

    def decode(self, rows: int, prompt_tokens: int, tokens: int, seed: int) -> dict[str, float]:
        """See MeteredEngine. The same seed asks the same of every engine; asked again, its prompts are cached."""
        rng = random.Random(seed)
        ordinary = self._engine.vllm_config.model_config.get_vocab_size() // 2  # special tokens stand at the end
        options = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True}
        for _ in range(rows):
            tokens_of_prompt = tuple(rng.randrange(ordinary) for _ in range(prompt_tokens))
            self._engine.add(GenerationRequest(f"decode-{next(self._numbers)}", tokens_of_prompt, options))
        return all_rows_decoding(self._engine.engine, rows)

    def flow(self, rows: int, seconds_s: float, planned: bool) -> dict[str, float]:
        """See MeteredEngine."""
        before_step: Callable[[], None] = lambda: None  # noqa: E731
        if planned and self._planned is not None:
            before_step = self._planned.before_step
        began_s = time.perf_counter()
        generated = 0
        while (now_s := time.perf_counter()) - began_s < seconds_s:
            while len(self._generated) < rows:
                self._ask()
            before_step()
            generated += self._step()
        return {"tokens": float(generated), "seconds": now_s - began_s}

    def empty(self) -> None:
        """See MeteredEngine."""
        self._engine.engine.abort_request(list(self._generated))
        self._generated.clear()
        while self._engine.engine.has_unfinished_requests():
            self._engine.engine.step()

    def _ask(self) -> None:
        name = f"flow-{next(self._numbers)}"
        options = {"temperature": 0.0, "max_tokens": self._rng.randint(64, 256)}
        self._generated[name] = 0
        self._engine.add(GenerationRequest(name, prompt(self._rng.randrange(1 << 20)), options))

    def _step(self) -> int:
        """Tokens that one step gave."""
        generated = 0
        for output in self._engine.engine.step():
            (completion,) = output.outputs
            count = len(completion.token_ids)
            generated += count - self._generated[output.request_id]
            self._generated[output.request_id] = count
            if output.finished:
                del self._generated[output.request_id]
        return generated


def all_rows_decoding(engine: Any, rows: int, now_s: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Step a vLLM engine until it has nothing to do: `tokens` and `seconds` from the first step after which each of `rows` requests
    has a token to the last one before any is done. Both are 0 where one is done before the last begins."""
    generated: dict[str, int] = {}
    began: tuple[float, int] | None = None
    ended = (0.0, 0)
    one_is_done = False
    while engine.has_unfinished_requests():
        for output in engine.step():
            generated[output.request_id] = len(output.outputs[0].token_ids)
            one_is_done = one_is_done or output.finished
        if not one_is_done and len(generated) == rows:
            ended = now_s(), sum(generated.values())
            began = began or ended
    if began is None:
        return {"tokens": 0.0, "seconds": 0.0}
    return {"tokens": float(ended[1] - began[1]), "seconds": ended[0] - began[0]}


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    end_with_replica()
    descriptor, chosen_file, spec_file = arguments
    chosen, spec = Chosen.from_plain(_read(chosen_file)), EngineSpec.from_plain(_read(spec_file))
    serve(descriptor, lambda: Metered(spec, chosen))


def _read(file: str) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return plain


if __name__ == "__main__":
    main(sys.argv[1:])
