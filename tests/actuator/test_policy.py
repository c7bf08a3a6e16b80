"""Every policy keeps the contract; the proportional rule does what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from trimtab.actuator.policy import POLICIES
from trimtab.actuator.policy.check import check_policy
from trimtab.actuator.policy.proportional import Proportional, _median_of_others
from trimtab.actuator.state import State, Vector, by_model


def decide(*group: dict[str, object], seconds: int = 20) -> list[float]:
    policy = Proportional()
    [state] = by_model([instance(f"n/{k}", **known) for k, known in enumerate(group)])
    for _ in range(seconds):
        wish = policy.decide(state)
    return [round(w, 3) for w in wish]


@pytest.mark.parametrize("name", POLICIES)
def test_contract(name: str) -> None:
    check_policy(POLICIES[name])


class _Broken(Proportional):
    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    def decide(self, state: State) -> Vector:
        wish = super().decide(state)
        if self._how == "order" and len(state) > 1:
            wish[0] = 0.3 if state.degraded.any() else wish[0]
        elif self._how == "nan":
            wish = np.where(state.degraded, np.nan, wish)
        elif self._how == "range":
            wish = wish * np.where(state.error_ratio > 0.5, 2, 1)
        elif self._how == "almost":
            wish = wish * 0.999
        return wish


@pytest.mark.parametrize("how", ["order", "nan", "range", "almost"])
def test_the_contract_finds_a_policy_that_breaks_it(how: str) -> None:
    with pytest.raises(AssertionError):
        check_policy(lambda: _Broken(how))


def test_slow_instances_get_less_in_proportion() -> None:
    slow3, slow6 = {"latency_mean_seconds": 0.06}, {"latency_mean_seconds": 0.12}
    weights = decide({}, {}, {}, slow3, slow6)
    assert weights[:3] == [1, 1, 1]
    assert weights[3] == pytest.approx(2 * weights[4], rel=0.01)
    assert 1 / 3 < weights[3] < 0.55


def test_within_the_band_all_are_equal() -> None:
    assert decide({}, {}, {"latency_mean_seconds": 0.025}) == [1, 1, 1]


def test_few_requests_prove_nothing() -> None:
    few = {"requests_per_second": 0.2, "latency_mean_seconds": 0.06}
    assert decide({}, {}, few) == [1, 1, 1]


def test_failing_fast_is_not_attractive() -> None:
    assert decide({}, {}, {"latency_mean_seconds": 0.001, "error_ratio": 1.0}) == [1, 1, 0]
    assert decide({}, {}, {"error_ratio": 0.3})[2] == pytest.approx(0.49)


def test_an_incident_drains_unless_there_is_nowhere_to_go() -> None:
    assert decide({}, {"incident": "i-1"}) == [1, 0]
    assert decide({"incident": "i-1"}, {"incident": "i-1"}) == [1, 1]


def test_unknown_and_stale_are_neutral() -> None:
    assert decide({}, {}, {"latency_mean_seconds": NAN}) == [1, 1, 1]
    assert decide({}, {}, {"latency_mean_seconds": 9.0, "age_seconds": 11.0}) == [1, 1, 1]
    assert decide({}, {}, {"incident": "i-1", "age_seconds": NAN}) == [1, 1, 1]


@given(st.lists(st.floats(0.001, 100), min_size=2, max_size=9))
def test_median_of_others_is_the_median_of_the_others(values: list[float]) -> None:
    plain = [np.median(np.delete(values, k)) for k in range(len(values))]
    assert np.allclose(_median_of_others(np.asarray(values)), plain)
