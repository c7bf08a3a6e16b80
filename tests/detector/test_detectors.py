"""Every detector keeps its contract, and the suite notices one that does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trimtab.detector import robust
from trimtab.detector.check import Make, check_detector, discover
from trimtab.detector.own import Own
from trimtab.detector.peers import PEERS_MIN, peers_median

SOME = st.one_of(st.just(np.nan), st.floats(-100, 100, width=32))


@pytest.mark.parametrize("make", list(discover()), ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_contract(make: Make, seed: int) -> None:
    check_detector(make, seed)


def test_all_detectors_are_found() -> None:
    assert {make((1.0,), 1).name for make in discover()} == {"own", "peers", "daily", "subspace", "forest"}


class Healthy(Own):
    """Says 0 while it knows nothing."""

    def score(self, window, groups):  # type: ignore[no-untyped-def]
        return np.nan_to_num(super().score(window, groups))


class Credulous(Own):
    """Learns whatever it sees."""

    def learn(self, window, groups, healthy):  # type: ignore[no-untyped-def]
        super().learn(window, groups, np.ones_like(healthy))


class Restless(Own):
    """Learns while it scores."""

    def score(self, window, groups):  # type: ignore[no-untyped-def]
        score = super().score(window, groups)
        self.learn(window, groups, np.ones(len(window), dtype=np.bool_))
        return score


@pytest.mark.parametrize("broken", [Healthy, Credulous, Restless])
def test_the_suite_catches(broken: type[Own]) -> None:
    with pytest.raises(AssertionError):
        check_detector(broken)


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=SOME))
def test_median_is_that_of_what_is_known(values: np.ndarray) -> None:
    expected = [np.median(row[~np.isnan(row)]) if (~np.isnan(row)).any() else np.nan for row in values]
    np.testing.assert_allclose(robust.median(values), np.asarray(expected, dtype=np.float32), rtol=1e-5, atol=1e-5)


@given(arrays(np.float32, st.tuples(st.integers(1, 12), st.just(2)), elements=SOME), st.integers(0, 3), st.randoms())
def test_peers_are_the_others_of_the_group(window: np.ndarray, models: int, chance) -> None:  # type: ignore[no-untyped-def]
    groups = np.asarray([chance.randint(0, models) for _ in window], dtype=np.int64)
    found = peers_median(window, groups)
    for row, feature in np.ndindex(window.shape):
        others = [window[k, feature] for k in range(len(window)) if k != row and groups[k] == groups[row]]
        known = [value for value in others if not np.isnan(value)]
        expected = np.median(np.asarray(known, dtype=np.float32)) if len(known) >= PEERS_MIN else np.nan
        np.testing.assert_allclose(found[row, feature], expected, rtol=1e-5, atol=1e-5)
