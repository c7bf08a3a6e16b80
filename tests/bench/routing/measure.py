"""One run: what users had from a given second on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trimtab.actuator.fleetsim.drive import Decide, ticks
from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.policy.split import price
from trimtab.actuator.state import Vector

Control = Callable[[Scenario], Decide]
"""Makes what steers a run."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the requests that left from that second on; latencies of those without error."""

    mean_seconds: float
    p99_seconds: float
    error_ratio: float
    goodput: float

    @property
    def price(self) -> float:
        """What the best of several is chosen by."""
        if not math.isfinite(self.mean_seconds):
            return math.inf
        return price(self.mean_seconds, self.p99_seconds, self.error_ratio)


def neutral(_scenario: Scenario) -> Decide:
    """Nobody steers."""
    return lambda tick: np.ones(len(tick.joined))


def static(weights: Vector, onset: int) -> Control:
    """Neutral until `onset`, then these weights: somebody knew beforehand."""

    def made(_scenario: Scenario) -> Decide:
        def decide(tick: Tick) -> Vector:
            return weights if tick.second + 1 >= onset else np.ones(len(weights))

        return decide

    return made


def simple(_scenario: Scenario) -> Decide:
    """The simple rule: weight ∝ 1/service time of the last second; an instance that answered nothing keeps its weight."""
    weights: Vector = np.ones(0)

    def decide(tick: Tick) -> Vector:
        nonlocal weights
        weights = weights if len(weights) else np.ones(len(tick.joined))
        known = tick.requests_per_second > 0
        speed = np.where(known, tick.requests_per_second / np.maximum(tick.utilisation, 1e-3), np.nan)
        weights = np.where(known, speed / np.nanmax(speed), weights) if known.any() else weights
        return weights

    return decide


def run(scenario: Scenario, control: Control, since: int) -> Seen:
    """Live through the scenario."""
    latencies, failed = [], []
    for tick in ticks(Fleet(scenario), control(scenario)):
        if tick.second >= since:
            latencies.append(tick.answers["latency"].copy())
            failed.append(tick.answers["failed"].copy())
    latency, bad = np.concatenate(latencies), np.concatenate(failed) != 0
    fine = latency[~bad]
    if not len(fine):
        return Seen(math.nan, math.nan, float(bad.mean()) if len(bad) else math.nan, 0.0)
    good = float((fine <= scenario.slo_seconds).sum()) / len(latency)
    return Seen(float(fine.mean()), float(np.quantile(fine, 0.99)), float(bad.mean()), good)
