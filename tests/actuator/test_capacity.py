"""What an instance can carry is learnt from what it carries; what may be drained follows from that and from the load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from tests.actuator.made_fleet import MadeFleet
from trimtab.actuator.capacity import BUSY_LEAST, MEMORY_SECONDS, Capacity, Load, busy
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.spare import Margins, Spare
from trimtab.actuator.state import State, by_model

UNEQUAL = (10.0, 10.0, 20.0, 40.0)


def one(**known: Any) -> State:
    return by_model([instance("n/1", **known)])[0]


def shown(*course: dict[str, Any], seconds: int = 60) -> Load:
    """What is known after each part of a course lasted so long."""
    capacity, now = Capacity(), 0.0
    for known in course:
        for _ in range(seconds):
            now += 1
            load = capacity.observe(one(**known), now, 10)
    return load


@pytest.mark.parametrize(
    ("known", "share"),
    [
        ({"utilisation": 0.4}, 0.4),
        ({"utilisation": 3.0}, 1.0),
        ({"utilisation": 0.0}, NAN),
        ({"utilisation": NAN, "workers": 4, "in_flight": 1.0, "queue": 0.0}, 0.25),
        ({"workers": 4, "in_flight": 7.0, "queue": 5.0}, 0.5),
        ({"workers": 1, "in_flight": 1.5, "queue": NAN}, 0.6),
        ({"workers": 8, "in_flight": 2.0, "queue": NAN}, 0.25),
        ({"workers": 4, "in_flight": 0.0, "queue": 0.0}, NAN),
        ({"utilisation": 0.2, "workers": 2, "in_flight": 1.6, "queue": 0.0}, 0.8),
        ({"utilisation": 0.125, "in_flight": 9.0, "queue": 8.0}, 1.0),
        (
            {
                "utilisation": NAN,
                "workers": 4,
                "requests_per_second": 50.0,
                "service_seconds": 0.04,
                "in_flight": 9.0,
                "queue": 5.0,
            },
            0.5,
        ),
        ({"utilisation": 0.7, "workers": 4, "requests_per_second": 50.0, "service_seconds": 0.04}, 0.7),
    ],
)
def test_the_scarcest_of_its_means_is_how_busy_an_instance_is(known: dict[str, Any], share: float) -> None:
    state = one(**known)
    worked = state.requests_per_second * state.service_seconds
    found = busy(state.utilisation, state.in_flight, state.queue, worked, state.workers)
    assert found == pytest.approx([share], nan_ok=True)


def test_capacity_is_the_rate_over_the_busy_share() -> None:
    load = shown({"requests_per_second": 30.0, "utilisation": 0.6})
    assert (load.low, load.high) == (pytest.approx([50]), pytest.approx([50]))


def test_what_is_inside_follows_from_rate_and_latency_where_nobody_counts_it() -> None:
    known = {"workers": 4, "in_flight": NAN, "queue": 0.0, "requests_per_second": 50.0, "latency_mean_seconds": 0.04}
    assert shown(known).low == pytest.approx([100])


def test_a_queue_that_comes_and_goes_is_smoothed_before_anything_is_made_of_it() -> None:
    """One worker, 60 % busy: five in ten looks find one at work, one finds it with two waiting, and four find nobody."""
    capacity, rng = Capacity(), np.random.default_rng(1)
    lows = []
    for second in range(600):
        waiting, working = ((0, 1), (2, 1), (0, 0))[int(rng.choice(3, p=[0.5, 0.1, 0.4]))]
        seen = one(requests_per_second=30.0, workers=1, queue=float(waiting), in_flight=float(waiting + working))
        lows.append(capacity.observe(seen, second, 10).low[0])
    assert np.median(lows[60:]) == pytest.approx(50, rel=0.1)


def test_what_the_runtime_counts_is_believed_before_what_a_look_finds() -> None:
    """The same instance: looks find it at work or not, and its own clock says 20 ms a request, all the time."""
    capacity, rng = Capacity(), np.random.default_rng(1)
    for second in range(60):
        inside = float(rng.random() < 0.6)
        seen = one(requests_per_second=30.0, service_seconds=0.02, workers=1, queue=0.0, in_flight=inside)
        low = capacity.observe(seen, second, 10).low
        assert low == pytest.approx([50])


def test_who_is_stuck_is_full_though_it_answers_nothing_that_could_be_counted() -> None:
    well = {"requests_per_second": 30.0, "service_seconds": 0.02, "workers": 1, "in_flight": 0.6, "queue": 0.0}
    stuck = well | {"requests_per_second": 0.0, "service_seconds": NAN, "in_flight": 9.0, "queue": 8.0}
    assert shown(well, stuck).low == pytest.approx([0], abs=0.1)


def test_errors_are_averaged_over_requests_however_few_come() -> None:
    capacity = Capacity()
    for second in range(60):
        capacity.observe(one(requests_per_second=30.0, error_ratio=0.3, utilisation=0.5), second, 10)
    lucky = one(requests_per_second=0.2, error_ratio=0.0, utilisation=0.01)
    assert 0.25 < capacity.observe(lucky, 60, 10).errors[0] < 0.3


def test_who_has_little_to_do_is_believed_to_carry_a_few_times_as_much_and_no_more() -> None:
    load = shown({"requests_per_second": 3.0, "utilisation": 0.01})
    assert load.low == pytest.approx([3 / BUSY_LEAST])
    assert load.high == [np.inf]


def test_failed_requests_are_not_carried() -> None:
    assert shown({"utilisation": 0.5, "requests_per_second": 40.0, "error_ratio": 0.75}).low == pytest.approx([20])
    assert shown({"utilisation": 0.5, "error_ratio": 1.0}).low == [0]
    fails_fast = shown({"utilisation": 0.5}, {"utilisation": 0.001, "requests_per_second": 900.0, "error_ratio": 1.0})
    assert (fails_fast.known, fails_fast.low, fails_fast.high) == ([True], [0], [0])
    drained = {"utilisation": NAN, "requests_per_second": 0.0, "error_ratio": NAN}
    assert shown({"utilisation": 0.5}, {"utilisation": 0.5, "error_ratio": 1.0}, drained).low == [0]


def test_what_is_seen_now_replaces_what_was() -> None:
    well = {"requests_per_second": 40.0, "utilisation": 0.5}
    throttled = {"requests_per_second": 8.0, "utilisation": 1.0}
    idle = {"requests_per_second": 0.1, "utilisation": 0.001}
    assert shown(well, throttled).low == pytest.approx([8], rel=0.02)
    assert shown(well, throttled, well).low == pytest.approx([80], rel=0.02)
    assert shown(well, idle).low == pytest.approx([80], rel=0.02)
    assert shown(well, idle, seconds=int(MEMORY_SECONDS) + 60).low == pytest.approx([0.1 / BUSY_LEAST])
    assert shown(well, {"requests_per_second": NAN}, seconds=int(MEMORY_SECONDS) + 60).low == [0]
    assert shown({"age_seconds": 11.0, "utilisation": 0.5}).low == [0]


known = st.floats(0.1, 100)


@given(
    st.lists(st.tuples(known, st.booleans(), st.floats(0, 1), st.sampled_from([1.0, 2.0])), min_size=1, max_size=8),
    st.floats(0, 500),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_what_is_granted_is_affordable(
    group: list[tuple[float, bool, float, float]], rate: float, margin: float, share: float
) -> None:
    low, seen, cuts, rank = (np.asarray(column, dtype=float) for column in zip(*group, strict=True))
    load = Load(rate, seen > 0, np.where(seen, low, 0), np.where(seen, low, np.inf), np.zeros(len(group)))
    spare = Spare(len(group), load, GuardSettings(drained_share_max=share, drained_share_max_spare=share))
    half = cuts / 2
    margins = Margins(margin, margin / 5)
    kept = spare.granted(np.zeros_like(cuts), half, rank, margins)
    granted = kept + spare.granted(kept, half, rank, margins)
    assert (granted >= 0).all()
    assert (granted <= cuts + 1e-9).all()
    assert granted.sum() <= share * len(group) + 1e-9
    if granted.any():
        relieves = any(s and rate / len(group) > c and g > 0 for c, s, g in zip(low, seen, granted, strict=True))
        expected = rate * (1 + (margin / 5 if relieves else margin))
        for k in np.flatnonzero(seen):
            gets = expected * (1 - granted[k]) / (1 - granted).sum()
            assert gets <= max(low[k], expected / len(group)) + 1e-6 * (1 + expected)


def test_at_low_load_the_slow_ones_can_be_shut_off_entirely() -> None:
    fleet = MadeFleet(UNEQUAL, rate=0.3 * 80, settings=GuardSettings(trial_seconds=1e9))
    fleet.run([0, 0, 1, 1], 120)
    courses = [fleet.run([0, 0, 1, 1], 1) for _ in range(120)]
    zero = [sum(c[k].weight == 0 for c in courses) for k in range(4)]
    assert zero == [100, 100, 0, 0], "ten seconds of each minute it is asked for a sign of life"
    assert sorted({round(c[0].weight, 6) for c in courses}) == [0, 0.005]
    assert all(c[k].weight == 1 for c in courses for k in (2, 3))


def test_who_is_degraded_keeps_the_least_weight_and_so_does_everybody_of_unknown_capacity() -> None:
    fleet = MadeFleet(UNEQUAL, rate=24, known={0: {"incident": "i-1"}})
    assert [v.weight for v in fleet.run([0, 0, 1, 1], 200)[:2]] in (
        [pytest.approx(0.005), 0],
        [pytest.approx(0.005), pytest.approx(0.005)],
    )
    fleet = MadeFleet(UNEQUAL, rate=24, known={3: {"utilisation": NAN}})
    for _ in range(60):
        assert all(v.weight >= 0.005 for v in fleet.run([0, 0, 1, 1], 1))


def test_at_high_load_no_more_is_drained_than_the_others_can_take_over() -> None:
    fleet = MadeFleet((10, 10, 10, 10), rate=30)
    verdicts = fleet.run([0, 1, 1, 1], 120)
    assert 0.1 < fleet.weight[0] < 0.9
    assert "held by what may be drained" in verdicts[0].reason
    assert fleet.overload == 0
    fleet = MadeFleet((10, 10, 10, 10), rate=39)
    fleet.run([0, 1, 1, 1], 120)
    assert fleet.weight[0] == 1


def test_a_sick_instance_is_drained_though_the_others_are_busy() -> None:
    """Of what it gets at neutral weights it answers a fifth: the others may take it over without the whole margin."""
    fleet = MadeFleet((10, 10, 1), rate=15, known={2: {"incident": "i-1"}})
    fleet.run([1, 1, 0], 60)
    assert fleet.weight[2] == pytest.approx(0.005)
    every, one = np.full(3, 10.0), np.asarray([10.0, 10.0, 1.0])
    healthy = Spare(3, Load(20.0, np.full(3, True), every, every, np.zeros(3)), GuardSettings())
    failing = Spare(3, Load(20.0, np.full(3, True), one, one, np.zeros(3)), GuardSettings())
    for spare, drained in ((healthy, 0.5), (failing, 0.9)):
        granted = spare.granted(np.zeros(3), np.asarray([0, 0, 1.0]), np.asarray([3, 3, 0.0]), Margins(0.25, 0.05))
        assert granted[2] == pytest.approx(drained, abs=0.02)


@pytest.mark.parametrize("errors", [1.0, 0.4])
def test_who_fails_fast_is_drained_at_high_load_and_stays_so(errors: float) -> None:
    """It looks idle, and could carry much; but what it gets is lost. The others take it over almost up to their limit."""
    flat = {"latency_mean_seconds": 0.02}
    fleet = MadeFleet((100, 10, 10), rate=18, known=dict.fromkeys(range(3), flat))
    fleet.run([0, 1, 1], 30)
    assert fleet.weight[0] > 0.2, "who is well is not drained so far"
    fleet.known[0] = flat | {"error_ratio": errors}
    fleet.run([0, 1, 1], 30)
    assert fleet.weight[0] < 0.06
    fleet.known[0] = flat | {"error_ratio": NAN, "incident": "i-1"}
    fleet.run([0, 1, 1], int(MEMORY_SECONDS) + 100)
    assert fleet.weight[0] < 0.06
    assert fleet.overload == 0


def test_what_was_drained_comes_back_when_the_load_rises() -> None:
    fleet = MadeFleet(UNEQUAL, rate=24)
    fleet.run([0, 0, 1, 1], 120)
    worst = 0.0
    for rate in np.linspace(24, 64, 80):
        fleet.rate = float(rate)
        fleet.run([0, 0, 1, 1], 1)
        # At neutral weights the two slow ones would get too much from 40 a second on.
        neutral = float(np.maximum(rate / 4 - np.asarray(UNEQUAL), 0).sum())
        worst = max(worst, fleet.overload - neutral)
    assert worst <= 1e-6
    assert fleet.weight[:2].min() > 0.1


def test_the_limits_that_an_operator_sets_hold_whatever_is_spare() -> None:
    fleet = MadeFleet(UNEQUAL, rate=8, settings=GuardSettings(drained_share_max_spare=0.25, trial_seconds=1e9))
    fleet.run([0, 0, 1, 1], 120)
    assert (1 - fleet.weight).sum() == pytest.approx(1)
