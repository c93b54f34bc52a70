"""An object in a process of its own that another one calls: one call at a time, answered across a pipe.

While it is not called it waits in a read and takes no processor time. A call that raises is answered with its error, its traceback
goes to the process's log, and the process goes on; when the pipe is closed, it ends, after the call that is under way. Fails with
RuntimeError in the process that calls.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

ENDS_WITHIN_S: Final = 30.0


class Remote:
    """The side that calls; a context that ends with the process. `name` stands in its errors."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start `python -m MODULE DESCRIPTOR ARGUMENTS`, whose main is `serve`; what it prints goes to `log`."""
        self.name = name
        self._ours, theirs = Pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the other side's method of this name answers; the first call waits until the object is made."""
        try:
            self._ours.send((method, arguments))
            failed, answer = self._ours.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"{self.name} ended during {method!r}; its log says why") from error
        if failed:
            raise RuntimeError(f"{self.name}, {method}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def serve(descriptor: str, make: Callable[[], object]) -> NoReturn:
    """The other side: answer calls with the public methods of what `make` makes, until the pipe is closed."""
    connection: Connection[Any, Any] = Connection(int(descriptor))
    served: object = None
    try:
        while True:
            method, arguments = connection.recv()
            try:
                served = make() if served is None else served
                connection.send((False, getattr(served, method)(*arguments)))
            except Exception as error:  # noqa: BLE001 - the other side raises it again
                traceback.print_exc()
                connection.send((True, f"{type(error).__name__}: {error}"))
    except (EOFError, OSError):  # closed, before a call or during one
        os._exit(0)  # an engine's threads may outlive it
