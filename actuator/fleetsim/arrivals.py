"""When requests arrive: a renewal process of unit rate, bent by a rate that changes with time.

With gaps of unit mean and a cumulative rate R(t), the arrivals are R^-1 of the gaps' sums (Cinlar, 1975): exponential gaps give a
Poisson process of any rate. They depend on the seed alone, so that all weights are judged on the same requests.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.fleetsim.scenario import Arrivals

Times = NDArray[np.float64]


class Stream:
    """Arrivals a second at a time; remembers one arrival and one burst, however long it runs."""

    def __init__(self, arrivals: Arrivals, seed: int) -> None:
        self._arrivals = arrivals
        self._rng, self._weather = (np.random.default_rng([seed, k]) for k in (1, 2))
        self._recorded = np.asarray(arrivals.times_seconds)
        self._done = 0.0
        """R at the end of the last second."""
        self._next = self._gaps(1)[0]
        """R at the next arrival."""
        self._burst, self._turns = False, self._weather.exponential(arrivals.calm_seconds)

    def second(self, second: int) -> Times:
        """float64 [arrivals]: times in [second, second + 1), rising. Ask for every second once, from 0 on."""
        if self._arrivals.kind == "recorded":
            first, last = np.searchsorted(self._recorded, (second, second + 1), side="left")
            return self._recorded[first:last]
        edges, rates = self._rates(second)
        marks = self._done + np.concatenate(([0.0], np.cumsum(np.diff(edges) * rates)))
        self._done = marks[-1]
        found = [np.empty(0)]
        while self._next < self._done:
            sums = self._next + np.concatenate(([0.0], np.cumsum(self._gaps(max(16, int(self._done - self._next))))))
            inside = int(np.searchsorted(sums, self._done, side="left"))
            found.append(sums[:inside])
            # The gaps after the first that leads out of this second would be drawn again: only their sum matters.
            self._next = sums[inside] if inside < len(sums) else sums[-1] + self._gaps(1)[0]
        sums = np.concatenate(found)
        if len(rates) == 1:
            times: Times = second + (sums - marks[0]) / rates[0] if len(sums) else sums
        else:
            times = np.interp(sums, marks, edges)
        return np.minimum(times, np.nextafter(second + 1.0, second))

    def _gaps(self, count: int) -> Times:
        """Of unit mean."""
        if self._arrivals.kind != "gamma":
            return self._rng.exponential(size=count)
        shape = self._arrivals.cv**-2
        return self._rng.gamma(shape, 1 / shape, size=count)

    def _rates(self, second: int) -> tuple[Times, Times]:
        """Where the rate changes within the second, both ends included, and the rates between."""
        profile = self._arrivals.profile
        rate = self._arrivals.rate_per_second * (profile[second % len(profile)] if profile else 1.0)
        if self._arrivals.kind != "bursty":
            return np.array([second, second + 1.0]), np.array([rate])
        calm, burst = self._calm_and_burst()
        edges, rates = [float(second)], []
        while edges[-1] < second + 1:
            rates.append(rate * (burst if self._burst else calm))
            edges.append(min(self._turns, second + 1.0))
            if self._turns <= second + 1:
                self._burst = not self._burst
                mean = self._arrivals.burst_seconds if self._burst else self._arrivals.calm_seconds
                self._turns += self._weather.exponential(mean)
        return np.asarray(edges), np.asarray(rates)

    def _calm_and_burst(self) -> tuple[float, float]:
        """What scales the rate in either, so that it is as wished on average."""
        a = self._arrivals
        calm = (a.calm_seconds + a.burst_seconds) / (a.calm_seconds + a.burst_seconds * a.burst)
        assert math.isfinite(calm)
        return calm, calm * a.burst
