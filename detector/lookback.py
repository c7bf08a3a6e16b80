"""Judges the whole recorded course of one machine: how strange each row is, by six views of short windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.forest import Forest
from trimtab.detector.patterns import Patterns
from trimtab.detector.season import Course, profile, season_rows, without
from trimtab.detector.subspace import Subspace
from trimtab.detector.windows import WIDTH, Points, spread, windows

Scores = NDArray[np.float64]

SEASON_ROWS = 288
"""How often new patterns are learnt where nothing recurs."""
TRAIN_MIN = 5 * WIDTH
_RAW_PATTERNS, _REST_PATTERNS = 50, 20
# Least scale of a feature, as a share of its range: what never moved is not strange for moving a hair.
_FLOOR = 0.01
# Deviations are cut here, or one wild feature speaks for all.
_TRAIN_CUT, CUT = 8.0, 24.0
_RARE = 0.999
_RARE_DEVIATIONS = 4.0


class Member(Protocol):
    """A detector of windows, fitted to those of the training."""

    def score(self, points: Points) -> NDArray[np.float64]: ...
    def learn(self, points: Points) -> None: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """The scores of a training and of what followed it; 1 is where the strangest hundredth of the training begins."""

    train: Scores
    test: Scores
    season_rows: int


class Lookback:
    """Fitted to a course without labels, then asked about what followed.

    The six views are patterns and Sub-PCA of the features and of their rest without season, and isolation forests of both. Features that
    spike now and then are scaled by their spikes for the views that would otherwise see nothing else. What follows is judged season by
    season, and each season's patterns are known from the next on: a deploy is strange for a day, not for ever.
    """

    def __init__(self, train: Course) -> None:
        """`train`: float64 [time, features], at least `TRAIN_MIN` rows. Raises ValueError when it is shorter."""
        if len(train) < TRAIN_MIN:
            raise ValueError(f"training: {len(train)} rows; at least {TRAIN_MIN} are needed")
        self._floor = _FLOOR * np.maximum(
            np.nanmax(train, axis=0) - np.nanmin(train, axis=0), np.finfo(np.float32).tiny
        )
        season = season_rows(train)
        self._phases = profile(train, season) if season else np.nanmedian(train, axis=0, keepdims=True)
        self.season_rows = season or SEASON_ROWS
        rest = without(train, self._phases, -len(train))
        self._scales = [_Scale(train, self._floor, rare=False), _Scale(train, self._floor, rare=True)]
        self._rest_scales = [_Scale(rest, self._floor, rare=False), _Scale(rest, self._floor, rare=True)]
        plain, calm, rest_plain, rest_calm = self._views(train, rest, _TRAIN_CUT)
        self._members: list[tuple[int, Member]] = [
            (1, Patterns(calm, _RAW_PATTERNS)),
            (2, Patterns(rest_plain, _REST_PATTERNS)),
            (1, Subspace(calm)),
            (3, Subspace(rest_calm)),
            (0, Forest(plain)),
            (2, Forest(rest_plain)),
        ]
        scores = [spread(m.score((plain, calm, rest_plain, rest_calm)[v]), len(train)) for v, m in self._members]
        self._usual = [tuple(np.quantile(s, [0.5, 0.99]).tolist()) for s in scores]
        self.train = self._together(scores)

    def judge(self, test: Course) -> Judged:
        """The scores of the rows that follow the training, float64 [time]; NaN for a row of which nothing is known."""
        views = self._views(test, without(test, self._phases, 0), CUT)
        found: list[list[NDArray[np.float64]]] = [[] for _ in self._members]
        for first in range(0, len(views[0]), self.season_rows):
            for k, (view, member) in enumerate(self._members):
                points = views[view][first : first + self.season_rows]
                found[k].append(member.score(points))
                member.learn(points)
        scores = self._together([spread(np.concatenate(parts), len(test)) for parts in found])
        return Judged(self.train, np.where(np.isnan(test).all(axis=1), np.nan, scores), self.season_rows)

    def deviations(self, test: Course) -> Course:
        """float64 [time, features]: how far each feature of what follows is from its usual course without season, in standard deviations.

        ±`CUT` is that or more; so is anything else than its value for a feature that never moved in the training.
        """
        return self._rest_scales[0].of(without(test, self._phases, 0), CUT)

    def _views(self, course: Course, rest: Course, cut: float) -> tuple[Points, Points, Points, Points]:
        plain, calm = (windows(scale.of(course, cut)) for scale in self._scales)
        rest_plain, rest_calm = (windows(scale.of(rest, cut)) for scale in self._rest_scales)
        return plain, calm, rest_plain, rest_calm

    def _together(self, scores: Sequence[NDArray[np.float64]]) -> Scores:
        """The mean of what the members say, each in units of its own training."""
        units = [(s - middle) / max(rare - middle, 1e-9) for s, (middle, rare) in zip(scores, self._usual, strict=True)]
        mean: Scores = np.mean([np.log1p(np.maximum(u, 0)) for u in units], axis=0) / np.log(2)
        return mean


class _Scale:
    """Where the features usually are, and what one deviation is."""

    def __init__(self, course: Course, floor: NDArray[np.float64], rare: bool) -> None:
        self._middle = np.nanmedian(course, axis=0)
        scale = np.nanstd(course, axis=0)
        if rare:
            far = np.nanquantile(np.abs(course - self._middle), _RARE, axis=0) / _RARE_DEVIATIONS
            scale = np.maximum(scale, far)
        self._scale = np.maximum(scale, floor)

    def of(self, course: Course, cut: float) -> Course:
        """In deviations, cut to ±`cut`; the unknown counts as usual."""
        z: Course = np.clip(np.nan_to_num((course - self._middle) / self._scale), -cut, cut)
        return z
