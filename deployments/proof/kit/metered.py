"""An engine whose speed is measured, in a process of its own that another one asks: one call at a time, answered across a pipe.

`python -m nightjar.deployments.proof.kit.metered DESCRIPTOR CHOSEN.json SPEC.json`. While it is not called it waits in a read. All
engines are timed alike, from outside the engine's step. A call that raises is answered with its error and the process goes on; when
the pipe is closed, it ends.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nightjar.deployments.engine.process_guard import end_with_replica
from nightjar.deployments.proof.driven_engine import EngineRequest
from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.engines import EngineSpec, engine_arguments
from nightjar.deployments.proof.kit.environment import engine_environment
from nightjar.deployments.proof.kit.phases.asked import prompt
from nightjar.deployments.proof.kit.planned import PlannedByPolicy
from nightjar.deployments.proof.stepped_engine import SteppedEngine

ENDS_WITHIN_S: Final = 30.0


class MeteredEngine(AbstractContextManager["MeteredEngine"]):
    """One engine in its own process; its output goes to `log`. Raises RuntimeError with the other side's error."""

    def __init__(self, spec: EngineSpec, chosen: Chosen, work: Path, log: Path) -> None:
        self.spec = spec
        self._ours, theirs = Pipe()
        self._folder = tempfile.TemporaryDirectory(dir=work)
        folder = Path(self._folder.name)
        files = {"chosen": chosen.to_plain(), "spec": spec.to_plain()}
        for name, plain in files.items():
            (folder / f"{name}.json").write_text(json.dumps(plain), encoding="utf-8")
        command = [sys.executable, "-m", "nightjar.deployments.proof.kit.metered", str(theirs.fileno())]
        command += [str(folder / f"{name}.json") for name in files]
        environment = os.environ | engine_environment(spec, chosen, folder)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self._call("start")

    def batch(self, rows: int, tokens: int, seed: int) -> float:
        """Seconds for `rows` requests of exactly `tokens` tokens each."""
        return float(self._call("batch", rows, tokens, seed))

    def hold(self, num_speculative_tokens: int) -> None:
        """Pin K of a steered engine; 0 is off."""
        self._call("hold", num_speculative_tokens)

    def flow(self, rows: int, seconds_s: float, *, planned: bool) -> dict[str, float]:
        """`tokens` and `seconds` while `rows` requests are kept in flight; `planned` by the policy."""
        answer: dict[str, float] = self._call("flow", rows, seconds_s, planned)
        return answer

    def empty(self) -> None:
        """Drop every request."""
        self._call("empty")

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            self._ours.send((method, arguments))
            failed, answer = self._ours.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"engine {self.spec.name} ended during {method!r}; its log says why") from error
        if failed:
            raise RuntimeError(f"engine {self.spec.name}, {method}: {answer}")
        return answer


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
            self._engine.add(EngineRequest(f"batch-{next(self._numbers)}", prompt(rng.randrange(1 << 20)), options))
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
        self._engine.add(EngineRequest(name, prompt(self._rng.randrange(1 << 20)), options))

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
    connection: Connection[Any, Any] = Connection(int(descriptor))
    chosen = Chosen.from_plain(_read(chosen_file))
    spec = EngineSpec.from_plain(_read(spec_file))
    metered: Metered | None = None
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            os._exit(0)  # an engine's threads may outlive it
        try:
            metered = metered or Metered(spec, chosen)
            connection.send((False, getattr(metered, method)(*given)))
        except Exception as error:  # noqa: BLE001 - the other side raises it again
            traceback.print_exc()
            connection.send((True, f"{type(error).__name__}: {error}"))


def _read(file: str) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return plain


if __name__ == "__main__":
    main(sys.argv[1:])
