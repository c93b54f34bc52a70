"""Batch buckets: log-spaced ranges of the decode batch size, the context in which K is learned.

One bucket a batch size would learn each size on its own and forget the next; step time moves slowly with the batch, so
sizes share a bucket that differ by less than about a third.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

FIRST_BATCH_SIZES: Final = (
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
)  # fmt: skip
"""Smallest decode batch size of each bucket; the last bucket has no upper end."""


def batch_bucket(decode_batch_size: int) -> int:
    """Index of the bucket that holds `decode_batch_size` (>= 1; 0 counts as 1).

    >>> [batch_bucket(size) for size in (1, 2, 5, 6, 7, 8, 5000)]
    [0, 1, 3, 4, 4, 5, 23]
    """
    return max(bisect_right(FIRST_BATCH_SIZES, decode_batch_size) - 1, 0)


def bucket_range(bucket: int, max_num_seqs: int) -> tuple[int, int]:
    """First and last decode batch size of a bucket in an engine of `max_num_seqs`, both included.

    >>> bucket_range(3, 32), bucket_range(9, 32)
    ((4, 5), (32, 32))
    """
    first = FIRST_BATCH_SIZES[bucket]
    last = FIRST_BATCH_SIZES[bucket + 1] - 1 if bucket + 1 < len(FIRST_BATCH_SIZES) else max_num_seqs
    return first, min(last, max_num_seqs)


def buckets_up_to(max_num_seqs: int) -> range:
    """Indices of the buckets that an engine of `max_num_seqs` can reach.

    >>> len(buckets_up_to(8))
    6
    """
    return range(batch_bucket(max_num_seqs) + 1)
