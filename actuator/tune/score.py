"""How good a policy is on fleets that no network was trained on: what users had, compared with the rule on the very same requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from trimtab.actuator.fleetsim.drive import drive, unguarded
from trimtab.actuator.fleetsim.outcome import Outcome
from trimtab.actuator.policy import split
from trimtab.actuator.policy.base import Policy
from trimtab.actuator.policy.dqn import Dqn, Network
from trimtab.actuator.tune.fleets import fleet

HELD_OUT, MARGINS = 1_000_003, 1_000_033
"""Seeds of the fleets that are scored on, and of those on which the margin is chosen."""
_SURE = 2.0
MARGIN_CHOICES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Scored:
    """Of all fleets; differences to the rule, in logarithms: −0.1 is a tenth better."""

    mean: float
    worst: float
    standard_error: float


def price(outcome: Outcome) -> float:
    """What the rule minimises, of a whole run."""
    if not math.isfinite(outcome.mean_seconds):
        return math.log(1e6)
    return split.price(outcome.mean_seconds, outcome.p99_seconds, outcome.error_ratio)


def prices(make: Callable[[], Policy], seed: int, count: int, first: int = 0) -> Iterator[float]:
    """The price of each of `count` fleets, from number `first` on."""
    for number in range(first, first + count):
        yield price(drive(fleet(number, seed), unguarded(make())))


def compared(found: Sequence[float], rule: Sequence[float]) -> Scored:
    """Half the difference of prices, which is that of the mean and of the 99th percentile on average."""
    off = (np.asarray(found) - np.asarray(rule)) / 2
    return Scored(float(off.mean()), float(off.max()), float(off.std(ddof=1) / math.sqrt(len(off))))


@cache
def rule_prices(seed: int, count: int) -> tuple[float, ...]:
    """Those of the rule: the same for every network."""
    return tuple(prices(split.Split, seed, count))


def score(network: Network, count: int, seed: int = HELD_OUT) -> Scored:
    """The network against the rule, on `count` fleets."""
    return compared(list(prices(partial(Dqn, network), seed, count)), rule_prices(seed, count))


def with_margin(network: Network, count: int) -> Network:
    """The network with the margin that is best on half of `count` other fleets, if the other half says so too; else with an infinite one.

    Who is best of several is so by chance as well; a second look at other fleets is not fooled by that.
    """
    half = max(count // 2, 2)
    rule = rule_prices(MARGINS, 2 * half)
    tried = [replace(network, margin=margin) for margin in MARGIN_CHOICES]
    first = [compared(list(prices(partial(Dqn, one), MARGINS, half)), rule[:half]).mean for one in tried]
    best = tried[int(np.argmin(first))]
    again = compared(list(prices(partial(Dqn, best), MARGINS, half, half)), rule[half:])
    sure = again.mean + _SURE * again.standard_error < 0
    return best if sure else replace(network, margin=math.inf)
