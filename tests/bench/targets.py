"""What the agent is to stay below, and which figures did not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of the last line, and its bound."""

    figure: str
    at_most: float
    unit: str
    what: str
    resolution: float = math.inf
    """A wider interval says nothing: the machine was too busy to tell."""


TARGETS = (
    Target("cpu_us_per_request", 1.2, "µs", "all request probes, CPU of server and client together", 1.2),
    Target("scheduler_us_per_request", 0.0, "µs", "scheduler probes: not measurable", 1.0),
    Target("idle_cpu_percent", 1.0, "% of a core", "whole agent, idle host, a window a second"),
    Target("loaded_cpu_percent", 3.0, "% of a core", "whole agent and its probes, beside 5,000 requests/s"),
    Target("cpu_vs_peers", 1.0, "", "whole agent / (node-exporter scraped at 1 Hz + Netdata), idle host"),
    Target("resident_mb", 80.0, "MB", "resident memory of the agent; 40 would be fine"),
    Target("first_window_seconds", 3.0, "s", "slowest start until the first window"),
    Target("torchserve_p50_ratio", 1.0, "", "p50 of TorchServe beside the agent / alone: not measurable", 0.2),
    Target("torchserve_p99_ratio", 1.0, "", "p99 of TorchServe beside the agent / alone: not measurable", 0.6),
)
NOT_MEASURABLE = {"scheduler_us_per_request", "torchserve_p50_ratio", "torchserve_p99_ratio"}
"""Met as long as the interval holds a value that is at the target or better: chance alone could have made the rest."""


def verdict(target: Target, figures: Mapping[str, float | None], spreads: Mapping[str, tuple[float, float]]) -> str:
    """One of "met", "missed", "too noisy", "not measured"."""
    value = figures.get(target.figure)
    if value is None or math.isnan(value):
        return "not measured"
    low, high = spreads.get(target.figure, (value, value))
    if high - low > target.resolution:
        return "too noisy"
    if target.figure in NOT_MEASURABLE:
        value = low
    return "met" if value <= target.at_most else "missed"
