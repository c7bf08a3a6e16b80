"""How well the simulated incident, under the weights that were in force, resembles the recorded one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.replay.play import Played
from trimtab.actuator.replay.scene import Scene

DIFFERENCE_MAX = 0.3
"""Beyond, the user is warned."""
ERRORS_DIFFERENCE_MIN = 0.005
"""Shares of errors that differ by less are alike, however small they are."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the answers since the onset, recorded and simulated; NaN where it is not known."""

    name: str
    unit: str
    recorded: float
    simulated: float
    least: float = 0.0
    """Differences up to this are none."""

    @property
    def differs(self) -> bool:
        """Whether it is off by more than `DIFFERENCE_MAX` of what was recorded."""
        gap = abs(self.simulated - self.recorded)
        return gap > max(self.least, DIFFERENCE_MAX * self.recorded)


def fidelity(scene: Scene, played: Played) -> list[Figure]:
    """Mean, p99, errors, and the share of the requests that the incident's instances answered; `played` under the recorded weights."""
    recording, first, end = scene.recording, scene.onset_second, scene.seconds
    inside = np.zeros(recording.seconds, dtype=bool)
    inside[first:end] = True
    merged = recording.latencies.merged(inside, range(len(recording.instances)))
    (p99,) = merged.quantiles_seconds((0.99,))
    requests, errors = (float(np.nansum(m[inside])) for m in (recording.requests, recording.errors))
    subjects = list(recording.subjects)
    ours = float(np.nansum(recording.requests[inside][:, subjects]))
    known = bool(np.isfinite(recording.errors[inside]).any())
    here = (played.second >= first) & (played.second < end)
    latency, failed = played.latency_seconds[here], played.failed[here]
    least = ERRORS_DIFFERENCE_MIN
    return [
        Figure("mean", "s", merged.mean_seconds, _mean(latency)),
        Figure("p99", "s", p99, float(np.quantile(latency, 0.99, method="inverted_cdf")) if len(latency) else math.nan),
        Figure("errors", "1", errors / requests if known and requests else math.nan, _mean(failed), least),
        Figure(
            "share",
            "1",
            ours / requests if requests else math.nan,
            _mean(np.isin(played.instance[here], subjects)),
            least,
        ),
    ]


def averaged(seeds: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Over seeds."""
    return [
        replace(some[0], simulated=float(np.nanmean([f.simulated for f in some]))) for some in zip(*seeds, strict=True)
    ]


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan
