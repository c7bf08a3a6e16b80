"""Chance that belongs to a request, not to the order of events: numbers drawn from (seed, stream, request number).

Two runs of one scenario under different weights give request 7 the same service time, so that they are compared in pairs (common random
numbers; Glasserman and Yao, 1992). The generator is SplitMix64 (Steele, Lea and Flood, 2014) as a counter: its output function over a
Weyl sequence that each stream starts elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

# Streams: what a number is drawn for.
SERVICE, FAILURE, ROUTE, PICK, PROBE = range(5)
DRAWS_MAX = 64
"""Numbers that one request may draw from one stream."""
LOGNORMAL, DETERMINISTIC, EXPONENTIAL, QUANTILES = range(4)

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TWO_TO_MINUS_53 = 2.0**-53


@njit(inline="always", error_model="numpy")
def mix(z: Any) -> Any:
    """SplitMix64's output function, uint64 to uint64, a bijection."""
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@njit(forceinline=True, error_model="numpy")
def uniform(seed: int, stream: int, request: int, draw: int) -> float:
    """The draw-th number of a request, float64 in (0, 1)."""
    start = mix(np.uint64(seed) + np.uint64(stream + 1) * _WEYL)
    z = mix(start + np.uint64(request * DRAWS_MAX + draw) * _WEYL)
    return (np.float64(z >> _11) + 0.5) * _TWO_TO_MINUS_53


@njit(error_model="numpy")
def work(seed: int, request: int, kind: int, mean: float, sigma: float, quantiles: Any) -> float:
    """Seconds that an instance of speed 1 needs for the request.

    `sigma` is that of the logarithm, read for kind LOGNORMAL only; `quantiles` float64 [q], for kind QUANTILES only.
    """
    if kind == DETERMINISTIC:
        return mean
    u = uniform(seed, SERVICE, request, 0)
    if kind == EXPONENTIAL:
        return -mean * math.log(u)
    if kind == QUANTILES:
        place = u * (len(quantiles) - 1)
        low = int(place)
        return float(quantiles[low] + (place - low) * (quantiles[low + 1] - quantiles[low]))
    # Box and Muller (1958).
    normal = math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * uniform(seed, SERVICE, request, 1))
    return mean * math.exp(sigma * normal - sigma * sigma / 2)
