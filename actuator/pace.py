"""How fast weights move: limited steps, a wait before coming back that grows with relapses, and a limit on all cuts together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector

RETURN_SECONDS = 10.0
"""How long an instance must be wished back before its weight rises; doubled each time it relapses."""
RETURN_SECONDS_MAX = 600.0
RELAPSE_SECONDS = 300.0
_OUT = 0.5
"""Below this weight an instance counts as taken out."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Where the weights of one model's instances are to go; arrays [instances]."""

    ids: tuple[str, ...]
    weight: Vector
    rank: Vector
    """Lower is cut first where not all can be cut."""
    urgent: NDArray[np.bool_]
    """May rise without waiting."""


@dataclass(slots=True)
class _Memory:
    weight: float = 1.0
    wait_seconds: float = RETURN_SECONDS
    wanted_since: float | None = None
    out: bool = False
    back_at: float = -math.inf


class Pace:
    """The weights in force of one model's instances, and what must be remembered to move them."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._memory: dict[str, _Memory] = {}

    def enter(self, ids: Sequence[str], forget: bool) -> Vector:
        """The weights in force of `ids`; 1 for the new. Instances that are gone are forgotten, and all are with `forget`."""
        old = {} if forget else self._memory
        self._memory = {i: old.get(i) or _Memory() for i in ids}
        return np.asarray([m.weight for m in self._memory.values()])

    def neutral(self) -> None:
        """All weights are neutral at once."""
        for m in self._memory.values():
            m.weight, m.wanted_since = 1.0, None

    def step(self, aim: Aim, now: float, seconds: float, reasons: list[str]) -> Vector:
        """The weights `seconds` later; adds to the reasons what held one back."""
        memory = [self._memory[i] for i in aim.ids]
        before = np.asarray([m.weight for m in memory])
        target = aim.weight.copy()
        for k, m in enumerate(memory):
            if target[k] > m.weight and not _may_rise(m, now) and not aim.urgent[k]:
                target[k] = m.weight
                reasons[k] = _join(reasons[k], f"comes back after {m.wait_seconds:.0f} s")
            elif target[k] < m.weight:
                m.wanted_since = None
        after = np.clip(
            target, before - self._settings.step_down_max * seconds, before + self._settings.step_up_max * seconds
        )
        for k in np.flatnonzero(np.abs(after - target) > 1e-9).tolist():
            reasons[k] = _join(reasons[k], "held by max step")
        # Cuts that are there already go first; what is left of the budget is for new ones.
        budget = self._settings.drained_share_max * len(memory)
        kept = allot(1 - np.maximum(before, after), aim.rank, budget)
        more = allot(np.maximum(before - after, 0), aim.rank, budget - float(kept.sum()))
        after = np.clip(1 - kept - more, self._settings.weight_min, 1)
        after[after > 1 - 1e-9] = 1
        for m, weight in zip(memory, after.tolist(), strict=True):
            _remember(m, weight, now)
        return after


def allot(cuts: Vector, rank: Vector, budget: float) -> Vector:
    """As much of `cuts` as `budget` allows: the lowest rank first, equal ranks in proportion to their cuts."""
    _, level = np.unique(rank, return_inverse=True)
    wanted = np.bincount(level, cuts)
    granted = np.clip(budget - (np.cumsum(wanted) - wanted), 0, wanted)
    share = np.divide(granted, wanted, out=np.zeros_like(wanted), where=wanted > 0)
    return np.asarray(cuts * share[level])


def _may_rise(m: _Memory, now: float) -> bool:
    if m.wanted_since is None:
        m.wanted_since = now
    return now - m.wanted_since >= m.wait_seconds


def _remember(m: _Memory, weight: float, now: float) -> None:
    """Notices who was taken out, who came back, and who relapsed."""
    m.weight = weight
    if weight < _OUT and not m.out:
        relapse = now - m.back_at < RELAPSE_SECONDS
        m.wait_seconds = min(m.wait_seconds * 2, RETURN_SECONDS_MAX) if relapse else RETURN_SECONDS
        m.out = True
    elif weight == 1 and m.out:
        m.out, m.back_at = False, now


def _join(reason: str, more: str) -> str:
    return f"{reason}; {more}" if reason else more
