"""When a replay resembles what was recorded, and when it cannot be told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.actuator.replay.fidelity import DIFFERENCE_MAX, Figure, _latencies
from trimtab.agent.sketch.loglinear import of_seconds


@given(st.floats(1e-3, 10), st.floats(0, 3))
def test_without_sampling_it_is_the_relative_difference_that_counts(recorded: float, ratio: float) -> None:
    figure = Figure("mean", "s", recorded, recorded, recorded, recorded * ratio)
    if abs(abs(ratio - 1) - DIFFERENCE_MAX) > 1e-6:
        assert figure.differs == (abs(ratio - 1) > DIFFERENCE_MAX)


def test_small_shares_may_differ() -> None:
    assert not Figure("errors", "1", 0.0, 0.0, 0.0, 0.004, 0.005).differs
    assert Figure("errors", "1", 0.0, 0.0, 0.0, 0.006, 0.005).differs
    assert not Figure("errors", "1", 0.004, 0.004, 0.004, 0.0, 0.005).differs


@pytest.mark.parametrize(("low", "high", "simulated", "differs"), [
    (0.05, 0.2, 0.25, False), (0.05, 0.2, 0.27, True), (0.05, 0.2, 0.034, True),
    (0.05, math.nan, 9.0, False), (0.05, math.nan, 0.01, True), (math.nan, math.nan, 9.0, False),
])  # fmt: skip
def test_what_sampling_leaves_open_is_no_difference(low: float, high: float, simulated: float, differs: bool) -> None:
    assert Figure("p99", "s", 0.1, low, high, simulated).differs == differs


def test_the_bounds_of_the_mean_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(600):
        every = rng.lognormal(-3, 0.7, 800)
        mean, _p99 = _latencies(of_seconds(every[rng.random(800) < 0.25], probability=0.25), every)
        held.append(mean.low <= every.mean() <= mean.high)
        assert mean.low < mean.recorded < mean.high
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)
    mean, _p99 = _latencies(of_seconds(every), every)
    assert mean.low == mean.recorded == mean.high == pytest.approx(every.mean(), rel=0.01)


def test_nothing_recorded_is_unknown_and_no_difference() -> None:
    mean, p99 = _latencies(of_seconds(np.empty(0)), np.ones(3))
    assert math.isnan(mean.recorded)
    assert [mean.differs, p99.differs] == [False, False]
