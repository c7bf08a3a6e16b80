"""What is usual follows the hour and, slowly, the level; neither follows a fault that takes an hour to come."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.detector.daily import HOURS, Daily

STEP_SECONDS = 600.0
DAY_WINDOWS = round(86400 / STEP_SECONDS)
GROUPS, WELL = np.zeros(6, dtype=np.int64), np.ones(6, dtype=np.bool_)


class Course:
    """Six instances whose latency swings with the day, by more than four of the least standard deviations."""

    def __init__(self) -> None:
        self.chance, self.window = np.random.default_rng(0), 0
        self.daily = Daily((0.08,), 30)
        self.daily.resize(6)

    def step(self, more: float = 0.0, learns: bool = True) -> np.ndarray:
        """The scores of another window."""
        self.window += 1
        seconds = self.window * STEP_SECONDS
        swing = 0.6 * math.sin(2 * math.pi * seconds / 86400)
        values = (swing + more + 0.03 * self.chance.standard_normal((6, 1))).astype(np.float32)
        self.daily.at(seconds, STEP_SECONDS)
        scores = self.daily.score(values, GROUPS)
        if learns:
            self.daily.learn(values, GROUPS, WELL)
        return scores

    def run(self, days: float, more: float = 0.0) -> np.ndarray:
        return np.stack([self.step(more) for _ in range(round(days * DAY_WINDOWS))])


def test_after_a_week_the_day_is_no_anomaly() -> None:
    course = Course()
    course.run(8)
    assert course.run(2).max() < 0.2
    at_noon = course.daily.expected()
    course.daily.at(0, STEP_SECONDS)
    assert np.ptp([at_noon, course.daily.expected()], axis=0).min() < 0.1, "two whole days later it is the same hour"
    course.daily.at(6 * 3600, STEP_SECONDS)
    assert (course.daily.expected() - at_noon > 4 * 0.08).all(), "six hours later the same value would be odd"


def test_what_creeps_in_over_an_hour_or_a_night_is_not_learnt() -> None:
    for hours in (1, 8):
        course = Course()
        course.run(8)
        windows = round(hours * 3600 / STEP_SECONDS)
        for window in range(1, windows + 1):
            scores = course.step(window / windows * math.log(2.5))
        assert scores.min() > 0.5


def test_a_change_that_stays_becomes_usual() -> None:
    course = Course()
    course.run(8)
    assert course.run(0.1, more=0.5).max() > 0.5
    course.run(8, more=0.5)
    assert course.run(1, more=0.5).max() < 0.5


def test_the_first_day_is_not_odd_where_it_moves_as_loads_do() -> None:
    course = Course()
    scores = course.run(1)
    assert np.nanmax(scores) < 0.8
    assert np.isnan(scores[:30]).all()
    assert not np.isnan(scores[31:]).any()


@settings(deadline=None)
@given(st.floats(0, 1e10), st.floats(1, 7200))
def test_a_time_lies_between_two_hours(unix_seconds: float, window_seconds: float) -> None:
    daily = Daily((1.0,), 1)
    daily.at(unix_seconds, window_seconds)
    (first, share), (second, rest) = daily._hours()
    assert share + rest == pytest.approx(1)
    assert 0 <= share <= 1
    assert (first + 1) % HOURS == second
    hour = unix_seconds % 86400 / 3600
    assert {first, second} >= {int(hour)} or hour == HOURS


def test_what_is_learnt_at_night_says_little_of_noon() -> None:
    daily = Daily((0.1,), 5)
    daily.resize(1)
    night, noon = np.full((1, 1), 1, dtype=np.float32), np.full((1, 1), 2, dtype=np.float32)
    for _ in range(8):
        for hour, value in ((3.5, night), (12.5, noon)):
            daily.at(hour * 3600, 3600)
            for _ in range(2):
                daily.learn(value, GROUPS[:1], WELL[:1])
    for hour, value in ((3.5, 1), (12.5, 2)):
        daily.at(hour * 3600, 3600)
        assert daily.expected()[0, 0] == pytest.approx(value, abs=0.2)


@pytest.mark.parametrize("name", ["level", "scale", "seasons", "known"])
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    daily = Daily((1.0, 1.0), 5)
    daily.resize(3)
    state = dict(daily.save())
    with pytest.raises(ValueError, match=name):
        Daily((1.0, 1.0), 5).restore({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match="expected"):
        Daily((1.0, 1.0), 5).restore({**state, name: state[name][:, :1]})
