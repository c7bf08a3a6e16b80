"""Latency curves: the load goes where the next request costs least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import instance
from trimtab.actuator.policy.knapsack import Knapsack, _pack
from trimtab.actuator.policy.orca import Orca
from trimtab.actuator.state import by_model

SERVICES = st.lists(st.floats(0.005, 0.5), min_size=2, max_size=10)


@given(SERVICES, st.floats(0.05, 0.95))
def test_the_whole_load_is_packed_and_the_faster_get_more(service: list[float], load: float) -> None:
    times = np.asarray(service)
    capacity, ones = 1 / times, np.ones(len(times))
    total = load * float(capacity.sum())
    packed = _pack(times, capacity, ones, 0 * ones, total)
    assert packed.sum() == pytest.approx(total)
    order = np.argsort(times)
    step = total / (20 * len(times))
    assert (np.diff(packed[order]) <= step + 1e-9).all()


@given(SERVICES)
def test_no_other_packing_of_the_pieces_is_cheaper(service: list[float]) -> None:
    """Of two instances, all packings are tried."""
    times = np.asarray(service[:2])
    capacity, ones = 1 / times, np.ones(2)
    total = 0.6 * float(capacity.sum())

    def cost(loads: np.ndarray) -> float:
        rho = loads * times
        return float((loads * times * (1 + rho / (1 - rho))).sum()) if (rho < 0.97).all() else np.inf

    pieces = np.arange(41) * total / 40
    best = min(cost(np.asarray([a, total - a])) for a in pieces)
    packed = _pack(times, capacity, ones, 0 * ones, total)
    assert cost(packed) <= best * (1 + 1e-9)


def test_a_slow_instance_gets_less_than_its_speed_is_worth() -> None:
    policy = Knapsack()
    known = {"requests_per_second": 12.0, "service_seconds": 0.02, "latency_mean_seconds": 0.024}
    [state] = by_model(
        [instance("n/0", **known), instance("n/1", **{**known, "service_seconds": 0.06, "latency_mean_seconds": 0.09})]
    )
    for _ in range(30):
        wish = policy.decide(state)
    assert wish[0] == 1
    assert wish[1] < 1 / 3


def test_orca_is_the_formula_of_a58() -> None:
    told = [(40.0, 0.5, 0.0), (10.0, 0.5, 0.0), (40.0, 0.5, 0.5)]
    group = [
        instance(f"n/{k}", requests_per_second=q, utilisation=u, error_ratio=e) for k, (q, u, e) in enumerate(told)
    ]
    [state] = by_model(group)
    policy = Orca()
    for _ in range(30):
        wish = policy.decide(state)
    weights = np.asarray([q / (u + e) for q, u, e in told])
    np.testing.assert_allclose(wish, weights / weights.max(), rtol=1e-6)
