"""Medians, and how far they could be off by chance: bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval that holds it with 95 % confidence. NaN interval: measured once."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def covers(self, value: float) -> bool:
        """Whether chance alone could have made `value` look like this."""
        return self.low <= value <= self.high


def median(samples: Sequence[float]) -> Estimate:
    """Of independent samples: of differences of slots that ran next to each other, too."""
    return bootstrap(np.asarray(samples, float), lambda chosen: float(np.median(chosen)))


def mean(*samples: NDArray[np.float64]) -> Estimate:
    """The mean of the means of sets of independent samples, each drawn again by itself: bootstrapped, too, and fast enough for hundreds.

    NaN without a sample.
    """
    known = [s for s in samples if len(s)]
    if not known:
        return Estimate(float("nan"))
    draw = np.random.default_rng(1)
    again = np.mean([s[draw.integers(0, len(s), (RESAMPLES, len(s)))].mean(axis=1) for s in known], axis=0)
    low, high = np.quantile(again, (0.025, 0.975))
    return Estimate(float(np.mean([s.mean() for s in known])), float(low), float(high))


def bootstrap(samples: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], float]) -> Estimate:
    """The percentile bootstrap (Efron 1979), along the first axis. Seeded: the same samples give the same interval."""
    draw = np.random.default_rng(1)
    again = [statistic(samples[draw.integers(0, len(samples), len(samples))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(again, (0.025, 0.975))
    return Estimate(statistic(samples), float(low), float(high))
