"""The contract of every policy, as a suite that runs against any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.policy.base import Policy
from trimtab.actuator.state import State, by_model
from trimtab.agent.wire import query_pb2 as pb

_NUMBERS = tuple(f.name for f in pb.InstanceState.DESCRIPTOR.fields if f.type == f.TYPE_DOUBLE)


def check_policy(make: Callable[[], Policy], seed: int = 0) -> None:
    """Raises AssertionError, naming the law that `make()` breaks. A fresh policy is made for every law."""
    _equal_instances_are_neutral(make)
    _the_unknown_is_neutral(make)
    _one_instance_is_neutral(make)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        states = [_random(rng, size) for size in rng.integers(1, 12, size=4)]
        _in_range(make(), states)
        _order_does_not_matter(make, states[0], rng)


def _instance(name: str, **known: float | str) -> pb.InstanceState:
    """An instance of which nothing is known but what is given."""
    out = pb.InstanceState(id=name, model="m")
    for field, value in (dict.fromkeys(_NUMBERS, float("nan")) | known).items():
        setattr(out, field, value)
    return out


def _equal_instances_are_neutral(make: Callable[[], Policy]) -> None:
    policy = make()
    for latency in (0.02, 0.5, 3.0):
        healthy = {"age_seconds": 0.5, "requests_per_second": 20.0, "latency_mean_seconds": latency, "error_ratio": 0.0}
        [state] = by_model([_instance(f"a/{k}", **healthy) for k in range(4)])
        wish = policy.decide(state)
        assert (wish == 1).all(), f"{policy.name}: healthy, equal instances get {wish}; exactly 1 is the law"


def _the_unknown_is_neutral(make: Callable[[], Policy]) -> None:
    [state] = by_model([_instance(f"a/{k}") for k in range(3)])
    wish = make().decide(state)
    assert (wish == 1).all(), f"nothing is known, and yet: {wish}"


def _one_instance_is_neutral(make: Callable[[], Policy]) -> None:
    for incident in ("", "i-1"):
        [state] = by_model([_instance("a/1", age_seconds=0, latency_mean_seconds=9, error_ratio=1, incident=incident)])
        wish = make().decide(state)
        assert wish.tolist() == [1], f"the only instance gets {wish}"


def _in_range(policy: Policy, states: Sequence[State]) -> None:
    for state in states:
        wish = policy.decide(state)
        assert wish.shape == (len(state),), f"{policy.name}: shape {wish.shape} for {len(state)} instances"
        assert np.isfinite(wish).all(), f"{policy.name}: {wish} is not finite"
        assert ((wish >= 0) & (wish <= 1)).all(), f"{policy.name}: {wish} is not in [0, 1]"


def _order_does_not_matter(make: Callable[[], Policy], state: State, rng: np.random.Generator) -> None:
    order = rng.permutation(len(state))
    straight, shuffled = make().decide(state), make().decide(_permuted(state, order))
    assert np.allclose(straight[order], shuffled), f"another order, other weights: {straight[order]} and {shuffled}"


def _permuted(state: State, order: NDArray[np.int64]) -> State:
    def pick(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value[order]
        return tuple(value[int(k)] for k in order) if isinstance(value, tuple) else value

    return replace(state, **{f.name: pick(getattr(state, f.name)) for f in fields(State)})


def _random(rng: np.random.Generator, size: int) -> State:
    """A fleet with everything in it: fast and slow, unknown, stale, degraded, failing."""
    scales = {"latency_mean_seconds": 0.1, "error_ratio": 0.3, "age_seconds": 6.0, "score": 0.5, "confidence": 0.5}
    group = []
    for k in range(size):
        known = {
            name: float(rng.exponential(scales.get(name, 20.0))) if rng.random() > 0.2 else float("nan")
            for name in _NUMBERS
        }
        group.append(_instance(f"a/{k}", **known, incident="i-1" if rng.random() < 0.2 else ""))
    return by_model(group)[0]
