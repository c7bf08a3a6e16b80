"""Steering that is worse than neutral weights is suspended; steering that is not hardly ever is, whatever the traffic does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from tests.actuator.made_fleet import MadeFleet
from trimtab.actuator.evidence import Evidence
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import State, by_model
from trimtab.actuator.trial import ALPHA, PHASE_SECONDS, SUSPENDED_SECONDS, Trial

Costs = Callable[[np.random.Generator, int], np.ndarray]
"""Logarithms of what a request costs in so many windows that follow each other, if nothing is done to it."""


def steady(rng: np.random.Generator, windows: int) -> np.ndarray:
    return rng.normal(0, 0.1, windows)


def heavy(rng: np.random.Generator, windows: int) -> np.ndarray:
    return rng.standard_t(1.5, windows) * 0.2


def drifting(rng: np.random.Generator, windows: int) -> np.ndarray:
    """Dearer with every window, with a day's course, and noise that depends on that before."""
    noise = np.convolve(rng.normal(0, 0.1, windows + 20), np.full(20, 0.3), "valid")[:windows]
    return np.linspace(0, 5, windows) + np.sin(np.arange(windows) / 15) + noise


def loud(rng: np.random.Generator, windows: int) -> np.ndarray:
    """Quiet, and now and then a window that costs a hundred times as much."""
    return np.where(rng.random(windows) < 0.02, 4.6, rng.normal(0, 0.02, windows))


def played(costs: Costs, rng: np.random.Generator, pairs: int, worse: float) -> int:
    """After how many pairs a treatment that makes requests dearer by `worse` is found out; 0 for never."""
    evidence, base = Evidence(), costs(rng, 2 * pairs).reshape(pairs, 2).tolist()
    coins = (rng.random(pairs) < 0.5).tolist()
    for pair, (windows, coin) in enumerate(zip(base, coins, strict=True), start=1):
        treated, plain = windows if coin else windows[::-1]
        evidence.add(treated + math.log1p(worse) - plain)
        if evidence.value >= 1 / ALPHA:
            return pair
    return 0


@pytest.mark.parametrize("costs", [steady, heavy, drifting, loud])
@pytest.mark.parametrize("worse", [0.0, -0.1])
def test_who_is_not_worse_is_suspended_as_rarely_as_promised(costs: Costs, worse: float) -> None:
    """Looked at after each of 300 pairs. The bound holds for any number; 14 of 600 has a chance of 1 in 2,000 where it is 1 %."""
    runs = 600
    wrong = sum(played(costs, np.random.default_rng([7, run]), 300, worse) > 0 for run in range(runs))
    assert wrong <= 14


@pytest.mark.parametrize(
    ("costs", "worse", "pairs"), [(steady, 0.2, 30), (steady, 0.1, 90), (loud, 0.05, 60), (drifting, 0.2, 90)]
)
def test_who_is_worse_is_found_out(costs: Costs, worse: float, pairs: int) -> None:
    found = [played(costs, np.random.default_rng([8, run]), 400, worse) for run in range(100)]
    assert all(found)
    assert sorted(found)[90] <= pairs


def test_who_becomes_worse_after_it_was_better_for_long_is_found_out() -> None:
    for run in range(30):
        rng, evidence = np.random.default_rng([9, run]), Evidence()
        for excess in rng.normal(-0.3, 0.14, 300):
            evidence.add(excess)
        assert evidence.value < 1
        for excess in rng.normal(0.2, 0.14, 60):
            evidence.add(excess)
        assert evidence.value >= 1 / ALPHA


@given(st.lists(st.floats(-1e3, 1e3), max_size=30))
def test_the_game_is_fair(sizes: list[float]) -> None:
    """By enumeration: whatever the sizes, over both outcomes of the next coin the mean wealth is what it was."""
    evidence = Evidence()
    for size in sizes:
        outcomes = []
        for sign in (1, -1):
            then = Evidence(evidence.pairs, 0.0, evidence._kept, list(evidence._staked))
            then.add(sign * size)
            outcomes.append(then.value)
        assert sum(outcomes) / 2 == pytest.approx(evidence.value, rel=1e-9)
        assert min(outcomes) >= 0
        evidence.add(size)


def test_what_is_not_known_is_no_evidence() -> None:
    for excess in (NAN, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not finite"):
            Evidence().add(excess)


def state(latency: float, rate: float = 50.0) -> State:
    return by_model([instance("a/1", latency_mean_seconds=latency, requests_per_second=rate)])[0]


class Course:
    """A trial, second by second: what is told lags behind the weights as it does in a real fleet."""

    def __init__(self, steered: float, neutral: float, noise: float = 0.05, seed: int = 1, **settings: float) -> None:
        self.trial = Trial(GuardSettings(**settings), np.random.default_rng(seed))  # type: ignore[arg-type]
        self.costs, self.noise, self.rng = (steered, neutral), noise, np.random.default_rng(seed + 1)
        self.now = 0.0
        self.weights: list[bool] = []
        """For each second whether they were neutral."""
        self.rate = 50.0

    def run(self, seconds: int, steered: bool = True, safe: bool = True) -> list[bool]:
        for _ in range(seconds):
            self.now += 1
            # A figure is of five seconds, and a second old.
            recent = self.weights[-6:-1] or [False]
            cost = float(np.mean([self.costs[was] for was in recent])) * math.exp(self.rng.normal(0, self.noise))
            if self.trial.why(self.now):
                self.weights.append(True)
            else:
                self.weights.append(self.trial.turn(state(cost, self.rate), self.now, steered, safe))
        return self.weights[-seconds:]


def windows(course: list[bool]) -> list[int]:
    """How long each stay at neutral weights was."""
    return [len(run) for run in "".join("x" if one else " " for one in course).split()]


def test_windows_are_short_and_become_rare_while_nothing_speaks_against_steering() -> None:
    course = Course(steered=0.02, neutral=0.03)
    hours = [course.run(3600) for _ in range(6)]
    assert set(windows(course.weights)) == {int(PHASE_SECONDS)}
    assert 0.02 < sum(hours[0]) / 3600 < 0.1
    assert sum(hours[5]) / 3600 < 0.02
    assert not course.trial.why(course.now)


def test_each_pair_sees_only_what_its_windows_cost() -> None:
    course = Course(steered=0.03, neutral=0.02, noise=0.0)
    course.run(3600)
    evidence = course.trial._evidence
    assert course.trial._why or evidence.excess == pytest.approx(math.log(1.5 / 1.02))
    assert "cost 50% more" in course.trial._why


def test_worse_steering_is_suspended_for_longer_each_time() -> None:
    course = Course(steered=0.022, neutral=0.02)
    lengths = [n for n in windows(course.run(12 * 3600)) if n > PHASE_SECONDS]
    assert lengths[:2] == [pytest.approx(SUSPENDED_SECONDS, abs=2), pytest.approx(2 * SUSPENDED_SECONDS, abs=2)]
    assert course.weights.index(True) < 200


def test_a_margin_of_what_is_worse_is_borne() -> None:
    course = Course(steered=0.0203, neutral=0.02)
    course.run(6 * 3600)
    assert not course.trial._why


def test_nothing_is_compared_where_nothing_is_steered_or_neutral_weights_would_harm() -> None:
    course = Course(steered=0.03, neutral=0.02)
    assert not any(course.run(1000, steered=False))
    assert not any(course.run(1000, safe=False))
    course.run(200)
    while not course.run(1)[0]:
        pass
    assert not course.run(1, safe=False)[0], "it ends at once"
    assert course.trial._evidence.pairs <= 2


def test_too_few_requests_say_nothing() -> None:
    course = Course(steered=0.03, neutral=0.02)
    course.rate = 5.0
    course.run(3600)
    assert course.trial._evidence.pairs == 0


def test_the_same_chance_gives_the_same_course() -> None:
    one, same, other = (Course(0.02, 0.03, seed=seed).run(3600) for seed in (3, 3, 4))
    assert one == same != other


def test_a_policy_that_overloads_a_slow_instance_is_caught_by_the_guard_and_reported() -> None:
    """Ten per cent worse: the breaker lets it pass. It keeps the fast ones half idle, as a policy learnt on another fleet may."""
    rng = np.random.default_rng(5)

    class Noisy(MadeFleet):
        def state(self) -> State:
            for k in range(4):
                self.known[k] = {"latency_mean_seconds": latency(self, k) * math.exp(rng.normal(0, 0.03))}
            return super().state()

    def latency(fleet: MadeFleet, k: int) -> float:
        return 0.02 + 0.03 * fleet.share[k] / fleet.rate

    fleet = Noisy((40, 40, 40, 40), rate=60)
    wish = [1, 1, 0.3, 0.3]
    minutes = 0
    while "trial" not in (verdicts := fleet.run(wish, 60))[0].reason:
        minutes += 1
        assert minutes < 200
    assert [v.weight for v in verdicts] == [1, 1, 1, 1]
    assert verdicts[0].reason.startswith("trial: requests cost ")
    assert verdicts[0].reason.endswith("neutral for 1 h")
    assert [v.wished for v in verdicts] == wish, "what the policy would have done is recorded on"
    fleet.known = {0: {"incident": "i-1"}}
    type(fleet).state = MadeFleet.state  # type: ignore[method-assign]
    assert fleet.run(wish, 10)[0].weight == pytest.approx(0.005), "who is degraded is drained all the same"
    assert fleet.weight[1:].tolist() == [1, 1, 1]


def test_who_is_degraded_stays_drained_while_steering_is_compared() -> None:
    fleet = MadeFleet((400, 400, 400), rate=30, known={0: {"incident": "i-1"}})
    lifted = 0
    fleet.run([0, 0.5, 1], 20)
    for _ in range(900):
        verdicts = fleet.run([0, 0.5, 1], 1)
        assert fleet.weight[0] == pytest.approx(0.005)
        lifted += "to compare" in verdicts[1].reason and verdicts[1].weight == 1
    assert lifted > 0
    assert lifted % PHASE_SECONDS == 0


def test_in_shadow_mode_nothing_is_compared() -> None:
    from trimtab.actuator.guard import Guard

    fleet = MadeFleet((40, 40, 40), rate=30)
    fleet.guard = Guard(GuardSettings(), fleet.clock, real=False)
    fleet.run([1, 0.5, 1], 20)
    for _ in range(600):
        assert fleet.run([1, 0.5, 1], 1)[1].weight == pytest.approx(0.5)
