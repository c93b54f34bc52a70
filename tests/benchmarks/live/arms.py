"""What is compared, by the names of rows and tables: off, a pinned K, the planner, the paper's, and stock vLLM with a table."""

from __future__ import annotations

from typing import Final

from nightjar.policy.wire.mode import Mode

OFF: Final = "off"
AUTO: Final = "auto"
PAPER: Final = "nightjar"
TABLE: Final = "stock table"
STATIC: Final = (OFF, "K=1", "K=2", "K=3", "K=5")
"""What an operator could have set once and for all: every K that the engines know."""


PLANNER_OF: Final = {AUTO: "fleet", PAPER: "nightjar"}


def length_of(arm: str) -> int:
    """The K of a static arm.

    >>> length_of("off"), length_of("K=3")
    (0, 3)
    """
    return 0 if arm == OFF else int(arm.removeprefix("K="))


def mode_of(arm: str) -> Mode:
    """The mode that makes our replicas run an arm; while the stock table runs they have nothing to do.

    >>> str(mode_of("off")), str(mode_of("K=3")), str(mode_of("auto"))
    ('off', 'pin=3', 'auto')
    """
    if arm in PLANNER_OF:
        return Mode(kind="auto")
    return Mode(kind="off") if arm in {OFF, TABLE} else Mode(kind="pin", num_speculative_tokens=length_of(arm))
