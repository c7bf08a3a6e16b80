"""What the collector would tell of a simulated fleet: the truth, unless what is told of an instance is lost, late or a lie."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from trimtab.actuator.fleetsim.faults import LATE_SECONDS_MAX, SIGNALS, TelemetryFault
from trimtab.actuator.state import Vector


class Telemetry:
    """Told once a second what is so; says what is told. Remembers `LATE_SECONDS_MAX` seconds."""

    def __init__(self, faults: Sequence[TelemetryFault], instances: int) -> None:
        self._faults = faults
        self._truths: deque[Vector] = deque(maxlen=LATE_SECONDS_MAX + 1)
        self._told = np.full((len(SIGNALS), instances), np.nan)
        self._age_seconds = np.full(instances, np.nan)

    def tell(self, truth: Vector, end_seconds: float) -> tuple[Vector, Vector]:
        """`truth`: float64 [SIGNALS, instances] of the second that ends; the same of what is told, and its age in seconds."""
        self._truths.append(truth)
        told, age = truth.copy(), np.zeros(truth.shape[1])
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
