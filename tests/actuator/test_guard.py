"""No policy, however mad, gets past the guard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from trimtab.actuator.guard import MEASURE_SECONDS, Guard, Verdict
from trimtab.actuator.pace import RETURN_SECONDS, RETURN_SECONDS_MAX
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.spare import allot
from trimtab.actuator.state import State, Vector, by_model
from trimtab.agent.clock import ManualClock

NEVER = 1e9
Wish = Callable[[int, int], Vector]


def adversaries(rng: np.random.Generator) -> dict[str, Wish]:
    return {
        "random": lambda n, _: rng.random(n),
        "nonsense": lambda n, _: rng.choice([NAN, np.inf, -np.inf, -1, 0, 1, 1e300], n),
        "oscillating": lambda n, step: np.full(n, float(step % 2)) if step % 7 else rng.random(n),
        "slowly oscillating": lambda n, step: (np.arange(n) % 2 == step // 25 % 2).astype(float),
        "drain all": lambda n, _: np.zeros(n),
        "drain a random one": lambda n, _: (np.arange(n) != rng.integers(n)).astype(float),
        "wrong shape": lambda n, step: np.zeros((n, 2)) if step % 2 else np.zeros(n + 1),
    }


def drive(guard: Guard, clock: ManualClock, state: State, wish: Vector, seconds: float = 1.0) -> list[Verdict]:
    clock.advance(seconds)
    return guard.bound(state, lambda: wish)


def fleet(*group: dict[str, object]) -> State:
    return by_model([instance(f"n/{k}", **known) for k, known in enumerate(group)])[0]


def steered(guard: Guard, clock: ManualClock, state: State, wish: list[float], seconds: int) -> list[float]:
    for _ in range(seconds):
        verdicts = drive(guard, clock, state, np.asarray(wish))
    return [round(v.weight, 3) for v in verdicts]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(adversaries(np.random.default_rng()))),
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 8),
    bounds=st.builds(
        GuardSettings,
        weight_min=st.sampled_from([0.0, 0.005, 0.2]),
        drained_share_max=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        step_down_max=st.sampled_from([0.05, 0.5, 1.0]),
        step_up_max=st.sampled_from([0.05, 0.5]),
        trial_seconds=st.just(NEVER),
    ),
)
def test_no_policy_crosses_a_bound(name: str, seed: int, size: int, bounds: GuardSettings) -> None:
    rng, clock = np.random.default_rng(seed), ManualClock()
    guard, wish = Guard(bounds, clock), adversaries(rng)[name]
    before: dict[str, float] = {}
    group: list[dict[str, object]] = [{} for _ in range(size)]
    for step in range(150):
        if rng.random() < 0.1:
            group[rng.integers(len(group))] = {
                "incident": str(rng.choice(["", "i-1"])),
                "age_seconds": float(rng.choice([0.5, 0.5, 12.0, NAN, -1.0])),
                "latency_mean_seconds": float(rng.choice([0.02, 0.5, NAN])),
                "error_ratio": float(rng.choice([0.0, 1.0, NAN])),
            }
        if rng.random() < 0.05:
            group = group[: rng.integers(1, len(group) + 1)] if rng.random() < 0.5 else [*group, {}]
        state, seconds = fleet(*group), float(rng.choice([0.2, 1.0, 3.0]))
        verdicts = drive(guard, clock, state, wish(len(group), step), seconds)
        after = np.asarray([v.weight for v in verdicts])
        gone = bool(before.keys() - set(state.ids))
        check(bounds, state, np.asarray([before.get(i, 1.0) for i in state.ids]), after, min(seconds, 1.0), gone)
        before = dict(zip(state.ids, after.tolist(), strict=True))


def check(bounds: GuardSettings, state: State, before: Vector, after: Vector, seconds: float, gone: bool) -> None:
    tiny = 1e-9
    assert np.isfinite(after).all()
    assert (after >= bounds.weight_min).all()
    assert (after <= 1).all()
    assert (1 - after).sum() <= bounds.drained_share_max * len(state) + tiny
    assert (before - after <= bounds.step_down_max * seconds + tiny).all()
    # All at once to neutral is always allowed; and when instances are gone, the others may have to give cuts back.
    if (after < 1).any() and not gone:
        assert (after - before <= bounds.step_up_max * seconds + tiny).all()
    stale = ~(state.age_seconds <= bounds.stale_seconds)
    healthy = ~stale & ~state.degraded
    assert (after[stale] >= before[stale] - tiny).all()
    if healthy.sum() <= 1:
        assert (after[healthy] >= before[healthy] - tiny).all()
    if not healthy.any():
        assert (after >= before - tiny).all()


def test_healthy_fleet_stays_exactly_neutral() -> None:
    clock = ManualClock()
    assert steered(Guard(GuardSettings(), clock), clock, fleet({}, {}, {}), [1, 1, 1], 60) == [1, 1, 1]


def test_starts_from_neutral_then_steps_down_to_the_least_weight() -> None:
    clock = ManualClock()
    guard, state = Guard(GuardSettings(), clock), fleet({}, {}, {"incident": "i-3", "mechanism": "cgroup_quota"})
    courses = [steered(guard, clock, state, [1, 1, 0], 1)[2] for _ in range(int(MEASURE_SECONDS) + 3)]
    assert courses == [1, 1, 1, 1, 0.5, 0.005, 0.005, 0.005]
    assert drive(guard, clock, state, np.asarray([1, 1, 0.0]))[2].reason == "degraded: cgroup quota (i-3)"


def test_the_drained_share_goes_to_the_worst_first_and_equals_share_it() -> None:
    clock = ManualClock()
    state = fleet({"incident": "i-1"}, {"incident": "i-1"}, {}, {})
    assert steered(Guard(GuardSettings(), clock), clock, state, [0, 0, 0.2, 1], 30) == [0.005, 0.005, 0.99, 1]
    clock = ManualClock()
    state = fleet({"incident": "i-1"}, {"incident": "i-1"}, {"incident": "i-1"}, {})
    verdicts = steered(Guard(GuardSettings(), clock), clock, state, [0, 0, 0, 1], 30)
    assert verdicts == [0.333, 0.333, 0.333, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 2.0])), min_size=1, max_size=9), st.floats(0, 5))
def test_allotment_keeps_the_budget_and_serves_the_worst_first(pairs: list[tuple[float, float]], budget: float) -> None:
    cuts, rank = np.asarray(pairs).T
    [out] = allot(cuts, rank, np.asarray([budget]))
    assert out.sum() == pytest.approx(min(budget, cuts.sum()))
    assert ((out >= 0) & (out <= cuts + 1e-12)).all()
    for k, other in np.ndindex(len(cuts), len(cuts)):
        if rank[k] < rank[other] and out[other] > 1e-9:
            assert out[k] == pytest.approx(cuts[k]), "a better one was cut while a worse one was not served"


def test_the_last_healthy_instance_keeps_its_weight() -> None:
    clock = ManualClock()
    state = fleet({"incident": "i-1"}, {})
    assert steered(Guard(GuardSettings(), clock), clock, state, [0, 0], 30) == [0.005, 1]


def test_when_all_are_degraded_all_are_neutral() -> None:
    clock = ManualClock()
    state = fleet({"incident": "i-1"}, {"incident": "i-2"})
    guard = Guard(GuardSettings(), clock)
    assert steered(guard, clock, state, [0, 1], 30) == [1, 1]
    assert "nowhere to go" in drive(guard, clock, state, np.zeros(2))[0].reason


def test_stale_telemetry_brings_an_instance_back_and_a_hold_brings_all_back_at_once() -> None:
    clock = ManualClock()
    guard, bad = Guard(GuardSettings(), clock), fleet({}, {}, {"incident": "i-1"})
    assert steered(guard, clock, bad, [1, 1, 0], 20)[2] == 0.005
    stale = fleet({}, {}, {"incident": "i-1", "age_seconds": 11.0})
    assert steered(guard, clock, stale, [1, 1, 0], 1)[2] == 0.055
    assert steered(guard, clock, stale, [1, 1, 0], 20)[2] == 1
    assert steered(guard, clock, bad, [1, 1, 0], 20)[2] == 0.005
    clock.advance(1)
    verdicts = guard.bound(bad, lambda: pytest.fail("a held policy is not asked"), "collector silent")
    assert [(v.weight, v.reason) for v in verdicts] == [(1, "collector silent")] * 3


def test_after_a_pause_it_starts_from_neutral_as_the_dead_mans_switch_left_it() -> None:
    clock = ManualClock()
    guard, bad = Guard(GuardSettings(), clock), fleet({}, {}, {"incident": "i-1"})
    assert steered(guard, clock, bad, [1, 1, 0], 20)[2] == 0.005
    clock.advance(10)
    assert steered(guard, clock, bad, [1, 1, 0], 1)[2] == 0.5


def test_nonsense_is_neutral_and_counted() -> None:
    clock = ManualClock()
    guard = Guard(GuardSettings(), clock)
    assert steered(guard, clock, fleet({}, {}, {}), [NAN, -1, 2], 20) == [1, 1, 1]
    assert guard.refused == 60


def test_each_relapse_doubles_the_wait() -> None:
    clock = ManualClock()
    guard, good, bad = Guard(GuardSettings(), clock), fleet({}, {}, {}), fleet({}, {}, {"incident": "i-1"})
    waits = []
    for _ in range(8):
        assert steered(guard, clock, bad, [1, 1, 0], 20)[2] == 0.005
        seconds = 0
        while steered(guard, clock, good, [1, 1, 1], 1)[2] == 0.005:
            seconds += 1
        waits.append(seconds)
        steered(guard, clock, good, [1, 1, 1], 30)
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600]
    assert RETURN_SECONDS_MAX == 600
    steered(guard, clock, good, [1, 1, 1], 400)
    steered(guard, clock, bad, [1, 1, 0], 20)
    assert steered(guard, clock, good, [1, 1, 1], int(RETURN_SECONDS))[2] == 0.005
    assert steered(guard, clock, good, [1, 1, 1], 1)[2] > 0.005


FALLS_MAX = 32
QUIET = GuardSettings(trial_seconds=NEVER)
"""What is counted here is the policy's doing, not the comparison with neutral weights."""


def falls(course: list[float]) -> int:
    """How often a weight fell by 0.1 after it had risen, or before it ever did."""
    count, high, low = 0, course[0], 1.0
    down = False
    for weight in course:
        if down:
            low = min(low, weight)
            if weight >= low + 0.1 - 1e-9:
                down, high = False, weight
        else:
            high = max(high, weight)
            if weight <= high - 0.1 + 1e-9:
                down, low, count = True, weight, count + 1
    return count


@pytest.mark.parametrize("calm", [0, 1, 2, 3, 4, 9])
def test_a_weight_does_not_flap_whatever_the_policy_wants(calm: int) -> None:
    """The policy turns as soon as it may, and after `calm` such turns keeps still for as long as it takes to be forgiven."""
    clock, course, quick, still = ManualClock(), [1.0], 0, 0
    guard, state, up = Guard(QUIET, clock), fleet({}, {}, {}), False
    for _ in range(3600):
        if still:
            still -= 1
        elif up and course[-1] > 0.9:
            up, quick = False, quick + 1
            still = 301 if calm and quick % calm == 0 else 0
        elif not up and course[-1] < 0.75:
            up = True
        course.append(drive(guard, clock, state, np.asarray([1, 1, 1.0 if up or still else 0.6]))[2].weight)
    assert 3 <= falls(course) <= FALLS_MAX


@pytest.mark.parametrize("period", [1, 2, 7, 15, 25, 60, 310])
def test_a_weight_does_not_flap_when_the_policy_wavers(period: int) -> None:
    clock, course, rng = ManualClock(), [], np.random.default_rng(period)
    guard, state = Guard(QUIET, clock), fleet({}, {}, {})
    for step in range(3600):
        low = rng.random() * 0.9
        course.append(drive(guard, clock, state, np.asarray([1, 1, 1.0 if step // period % 2 else low]))[2].weight)
    assert falls(course) <= FALLS_MAX


def test_who_falls_sick_again_is_not_waited_for() -> None:
    for sick in ({"incident": "i-1"}, {"error_ratio": 0.2}):
        clock = ManualClock()
        guard, good, bad = Guard(QUIET, clock), fleet({}, {}, {}), fleet({}, {}, sick)
        steered(guard, clock, bad, [1, 1, 0], 20)
        steered(guard, clock, good, [1, 1, 1], 31)
        assert steered(guard, clock, good, [1, 1, 0], 1)[2] == 1, "who just came back stays"
        assert steered(guard, clock, bad, [1, 1, 0], 1)[2] == 0.5
