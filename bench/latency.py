"""How long calls took, as a log-linear histogram in the manner of HdrHistogram.

Owns the buckets: 128 of equal width in every power of two, so that a value read back is at most 1 in 128
above what was recorded, whatever its size. Invariant: histograms of the same call can be added up, and the
percentiles of the sum are those of all calls together (percentiles themselves can't be averaged).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

_WHOLE_BITS = 8  # values below 2**8 have a bucket each
_HALF = 1 << (_WHOLE_BITS - 1)

PERCENTILES = (0.5, 0.9, 0.99, 0.999)


def bucket_of(value_ns: int) -> int:
    """The number of the bucket that a value falls into; buckets are in the order of their values."""
    shift = max(0, value_ns.bit_length() - _WHOLE_BITS)
    return shift * _HALF + (value_ns >> shift)


def highest_of(bucket: int) -> int:
    """The highest value of a bucket, in ns."""
    shift = max(0, bucket // _HALF - 1)
    return ((bucket - shift * _HALF + 1) << shift) - 1


class Histogram:
    """Counts of latencies by bucket, with the exact maximum."""

    def __init__(self, counts: dict[int, int] | None = None, max_ns: int = 0) -> None:
        self.counts: Counter[int] = Counter(counts or {})
        self.max_ns = max_ns

    @property
    def total(self) -> int:
        """How many values were recorded."""
        return self.counts.total()

    def record(self, values_ns: Iterable[int]) -> None:
        """Add these latencies; a negative one, which a stepping clock could give, counts as 0."""
        values = [max(0, value) for value in values_ns]
        self.counts.update(map(bucket_of, values))
        self.max_ns = max(self.max_ns, max(values, default=0))

    def add(self, other: Histogram) -> None:
        """Count what the other one has recorded, too."""
        self.counts.update(other.counts)
        self.max_ns = max(self.max_ns, other.max_ns)

    def percentile_us(self, share: float) -> float | None:
        """The latency in us that `share` (0 to 1) of the calls did not exceed; None if there were none."""
        total = self.total
        if not total:
            return None
        rank = max(1, math.ceil(share * total - 1e-9))
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return min(highest_of(bucket), self.max_ns) / 1000
        return self.max_ns / 1000
