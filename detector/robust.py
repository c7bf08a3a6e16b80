"""Median and spread that skip what is unknown and do not follow outliers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Makes the median absolute deviation of normal data its standard deviation.
_MAD_TO_SIGMA = np.float32(1.4826)


def median(values: Array, axis: int = -1) -> Array:
    """Median along `axis` of what is not NaN; NaN where nothing is. Several times as fast as numpy.nanmedian."""
    # A copy in which each list lies in one piece: sorting goes through it several times as fast.
    ordered = np.array(np.moveaxis(values, axis, -1), order="C")
    if not ordered.shape[-1]:
        return np.full(ordered.shape[:-1], np.nan, dtype=np.float32)
    ordered.sort(axis=-1)
    known = _known(ordered)[..., None]
    low = np.take_along_axis(ordered, np.maximum((known - 1) // 2, 0), axis=-1)
    high = np.take_along_axis(ordered, np.minimum(known // 2, ordered.shape[-1] - 1), axis=-1)
    middle: Array = np.where(known > 0, (low + high) / 2, np.nan)[..., 0].astype(np.float32)
    return middle


def _known(values: Array) -> NDArray[np.int64]:
    """How many along the last axis are not NaN. As a product, because numpy's sums of truth values are slow."""
    ones = np.ones(values.shape[-1], dtype=np.float32)
    count: NDArray[np.int64] = ((~np.isnan(values)).astype(np.float32) @ ones).astype(np.int64)
    return count


def spread(values: Array, middle: Array, axis: int = -1) -> Array:
    """Robust standard deviation about `middle` along `axis`: the median absolute deviation, scaled."""
    deviation: Array = _MAD_TO_SIGMA * median(np.abs(values - np.expand_dims(middle, axis)), axis)
    return deviation


def mean(values: Array, axis: int = -1) -> Array:
    """Mean along `axis` of what is not NaN; NaN where nothing is."""
    known = np.count_nonzero(~np.isnan(values), axis=axis)
    total = np.nansum(values, axis=axis, dtype=np.float64)
    out: Array = np.where(known > 0, total / np.maximum(known, 1), np.nan).astype(np.float32)
    return out
