"""Ray Serve's status of an application, in words for an operator."""

from __future__ import annotations

import re
from typing import Any, Final

COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
MAX_LINE_LENGTH: Final = 200
WAITS_FOR_ROOM: Final = re.compile(
    r"has (\d+) replicas that have taken more than (\S+) to be scheduled.*each replica: (.*), total resources available: (.*)\. Use"
)
LOADS: Final = re.compile(r"has (\d+) replicas that have taken more than (\S+) to initialize\.")
SAYS_NOTHING: Final = ("For further information visit", "During handling of the above exception")
"""Begin lines that a message may end with and that have no point of their own."""


def describe_pending(status: Any) -> str:
    """One line of Serve's `StatusOverview`: `smollm2 DEPLOYING (LLM UPDATING: ...)`. Names the deployments that are not healthy."""
    deployments = [
        f"{deployment.name} {deployment.status.value}" + (f": {summary}" if (summary := summarize(deployment.message)) else "")
        for deployment in status.deployment_statuses
        if deployment.status.value != "HEALTHY"
    ]
    return f"{status.name} {status.app_status.status.value}" + (f" ({'; '.join(deployments)})" if deployments else "")


def describe_failure(status: Any) -> str:
    """Everything that Serve knows of an application that failed, as one block."""
    lines = [f"application {status.name} failed to deploy", *text_lines(status.app_status.message)]
    for deployment in status.deployment_statuses:
        if deployment.message and deployment.status.value != "HEALTHY":
            lines.append(f"deployment {deployment.name} ({deployment.status.value}):")
            lines.extend(text_lines(deployment.message))
    return "\n  ".join(lines)


def summarize(message: str) -> str:
    """The first line of a message, and the last, where a traceback has its point. What Serve says of a slow start, in short."""
    if waits := WAITS_FOR_ROOM.search(message):
        count, waited, needed, free = waits.groups()
        return f"{count} not placed after {waited}: each replica needs {needed}, available are {free}"[:MAX_LINE_LENGTH]
    if loads := LOADS.search(message):
        return f"{loads[1]} still loading after {loads[2]}"
    lines = [line for line in text_lines(message) if not line.strip().startswith(SAYS_NOTHING)]
    if not lines:
        return ""
    ends = [lines[0]] if len(lines) == 1 else [lines[0], lines[-1].strip()]
    return " ... ".join(line[:MAX_LINE_LENGTH] for line in ends)


def text_lines(message: str) -> list[str]:
    """The lines of a message without colours and without empty ones."""
    return [line.rstrip() for line in COLOURS.sub("", message).splitlines() if line.strip()]
