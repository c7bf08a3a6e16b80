"""What the collector would tell of a simulated fleet: the truth, unless what is told of an instance is lost, late or a lie."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from trimtab.actuator.fleetsim.faults import LATE_SECONDS_MAX, SIGNALS, TelemetryFault
from trimtab.actuator.state import Vector
from trimtab.detector.history import MERGE_SECONDS

_PER_REQUEST = [SIGNALS.index(name) for name in ("latency_seconds", "error_ratio", "service_seconds")]


def merged(seconds: Sequence[Vector]) -> Vector:
    """float64 [SIGNALS, instances]: what the collector makes of the last seconds: means, of times and errors over requests."""
    course = np.asarray(seconds)
    out = _mean(course, np.ones_like(course))
    rate = np.nan_to_num(course[:, SIGNALS.index("requests_per_second")])
    for row in _PER_REQUEST:
        out[row] = _mean(course[:, row], rate)
    return out


def _mean(values: Vector, weights: Vector) -> Vector:
    """Over the first axis, of what is known; NaN where nothing is."""
    weights = np.where(np.isnan(values), 0, weights)
    total = weights.sum(axis=0)
    mean: Vector = np.divide(
        (weights * np.nan_to_num(values)).sum(axis=0), total, out=np.full_like(total, np.nan), where=total > 0
    )
    return mean


class Telemetry:
    """Told once a second what is so; says what is told. Remembers `LATE_SECONDS_MAX` seconds."""

    def __init__(self, faults: Sequence[TelemetryFault], instances: int) -> None:
        self._faults = faults
        self._seconds: deque[Vector] = deque(maxlen=round(MERGE_SECONDS))
        self._truths: deque[Vector] = deque(maxlen=LATE_SECONDS_MAX + 1)
        self._told = np.full((len(SIGNALS), instances), np.nan)
        self._age_seconds = np.full(instances, np.nan)

    def tell(self, truth: Vector, end_seconds: float) -> tuple[Vector, Vector]:
        """`truth`: float64 [SIGNALS, instances] of the second that ends; the same of what is told, and its age in seconds."""
        self._seconds.append(truth)
        self._truths.append(merged(self._seconds))
        told, age = self._truths[-1].copy(), np.zeros(truth.shape[1])
        for fault in self._faults:
            i = fault.instance
            if not fault.strikes(end_seconds):
                continue
            if fault.kind == "lost":
                told[:, i], age[i] = self._told[:, i], self._age_seconds[i] + 1
            elif fault.kind == "late":
                known = fault.late_seconds < len(self._truths)
                told[:, i] = self._truths[-1 - fault.late_seconds][:, i] if known else np.nan
                age[i] = fault.late_seconds if known else np.nan
            else:
                row = SIGNALS.index(fault.signal)
                told[row, i] = told[row, i] * fault.scale if fault.constant is None else fault.constant
        self._told, self._age_seconds = told, age
        return told, age
