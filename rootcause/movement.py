"""How every signal of a subject moved at the onset: robust levels before and after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trimtab.detector import robust
from trimtab.detector.history import Courses, History
from trimtab.rootcause.shift import shifts

BEFORE_SECONDS = 90.0
# The onset is known to about this; what lies closer to it belongs to neither side.
_BLUR_SECONDS = 3.0
# Later, the traffic may have been taken away, and the signals tell of that instead.
AFTER_SECONDS = 30.0
_SAMPLES_MIN = 3


@dataclass(frozen=True, slots=True)
class Movement:
    """One signal about the onset. NaN where not known."""

    subject: str
    signal: str
    unit: str
    before: float
    after: float
    before_mean: float
    """For what happens now and then, whose median is 0."""
    after_mean: float
    spread: float
    """Robust standard deviation before."""


class Movements:
    """All signals of one subject about `since_unix_ns`."""

    def __init__(self, subject: str, courses: Courses, since_unix_ns: int) -> None:
        self.subject, self.courses, self.since_unix_ns = subject, courses, since_unix_ns
        times, step_ns = courses.times_ns, int(courses.times_ns[1] - courses.times_ns[0])
        blur_ns, reach_ns = _BLUR_SECONDS * 1e9, max(BEFORE_SECONDS * 1e9, 20 * step_ns)
        before = (times >= since_unix_ns - reach_ns) & (times + step_ns <= since_unix_ns - min(blur_ns, step_ns))
        after = (times >= since_unix_ns) & (times <= since_unix_ns + max(AFTER_SECONDS * 1e9, 3 * step_ns))
        early, late = courses.values[:, before], courses.values[:, after]
        known = np.count_nonzero(~np.isnan(early), axis=1) >= _SAMPLES_MIN
        self._before = np.where(known, robust.median(early), np.nan)
        self._before_mean = np.where(known, robust.mean(early), np.nan)
        self._spread = robust.spread(early, robust.median(early))
        self._after, self._after_mean = robust.median(late), robust.mean(late)
        self._rows = {name: row for row, name in enumerate(courses.names)}

    @property
    def signals(self) -> list[str]:
        return list(self._rows)

    def of(self, signal: str) -> Movement:
        """The movement of a signal; all unknown for one that the subject does not have."""
        row = self._rows.get(signal)
        columns = (self._before, self._after, self._before_mean, self._after_mean, self._spread)
        figures = [math.nan] * 5 if row is None else [float(column[row]) for column in columns]
        return Movement(self.subject, signal, self.courses.units.get(signal, ""), *figures)


def steps_of(movements: Movements) -> dict[str, float]:
    """How far each signal stepped at the onset, in units of its largest step before; 0 where that is not known (`shift.py`)."""
    courses = movements.courses
    onset = int(np.searchsorted(courses.times_ns, movements.since_unix_ns))
    if onset >= len(courses.times_ns):
        return dict.fromkeys(courses.names, 0.0)
    quiet = courses.times_ns < movements.since_unix_ns - _BLUR_SECONDS * 1e9
    found = shifts(courses.values.T.astype(np.float64), quiet, onset)
    return dict(zip(courses.names, np.nan_to_num(found).tolist(), strict=True))


def measure(history: History, subject: str, since_unix_ns: int) -> Movements | None:
    """The subject's movements; None when it is not known."""
    courses = history.courses(subject)
    return Movements(subject, courses, since_unix_ns) if courses is not None else None
