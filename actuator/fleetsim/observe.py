"""A state and the weights in force as numbers of like size, without NaN: what a learned policy reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.state import State, Vector

FEATURES = (
    "requests",
    "latency",
    "errors",
    "in_flight",
    "queue",
    "utilisation",
    "age",
    "score",
    "degraded",
    "weight",
    "known",
)
HIGHEST = 10.0


def observe(state: State, weights: Vector) -> NDArray[np.float32]:
    """float32 [instances, FEATURES], each within ±HIGHEST.

    Requests and latency are logarithms of the ratio to the median of the instances, so that neither the model nor the load matters. What is
    unknown is 0, as if it were like the others; `known` tells whether latency is not.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = (
            _against_peers(state.requests_per_second),
            _against_peers(state.latency_seconds),
            state.error_ratio,
            np.log1p(state.in_flight),
            np.log1p(state.queue),
            state.utilisation,
            state.age_seconds / 10,
            state.score,
            state.degraded,
            weights,
            np.isfinite(state.latency_seconds),
        )
        table = np.stack([np.asarray(c, dtype=np.float64) for c in columns], axis=1)
    return np.clip(np.nan_to_num(table, nan=0.0), -HIGHEST, HIGHEST).astype(np.float32)


def _against_peers(values: Vector) -> Vector:
    known = values[np.isfinite(values) & (values > 0)]
    if len(known) == 0:
        return np.zeros(len(values))
    return np.log(values / np.median(known))
