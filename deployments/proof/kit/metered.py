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

    def batch(self, rows: int, tokens: int, seed: int) -> float:
        """Seconds for `rows` requests of exactly `tokens` tokens each."""
        return float(self.call("batch", rows, tokens, seed))

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
        self.batch(1, 8, 0)

    def hold(self, num_speculative_tokens: int) -> None:
        """See MeteredEngine."""
        if self._steered:
            self._engine.steer(f"pin={num_speculative_tokens}" if num_speculative_tokens else "off")

    def batch(self, rows: int, tokens: int, seed: int) -> float:
        """See MeteredEngine. The same seed asks the same of every engine."""
        rng = random.Random(seed)
        for _ in range(rows):
            options = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True}
            self._engine.add(GenerationRequest(f"batch-{next(self._numbers)}", prompt(rng.randrange(1 << 20)), options))
        began_s = time.perf_counter()
        while self._engine.engine.has_unfinished_requests():
            self._engine.engine.step()
        return time.perf_counter() - began_s

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
