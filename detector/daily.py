"""The hour of the day: how far an instance is above what is usual for it at this hour, over days.

Own history (detector/own.py) reaches back ten minutes, so that what creeps in over an hour is its usual. Here usual is a level, which
moves over days, and for each hour of the day (UTC) what is added to it, which moves over hours of that hour: two exponentially weighted
means with bounded steps, as in Holt and Winters' seasonal smoothing (Winters, 1960). Weekdays are not told apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix, State
from trimtab.detector.baseline import worst

HOURS = 24
LEVEL_SECONDS = 86400.0
HOUR_SECONDS = 7200.0
"""Over so many seconds of windows the level and the spread, and what an hour adds to the level, follow a change."""
_CUT = np.float32(3.0)
_TO_SIGMA = np.float32(1.2533)
_HALF = 4.0
_NAMES = ("level", "scale", "seasons", "known")


class Daily:
    """Memory: 24 + 4 numbers an instance and feature, 0.9 kB for eight features."""

    name = "daily"

    def __init__(self, floors: tuple[float, ...], warmup_windows: int) -> None:
        self._floors, self._warmup = np.asarray(floors, dtype=np.float32), warmup_windows
        features = len(floors)
        self._level = np.zeros((0, features))
        self._scale: Matrix = np.zeros((0, features), dtype=np.float32)
        self._seasons: Matrix = np.zeros((0, HOURS, features), dtype=np.float32)
        self._known = np.zeros((0, features), dtype=np.int32)
        self._hour, self._seconds = 0.0, 1.0

    def at(self, unix_seconds: float, window_seconds: float) -> None:
        """When the windows that follow are of, and how long each is. Until it is told, all are of one hour and a second long."""
        self._hour, self._seconds = unix_seconds % 86400 / 3600, window_seconds

    def resize(self, instances: int) -> None:
        more = instances - len(self._level)
        if more < 0:
            raise ValueError(f"{instances} rows, but {len(self._level)} are known; forget them instead")
        for name in _NAMES:
            known = getattr(self, f"_{name}")
            setattr(self, f"_{name}", np.concatenate([known, np.zeros((more, *known.shape[1:]), dtype=known.dtype)]))

    def forget(self, rows: NDArray[np.int64]) -> None:
        for name in _NAMES:
            getattr(self, f"_{name}")[rows] = 0

    def expected(self) -> Matrix:
        """What is usual at this hour, float32 [instances, features]; NaN where not known."""
        usual: Matrix = np.where(self._known < self._warmup, np.nan, self._level + self._season()).astype(np.float32)
        return usual

    def spread(self) -> Matrix:
        """One standard deviation about that, float32 [instances, features]."""
        return np.maximum(self._scale, self._floors)

    def score(self, window: Matrix, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        z = np.maximum((window - self.expected()) / self.spread(), 0)
        scores: Matrix = (z**2 / (z**2 + _HALF**2)).astype(np.float32)
        return worst(scores)

    def learn(self, window: Matrix, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(healthy & ~np.isnan(window).all(axis=1))
        if not len(rows):
            return
        now, known = window[rows], self._known[rows]
        here, begins = ~np.isnan(now), known == 0
        season, scale = self._season()[rows], self._scale[rows]
        off = np.where(here & ~begins, now - self._level[rows] - season, 0).astype(np.float32)
        most = np.where(known < self._warmup, np.inf, _CUT * np.maximum(scale, self._floors))
        off = np.clip(off, -most, most)
        # A plain mean would follow quickly for as long again as it has been learnt, and learn the first fault that creeps in.
        later = np.float32(min(1.0, self._seconds / LEVEL_SECONDS))
        weight = np.where(here, np.where(known < self._warmup, 1 / (known + np.float32(1)), later), 0)
        self._level[rows] = np.where(here & begins, now, self._level[rows] + weight * off)
        self._scale[rows] = scale + weight * (_TO_SIGMA * np.abs(off) - scale)
        # An hour that was never seen begins with nothing of its own, and what the level takes of a change it need not take as well.
        step = np.where(known < self._warmup, 0, np.float32(min(1.0, self._seconds / HOUR_SECONDS)) * off)
        for hour, share in self._hours():
            self._seasons[rows, hour] += np.float32(share) * step
        self._known[rows] = known + here

    def _season(self) -> Matrix:
        (first, share), (second, rest) = self._hours()
        season: Matrix = np.float32(share) * self._seasons[:, first] + np.float32(rest) * self._seasons[:, second]
        return season

    def _hours(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """The two hours that this time lies between, by their middles, and the share of each."""
        before = int(np.floor(self._hour - 0.5))
        share = self._hour - 0.5 - before
        return (before % HOURS, 1 - share), ((before + 1) % HOURS, share)

    def save(self) -> State:
        return {name: getattr(self, f"_{name}").copy() for name in _NAMES}

    def restore(self, state: State) -> None:
        """Raises ValueError when the state does not fit."""
        if missing := set(_NAMES) - state.keys():
            raise ValueError(f"state: {', '.join(sorted(missing))} missing")
        arrays: dict[str, NDArray[Any]] = {name: state[name] for name in _NAMES}
        count, features = len(arrays["level"]), len(self._floors)
        for name, array in arrays.items():
            wanted = (count, HOURS, features) if name == "seasons" else (count, features)
            if array.shape != wanted:
                raise ValueError(f"state: {name} {array.shape}; expected {wanted}")
            setattr(self, f"_{name}", array.astype(getattr(self, f"_{name}").dtype))


DETECTOR = Daily
