"""Evidence that something lasting has begun, which may be looked at every window: an e-detector over p-values.

Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (2022). An e-value has a mean of at most
1 while nothing is wrong; kappa * p^(kappa - 1) is one of a p-value (Vovk and Wang, 2021), for each kappa in (0, 1). Their
Shiryaev-Roberts sum M_t = e_t (M_{t-1} + 1) keeps E[M_tau] <= E[tau] for every time tau at which one may stop, and so does the mean over
several kappas. Therefore, **while nothing is wrong, the mean time until M >= 1 / alpha is at least 1 / alpha** windows, whatever the
distribution, as long as each p-value, given all before, is no smaller than chance makes it: P(p <= u) <= u.

It is no `Detector`: that judges one window and learns only what is healthy, while this adds up what it must not learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
KAPPAS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""The small ones win most where p is tiny, the large ones where it is only lower than it should be."""
# Far beyond any threshold, and far below what overflows.
_MOST = 1e100
_NAMES = ("sums", "run", "age")


class Evidence:
    """Row i is the same stream from call to call. 56 bytes a stream."""

    def __init__(self, streams: int = 0) -> None:
        self._sums = np.zeros((streams, len(KAPPAS)))
        self._run = np.ones(streams)
        self._age = np.zeros(streams, dtype=np.int64)

    def update(self, p_values: Values) -> None:
        """Enter float64 [streams] in (0, 1]; for what is NaN no time passes. Raises ValueError."""
        p = np.asarray(p_values, dtype=np.float64)
        if p.shape != self._age.shape:
            raise ValueError(f"p-values {p.shape}; expected {self._age.shape}")
        here = ~np.isnan(p)
        if not ((p[here] > 0) & (p[here] <= 1)).all():
            raise ValueError("p-values: not in (0, 1]; NaN is for unknown")
        kappas = np.asarray(KAPPAS)
        e = kappas * np.where(here, p, 1)[:, None] ** (kappas - 1)
        self._sums = np.where(here[:, None], np.minimum(e * (self._sums + 1), _MOST), self._sums)
        # When it began is where the one product that is largest now begins (Page's CUSUM).
        anew = self._run <= 1
        run = np.minimum(e.mean(axis=1) * np.maximum(self._run, 1), _MOST)
        self._age = np.where(here, np.where(anew, 1, self._age + 1), self._age)
        self._run = np.where(here, run, self._run)

    @property
    def value(self) -> Values:
        """float64 [streams]: M; 0 before anything is known."""
        mean: Values = self._sums.mean(axis=1)
        return mean

    @property
    def age(self) -> NDArray[np.int64]:
        """int64 [streams]: for how many windows it seems to go on; 0 where nothing does."""
        age: NDArray[np.int64] = np.where(self._run > 1, self._age, 0)
        return age

    def resize(self, streams: int) -> None:
        """Make room for this many; known rows stay as they are. Raises ValueError for fewer."""
        more = streams - len(self._age)
        if more < 0:
            raise ValueError(f"{streams} streams, but {len(self._age)} are known; forget them instead")
        new = Evidence(more)
        for name in _NAMES:
            setattr(self, f"_{name}", np.concatenate([getattr(self, f"_{name}"), getattr(new, f"_{name}")]))

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Begin these anew: they stand for other streams, or what was found in them has been told."""
        self._sums[rows], self._run[rows], self._age[rows] = 0, 1, 0

    def save(self) -> Mapping[str, NDArray[Any]]:
        """Everything remembered."""
        return {name: getattr(self, f"_{name}").copy() for name in _NAMES}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `save` was called. Raises ValueError when the state does not fit."""
        if missing := set(_NAMES) - state.keys():
            raise ValueError(f"state: {', '.join(sorted(missing))} missing")
        like = Evidence(len(state["age"]))
        for name in _NAMES:
            array = state[name]
            if array.shape != getattr(like, f"_{name}").shape or not np.isfinite(array).all() or (array < 0).any():
                raise ValueError(f"state: {name} {array.shape} is not what `save` gave")
        for name in _NAMES:
            setattr(self, f"_{name}", state[name].astype(getattr(like, f"_{name}").dtype))


def ranks(values: Values) -> Values:
    """float64 [rows]: of each known value the share of the known ones that are as high or higher, itself counted; NaN for fewer than two.

    Where the rows are exchangeable this is a p-value: no row is among the highest k of n more often than k times in n.
    """
    out = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) >= 2:
        ordered = np.sort(values[known])
        out[known] = (len(known) - np.searchsorted(ordered, values[known], side="left")) / len(known)
    return out
