"""Median and spread that skip what is unknown and do not follow outliers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Makes the median absolute deviation of normal data its standard deviation.
_MAD_TO_SIGMA = np.float32(1.4826)


def median(values: Array, axis: int = -1) -> Array:
    """Median along `axis` of what is not NaN; NaN where nothing is. Several times as fast as numpy.nanmedian."""
    ordered = np.sort(np.moveaxis(values, axis, -1), axis=-1)
    known = np.count_nonzero(~np.isnan(ordered), axis=-1)[..., None]
    if not ordered.shape[-1]:
        return np.full(ordered.shape[:-1], np.nan, dtype=np.float32)
    low = np.take_along_axis(ordered, np.maximum((known - 1) // 2, 0), axis=-1)
    high = np.take_along_axis(ordered, np.minimum(known // 2, ordered.shape[-1] - 1), axis=-1)
    middle: Array = np.where(known > 0, (low + high) / 2, np.nan)[..., 0].astype(np.float32)
    return middle


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
