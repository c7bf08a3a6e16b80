"""What creeps in, or is small and lasts: an instance that for many minutes is worse than the others, given how it usually is at this hour.

Own history and peers (detector/own.py, peers.py) look back ten minutes, so that a fault which takes an hour to come is their usual. Here
each minute's mean is compared with days. The instance's difference to its peers is ranked in the whole fleet, and an e-detector
(detector/evidence.py) adds up how often it is among the highest. What a rank had of the minute before is taken off first, for noise that
lasts is no evidence.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix
from trimtab.detector.baseline import worst
from trimtab.detector.budget import WEEK_SECONDS
from trimtab.detector.daily import Daily
from trimtab.detector.evidence import Evidence, ranks
from trimtab.detector.features import FEATURES, SCALE_FLOORS
from trimtab.detector.peers import peers_median
from trimtab.detector.settings import DetectorSettings

BLOCK_SECONDS = 60.0
"""Windows overlap and their noise lasts; minutes tell apart what seconds do not."""
BUDGET_SHARE = 0.1
"""Of the false alarms that the operator allows, what may come of this."""
ODD, BACK = 4.0, 1.0
"""Robust standard deviations at which a minute is not learnt, and at which it is as usual again."""
MINUTES, MINUTES_MIN = 5, 4
"""In so many of the last minutes users must have minded."""
# What must be left of it while an incident goes on.
_FACTOR_LEFT = 1.25
# How long the correlation of a minute with the next is remembered, in minutes.
_MEMORY = 1440.0
_CUT = 3.0
_CORRELATION_MAX = 0.95
_ERRORS = FEATURES.index("errors")


class Creep:
    """Rows are instances, as in `Detector`."""

    def __init__(self, settings: DetectorSettings) -> None:
        self._settings = settings
        self._own, self._apart = (Daily(SCALE_FLOORS, settings.warmup_windows) for _ in range(2))
        self._evidence = Evidence()
        features = len(SCALE_FLOORS)
        self._sums = np.zeros((0, features))
        self._seconds = np.zeros((0, features))
        self._block, self._whole = -1, BLOCK_SECONDS
        self._mean, self._difference = np.full((2, 0, features), np.nan, dtype=np.float32)
        """Of the last minute that is over, float32 [instances, features]."""
        self._closed = False
        self._last: Matrix = np.full((0, features), np.nan, dtype=np.float32)
        """float32 [instances, features]: how far the difference was from usual, in robust standard deviations."""
        self._far = np.full(0, np.nan, dtype=np.float32)
        self._minded = np.zeros((MINUTES, 0), dtype=np.bool_)
        """bool [minutes, instances], newest first: users would have minded."""
        self._alarmed = np.zeros(0, dtype=np.bool_)
        self._together, self._squares = np.zeros((2, features))
        self.creeps = np.zeros(0, dtype=np.bool_)
        """bool [instances]: there is evidence enough, and users would mind."""
        self.lingers = np.zeros(0, dtype=np.bool_)
        """bool [instances]: there was, and it is not over."""

    def resize(self, instances: int) -> None:
        more = instances - len(self._far)
        for daily in (self._own, self._apart):
            daily.resize(instances)
        self._evidence.resize(instances)
        for name, empty in (
            ("_sums", 0),
            ("_seconds", 0),
            ("_mean", np.nan),
            ("_difference", np.nan),
            ("_last", np.nan),
            ("_far", np.nan),
        ):
            self._longer(name, more, empty)
        for name in ("_alarmed", "creeps", "lingers"):
            self._longer(name, more, False)
        self._minded = np.concatenate([self._minded, np.zeros((MINUTES, more), dtype=np.bool_)], axis=1)

    def _longer(self, name: str, more: int, empty: float) -> None:
        known = getattr(self, name)
        setattr(self, name, np.concatenate([known, np.full((more, *known.shape[1:]), empty, dtype=known.dtype)]))

    def forget(self, rows: NDArray[np.int64]) -> None:
        for daily in (self._own, self._apart):
            daily.forget(rows)
        self._evidence.forget(rows)
        self._sums[rows] = self._seconds[rows] = 0
        self._mean[rows] = self._difference[rows] = self._last[rows] = self._far[rows] = np.nan
        self._minded[:, rows] = False
        self._alarmed[rows] = self.creeps[rows] = self.lingers[rows] = False

    def observe(
        self,
        window: Matrix,
        groups: NDArray[np.int64],
        fresh: NDArray[np.bool_],
        unix_seconds: float,
        window_seconds: NDArray[np.float32],
    ) -> None:
        """Another window, of so many seconds in each row; only rows that are `fresh` count. When a minute is over, judge it."""
        if not fresh.any():
            return
        seconds = float(np.median(window_seconds[fresh]))
        whole = self._whole = max(BLOCK_SECONDS, seconds)
        block = math.floor(unix_seconds / whole)
        if seconds < BLOCK_SECONDS and self._block not in (-1, block):
            self._close(groups, whole)
        self._block = block
        weight = np.where(fresh[:, None] & ~np.isnan(window), window_seconds[:, None], 0)
        self._sums += np.where(weight > 0, weight * window, 0)
        self._seconds += weight
        if seconds >= BLOCK_SECONDS:
            self._close(groups, whole)

    def learn(self, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        """If a minute was just judged, take it as an example of normal, where it was."""
        if not self._closed:
            return
        self._closed = False
        usual = healthy & ~(self._far >= ODD)
        self._own.learn(self._mean, groups, usual)
        self._apart.learn(self._difference, groups, usual)

    def expected(self) -> Matrix:
        """What is usual at this hour, float32 [instances, features]."""
        return self._own.expected()

    def score(self, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [instances]: how odd the last minute was for its hour; NaN where not known."""
        return self._own.score(self._mean, groups)

    def seconds(self) -> NDArray[np.float64]:
        """float64 [instances]: for how long it seems to go on."""
        seconds: NDArray[np.float64] = self._evidence.age.astype(np.float64) * self._whole
        return seconds

    def _close(self, groups: NDArray[np.int64], seconds: float) -> None:
        enough = self._seconds >= seconds / 2
        self._mean = np.where(enough, self._sums / np.maximum(self._seconds, 1e-9), np.nan).astype(np.float32)
        self._sums[:], self._seconds[:], self._closed = 0, 0, True
        for daily in (self._own, self._apart):
            daily.at((self._block + 0.5) * seconds, seconds)
        self._difference = self._mean - peers_median(self._mean, groups)
        off = (self._difference - self._apart.expected()) / self._apart.spread()
        new, far = worst(off - self._correlation(off) * self._last), worst(off)
        self._last, self._far = off, far
        self._evidence.update(ranks(new.astype(np.float64)))
        known = int(np.count_nonzero(~np.isnan(far)))
        alpha = BUDGET_SHARE * self._settings.false_alarms_per_week * seconds / (WEEK_SECONDS * max(known, 1))
        self._alarmed |= self._evidence.value >= 1 / alpha
        over = self._alarmed & (far < BACK)
        self._evidence.forget(np.flatnonzero(over))
        self._alarmed &= ~over
        self._minded = np.roll(self._minded, 1, axis=0)
        self._minded[0] = (far >= ODD) & self._worse(self._settings.latency_factor_min)
        self.creeps = self._alarmed & (self._minded.sum(axis=0) >= MINUTES_MIN)
        self.lingers = self._alarmed & self._worse(_FACTOR_LEFT)

    def _correlation(self, off: Matrix) -> NDArray[np.float32]:
        """Of a minute with the one before, over the fleet and the last day: float32 [features]."""
        now, last = np.clip(off, -_CUT, _CUT), np.clip(self._last, -_CUT, _CUT)
        both = ~np.isnan(now) & ~np.isnan(last)
        fade, count = 1 - 1 / _MEMORY, np.maximum(both.sum(axis=0), 1)
        self._together = fade * self._together + np.where(both, now * last, 0).sum(axis=0) / count
        self._squares = fade * self._squares + np.where(both, last**2, 0).sum(axis=0) / count
        share = np.clip(self._together / np.maximum(self._squares, 1e-9), 0, _CORRELATION_MAX)
        correlation: NDArray[np.float32] = share.astype(np.float32)
        return correlation

    def _worse(self, factor: float) -> NDArray[np.bool_]:
        """bool [instances]: a feature is so much worse than is usual at this hour, and than it is usually worse than its peers."""
        usual = self._own.expected()
        more = np.minimum(self._mean - usual, self._difference - self._apart.expected())
        least = np.full(more.shape[1], math.log(factor), dtype=np.float32)
        least[_ERRORS] = self._settings.error_ratio_min
        added = np.exp(self._mean) - np.exp(usual) >= self._settings.latency_seconds_min
        added[:, _ERRORS] = True
        worse: NDArray[np.bool_] = ((more >= least) & added).any(axis=1)
        return worse
