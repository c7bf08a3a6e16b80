"""Weights as gRPC's `weighted_round_robin` makes them of load reports (gRFC A58): what comparing with the field needs."""

from __future__ import annotations

import numpy as np

from trimtab.actuator.policy.recent import STALE_SECONDS, Recent
from trimtab.actuator.state import State, Vector

PENALTY = 1.0
"""A58's `error_utilization_penalty`."""
_MEMORY = 0.8


class Orca:
    """weight = q / (u + e/q × penalty): q requests and e errors a second, u utilisation; the mean of the others where it is unknown.

    Utilisation is as told, else busy workers by the requests' rate and service time.
    """

    name = "orca"

    def __init__(self) -> None:
        self._recent = Recent(_MEMORY)

    def decide(self, state: State) -> Vector:
        recent = self._recent.observe(state)
        busy = recent.requests_per_second * recent.service_seconds / recent.workers
        utilisation = np.where(np.isfinite(recent.utilisation), recent.utilisation, busy)
        load = utilisation + recent.error_ratio * PENALTY
        known = (state.age_seconds <= STALE_SECONDS) & (load > 0)
        weight = np.where(known, recent.requests_per_second / np.where(known, load, 1), np.nan)
        if not known.any():
            return np.ones(len(state))
        weight = np.where(known, weight, np.nanmean(weight))
        return np.asarray(weight / weight.max())


POLICY = Orca
