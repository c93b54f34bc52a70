"""How an error that is caught looks in the log: with Python's own traceback.

structlog prints one in panels of rich's, with every local variable: in a step loop these are requests, in a policy all of a fleet,
and making them stops a step for a quarter of a second. A host that has configured structlog keeps what it chose.
"""

from __future__ import annotations

import os
import sys

import structlog


def log_plain_tracebacks() -> None:
    """To be called where a process of ours begins to log. Colours are as structlog's own default has them (26.1, _config.py)."""
    if structlog.is_configured():
        return
    may_colour = not os.environ.get("NO_COLOR") and (bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty())
    renderer = structlog.dev.ConsoleRenderer(colors=may_colour, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])
