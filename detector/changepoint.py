"""When a course changed: the split into two levels that leaves the least absolute deviation about their medians."""

from __future__ import annotations

import numpy as np

from trimtab.detector import robust
from trimtab.detector.robust import Array


def change_point(course: Array, first: int, last: int, side_min: int = 3) -> int | None:
    """The index in [`first`, `last`] at which the new level of float32 [time] begins; None when too little is known.

    The least-absolute-deviation split of one change (Bai, 1995, "Least absolute deviation estimation of a shift"): an
    outlier costs no more than its distance, so that one noisy sample is not taken for a change of level.
    """
    known = ~np.isnan(course)
    best: tuple[float, int] | None = None
    for split in range(max(first, 1), min(last, len(course) - 1) + 1):
        if known[:split].sum() < side_min or known[split:].sum() < side_min:
            continue
        cost = _deviation(course[:split]) + _deviation(course[split:])
        if best is None or cost < best[0]:
            best = cost, split
    return best[1] if best else None


def _deviation(part: Array) -> float:
    return float(np.nansum(np.abs(part - robust.median(part))))
