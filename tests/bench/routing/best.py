"""The best static weights that there are: found by search, from when the fault is there. What they leave is what nobody can take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tests.bench.routing.contestants import OVER, Contestant
from tests.bench.routing.measure import run, static
from tests.bench.routing.rows import Row
from trimtab.actuator.fleetsim.scenario import Balancers
from trimtab.actuator.state import Vector

LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
_SEED = 9_000
"""Others than are measured: the winner is not chosen by the very requests that it is measured on."""


def candidates(row: Row) -> Iterator[Vector]:
    """Weights by groups of instances that are alike; the fastest healthy group has 1."""
    kinds = [(i.speed, k in row.ill) for k, i in enumerate(row.base.instances)]
    groups = sorted(set(kinds), key=lambda kind: (kind[1], -kind[0]))
    for levels in itertools.product(LEVELS, repeat=len(groups) - 1):
        by_group = dict(zip(groups, (1.0, *levels), strict=True))
        yield np.asarray([by_group[kind] for kind in kinds])


def best(row: Row, seeds: int) -> Contestant:
    """The best of all candidates on all balancers."""
    onset = round(min((f.onset_seconds for f in row.base.faults), default=0.0))
    tried = []
    for over in OVER:
        for weights in candidates(row):
            control = static(weights, onset)
            prices = [run(row.scenario(_SEED + k, Balancers(over)), control, row.since).price for k in range(seeds)]
            tried.append((float(np.mean(prices)), over, weights))
    _, over, weights = min(tried, key=lambda one: one[0])
    named = ":".join(f"{w:g}" for w in weights)
    return Contestant(f"best static ({named} on {over})", "reference", Balancers(over), static(weights, onset), over)
