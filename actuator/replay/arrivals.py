"""How many requests came in each second: what was answered, what gave up, and what came to wait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab import TrimtabError
from trimtab.actuator.replay.recording import Recording
from trimtab.actuator.state import Vector

UNKNOWN_MAX = 0.1
"""Share of its seconds of which an instance may have told nothing."""


def arrivals(recording: Recording) -> tuple[NDArray[np.int64], int]:
    """int64 [seconds], their sum that of what was recorded, and of how many seconds some instance told nothing.

    Raises TrimtabError when that is too much to say how many came: unknown is not 0.
    """
    total = np.zeros(recording.seconds)
    gaps = np.zeros(recording.seconds, dtype=bool)
    for k, name in enumerate(recording.instances):
        came = _of_one(recording, k)
        known = np.isfinite(came)
        if known.mean() < 1 - UNKNOWN_MAX:
            lost = f"incident {recording.incident.id}: nothing is known of the requests of {name} in {(~known).sum()} of {len(known)} s"
            raise TrimtabError(f"{lost}; `trimtab nodes` tells what its agent lost")
        gaps |= ~known
        total += np.interp(np.arange(len(came)), np.flatnonzero(known), came[known])
    return whole(total), int(gaps.sum())


def _of_one(recording: Recording, instance: int) -> Vector:
    waiting = recording.in_flight[:, instance]
    more = np.diff(waiting, prepend=waiting[:1])
    aborted = recording.aborted[:, instance]
    return recording.requests[:, instance] + np.nan_to_num(aborted) + np.nan_to_num(more)


def whole(counts: Vector) -> NDArray[np.int64]:
    """Whole numbers, none negative, whose sums follow those of `counts` from the first on; the last may lag behind a negative rest."""
    sums = np.maximum.accumulate(np.concatenate(([0.0], np.cumsum(counts))))
    # A cumulated sum that falls (more left than came) is lowered from behind, so that the total is kept.
    final = max(0.0, float(counts.sum()))
    out: NDArray[np.int64] = np.diff(np.rint(np.minimum(sums, final))).astype(np.int64)
    return out
