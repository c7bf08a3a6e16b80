"""The learned policy: a deep Q-network with a branch for each instance, trained by `trimtab tune` (actuator/tune/dqn.py).

Branches share their parameters and see the whole fleet only through its mean and its maximum (Deep Sets: Zaheer et al., 2017), so that it
works for any number of instances in any order. Each branch chooses one of `LEVELS`, or what the rule proposes (action branching:
Tavakoli et
al., 2018). The head is duelling (Wang et al., 2016): Q(s, a) = V(s) + A(s, a) − mean A.

The forward pass is numpy: a load balancer's host needs no PyTorch to run what PyTorch has trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.policy.features import NAMES, Matrix
from trimtab.actuator.policy.sight import Sight
from trimtab.actuator.state import State, Vector

CHOICES = ("as proposed", "half", "double", "none", "all")
"""What a branch may make of the weight that the rule proposes for its instance."""
PROPOSED = 0
LAYERS = ("instance", "instance2", "fleet", "advantage", "value")

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Network:
    """The weights of one trained network, and where they come from."""

    layers: Mapping[str, tuple[Array, Array]]
    """Of each of `LAYERS`: floats [inputs, outputs] and [outputs]."""
    margin: float
    """How much more than the rule's proposal another choice must be worth: found on fleets that it was not trained on."""
    provenance: Mapping[str, Any]

    def values(self, features: Matrix) -> Array:
        """float64 [instances, CHOICES]: what each choice of each instance is worth, from float32 [instances, NAMES]."""
        # In double precision the order in which instances are added up cannot tip a choice.
        seen = _relu(self._apply("instance2", _relu(self._apply("instance", features.astype(np.float64)))))
        fleet = np.concatenate([seen.mean(axis=0), seen.max(axis=0)])
        joined = np.concatenate([seen, np.broadcast_to(fleet, (len(seen), len(fleet)))], axis=1)
        advantage = self._apply("advantage", _relu(self._apply("fleet", joined)))
        found: Array = self._apply("value", fleet[None]) + advantage - advantage.mean(axis=1, keepdims=True)
        return found

    def _apply(self, layer: str, values: Array) -> Array:
        weight, bias = self.layers[layer]
        out: Array = values @ weight + bias
        return out


def load(data: bytes) -> Network:
    """Raises ValueError when this is no network for these features and choices."""
    told = json.loads(data)
    if told.get("features") != list(NAMES) or told.get("choices") != list(CHOICES):
        raise ValueError(
            "this network was trained on other features or choices: train it anew with `trimtab tune train`"
        )
    layers = {name: tuple(np.asarray(a, dtype=np.float64) for a in told["layers"][name]) for name in LAYERS}
    if not all(np.isfinite(a).all() for pair in layers.values() for a in pair):
        raise ValueError("this network has weights that are no numbers")
    return Network(layers, math.inf if told["margin"] is None else float(told["margin"]), told["provenance"])  # type: ignore[arg-type] # pairs


def shipped() -> Network:
    """The network of the package."""
    return load(resources.files(__package__).joinpath("dqn.json").read_bytes())


def _relu(values: Array) -> Array:
    out: Array = np.maximum(values, 0)
    return out


def wish(choices: NDArray[np.int64], proposal: Vector) -> Vector:
    """float64 [instances]: the choices as shares of neutral weights, the largest of them 1; all 1 where nothing would be left."""
    none, everything = np.zeros(len(proposal)), np.ones(len(proposal))
    options = np.stack([proposal, proposal / 2, np.minimum(2 * proposal, 1), none, everything])
    weight = options[choices, np.arange(len(proposal))]
    best = weight.max(initial=0)
    return weight / best if best > 0 else everything


def chosen(values: Array, margin: float) -> NDArray[np.int64]:
    """int64 [instances]: the choice of each, from floats [instances, CHOICES]; the rule's, where no other is worth `margin` more."""
    best = values.argmax(axis=1)
    better = values.max(axis=1) > values[:, PROPOSED] + margin
    return np.where(better, best, PROPOSED)


class Dqn:
    """Takes the best choice of each branch; neutral where the rule sees nothing to win, all instances alike and well."""

    name = "dqn"

    def __init__(self, network: Network | None = None) -> None:
        self._network = network or shipped()
        self._sight = Sight()

    def decide(self, state: State) -> Vector:
        features = self._sight.see(state)
        proposal = self._sight.proposal
        wished = (
            proposal
            if (proposal == 1).all()
            else wish(chosen(self._network.values(features), self._network.margin), proposal)
        )
        self._sight.remember(state, wished)
        return wished


POLICY = Dqn
