"""What a model predicted at each hour of the day (UTC), on earlier days: a rhythm that comes back every day is no drift."""

from __future__ import annotations

import numpy as np

from trimtab.detector.scores import BINS, Counts, shares

HOURS = 24
LEARNT_MIN = 2560
"""Predictions at one hour of the day before that hour is known: as many as in the looks that make all of the time known (`usual.py`)."""
_HOUR_NS = 3600 * 10**9


class Hours:
    """Of one model: two times 24 histograms, of today and of all days before. Weekdays are not told apart."""

    def __init__(self) -> None:
        self._before = np.zeros((HOURS, BINS))
        self._latest = np.zeros((HOURS, BINS))
        self._at = np.zeros(HOURS, dtype=np.int64)
        """Of which hour since the epoch the latest are."""

    def learn(self, counts: Counts, unix_ns: int) -> None:
        """So it was predicted then."""
        at = unix_ns // _HOUR_NS
        hour = at % HOURS
        if at != self._at[hour]:
            self._before[hour] += self._latest[hour]
            self._latest[hour], self._at[hour] = 0, at
        self._latest[hour] += counts

    def usual(self, unix_ns: int) -> Counts | None:
        """The shares at this hour of earlier days; None where that is not known."""
        at = unix_ns // _HOUR_NS
        hour = at % HOURS
        counts: Counts = self._before[hour] + self._latest[hour] * (at != self._at[hour])
        return shares(counts) if counts.sum() >= LEARNT_MIN else None

    def near(self, unix_ns: int) -> list[Counts]:
        """Those of this hour and of the ones next to it: a rhythm is not kept to the minute."""
        found = [self.usual(unix_ns + hours * _HOUR_NS) for hours in (-1, 0, 1)]
        return [each for each in found if each is not None]
