"""The course of a signal about its onset, as a small plot for a page: lines in SVG, with a gap where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, _MARGIN = 240, 48, 3


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn, in a box of `WIDTH` × `HEIGHT`; `None` for a level that is not known."""

    lines: tuple[str, ...]
    """Points of polylines."""
    dots: tuple[tuple[float, float], ...]
    """What is known with unknown neighbours."""
    onset: float
    before: float | None
    peers: float | None


def plot(course: Sequence[float], before: float, peers: float) -> Plot:
    """`course` has the onset in its middle. The box is as high as what is drawn, not from zero: what moved is to be seen."""
    known = [v for v in (*course, before, peers) if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    middle = (low + high) / 2

    def across(k: float) -> float:
        return round(k / max(len(course) - 1, 1) * WIDTH, 1)

    def down(value: float) -> float:
        # Halved before it is subtracted: the difference of two large numbers may be infinite.
        up = 0.5 + (value / 2 - middle / 2) / (high / 2 - low / 2) / 2 if high > low else 0.5
        return round(_MARGIN + (1 - up) * (HEIGHT - 2 * _MARGIN), 1)

    def level(value: float) -> float | None:
        return down(value) if math.isfinite(value) else None

    runs: list[list[tuple[float, float]]] = [[]]
    for k, value in enumerate(course):
        if math.isfinite(value):
            runs[-1].append((across(k), down(value)))
        elif runs[-1]:
            runs.append([])
    return Plot(
        lines=tuple(" ".join(f"{x},{y}" for x, y in run) for run in runs if len(run) > 1),
        dots=tuple(run[0] for run in runs if len(run) == 1),
        onset=across(len(course) // 2),
        before=level(before),
        peers=level(peers),
    )
