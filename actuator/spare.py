"""What may be taken away: a share of the neutral weights, and no more than the present load can spare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.capacity import Load
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector

STEPS = 64
"""In how many parts of what is wished for is granted."""
_TINY = 1e-9


class Margins(NamedTuple):
    """How much more than the present load an instance must be able to carry."""

    usual: float
    relief: float
    """Where one is relieved that gets more than it can carry: what it cannot answer is lost already."""

    @classmethod
    def of_new(cls, settings: GuardSettings) -> Margins:
        """For what is to be taken away."""
        return cls(settings.capacity_margin, settings.capacity_margin / 5)

    @classmethod
    def of_old(cls, settings: GuardSettings) -> Margins:
        """For what is taken away already: less, so that a load that wavers moves nothing."""
        return cls(settings.capacity_margin / 2, 0.0)


@dataclass(frozen=True, slots=True)
class Spare:
    """The bounds on all cuts of one model together; a cut is 1 - weight. `size` instances, of which each counts 1."""

    size: int
    load: Load
    settings: GuardSettings

    @property
    def known(self) -> bool:
        """Whether it is known of every instance what it can carry."""
        return bool(self.load.known.all())

    @property
    def budget(self) -> float:
        """Most that may be taken away in all."""
        settings = self.settings
        return (settings.drained_share_max_spare if self.known else settings.drained_share_max) * self.size

    def granted(self, kept: Vector, more: Vector, rank: Vector, margins: Margins) -> Vector:
        """As much of `more` as may be taken away on top of `kept`, the lowest rank first; arrays [instances].

        More is refused where it is not `affordable` with what is then taken away in all.
        """
        wanted = min(float(more.sum()), max(0.0, self.budget - float(kept.sum())))
        if wanted <= 0:
            return np.zeros_like(more)
        for parts in (np.ones(1), np.arange(STEPS - 1, 0, -1) / STEPS):  # most often all of it is affordable
            some = allot(more, rank, wanted * parts)
            fine = np.flatnonzero(self.affordable(1 - kept - some, margins))
            if len(fine):
                return np.asarray(some[fine[0]])
        return np.zeros_like(more)

    def affordable(self, weight: Vector, margins: Margins) -> NDArray[np.bool_]:
        """Whether no instance is pushed beyond what it can carry, of the present load and a margin.

        `weight`: float64 [choices, instances]; bool [choices]. Balancers are taken to send requests in proportion to weights, and all
        instances to have the same neutral weight.
        """
        load = self.load.requests_per_second
        relieves = ((load / self.size > self.load.high) & (weight < 1)).any(axis=-1)
        fine = self._carried(weight, load * (1 + margins.usual))
        return fine | (relieves & self._carried(weight, load * (1 + margins.relief))) if relieves.any() else fine

    def _carried(self, weight: Vector, load: float) -> NDArray[np.bool_]:
        limit = np.where(self.load.known, np.maximum(self.load.low, load / self.size) + _TINY * (1 + load), np.inf)
        total = weight.sum(axis=-1)
        fine: NDArray[np.bool_] = (load * weight <= limit * np.maximum(total, _TINY)[..., None]).all(axis=-1) & (
            total > _TINY
        )
        return fine


def allot(cuts: Vector, rank: Vector, budgets: Vector) -> Vector:
    """As much of `cuts` as each of `budgets` allows: the lowest rank first, equal ranks in proportion to their cuts.

    Arrays [instances], [instances] and [budgets]; [budgets, instances].
    """
    _, level = np.unique(rank, return_inverse=True)
    wanted = np.bincount(level, cuts)
    granted = np.clip(budgets[:, None] - (np.cumsum(wanted) - wanted), 0, wanted)
    share = np.divide(granted, wanted, out=np.zeros_like(granted), where=wanted > 0)
    return np.asarray(cuts * share[:, level])
