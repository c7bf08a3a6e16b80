"""From windows to seconds: totals stay, and what nobody told stays unknown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.actuator.replay.seconds import gauges, second_of, sums

WINDOWS = st.lists(st.tuples(st.floats(0.1, 3.0), st.floats(0, 1000)), min_size=1, max_size=40)


@given(WINDOWS)
def test_the_total_is_kept(windows: list[tuple[float, float]]) -> None:
    durations, values = np.asarray(windows).T
    starts = np.cumsum(durations) - durations
    whole = int(np.ceil(durations.sum()))
    found = sums(starts, durations, values, whole)
    # The last second may be covered by less than half, and is unknown then.
    known = np.isfinite(found)
    assert known[:-1].all()
    if known[-1]:
        assert found.sum() == pytest.approx(values.sum(), rel=1e-9, abs=1e-9)
    else:
        assert np.nansum(found) <= values.sum() + 1e-9


def test_a_window_of_a_second_is_that_second() -> None:
    assert sums(np.arange(4.0), np.ones(4), np.array([3.0, 0, 5, 7]), 4).tolist() == [3, 0, 5, 7]
    assert sums(np.array([0.0]), np.array([2.0]), np.array([10.0]), 2).tolist() == [5, 5]


def test_what_no_window_tells_is_unknown_and_not_zero() -> None:
    found = sums(np.array([0.0, 3.0]), np.ones(2), np.array([3.0, np.nan]), 5)
    assert found[0] == 3
    assert np.isnan(found[1:]).all()
    assert np.isnan(sums(np.empty(0), np.empty(0), np.empty(0), 3)).all()
    assert np.isnan(gauges(np.empty(0), np.empty(0), np.empty(0), 3)).all()


def test_a_gauge_holds_for_a_while() -> None:
    found = gauges(np.arange(3.0), np.ones(3), np.array([1.0, 2, 3]), 8)
    assert found[:6].tolist() == [1, 2, 3, 3, 3, 3]
    assert np.isnan(found[6:]).all()
    # A window that ends a moment late still tells of its second.
    assert gauges(np.array([0.02, 1.02]), np.ones(2), np.array([1.0, 2.0]), 2).tolist() == [1, 2]


def test_a_sketch_lies_where_its_window_has_its_middle() -> None:
    assert second_of(np.array([0.0, 0.9, 1.6, -1.0]), np.ones(4)).tolist() == [0, 1, 2, -1]
