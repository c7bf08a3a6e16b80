"""How well the simulated incident, under the weights that were in force, resembles the recorded one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.replay.play import Played
from trimtab.actuator.replay.scene import Scene
from trimtab.actuator.state import Vector
from trimtab.agent.sketch.loglinear import MIDDLES_SECONDS, Sketch

DIFFERENCE_MAX = 0.3
"""Beyond, the user is warned."""
SHARE_DIFFERENCE_MIN = 0.005
"""Shares that differ by less are alike, however small they are."""
_DEVIATIONS = 1.96


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the answers since the onset, recorded and simulated; NaN where it is not known."""

    name: str
    unit: str
    recorded: float
    low: float
    high: float
    """Between these it was with 95 % confidence, where not every request was sampled; NaN where that cannot be told."""
    simulated: float
    least: float = 0.0
    """Differences up to this are none."""

    @property
    def differs(self) -> bool:
        """Whether it is off by more than `DIFFERENCE_MAX` of whatever it may have been."""
        below = self.simulated < min(self.low * (1 - DIFFERENCE_MAX), self.low - self.least)
        return below or self.simulated > max(self.high * (1 + DIFFERENCE_MAX), self.high + self.least)


def fidelity(scene: Scene, played: Played) -> list[Figure]:
    """Mean, p99, errors, and the share of the requests that the incident's instances answered; `played` under the recorded weights."""
    recording, first, end = scene.recording, scene.onset_second, scene.seconds
    inside = np.zeros(recording.seconds, dtype=bool)
    inside[first:end] = True
    here = (played.second >= first) & (played.second < end)
    merged = recording.latencies.merged(inside, range(len(recording.instances)))
    requests, errors = recording.requests[inside], recording.errors[inside]
    subjects = list(recording.subjects)
    failing = np.nansum(errors) if np.isfinite(errors).any() else math.nan
    ours = np.nansum(requests[:, subjects])
    return [
        *_latencies(merged, played.latency_seconds[here]),
        _share("errors", failing, np.nansum(requests), played.failed[here]),
        _share("share", ours, np.nansum(requests), np.isin(played.instance[here], subjects)),
    ]


def _latencies(recorded: Sketch, simulated: Vector) -> Iterator[Figure]:
    mean = recorded.mean_seconds
    error = _DEVIATIONS * _standard_error(recorded)
    yield Figure("mean", "s", mean, mean - error, mean + error, _mean(simulated))
    (p99,) = recorded.quantiles_seconds((0.99,))
    low, high = recorded.quantile_bounds_seconds(0.99)
    found = float(np.quantile(simulated, 0.99, method="inverted_cdf")) if len(simulated) else math.nan
    yield Figure("p99", "s", p99, low, high, found)


def _standard_error(recorded: Sketch) -> float:
    """Of the mean: what the requests that were not sampled leave open. 0 where all were."""
    probability = recorded.effective_probability or recorded.probability
    if not recorded.sampled:
        return math.nan
    spread = np.average((MIDDLES_SECONDS - recorded.mean_seconds) ** 2, weights=recorded.counts)
    return math.sqrt(float(spread) * (1 - probability) / (recorded.count * probability))


def _share(name: str, part: float, whole: float, simulated: NDArray[np.bool_]) -> Figure:
    recorded = float(part / whole) if whole > 0 else math.nan
    return Figure(name, "1", recorded, recorded, recorded, _mean(simulated), SHARE_DIFFERENCE_MIN)


def averaged(seeds: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Over seeds."""
    return [
        replace(some[0], simulated=float(np.nanmean([f.simulated for f in some]))) for some in zip(*seeds, strict=True)
    ]


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan
