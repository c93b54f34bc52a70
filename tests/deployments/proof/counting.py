"""What test_remote.py calls in another process."""

from __future__ import annotations

import os
import select
import sys
import threading

from nightjar.deployments.proof.remote import serve


class Counting:
    """Counts what it is told, and can fail or vanish."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int) -> int:
        if number < 0:
            raise ValueError("below 0")
        self.total += number
        return self.total

    def outlast_its_caller(self) -> None:
        """Returns once the caller's end of the pipe is closed, and leaves a thread behind that does not end."""
        threading.Thread(target=threading.Event().wait).start()
        closing = select.poll()
        closing.register(int(sys.argv[1]), select.POLLHUP)
        closing.poll()

    def vanish(self) -> None:
        os._exit(3)


if __name__ == "__main__":
    sys.stdout.write("began\n")
    serve(sys.argv[1], Counting)
