"""A mergeable quantile sketch with log-linear buckets, the same in the kernel and here.

A value is a whole number of nanoseconds. Below 128 each has a bucket of its own; above, every octave [2^k, 2^(k+1)) is cut
into 64 equal buckets, as HdrHistogram does (Tene, 2012). A bucket is at most 1/64 of its lower bound wide, so its middle is
within 1/128 = 0.79 % of every value in it, and so is every quantile of every merge. 2,048 buckets reach 2^37 ns = 137 s;
what is longer counts in the last one. Merging adds the counts: it is exact, and its order does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch import sampling

SUB_BUCKETS_LOG2 = 6
BUCKETS = 2048
VALUE_MAX_NS = (1 << 37) - 1
RELATIVE_ERROR_MAX = 1 / 128


def bucket_of(nanoseconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each value; negative values count as 0, values above `VALUE_MAX_NS` in the last bucket."""
    value = np.clip(nanoseconds, 0, VALUE_MAX_NS)
    # frexp is exact below 2^53: value = m * 2^e with m in [0.5, 1), so that floor(log2(value)) = e - 1.
    shift = np.maximum(np.frexp(value.astype(np.float64))[1].astype(np.int64) - 1 - SUB_BUCKETS_LOG2, 0)
    bucket: NDArray[np.int64] = (shift << SUB_BUCKETS_LOG2) + (value >> shift)
    return bucket


def _middles_seconds() -> NDArray[np.float64]:
    bucket = np.arange(BUCKETS, dtype=np.int64)
    shift = np.maximum((bucket >> SUB_BUCKETS_LOG2) - 1, 0)
    low = (bucket - (shift << SUB_BUCKETS_LOG2)) << shift
    # An exact bucket holds whole nanoseconds: its middle is the value itself.
    middles: NDArray[np.float64] = (low + ((1 << shift) - 1) / 2) / 1e9
    return middles


MIDDLES_SECONDS = _middles_seconds()
"""float64 [BUCKETS]: the value that stands for each bucket, seconds."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """The observations of one window, sampled with `probability`.

    `counts` are what was sampled; the methods re-weight by 1 / `probability` (Horvitz and Thompson, 1952).
    """

    counts: NDArray[np.int64]
    """int64 [BUCKETS], not negative."""
    sum_seconds: float
    """Sum of the sampled observations, exact."""
    probability: float = 1.0
    """In (0, 1]."""
    effective_probability: float | None = None
    """Of a merge of unlike ones: what would leave the same error, had all been sampled alike (Kish, 1965). None: `probability`."""

    @property
    def sampled(self) -> int:
        """How many observations were sampled."""
        return int(self.counts.sum())

    @property
    def count(self) -> float:
        """Estimate of how many observations there were."""
        return self.sampled / self.probability

    @property
    def count_error(self) -> float:
        """Standard error of `count`: 0 where everything was sampled."""
        return sampling.count_error(self.count, self.effective_probability or self.probability)

    @property
    def mean_seconds(self) -> float:
        """Mean; NaN when empty."""
        return self.sum_seconds / self.sampled if self.sampled else float("nan")

    def quantiles_seconds(self, q: tuple[float, ...]) -> tuple[float, ...]:
        """The quantiles `q`, each in [0, 1], within `RELATIVE_ERROR_MAX`; NaN when empty."""
        return quantiles_seconds(self.counts, q)

    def quantile_bounds_seconds(self, q: float, confidence: float = 0.95) -> tuple[float, float]:
        """Between what the quantile `q` of all observations lies with this confidence; NaN where too few were sampled to say."""
        probability = self.effective_probability or self.probability
        sampled = round(self.count * probability)
        if not sampled:
            return float("nan"), float("nan")
        ranks = sampling.rank_bounds(q, self.count, probability, confidence)
        low, high = self.quantiles_seconds(tuple(min(rank / sampled, 1.0) for rank in ranks))
        return (
            low * (1 - RELATIVE_ERROR_MAX) if ranks[0] > 0 else float("nan"),
            high * (1 + RELATIVE_ERROR_MAX) if ranks[1] <= sampled else float("nan"),
        )


def quantiles_seconds(counts: NDArray[np.generic], q: tuple[float, ...]) -> tuple[float, ...]:
    """The quantiles `q` of bucket counts [BUCKETS] of any non-negative weights: the value of rank ceil(q * n); NaN when empty."""
    total = np.cumsum(counts, dtype=np.float64)
    if total[-1] <= 0:
        return tuple(float("nan") for _ in q)
    # The smallest positive rank keeps q = 0 at the first bucket that holds something.
    ranks = np.maximum(np.asarray(q) * total[-1], np.finfo(np.float64).tiny)
    return tuple(MIDDLES_SECONDS[np.searchsorted(total, ranks * (1 - 1e-12), side="left")].tolist())


def of_seconds(values: NDArray[np.float64], probability: float = 1.0) -> Sketch:
    """The sketch of values in seconds."""
    buckets = bucket_of(np.round(values * 1e9).astype(np.int64))
    return Sketch(np.bincount(buckets, minlength=BUCKETS), float(values.sum()), probability)


def merge(sketches: list[Sketch]) -> Sketch:
    """All observations together. Sketches with unlike probabilities are re-weighted to whole expected counts at the highest.

    Raises ValueError for an empty list: a merge of nothing has no probability.
    """
    if not sketches:
        raise ValueError("nothing to merge")
    probability = max(sketch.probability for sketch in sketches)
    counts = np.zeros(BUCKETS, dtype=np.float64)
    total = count = squares = 0.0
    for sketch in sketches:
        scale = probability / sketch.probability
        counts += sketch.counts * scale
        total += sketch.sum_seconds * scale
        count += sketch.count
        squares += sketch.count / (sketch.effective_probability or sketch.probability)
    effective = count / squares if squares else probability
    return Sketch(np.rint(counts).astype(np.int64), total, probability, effective)
