"""The breaker opens when steering costs more than neutral did, and only then."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actuator.conftest import instance
from trimtab.actuator.breaker import Breaker
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import State, by_model
from trimtab.agent.clock import ManualClock


def fleet(latency: float, errors: float = 0.0, rate: float = 50.0) -> State:
    known = {"latency_mean_seconds": latency, "error_ratio": errors, "requests_per_second": rate}
    return by_model([instance("a/1", **known), instance("a/2", **known)])[0]


class Bench:
    """A fleet whose cost depends on whether it is steered."""

    def __init__(self, neutral: State, steered: State) -> None:
        self.clock = ManualClock()
        self.breaker = Breaker(GuardSettings(), self.clock)
        self.neutral, self.steered = neutral, steered
        self.errors = np.zeros(len(neutral))
        self.reason = ""

    def run(self, seconds: int, wants_to_steer: bool = True) -> list[bool]:
        """For each second whether the breaker was open."""
        out = []
        for _ in range(seconds):
            self.clock.advance(1)
            steering = wants_to_steer and not self.reason
            self.reason = self.breaker.judge(self.steered if steering else self.neutral, steering, self.errors)
            out.append(bool(self.reason))
        return out


def test_better_or_equal_never_opens() -> None:
    for steered in (fleet(0.02), fleet(0.03), fleet(0.035)):
        bench = Bench(fleet(0.03), steered)
        assert not any(bench.run(20, wants_to_steer=False) + bench.run(600))


@pytest.mark.parametrize("steered", [fleet(0.05), fleet(0.02, errors=0.2)], ids=["slower", "failing"])
def test_worse_opens_after_ten_seconds_and_waits_longer_each_time(steered: State) -> None:
    bench = Bench(fleet(0.03), steered)
    bench.run(20, wants_to_steer=False)
    course = bench.run(600)
    assert 10 <= course.index(True) <= 15
    lengths = [len(run) for run in "".join("x" if o else " " for o in course).split()]
    assert [pytest.approx(n, abs=2) for n in (60, 120, 240)] == lengths[:3]
    assert "50 ms" in bench.reason or "60 ms" in bench.reason
    assert "30 ms at neutral" in bench.reason


def test_a_fault_that_just_began_is_part_of_the_reference() -> None:
    bench = Bench(fleet(0.02), fleet(0.05))
    bench.run(20, wants_to_steer=False)
    bench.neutral = fleet(0.06)
    bench.run(4, wants_to_steer=False)
    assert not any(bench.run(100))


def test_neutral_weights_are_priced_with_the_errors_of_who_is_drained() -> None:
    """The fault is younger than the reference; one of two fails a fifth: neutral weights would cost twice as much."""
    for steered, opens in ((fleet(0.055), False), (fleet(0.08), True)):
        bench = Bench(fleet(0.03), steered)
        bench.run(20, wants_to_steer=False)
        bench.errors = np.asarray([0.2, 0.0])
        assert any(bench.run(30)) == opens


def test_a_surge_costs_one_pause_and_then_is_the_reference() -> None:
    bench = Bench(fleet(0.03), fleet(0.02))
    bench.run(20, wants_to_steer=False)
    assert not any(bench.run(60))
    bench.steered, bench.neutral = fleet(0.08), fleet(0.09)
    course = bench.run(400)
    assert 13 <= course.count(True) <= 20, "as long as it takes to see that neutral is no cheaper"


@pytest.mark.parametrize("silent", [fleet(9.0, rate=0.5), fleet(float("nan"))], ids=["few", "unknown"])
def test_what_is_not_known_opens_nothing(silent: State) -> None:
    bench = Bench(fleet(0.03), silent)
    bench.run(20, wants_to_steer=False)
    assert not any(bench.run(100))


def test_forgets_old_trips() -> None:
    bench = Bench(fleet(0.03), fleet(0.05))
    bench.run(20, wants_to_steer=False)
    bench.run(40)
    bench.steered = fleet(0.03)
    assert bench.run(800).count(True) < 60
    bench.steered = fleet(0.05)
    assert bench.run(70).count(True) == pytest.approx(60, abs=2)


def test_a_fault_that_grew_is_not_blamed_on_the_steering() -> None:
    bench = Bench(fleet(0.03), fleet(0.03))
    bench.run(20, wants_to_steer=False)
    bench.steered, bench.neutral = fleet(0.1), fleet(0.9)
    course = bench.run(300)
    assert 13 <= course.count(True) <= 20, "neutral is dearer: it closes as soon as that is known, and opens no more"
    assert not any(course[-200:])
