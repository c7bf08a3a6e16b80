"""How far out is far enough: what a healthy fleet of this size reaches so seldom that the operator's budget of false alarms holds.

Lasting deviations are gathered from the whole fleet, one peak for each excursion. Above a threshold their tail is a generalised Pareto
distribution (Pickands, 1975: peaks over threshold), which tells how high the level must be for so many a week. What had a cause teaches
nothing; what had none may have been noise, and counts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

WEEK_SECONDS = 7 * 86400.0
OVER = 1.5
"""Peaks above so many robust standard deviations are gathered."""
LEAST, MOST = 4.0, 8.0
"""The level is never lower nor higher: what is not odd at all is no alarm, and an instance three times slower is one even where that is
only eight times what its host's noise does to it."""
PEAKS_MIN = 50
"""Before so many were seen, the level is `LEAST`."""
# A heavier tail has no variance to be told by, and a lighter one is not counted on; below the first it is exponential.
_SHAPE_MAX, _STRAIGHT = 0.4, 1e-3
# The tail is an estimate: a part of the budget is kept for what it does not tell.
_MARGIN = 2.0
# The memory fades over about so long: deploys change how a fleet trembles.
_FADE_SECONDS = WEEK_SECONDS
_ROUNDING = 1e-6


class Budget:
    """Learns from healthy instances how far they stray, and tells who strays too far. Rows are instances, as in `Detector`."""

    def __init__(self, false_alarms_per_week: float) -> None:
        self._budget = false_alarms_per_week
        self._peak = np.zeros(0, dtype=np.float32)
        """float32 [instances]: of the excursion that goes on; 0 outside of one."""
        self._tainted = np.zeros(0, dtype=np.bool_)
        """bool [instances]: something was wrong during it, so that it tells nothing about health."""
        self._excesses = 0.0
        self._squares = 0.0
        self._peaks = 0.0
        self._instance_seconds = 0.0

    def resize(self, instances: int) -> None:
        more = instances - len(self._peak)
        self._peak = np.concatenate([self._peak, np.zeros(more, dtype=np.float32)])
        self._tainted = np.concatenate([self._tainted, np.zeros(more, dtype=np.bool_)])

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._peak[rows], self._tainted[rows] = 0, False

    def learn(self, lasting: NDArray[np.float32], healthy: NDArray[np.bool_], seconds: float) -> None:
        """Another `seconds` have passed. `lasting`: float32 [instances], in robust standard deviations, NaN where unknown."""
        strays = np.nan_to_num(lasting) > OVER
        self._peak[strays] = np.fmax(self._peak, lasting)[strays]
        self._tainted |= strays & ~healthy
        over = ~strays & (self._peak > 0)
        clean = np.minimum(self._peak[over & ~self._tainted], MOST) - OVER
        fade = math.exp(-seconds / _FADE_SECONDS)
        self._peaks = fade * self._peaks + len(clean)
        self._excesses = fade * self._excesses + float(clean.sum())
        self._squares = fade * self._squares + float((clean**2).sum())
        self._instance_seconds = fade * self._instance_seconds + seconds * float(
            np.count_nonzero(healthy & ~np.isnan(lasting))
        )
        self._peak[over], self._tainted[over] = 0, False

    def level(self, instances: int, at_once: int = 1) -> float:
        """The lasting deviation that counts when `at_once` of so many instances reach it together.

        Benjamini and Hochberg's step: of several that stray at once each needs less, for the share of false ones among them stays the same.
        """
        if self._peaks < PEAKS_MIN or self._instance_seconds <= 0:
            return LEAST
        scale, shape = self._tail()
        expected = self._peaks / self._instance_seconds * WEEK_SECONDS * instances
        times = max(_MARGIN * expected / (self._budget * at_once), 1.0)
        excess = scale * (math.log(times) if shape < _STRAIGHT else (times**shape - 1) / shape)
        return min(max(OVER + excess, LEAST), MOST)

    def _tail(self) -> tuple[float, float]:
        """Scale and shape of the generalised Pareto distribution, by its moments (Hosking and Wallis, 1987)."""
        mean = self._excesses / self._peaks
        variance = max(self._squares / self._peaks - mean**2, 1e-9)
        shape = min(max((1 - mean**2 / variance) / 2, 0.0), _SHAPE_MAX)
        return mean * (1 - shape), shape

    def too_far(self, lasting: NDArray[np.float32]) -> NDArray[np.bool_]:
        """bool [instances]: who strays farther than the budget allows."""
        known = np.nan_to_num(lasting)
        instances = int(np.count_nonzero(~np.isnan(lasting)))
        ordered = np.sort(known[known >= LEAST])[::-1]
        admitted = [value for k, value in enumerate(ordered.tolist(), 1) if value >= self.level(instances, k)]
        if not admitted:
            return np.zeros(len(lasting), dtype=np.bool_)
        far: NDArray[np.bool_] = known >= admitted[-1]
        return far

    def save(self) -> dict[str, NDArray[np.float64]]:
        """What was learnt about the fleet."""
        return {"tail": np.asarray([self._peaks, self._excesses, self._squares, self._instance_seconds])}

    def restore(self, state: dict[str, NDArray[np.float64]]) -> None:
        """Go on where `save` was called. Raises ValueError when the state does not fit."""
        tail = state.get("tail")
        if tail is None or tail.shape != (4,) or not np.isfinite(tail).all() or (tail < 0).any():
            raise ValueError("state: tail must be four numbers that are not negative")
        peaks, excesses, squares, _ = (float(v) for v in tail)
        # No peak counts for more than this, and no squares are less than those of equal peaks.
        most, slack = MOST - OVER, 1 + _ROUNDING
        if (
            excesses > slack * most * peaks
            or squares > slack * most * excesses
            or excesses**2 > slack * squares * peaks
        ):
            raise ValueError("state: tail: the sums fit no peaks")
        self._peaks, self._excesses, self._squares, self._instance_seconds = (float(v) for v in tail)
