"""The learned policy: any number of instances in any order, the same numbers in numpy as in PyTorch, and nothing that breaks a bound."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.conftest import instance
from trimtab.actuator.policy.check import check_policy
from trimtab.actuator.policy.dqn import CHOICES, PROPOSED, Dqn, Network, chosen, load, wish
from trimtab.actuator.policy.features import HIGHEST, NAMES
from trimtab.actuator.policy.sight import Sight
from trimtab.actuator.reward import Reward
from trimtab.actuator.state import by_model
from trimtab.actuator.tune.dqn import INSTANCES_MAX, Branches, dump, exported

torch.manual_seed(0)
BRANCHES = Branches(16)
NETWORK = exported(BRANCHES)


@settings(deadline=None)  # the first call loads PyTorch's kernels
@given(st.integers(1, INSTANCES_MAX), st.integers(0, 2**32 - 1))
def test_numpy_and_pytorch_agree(size: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(0, 2, (size, len(NAMES))).astype(np.float32)
    padded = np.full((1, INSTANCES_MAX, len(NAMES)), 7, dtype=np.float32)
    padded[0, :size] = features
    there = np.arange(INSTANCES_MAX)[None] < size
    with torch.no_grad():
        expected = BRANCHES(torch.from_numpy(padded), torch.from_numpy(there)).numpy()[0, :size]
    np.testing.assert_allclose(NETWORK.values(features), expected, rtol=1e-3, atol=1e-4)


@given(st.integers(2, 64), st.integers(0, 2**32 - 1))
def test_the_order_of_instances_does_not_matter(size: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    features, order = chance.normal(0, 2, (size, len(NAMES))).astype(np.float32), chance.permutation(size)
    np.testing.assert_allclose(NETWORK.values(features)[order], NETWORK.values(features[order]), rtol=1e-3, atol=1e-4)


def test_it_keeps_the_contract_whatever_it_has_learnt() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        check_policy(partial(Dqn, exported(Branches(8))))


@given(st.lists(st.integers(0, len(CHOICES) - 1), min_size=1, max_size=64), st.data())
def test_wishes_are_weights(choices: list[int], data: st.DataObject) -> None:
    proposal = data.draw(st.lists(st.floats(0, 1), min_size=len(choices), max_size=len(choices)))
    wished = wish(np.asarray(choices), np.asarray(proposal))
    assert ((wished >= 0) & (wished <= 1)).all()
    assert wished.max() == 1


def test_the_rule_is_followed_unless_something_else_is_worth_more() -> None:
    values = np.zeros((3, len(CHOICES)), dtype=np.float32)
    values[1, 2], values[2, 3] = 0.3, 0.05
    assert chosen(values, 0.1).tolist() == [PROPOSED, 2, PROPOSED]
    assert chosen(values, math.inf).tolist() == [PROPOSED] * 3
    assert chosen(values, 0.0).tolist() == [PROPOSED, 2, 3]


def test_equal_and_healthy_is_neutral_whatever_it_has_learnt() -> None:
    policy = Dqn(NETWORK)
    for size in (2, 7, 64):
        [state] = by_model([instance(f"n/{k}", service_seconds=0.02) for k in range(size)])
        assert (policy.decide(state) == 1).all()


def test_a_network_comes_back_as_it_was_written() -> None:
    told = replace(NETWORK, margin=0.25, provenance={"seed": 3})
    again = load(dump(told).encode())
    features = np.random.default_rng(0).normal(size=(5, len(NAMES))).astype(np.float32)
    np.testing.assert_allclose(again.values(features), told.values(features), rtol=1e-4, atol=1e-5)
    assert (again.margin, again.provenance) == (0.25, {"seed": 3})
    endless = dump(replace(told, margin=math.inf))
    assert load(endless.encode()).margin == math.inf
    assert "Infinity" not in endless


@pytest.mark.parametrize("change", [{"features": ["x"]}, {"choices": 99}])
def test_a_network_for_something_else_is_refused(change: dict[str, object]) -> None:
    told = json.loads(dump(NETWORK)) | change
    with pytest.raises(ValueError, match="train it anew"):
        load(json.dumps(told).encode())


def test_a_network_that_diverged_is_not_written() -> None:
    layers = dict(NETWORK.layers)
    layers["value"] = (np.full_like(layers["value"][0], np.nan), layers["value"][1])
    with pytest.raises(ValueError, match="learning rate"):
        dump(Network(layers, 0.0, {}))


@given(
    st.floats(0, 1e4),
    st.floats(1, 1e4),
    st.floats(1e-4, 100),
    st.floats(0, 100),
    st.floats(0, 1e4),
    st.floats(1e-3, 10),
)
def test_a_reward_falls_with_errors_and_with_latency(
    arrived: float, answered: float, mean: float, variance: float, failed: float, reference: float
) -> None:
    reward = Reward()
    before = reward.of(arrived, answered, mean, variance, failed, reference)
    assert math.isfinite(before)
    assert reward.of(arrived, answered, 2 * mean, variance, failed, reference) <= before
    assert reward.of(arrived, answered, mean, 2 * variance, failed, reference) <= before
    if mean <= 10 * reference:
        assert reward.of(arrived, answered, mean, variance, failed + 1, reference) <= before + 1e-9


def test_what_is_wished_for_is_seen_the_next_time() -> None:
    sight = Sight()
    [state] = by_model([instance(f"n/{k}") for k in range(3)])
    sight.see(state)
    sight.remember(state, np.asarray([1.0, 0.25, 0.0]))
    assert sight.see(state)[:, NAMES.index("weight")].tolist() == [1.0, 0.25, 0.0]


def test_what_is_zero_is_seen_without_a_warning() -> None:
    """Who answers at once, or has no time at all."""
    known = ({}, {"latency_mean_seconds": 0.0, "service_seconds": 0.01}, {"service_seconds": 0.0})
    [state] = by_model([instance(f"n/{k}", **each) for k, each in enumerate(known)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = Sight().see(state)
    assert np.isfinite(seen).all()
    assert (np.abs(seen) <= HIGHEST).all()
