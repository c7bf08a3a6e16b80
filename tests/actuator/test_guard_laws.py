"""The laws of the guard as a state machine: whatever policies, fleets, loads and people do in whatever order, no bound is broken."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.actuator.conftest import NAN, instance
from trimtab.actuator import pilot as module
from trimtab.actuator.guard import SILENCE_SECONDS
from trimtab.actuator.link import Heard
from trimtab.actuator.pilot import Pilot
from trimtab.actuator.settings import ActuatorSettings, GuardSettings
from trimtab.actuator.state import State, check_fleet
from trimtab.agent.clock import ManualClock
from trimtab.agent.wire import query_pb2 as pb

TINY = 1e-6
SETTLED_SECONDS = 60
"""After so long what an instance carries says what it can carry."""
LAGGING_SECONDS = 20
"""Until the load is known to a thousandth of what it rose by."""


class Adversary:
    """A policy that does what it is told to, which is never any good."""

    name = "adversary"
    manner = "random"
    clock: ClassVar[ManualClock]

    def __init__(self) -> None:
        self.rng, self.step = np.random.default_rng(3), 0
        self.kept: list[State] = []

    def decide(self, state: State) -> Any:
        self.step += 1
        return getattr(self, f"_{type(self).manner.replace(' ', '_')}")(state, len(state))

    def _random(self, state: State, n: int) -> Any:
        return self.rng.random(n)

    def _nonsense(self, state: State, n: int) -> Any:
        return self.rng.choice([NAN, math.inf, -math.inf, -1, 0, 1, 1e300], n)

    def _oscillating(self, state: State, n: int) -> Any:
        return np.full(n, float(self.step % 2))

    def _wavering(self, state: State, n: int) -> Any:
        return (np.arange(n) % 2 == self.step // 25 % 2).astype(float)

    def _drain_all(self, state: State, n: int) -> Any:
        return np.zeros(n)

    def _drain_the_healthy(self, state: State, n: int) -> Any:
        return state.degraded.astype(float)

    def _drain_all_but_one(self, state: State, n: int) -> Any:
        return (np.arange(n) == 0).astype(float)

    def _wrong_shape(self, state: State, n: int) -> Any:
        return [np.zeros((n, 2)), np.zeros(n + 1), 0.0, []][self.step % 4]

    def _no_numbers(self, state: State, n: int) -> Any:
        return [["x"] * n, None, {"a": 1}, [1j] * n][self.step % 4]

    def _raising(self, state: State, n: int) -> Any:
        raise ZeroDivisionError

    def _meddling(self, state: State, n: int) -> Any:
        """Writes all over what it was given, now and later."""
        self.kept = [*self.kept[-3:], state]
        for one in self.kept:
            for name in ("degraded", "age_seconds", "requests_per_second", "utilisation", "error_ratio"):
                array = getattr(one, name)
                array.flags.writeable = True
                array[:] = 0
        return np.zeros(n)

    def _slow(self, state: State, n: int) -> Any:
        self.clock.advance([0.5, 2.0, 7.0][self.step % 3])
        return np.zeros(n)


MANNERS = sorted(
    name.removeprefix("_").replace("_", " ") for name in vars(Adversary) if name[0] == "_" and name[1] != "_"
)


@dataclass
class Machine:
    """One instance on paper."""

    capacity: float
    seen: bool = True
    """Whether it is known how busy it is."""
    incident: str = ""
    errors: float = 0.0
    age_seconds: float = 0.5
    changed_at: float = -math.inf


@dataclass
class Before:
    """What was in force a second ago."""

    weight: dict[str, float] = field(default_factory=dict)
    at: float = -math.inf
    ordered: set[str] = field(default_factory=set)


class Laws(RuleBasedStateMachine):
    """A fleet of one model. `tick` is a second; after each of them all laws are checked."""

    @initialize(
        bounds=st.builds(
            GuardSettings,
            weight_min=st.sampled_from([0.0, 0.005, 0.2]),
            drained_share_max=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
            drained_share_max_spare=st.sampled_from([0.3, 1.0]),
            step_down_max=st.sampled_from([0.05, 0.5, 1.0]),
            step_up_max=st.sampled_from([0.05, 0.5]),
            capacity_margin=st.sampled_from([0.0, 0.25]),
            trial_seconds=st.sampled_from([20.0, 1e9]),
        ),
        capacities=st.lists(st.sampled_from([10.0, 20.0, 40.0]), min_size=1, max_size=6),
        manner=st.sampled_from(MANNERS),
        rate=st.sampled_from([5.0, 30.0, 90.0]),
    )
    def start(self, bounds: GuardSettings, capacities: list[float], manner: str, rate: float) -> None:
        self.bounds, self.clock, self.made = bounds, ManualClock(), len(capacities)
        self.fleet = {f"n/{k}": Machine(capacity) for k, capacity in enumerate(capacities)}
        self.overrides: dict[str, pb.Override] = {}
        self.silent_since, self.hold = math.inf, ""
        self.rate, self.rate_at, self.overloaded_at = rate, 0.0, -math.inf
        Adversary.clock, Adversary.manner = self.clock, manner
        self.pilot = Pilot(ActuatorSettings(policy="adversary", guard=bounds), self.clock)
        self.before = Before()
        for _ in range(12):  # until it has been measured at neutral weights, and steered a little
            self.tick()

    # What happens.

    @rule(seconds=st.integers(1, 20))
    def goes_on(self, seconds: int) -> None:
        for _ in range(seconds):
            self.tick()

    @rule(seconds=st.sampled_from([0.2, 3.0, 7.0]))
    def is_late(self, seconds: float) -> None:
        self.tick(seconds)

    @rule(manner=st.sampled_from(MANNERS))
    def policy_turns(self, manner: str) -> None:
        Adversary.manner = manner

    @rule(rate=st.sampled_from([0.0, 5.0, 30.0, 60.0, 90.0, 200.0]))
    def load_changes(self, rate: float) -> None:
        self.rate, self.rate_at = rate, self.now
        self.tick()

    @precondition(lambda self: len(self.fleet) < 8)
    @rule(capacity=st.sampled_from([10.0, 20.0, 40.0]))
    def comes(self, capacity: float) -> None:
        self.fleet[f"n/{self.made}"] = Machine(capacity, changed_at=self.now)
        self.made += 1

    @precondition(lambda self: len(self.fleet) > 1)
    @rule(which=st.integers(0, 7))
    def goes(self, which: int) -> None:
        self.fleet.pop(self.name(which))

    @rule(which=st.integers(0, 7), capacity=st.sampled_from([0.5, 10.0, 40.0]), incident=st.sampled_from(["", "i-1"]))
    def degrades_or_heals(self, which: int, capacity: float, incident: str) -> None:
        machine = self.fleet[self.name(which)]
        machine.capacity, machine.incident, machine.changed_at = capacity, incident, self.now

    @rule(which=st.integers(0, 7), errors=st.sampled_from([0.0, 0.5, 1.0]))
    def fails(self, which: int, errors: float) -> None:
        machine = self.fleet[self.name(which)]
        machine.errors, machine.changed_at = errors, self.now

    @rule(which=st.integers(0, 7), age=st.sampled_from([0.5, 0.5, 12.0, NAN]))
    def telemetry_comes_or_stays_out(self, which: int, age: float) -> None:
        self.fleet[self.name(which)].age_seconds = age

    @rule(which=st.integers(0, 7), seen=st.booleans())
    def load_of_one_is_known_or_not(self, which: int, seen: bool) -> None:
        machine = self.fleet[self.name(which)]
        machine.seen, machine.changed_at = seen, self.now

    @rule(silent=st.booleans())
    def collector_falls_silent_or_is_heard(self, silent: bool) -> None:
        self.silent_since = min(self.silent_since, self.now) if silent else math.inf

    @rule(missing=st.booleans())
    def switch_is_missing_or_there(self, missing: bool) -> None:
        self.hold = "no dead man's switch: neutral" if missing else ""
        self.tick()
        self.hold = ""

    @rule(which=st.integers(0, 7), weight=st.sampled_from([0.0, 0.001, 0.5, 1.0]), seconds=st.sampled_from([0, 20]))
    def person_sets(self, which: int, weight: float, seconds: int) -> None:
        until = self.clock.unix_ns() + seconds * 10**9 if seconds else 0
        kind = pb.Override.KIND_WEIGHT
        name = self.name(which)
        self.overrides[name] = pb.Override(target=name, kind=kind, weight=weight, until_unix_ns=until, who="eve")
        self.tick()

    @rule(frozen=st.booleans(), whole=st.booleans())
    def person_freezes_or_frees(self, frozen: bool, whole: bool) -> None:
        kind = pb.Override.KIND_FREEZE if frozen else pb.Override.KIND_NEUTRAL
        target = "" if whole else "model m"
        made = pb.Override(target=target, kind=kind, who="eve")
        if frozen:
            made.frozen.update({name: weight for name, weight in self.before.weight.items() if weight < 1})
        self.overrides = {target: made}
        self.tick()

    @rule()
    def person_takes_back(self) -> None:
        self.overrides = {}
        self.tick()

    # What must hold.

    def tick(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        told = pb.FleetState(instances=self.instances(), overrides=self.overrides.values())
        check_fleet(told)
        began, started_ns = self.now, self.clock.unix_ns()
        heard = began if self.silent_since == math.inf else self.silent_since
        with np.errstate(all="raise"):
            decided = self.pilot.decide(Heard(told, heard), self.hold)
        self.after = {a.instance: a.weight for a in decided.snapshot.assignments}
        self.said = {w.instance: w for w in decided.weights}
        self.elapsed = began - self.before.at
        ordered = {} if self.hold else self.orders(started_ns)
        assert list(self.after) == sorted(self.fleet)
        self.check_range(ordered)
        self.check_orders(ordered)
        self.check_holds(ordered, began - heard)
        if not self.hold:
            self.check_steps(ordered)
            self.check_budget(ordered)
            self.check_health(ordered)
            self.check_capacity(ordered)
        self.before = Before(self.after, began, set(ordered))

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def name(self, which: int) -> str:
        return sorted(self.fleet)[which % len(self.fleet)]

    def shares(self, weight: dict[str, float]) -> dict[str, float]:
        weights = {name: weight.get(name, 1.0) for name in self.fleet}
        return {name: self.rate * one / (sum(weights.values()) or 1) for name, one in weights.items()}

    def instances(self) -> list[pb.InstanceState]:
        out = []
        shares = self.shares(self.before.weight)
        if any(shares[name] > one.capacity + TINY for name, one in self.fleet.items()):
            self.overloaded_at = self.now
        for name, one in self.fleet.items():
            answered = min(shares[name], one.capacity)
            out.append(
                instance(
                    name,
                    requests_per_second=answered,
                    utilisation=answered / one.capacity if one.seen else NAN,
                    latency_mean_seconds=0.02,
                    error_ratio=one.errors,
                    incident=one.incident,
                    age_seconds=one.age_seconds,
                )
            )
        return out

    def orders(self, now_ns: int) -> dict[str, float]:
        """By the rules of docs/routing.md, without the code that follows them."""
        out = {}
        live = {t: o for t, o in self.overrides.items() if not o.until_unix_ns or o.until_unix_ns > now_ns}
        for name in self.fleet:
            for target in (name, "model m", ""):
                if order := live.get(target):
                    fixed = {pb.Override.KIND_WEIGHT: order.weight, pb.Override.KIND_NEUTRAL: 1.0}
                    out[name] = fixed.get(order.kind, order.frozen.get(name, 1.0))
                    break
        if len(out) == len(self.fleet) and not any(out.values()):
            return dict.fromkeys(out, 1.0)
        return out

    def fresh(self, name: str) -> bool:
        return self.fleet[name].age_seconds <= self.bounds.stale_seconds

    def check_range(self, ordered: dict[str, float]) -> None:
        for name, weight in self.after.items():
            assert 0 <= weight <= 1
            if name not in ordered and weight < self.bounds.weight_min - TINY:
                before = self.before.weight.get(name, 1.0)
                none = self.said[name].wished == 0 and self.fresh(name) and not self.fleet[name].incident
                assert none or before < self.bounds.weight_min
                assert none or weight > before - TINY
        assert any(self.after.values())

    def check_orders(self, ordered: dict[str, float]) -> None:
        for name, weight in ordered.items():
            assert self.after[name] == weight
            assert "eve" in self.said[name].reason

    def check_holds(self, ordered: dict[str, float], silent_seconds: float) -> None:
        if self.hold or silent_seconds > self.bounds.stale_seconds:
            assert all(self.after[name] == 1 for name in self.fleet if name not in ordered)

    def check_steps(self, ordered: dict[str, float]) -> None:
        seconds = min(self.elapsed, 1.0)
        for name in self.fleet.keys() - ordered.keys():
            before = 1.0 if self.elapsed > SILENCE_SECONDS else self.before.weight.get(name, 1.0)
            after, reason = self.after[name], self.said[name].reason
            assert after >= before - self.bounds.step_down_max * seconds - TINY
            back = after == 1 or "what may be drained" in reason
            assert back or after <= before + self.bounds.step_up_max * seconds + TINY, (name, before, after, reason)
            if not self.fresh(name):
                assert after >= min(before, 1) - TINY

    def check_budget(self, ordered: dict[str, float]) -> None:
        size = len(self.fleet)
        cuts = sum(1 - self.after[name] for name in self.fleet if name not in ordered)
        by_hand = sum(1 - weight for weight in ordered.values())
        most = max(self.bounds.drained_share_max, self.bounds.drained_share_max_spare) * size
        assert cuts <= max(0.0, most - by_hand) + TINY
        blind = [name for name, one in self.fleet.items() if not one.seen and self.now - one.changed_at > 1000]
        if blind:
            assert cuts <= max(0.0, self.bounds.drained_share_max * size - by_hand) + TINY

    def check_health(self, ordered: dict[str, float]) -> None:
        healthy = [n for n, one in self.fleet.items() if self.fresh(n) and not one.incident and ordered.get(n, 1) > 0]
        free = self.fleet.keys() - ordered.keys()
        if healthy:
            assert max(self.after[name] for name in healthy) > 0
        if len(healthy) <= 1:
            for name in set(healthy) & free:
                assert self.after[name] >= self.before.weight.get(name, 1.0) - TINY or self.elapsed > SILENCE_SECONDS
        if not healthy:
            for name in free:
                assert self.after[name] >= self.before.weight.get(name, 1.0) - TINY

    def check_capacity(self, ordered: dict[str, float]) -> None:
        """Where all is known and has settled nobody who is well is pushed beyond what it can carry, or its neutral share; whoever
        fails meanwhile."""
        settled = all(one.seen and self.now - one.changed_at > SETTLED_SECONDS for one in self.fleet.values())
        fresh = all(self.fresh(name) for name in self.fleet)
        # Who gets more than it can carry answers less than comes: only then is it known how much that is.
        if not settled or not fresh or ordered or self.now - max(self.rate_at, self.overloaded_at) < LAGGING_SECONDS:
            return
        if self.silent_since < math.inf:
            return
        for name, share in self.shares(self.after).items():
            if self.fleet[name].errors:
                continue
            assert share <= max(self.fleet[name].capacity, self.rate / len(self.fleet)) * (1 + 1e-3) + TINY


@contextmanager
def adversary() -> Any:
    """The policy by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.POLICIES, "adversary", Adversary)
        yield


def test_whatever_happens_the_laws_hold() -> None:
    with adversary():
        run_state_machine_as_test(Laws, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


STILL = GuardSettings(drained_share_max=1.0, trial_seconds=1e9)


@settings(max_examples=25, deadline=None)
@given(
    capacities=st.lists(st.sampled_from([10.0, 20.0, 40.0]), min_size=2, max_size=6),
    course=st.lists(st.tuples(st.sampled_from(MANNERS), st.floats(0.05, 0.95)), min_size=1, max_size=4),
)
def test_nobody_is_pushed_beyond_what_it_can_carry(capacities: list[float], course: list[tuple[str, float]]) -> None:
    """A fleet that stays as it is: only the policy and the load change. Else so much changes that hardly anything is ever settled."""
    with adversary():
        laws = Laws()
        laws.start(bounds=STILL, capacities=capacities, manner="random", rate=0.4 * len(capacities) * min(capacities))
        for manner, load in course:
            laws.policy_turns(manner=manner)
            laws.load_changes(rate=load * sum(capacities))
            laws.goes_on(seconds=60)


def test_a_policy_that_meddles_with_its_input_changes_nothing_but_its_own_copy() -> None:
    courses = []
    for manner in ("drain all", "meddling"):
        with adversary():
            laws = Laws()
            laws.start(bounds=STILL, capacities=[40.0] * 4, manner=manner, rate=30.0)
            laws.degrades_or_heals(which=0, capacity=40.0, incident="i-1")
            laws.telemetry_comes_or_stays_out(which=1, age=12.0)
            laws.goes_on(seconds=20)
            courses.append((laws.after, [(w.weight, w.reason) for w in laws.said.values()]))
    assert courses[0] == courses[1]
