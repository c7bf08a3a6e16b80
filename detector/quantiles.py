"""Quantiles of many sketches at once, from their filled buckets alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import BUCKETS, MIDDLES_SECONDS
from trimtab.detector.latencies import Piece
from trimtab.detector.robust import Array


def quantiles_seconds(pieces: Sequence[Piece], rows: int, q: tuple[float, ...]) -> Array:
    """float32 [len(q), rows]: the quantiles of all pieces of each row merged; NaN where a row has none.

    The same ranks as `trimtab.agent.sketch.loglinear.quantiles_seconds`, with work and memory that grow with what was
    observed, not with the size of a sketch.
    """
    out = np.full((len(q), rows), np.nan, dtype=np.float32)
    keys = np.concatenate([piece.rows * BUCKETS + piece.buckets for piece in pieces] or [np.empty(0, dtype=np.int64)])
    if not len(keys):
        return out
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    risen = np.cumsum(np.concatenate([piece.weights for piece in pieces])[order], dtype=np.float64)
    ends = np.searchsorted(keys, (np.arange(rows) + 1) * BUCKETS) - 1
    starts = np.concatenate([[-1], ends[:-1]])
    filled = ends > starts
    below = np.where(starts >= 0, risen[starts], 0.0)
    totals = risen[ends] - below
    for i, level in enumerate(q):
        ranks = below + np.maximum(level * totals, np.finfo(np.float64).tiny) * (1 - 1e-9)
        found: NDArray[np.int64] = np.clip(np.searchsorted(risen, ranks), starts + 1, np.maximum(ends, 0))
        out[i, filled] = MIDDLES_SECONDS[keys[found[filled]] % BUCKETS]
    return out
