"""How the predictions of one model are usually spread, and how they are since they last changed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.adwin_clock import CLOCK
from trimtab.detector.hours import Hours
from trimtab.detector.scores import BINS, Counts, distance, shares

PREDICTIONS_MIN = 20
"""Predictions that make one value of a share: where a second has fewer, the next ones are added to it."""
LATE = 8
"""Looks (of `CLOCK` values) that wait before they count as usual, so that the beginning of a drift does not."""
LEARNT_MIN = 4
"""Looks that must count as usual before anything can be unusual."""


@dataclass
class Look:
    """The predictions of `CLOCK` values, after which ADWIN looks for a change."""

    began_unix_ns: int
    counts: Counts = field(default_factory=lambda: np.zeros(BINS))
    values: int = 0

    @property
    def shares(self) -> Counts:
        return shares(self.counts)


@dataclass(frozen=True, slots=True)
class Change:
    """What was usual, and what is since then, as shares."""

    before: Counts
    after: Counts
    since_unix_ns: int
    course: NDArray[np.float64]
    """float64 [2 * LATE, BINS]: the shares of the looks around the change, which is in the middle; NaN where there was none."""


class Usual:
    """Of one model. What is usual is all that was ever seen, but for the last looks, and what was seen at this hour of earlier days."""

    def __init__(self, now_unix_ns: int, hours: Hours | None = None) -> None:
        self.hours = hours or Hours()
        self._look = Look(now_unix_ns)
        self._few = np.zeros(BINS)
        self._past: deque[Look] = deque(maxlen=LATE)
        self._late: deque[Look] = deque()
        self._usual = np.zeros(BINS)
        self._learnt = 0
        self._after = 0

    def take(self, counts: Counts) -> Counts | None:
        """Enter new predictions: the next value of the shares, or None as long as there are too few for one."""
        self._few = self._few + counts
        if self._few.sum() < PREDICTIONS_MIN:
            return None
        value, self._few = self._few, np.zeros(BINS)
        self._look.counts += value
        self._look.values += 1
        return shares(value)

    @property
    def complete(self) -> bool:
        """Whether ADWIN has looked at what was taken."""
        return self._look.values >= CLOCK

    def turn(self, kept: int | None, learns: bool, now_unix_ns: int) -> None:
        """A look is complete. `kept`: values after a change that was found in it; `learns`: whether what is old becomes usual."""
        self._late.append(self._look)
        self._look = Look(now_unix_ns)
        if kept is not None:
            self._after = min(max(1, kept // CLOCK), len(self._late))
        elif self._after:
            # What has been so for this long becomes usual.
            self._after = (self._after + 1) % (LATE + 1)
        if len(self._late) > LATE:
            old = self._late.popleft()
            self._past.append(old)
            self._after = min(self._after, LATE)
            # Where no day is known yet, nobody can tell a drift from a rhythm: the next day can.
            if learns or (self._learnt and self.hours.usual(old.began_unix_ns) is None):
                self.hours.learn(old.counts, old.began_unix_ns)
            if learns:
                self._usual += old.counts
                self._learnt += 1

    def recover(self) -> None:
        """A drift is over: the looks that wait are of it, and shall not become usual."""
        self._late.clear()
        self._past.clear()
        self._after = 0

    @property
    def known(self) -> list[Counts]:
        """All that is usual now, as shares."""
        of_all = [shares(self._usual)] if self._learnt >= LEARNT_MIN else []
        return of_all + self.hours.near(self._look.began_unix_ns)

    @property
    def change(self) -> Change | None:
        """Since the last change, if it was not long ago, and enough is known of the time before."""
        if not self._after or self._learnt < LEARNT_MIN:
            return None
        before, looks = shares(self._usual), list(self._late)[-self._after :]
        # ADWIN drops whole buckets only, so that what it keeps may begin before the change.
        while len(looks) > 1 and distance(before, looks[0].shares) < distance(looks[-1].shares, looks[0].shares):
            looks.pop(0)
        after = shares(np.sum([look.counts for look in looks], axis=0))
        before = min(self.known, key=lambda usual: distance(usual, after))
        return Change(before, after, looks[0].began_unix_ns, self._course(len(looks)))

    def _course(self, after: int) -> NDArray[np.float64]:
        looks = [*self._past, *self._late]
        early, late = looks[-after - LATE : -after], looks[-after:]
        course = np.full((2 * LATE, BINS), np.nan)
        course[LATE - len(early) : LATE + after] = [look.shares for look in (*early, *late)]
        return course

    @property
    def latest(self) -> Counts | None:
        """The shares of the last look; None where there was none."""
        return self._late[-1].shares if self._late else None
