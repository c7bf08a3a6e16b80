"""What policies remember: every request counts once, and what is not known adds nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from trimtab.actuator.policy.recent import HOLD_SECONDS, Recent, service
from trimtab.actuator.state import State, by_model

SECONDS = st.lists(
    st.tuples(st.floats(0, 1e4), st.one_of(st.just(NAN), st.floats(1e-4, 100)), st.floats(0, 20)),
    min_size=1,
    max_size=30,
)


def state(*group: dict[str, float]) -> State:
    [found] = by_model([instance(f"n/{k}", **known) for k, known in enumerate(group)])
    return found


@given(SECONDS)
def test_the_mean_latency_is_that_of_the_requests(seconds: list[tuple[float, float, float]]) -> None:
    recent, told = Recent(0.9), []
    for age, (rate, latency, age_seconds) in enumerate(reversed(seconds)):
        if rate > 0 and np.isfinite(latency) and age_seconds <= 10:
            told.append((0.9**age * rate, latency))
    for rate, latency, age_seconds in seconds:
        found = recent.observe(
            state({"requests_per_second": rate, "latency_mean_seconds": latency, "age_seconds": age_seconds})
        )
    if not told:
        assert np.isnan(found.latency_seconds[0])
        return
    weights, latencies = zip(*told, strict=True)
    assert found.latency_seconds[0] == pytest.approx(np.average(latencies, weights=weights), rel=1e-6)


def test_the_gone_are_forgotten() -> None:
    recent = Recent(0.9)
    recent.observe(state({"requests_per_second": 1000.0, "latency_mean_seconds": 9.0}))
    [other] = by_model([instance("n/9")])
    recent.observe(other)
    assert recent.observe(state({"requests_per_second": 1.0})).latency_seconds[0] == pytest.approx(0.02)


def test_the_runtime_knows_the_service_time_best() -> None:
    shared = {"latency_mean_seconds": 0.3, "in_flight": 2.0}
    assert service(state(shared, shared | {"service_seconds": 0.05})).tolist() == pytest.approx([0.1, 0.05])
    assert service(state({"latency_mean_seconds": 0.3, "service_seconds": 0.0, "in_flight": NAN})).tolist() == [0.3]


def test_of_who_is_drained_the_last_is_known_for_a_while() -> None:
    recent = Recent(0.9, hold=True)
    recent.observe(state({"latency_mean_seconds": 9.0}))
    silent = state({"requests_per_second": 0.0, "latency_mean_seconds": NAN})
    course = [recent.observe(silent).latency_seconds[0] for _ in range(HOLD_SECONDS + 1)]
    assert course[:-1] == [9.0] * HOLD_SECONDS
    assert np.isnan(course[-1])


def test_who_turns_slow_is_known_by_its_newest_word_and_who_wavers_is_not() -> None:
    for turned, known in ((0.06, 0.06), (0.023, 0.0206)):
        recent = Recent(0.9, hold=True, restart=True)
        for _ in range(60):
            recent.observe(state({"requests_per_second": 30.0, "service_seconds": 0.02}))
        found = recent.observe(state({"requests_per_second": 30.0, "service_seconds": turned})).service_seconds[0]
        assert found == pytest.approx(known, rel=0.03)


@given(st.lists(st.floats(0.01, 0.1), min_size=1, max_size=30), st.floats(0.1, 500))
def test_an_average_that_starts_anew_is_one_of_what_was_told(services: list[float], rate: float) -> None:
    recent = Recent(0.9, hold=True, restart=True)
    for seconds in services:
        found = recent.observe(state({"requests_per_second": rate, "service_seconds": seconds})).service_seconds[0]
    assert min(services) * (1 - 1e-9) <= found <= max(services) * (1 + 1e-9)
