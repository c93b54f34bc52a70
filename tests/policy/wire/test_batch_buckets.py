"""Batch buckets: every decode batch size lies in exactly one, and the sizes of one differ by less than half."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, batch_bucket, bucket_range, buckets_up_to


@given(size=st.integers(1, 4096), max_num_seqs=st.integers(1, 4096))
def test_a_size_lies_within_the_range_of_its_bucket(size: int, max_num_seqs: int) -> None:
    if size <= max_num_seqs:
        first, last = bucket_range(batch_bucket(size), max_num_seqs)
        assert first <= size <= last
        assert batch_bucket(size) in buckets_up_to(max_num_seqs)


@given(st.integers(1, 4096))
def test_the_ranges_of_an_engine_cover_its_sizes_once(max_num_seqs: int) -> None:
    ranges = [bucket_range(bucket, max_num_seqs) for bucket in buckets_up_to(max_num_seqs)]
    assert ranges[0][0] == 1
    assert ranges[-1][1] == max_num_seqs
    assert all(following[0] == earlier[1] + 1 for earlier, following in pairwise(ranges))


def test_sizes_in_one_bucket_differ_by_less_than_half() -> None:
    for bucket in range(len(FIRST_BATCH_SIZES) - 1):
        first, last = bucket_range(bucket, 4096)
        assert last < 1.5 * first
