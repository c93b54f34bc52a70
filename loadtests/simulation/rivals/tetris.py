"""TETRIS: every row drafts one token more than is verified of it on average, and of all drafts the likeliest are verified.

Source: arXiv 2502.15197 (ACL 2025). Each step has a budget of draft tokens to verify, and takes those of all requests whose
cumulative product of draft probabilities is highest. It never turns off, and the drafter's work is that of the longer drafts.

Assumed: three drafts of a row are verified on average, as the fixed chain that the paper (arXiv 2512.22420) compares with has, and
four drafted; its authors' rebuild has a budget of one less than drafted, too. The product of draft probabilities is the acceptance
of the row's class at that position: the drafter knows which requests are easy, and not which of their tokens. What it knew
beyond that would help it further, so that this is a lower bound.
"""

from __future__ import annotations

from typing import Final

from nightjar.loadtests.simulation.rivals.tables import Table
from nightjar.policy.planners.local import LocalContext, LocalOptions, number_option, refuse_unknown

VERIFIED: Final = 3


def build(options: LocalOptions, context: LocalContext) -> Table:
    """Option: `verified`, drafts of a row that are verified on average; the engine drafts one more (registry.DRAFTS_MORE)."""
    refuse_unknown(options, ("verified",))
    return Table([int(number_option(options, "verified", VERIFIED, 1, context.max_num_speculative_tokens))])
