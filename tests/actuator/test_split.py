"""The fastest few: slow instances are left out while the others can carry the load, and come back when they cannot."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from trimtab.actuator.policy.split import Split, alike, best_split
from trimtab.actuator.state import by_model

SPEEDS = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=12)


def decide(*group: dict[str, object], seconds: int = 60) -> list[float]:
    policy = Split()
    [state] = by_model(
        [
            instance(f"n/{k}", **{"service_seconds": 0.02, "requests_per_second": 30.0, **known})
            for k, known in enumerate(group)
        ]
    )
    for _ in range(seconds):
        wish = policy.decide(state)
    return [round(float(w), 3) for w in wish]


def weights(speeds: list[float], load: float) -> list[float]:
    speed = np.asarray(speeds)
    found: list[float] = best_split(
        0.02 / speed, np.ones(len(speed)), np.zeros(len(speed)), load * float(speed.sum()) / 0.02
    ).tolist()
    return found


def test_slow_ones_are_shut_off_at_low_load_and_come_back_at_high() -> None:
    assert weights([1, 1, 2, 4], 0.1) == [0, 0, 0, 1]
    assert weights([1, 1, 2, 4], 0.3)[:2] == [0, 0]
    assert 0 < weights([1, 1, 2, 4], 0.3)[2] <= 0.5
    assert weights([1, 1, 2, 4], 0.9) == pytest.approx([0.25, 0.25, 0.5, 1], rel=0.1)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=12), st.floats(0, 1))
def test_who_is_alike_is_one(service: list[float], band: float) -> None:
    found = alike(np.asarray(service), np.full(len(service), band))
    order = np.argsort(service)
    assert (np.diff(found[order]) >= -1e-9).all()
    gaps = np.diff(np.log(np.asarray(service)[order]))
    assert len(np.unique(found.round(12))) <= 1 + np.count_nonzero(gaps > band)
    assert min(service) * (1 - 1e-9) <= found.min()
    assert found.max() <= max(service) * (1 + 1e-9)


@given(
    st.lists(st.tuples(st.sampled_from([1.0, 1.2, 1.5]), st.sampled_from([0.1, 0.3])), min_size=2, max_size=8),
    st.randoms(),
)
def test_who_is_alike_does_not_depend_on_the_order(group: list[tuple[float, float]], chance: random.Random) -> None:
    shuffled = chance.sample(group, len(group))
    found, other = (dict(zip(g, alike(*np.asarray(g).T).tolist(), strict=True)) for g in (group, shuffled))
    assert found == pytest.approx(other)


@given(SPEEDS, st.floats(0.01, 0.95))
def test_who_is_used_is_as_fast_as_who_is_not_and_can_carry_the_load(speeds: list[float], load: float) -> None:
    found = weights(speeds, load)
    used = [s for s, w in zip(speeds, found, strict=True) if w > 0]
    left = [s for s, w in zip(speeds, found, strict=True) if w == 0]
    assert max(found) == 1
    assert not left or min(used) > max(left)
    assert sum(used) > load * sum(speeds)


@given(SPEEDS, st.floats(0.01, 0.45))
def test_a_set_that_is_used_at_some_load_is_not_made_smaller_by_more(speeds: list[float], load: float) -> None:
    fewer, more = weights(speeds, load), weights(speeds, 2 * load)
    assert np.count_nonzero(fewer) <= np.count_nonzero(more)


def test_errors_are_dear() -> None:
    assert decide({}, {}, {}, {"error_ratio": 0.3}) == [1, 1, 1, 0]
    assert decide({}, {}, {}, {"error_ratio": 1.0, "service_seconds": 0.001, "latency_mean_seconds": 0.001}) == [
        1,
        1,
        1,
        0,
    ]


def test_what_a_gpu_announces_is_believed_before_latency_shows_it() -> None:
    light = {"requests_per_second": 10.0}
    assert decide(light, light, light, light | {"gpu_throttled": 1.0})[3] < 0.5
    assert decide(light, light, light, light | {"gpu_memory_fault": 1.0})[3] <= 0.5


def test_noise_is_no_speed() -> None:
    assert decide({}, {}, {"service_seconds": 0.022}, {"service_seconds": 0.0185}) == [1, 1, 1, 1]
    few = {"requests_per_second": 0.05}
    assert decide(few, few, few | {"service_seconds": 0.03}) == [1, 1, 1]


def test_unknown_and_stale_are_neutral_and_an_incident_drains() -> None:
    assert decide({}, {}, {"service_seconds": NAN, "latency_mean_seconds": NAN}) == [1, 1, 1]
    assert decide({}, {}, {"service_seconds": 9.0, "age_seconds": 11.0}) == [1, 1, 1]
    assert decide({}, {}, {"incident": "i-1"}) == [1, 1, 0]
    assert decide({"incident": "i-1"}, {"incident": "i-1"}) == [1, 1]


@pytest.mark.parametrize("load", [0.0, 1.2, 50.0])
def test_any_load_has_an_answer(load: float) -> None:
    found = weights([1, 1, 3], load)
    assert np.isfinite(found).all()
    assert max(found) == 1


def course(*rates: float) -> list[list[float]]:
    """What is wished for, second by second, of two fast instances and a slow one, as so many requests come to each."""
    policy, wished = Split(), []
    for rate in rates:
        group = [
            instance(f"n/{k}", service_seconds=s, requests_per_second=rate) for k, s in enumerate((0.02, 0.02, 0.06))
        ]
        wished.append(policy.decide(by_model(group)[0]).tolist())
    return wished


def test_after_a_burst_the_slow_ones_stay_until_it_is_long_ago() -> None:
    found = course(*[5.0] * 60, *[40.0] * 5, *[5.0] * 600)
    assert found[59][2] == 0, "at low load it is left out"
    assert min(wish[2] for wish in found[62:90]) > 0, "in the burst it is missed, and so it would be in the next one"
    assert found[-1][2] == 0


def test_what_chance_adds_to_arrivals_is_no_burst() -> None:
    chance = np.random.default_rng(3)
    rates = chance.poisson(10 * 3 * 5, 600) / (3 * 5)
    assert all(wish[2] == 0 for wish in course(*rates.tolist())[60:])
