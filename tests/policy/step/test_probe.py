"""A probe: how many rows it watches, and how many accepted first tokens it asks for."""

from __future__ import annotations

import pytest

from nightjar.policy.step.probe import Probe


def probing(rows_before: int, hits_before: int) -> Probe:
    probe = Probe()
    probe.remember(rows_before, hits_before)
    probe.judge(5, 5)
    probe.begin()
    return probe


@pytest.mark.parametrize(
    ("rows_before", "hits_before", "rows", "hits"),
    [
        (1000, 500, 64, 8),  # so many rows that acceptance as before gives 32
        (1000, 1000, 32, 8),  # never fewer
        (1000, 100, 256, 7),  # never more: 0.25 * 0.1 * 256 is 6.4
        (1000, 10, 256, 1),  # one hit at least
        (32, 16, 64, 8),  # as soon as there are 32 rows to compare with
        (31, 31, 256, 1),  # before that one hit is enough
        (1000, 0, 256, 1),  # nothing was accepted before either
        (0, 0, 256, 1),
    ],
)
def test_a_probe_passes_with_a_quarter_of_the_acceptance_before_and_fails_after_its_rows(
    rows_before: int, hits_before: int, rows: int, hits: int
) -> None:
    failing = probing(rows_before, hits_before)
    assert failing.judge(rows - 1, hits - 1) is None
    assert failing.judge(1, 0) is False
    passing = probing(rows_before, hits_before)
    assert passing.judge(hits - 1, hits - 1) is None
    assert passing.judge(1, 1) is True


def test_of_acceptance_long_ago_half_is_forgotten_every_4096_rows() -> None:
    old = Probe()
    old.remember(4096, 4096)
    assert probed_rows(old) == 32
    old.remember(4096, 0)
    assert probed_rows(old) == 64, "half of the rows before and half of the hits: still a share of 0.5"
    old.remember(4096, 0)
    assert probed_rows(old) == 128, "2048 of 8192"


def test_a_memory_of_4096_rows_is_whole_and_one_row_more_halves_it() -> None:
    probe = Probe()
    probe.remember(4097, 4097)
    probe.remember(4096, 0)
    assert probed_rows(probe) == 96, "a third: 2048.5 of 6144.5"


def test_a_probe_that_nobody_began_has_seen_nothing() -> None:
    probe = Probe()
    assert [probe.judge(255, 0), probe.judge(1, 0)] == [None, False]
    assert Probe().judge(1, 1) is True


def probed_rows(probe: Probe) -> int:
    """How many rows without a hit fail the probe."""
    probe.begin()
    rows = 1
    while probe.judge(1, 0) is None:
        rows += 1
    return rows
