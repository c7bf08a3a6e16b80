"""Contestants compared on the same requests: ratios within pairs, and how far chance alone could have moved them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tests.bench.routing_real.contestants import CLASSICAL
from tests.bench.routing_real.record import Record, Seen
from tests.bench.routing_real.scenarios import SCENARIOS
from tests.bench.spread import Estimate, bootstrap, mean

Part = Literal["settled", "whole"]
UNKNOWN = Estimate(math.nan)
_LATENCY_MIN_SECONDS = 1e-6


class Pairs:
    """The runs of one scenario, by contestant and pair."""

    def __init__(self, scenario: str, records: Iterable[Record]) -> None:
        self.scenario = scenario
        self._runs: dict[str, dict[int, Record]] = {}
        for record in records:
            if record.scenario == scenario:
                self._runs.setdefault(record.contestant, {})[record.pair] = record

    @property
    def contestants(self) -> list[str]:
        return list(self._runs)

    def count(self, contestant: str) -> int:
        return len(self._runs.get(contestant, {}))

    def values(self, contestant: str, figure: str, part: Part) -> dict[int, float]:
        """By pair; what is not known is left out."""
        runs = self._runs.get(contestant, {})
        found = {pair: getattr(_part(record, part), figure) for pair, record in runs.items()}
        return {pair: float(value) for pair, value in found.items() if value is not None}

    def mean(self, contestant: str, figure: str, part: Part) -> Estimate:
        """The mean over the pairs."""
        return mean(np.asarray(list(self.values(contestant, figure, part).values())))

    def ratio(self, one: str, other: str, figure: str, part: Part) -> Estimate:
        """The geometric mean over pairs of `one` / `other` within a pair; UNKNOWN where they share none."""
        return geometric(self.ratios(one, other, figure, part))

    def ratios(self, one: str, other: str, figure: str, part: Part) -> list[float]:
        """One for each pair that both have run."""
        ours, theirs = self.values(one, figure, part), self.values(other, figure, part)
        shared = sorted(ours.keys() & theirs.keys())
        return [max(ours[k], _LATENCY_MIN_SECONDS) / max(theirs[k], _LATENCY_MIN_SECONDS) for k in shared]

    def best_classical(self, part: Part) -> str | None:
        """Of the balancers without trimtab, in hindsight: the least p99, or the fewest errors where these are to be avoided.

        Only those are asked that have run as many pairs as any. That it is taken by what was measured flatters it.
        """
        classical = [name for name in self._runs if name in CLASSICAL]
        most = max(map(self.count, classical), default=0)
        figure = "error_ratio" if SCENARIOS[self.scenario].errors else "p99_seconds"
        means = {name: self.mean(name, figure, part).value for name in classical if self.count(name) == most}
        known = {name: value for name, value in means.items() if math.isfinite(value)}
        return min(known, key=lambda name: known[name]) if known else None

    def avoided(self, one: str, other: str, part: Part) -> list[tuple[float, float]]:
        """For each pair that both have run: the error ratios of `one` and of `other`."""
        ours, theirs = self.values(one, "error_ratio", part), self.values(other, "error_ratio", part)
        return [(ours[k], theirs[k]) for k in sorted(ours.keys() & theirs.keys())]


def figures(pairs: Mapping[str, Pairs], contestant: str, below: str, part: Part) -> dict[str, Estimate]:
    """What is told of one trimtab, in one number each; UNKNOWN where nothing was run for it. `below`: the balancer that it steers."""

    def of(scenario: str, other: str | None, figure: str = "p99_seconds") -> Estimate:
        known = pairs.get(scenario)
        return known.ratio(contestant, other, figure, part) if known and other else UNKNOWN

    slowness = [one for name, one in pairs.items() if not SCENARIOS[name].errors and name != "healthy"]
    errors = [one for name, one in pairs.items() if SCENARIOS[name].errors]
    against_best = [
        one.ratios(contestant, best, "p99_seconds", part) for one in slowness if (best := one.best_classical(part))
    ]
    means = [
        one.ratios(contestant, best, "mean_seconds", part) for one in slowness if (best := one.best_classical(part))
    ]
    against_leastconn = [one.ratios(contestant, "leastconn", "p99_seconds", part) for one in slowness]
    return {
        "p99_vs_best_classical": geometric(*against_best),
        "mean_vs_best_classical": geometric(*means),
        "p99_vs_leastconn": geometric(*against_leastconn),
        "healthy_p99_vs_leastconn": of("healthy", "leastconn"),
        "healthy_p99_vs_same_balancer": of("healthy", below),
        "quota_p99_vs_leastconn": of("quota", "leastconn"),
        "batch_p99_vs_leastconn": of("batches", "leastconn"),
        "turning_p99_vs_leastconn": of("turning", "leastconn"),
        "avoidable_errors_avoided": _avoided([both for one in errors for both in one.avoided(contestant, below, part)]),
        "errors_vs_best_classical_avoided": _avoided(
            [
                both
                for one in errors
                if (best := one.best_classical(part))
                for both in one.avoided(contestant, best, part)
            ]
        ),
    }


def geometric(*ratios: Sequence[float]) -> Estimate:
    """The geometric mean; of several scenarios, each counts once."""
    logs = mean(*(np.log(r) for r in ratios))
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))


def _avoided(ratios: Sequence[tuple[float, float]]) -> Estimate:
    """The share of the other's errors that there were not; UNKNOWN where the other had none."""
    if not sum(other for _, other in ratios):
        return UNKNOWN
    return bootstrap(np.asarray(ratios), _share_avoided)


def _share_avoided(sample: NDArray[np.float64]) -> float:
    ours, theirs = sample.sum(axis=0)
    return float(1 - ours / theirs) if theirs else math.nan


def _part(record: Record, part: Part) -> Seen:
    return record.settled if part == "settled" else record.whole
