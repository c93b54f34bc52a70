"""What nobody should run: a drafter that starts again as if it had missed nothing. Shows what catch-up is for.

For this benchmark only. Greedy output stays the target's; what suffers is acceptance.
"""

from __future__ import annotations

from typing import Any


def pretend_in_sync(drafting: Any) -> None:
    """Tell the ledger that every row's draft KV is complete now, though it is not."""
    ledger = drafting.ledger
    ledger._behind.clear()
    ledger._rows_may_be_in_sync = True
