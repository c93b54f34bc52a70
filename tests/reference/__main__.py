"""Print a reference page: `python -m tests.reference settings`; `way` is the part of docs/how-it-works.md that way.py writes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from tests.reference import command_line, http_api, metrics, settings

PAGES: Final[dict[str, Callable[[], str]]] = {
    "settings": settings.page,
    "cli": command_line.page,
    "api": http_api.page,
    "metrics": metrics.page,
}


def main(arguments: list[str]) -> int:
    """Print the page that is named; the exit code."""
    if arguments == ["way"]:
        from tests.reference import way  # needs vLLM, the pages do not

        sys.stdout.write(way.page())
        return 0
    if len(arguments) != 1 or arguments[0] not in PAGES:
        sys.stderr.write(f"error: {' '.join(arguments) or 'no page'}; name one of {', '.join(PAGES)}, way\n")
        return 2
    sys.stdout.write(PAGES[arguments[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
