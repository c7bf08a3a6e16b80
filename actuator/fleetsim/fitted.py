"""A service time from recorded fingerprints: the latency sketch of an instance that was quiet, so that nobody waited in it."""

from __future__ import annotations

import numpy as np

from trimtab.actuator.fleetsim.check import require
from trimtab.actuator.fleetsim.scenario import Service
from trimtab.agent.sketch.loglinear import Sketch

POINTS = 513
"""Quantiles that are kept, evenly spaced. What is beyond the last but one is a straight line to the greatest."""


def service_of(sketch: Sketch, overhead_seconds: float = 0.0) -> Service:
    """Its quantiles, less what network and proxy take. Raises TrimtabError when the sketch is empty.

    Each is within the sketch's relative error of 1/128 of the recorded one.
    """
    require(sketch.sampled > 0, "sketch", "empty", "give one with at least one request")
    seconds = np.asarray(sketch.quantiles_seconds(tuple(np.linspace(0, 1, POINTS).tolist())))
    return Service(kind="quantiles", quantiles_seconds=tuple(np.maximum(seconds - overhead_seconds, 0).tolist()))
