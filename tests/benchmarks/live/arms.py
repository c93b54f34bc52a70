"""What is compared, by the names of rows and tables: off, a pinned K, the planner, the paper's, and stock vLLM with a table."""

from __future__ import annotations

from typing import Final

from nightjar.loadtests.arms.arm import Arm
from nightjar.policy.wire.mode import Mode

OFF: Final = "off"
AUTO: Final = "auto"
PAPER: Final = "nightjar"
TABLE: Final = "stock table"
STATIC: Final = (OFF, "K=1", "K=2", "K=3", "K=5")
"""What an operator could have set once and for all: every K that the engines know."""


def length_of(arm: str) -> int:
    """The K of a static arm.

    >>> length_of("off"), length_of("K=3")
    (0, 3)
    """
    return 0 if arm == OFF else int(arm.removeprefix("K="))


ARMS: Final = {
    AUTO: Arm(name=AUTO, mode=Mode(kind="auto"), planner="fleet"),
    PAPER: Arm(name=PAPER, mode=Mode(kind="auto"), planner="nightjar"),
    TABLE: Arm(name=TABLE, mode=Mode(kind="off")),
    **{arm: Arm(name=arm, mode=Mode.parse("off" if arm == OFF else f"pin={length_of(arm)}")) for arm in STATIC},
}
"""What our replicas run for each; while the stock table runs they have nothing to do."""
