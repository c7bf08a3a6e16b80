"""Chance, arrivals and the heap of events."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.fleetsim.scenes import run
from trimtab.actuator.fleetsim import chance, events, layout
from trimtab.actuator.fleetsim.arrivals import Stream
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Scenario, Service

_64 = (1 << 64) - 1
WEYL = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64
    return z ^ (z >> 31)


def plain_uniform(seed: int, stream: int, request: int, draw: int) -> float:
    start = mix((seed + (stream + 1) * WEYL) & _64)
    z = mix((start + (request * chance.DRAWS_MAX + draw) * WEYL) & _64)
    return ((z >> 11) + 0.5) * 2.0**-53


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 4), st.integers(0, 10**9), st.integers(0, 63))
def test_uniform_is_splitmix64(seed: int, stream: int, request: int, draw: int) -> None:
    assert chance.uniform(seed, stream, request, draw) == plain_uniform(seed, stream, request, draw)


def test_streams_and_requests_are_independent() -> None:
    draws = np.array([[plain_uniform(1, s, r, 0) for r in range(20_000)] for s in range(5)])
    assert np.abs(draws.mean(axis=1) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws) - np.eye(5)).max() < 0.03
    assert np.abs([np.corrcoef(row[:-1], row[1:])[0, 1] for row in draws]).max() < 0.03


@pytest.mark.parametrize(
    ("service", "mean", "cv"),
    [
        (Service(0.02, "lognormal", cv=0.5), 0.02, 0.5),
        (Service(0.02, "exponential"), 0.02, 1.0),
        (Service(0.02, "deterministic"), 0.02, 0.0),
        (Service(kind="quantiles", quantiles_seconds=(0.0, 0.02, 0.04)), 0.02, 3**-0.5),
    ],
    ids=lambda value: value.kind if isinstance(value, Service) else "",
)
def test_service_times(service: Service, mean: float, cv: float) -> None:
    rules = layout.rules_of(Scenario(service=service))
    drawn = np.array(
        [chance.work(1, r, rules.service, rules.mean, rules.sigma, rules.quantiles) for r in range(40_000)]
    )
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, abs=0.02)
    assert service.expected_seconds == pytest.approx(mean)
    if service.kind == "lognormal":
        sigma = math.sqrt(math.log1p(cv * cv))
        assert np.median(drawn) == pytest.approx(mean * math.exp(-sigma * sigma / 2), rel=0.01)


def test_requests_keep_their_work_under_other_weights_and_balancers() -> None:
    """Common random numbers: with a worker for each, latency is the request's own work, whoever serves it."""
    by_number = []
    for name, weights in (("round_robin", (1, 1, 1, 1)), ("random2", (0.1, 1, 0, 0.5))):
        scenario = Scenario(seconds=30, arrivals=Arrivals(3), balancers=Balancers(name), service=Service(1e-5))
        _, ticks = run(scenario, weights)
        answers = np.concatenate([t.answers for t in ticks])
        by_number.append(answers["latency"][np.argsort(answers["number"])])
    assert np.allclose(*by_number, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6)), max_size=80))
def test_events_come_in_order(steps: list[tuple[bool, float]]) -> None:
    """The plain twin is heapq."""
    table, now = np.zeros(81, dtype=layout.EVENT), np.zeros(1, dtype=layout.NOW)
    twin: list[float] = []
    for put, time in steps:
        if put:
            events.push(table, now, time, 0)
            heapq.heappush(twin, time)
        elif twin:
            assert table[0]["time"] == heapq.heappop(twin)
            events.drop_first(table, now)
    assert now[0]["heap"] == len(twin)
    assert sorted(table["time"][: len(twin)]) == sorted(twin)


def gaps(arrivals: Arrivals, seconds: int = 2000, seed: int = 1) -> np.ndarray:
    stream = Stream(arrivals, seed)
    chunks = [stream.second(k) for k in range(seconds)]
    for k, chunk in enumerate(chunks):
        assert ((chunk >= k) & (chunk < k + 1)).all()
    times = np.concatenate(chunks)
    assert (np.diff(times) >= 0).all()
    return np.diff(times)


def test_poisson_arrivals() -> None:
    between = gaps(Arrivals(50))
    assert between.mean() == pytest.approx(1 / 50, rel=0.01)
    assert between.std() / between.mean() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(between[:-1], between[1:])[0, 1]) < 0.02


def test_gamma_arrivals() -> None:
    between = gaps(Arrivals(50, "gamma", cv=3))
    assert between.mean() == pytest.approx(1 / 50, rel=0.05)
    assert between.std() / between.mean() == pytest.approx(3, rel=0.05)


def test_bursts_keep_the_mean_and_bunch() -> None:
    stream = Stream(Arrivals(50, "bursty", burst=5, burst_seconds=2, calm_seconds=8), 1)
    counts = np.array([len(stream.second(k)) for k in range(20_000)])
    assert counts.mean() == pytest.approx(50, rel=0.05)
    # Calm is 50 / 1.8 a second, a burst five times that.
    assert counts.var() > 4 * counts.mean()


def test_a_profile_scales_seconds() -> None:
    stream = Stream(Arrivals(100, profile=(0.0, 0.5, 2.0)), 1)
    counts = np.array([len(stream.second(k)) for k in range(3000)]).reshape(-1, 3)
    assert counts.mean(axis=0) == pytest.approx([0, 50, 200], rel=0.02)


def test_recorded_arrivals_come_as_recorded() -> None:
    times = (0.0, 0.25, 0.999, 1.0, 3.5, 7.0)
    stream = Stream(Arrivals(kind="recorded", times_seconds=times), 1)
    assert [stream.second(k).tolist() for k in range(4)] == [[0.0, 0.25, 0.999], [1.0], [], [3.5]]
