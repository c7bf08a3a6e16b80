"""The guard: the bounds between what a policy wishes for and what reaches a balancer. It trusts no policy."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.breaker import Breaker
from trimtab.actuator.capacity import Capacity
from trimtab.actuator.pace import HELD, Aim, Pace, join
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.spare import Spare
from trimtab.actuator.state import State, Vector
from trimtab.agent.clock import Clock

MEASURE_SECONDS = 5.0
"""A model is first seen at neutral weights: the breaker compares with that."""
SILENCE_SECONDS = 5.0
"""After so long without a heartbeat the dead man's switch has put weights back to neutral."""
ERRORS_SICK = 0.05
"""Whose requests fail so often need not be waited for, though no incident names it yet."""
PROBE_EVERY_SECONDS = 60.0
PROBE_SECONDS = 10.0
"""An instance without any weight gets the least weight for so long, so often: it is seen to answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard let through for one instance. `wished` is NaN where the policy was not asked or made no sense."""

    instance: str
    wished: float
    weight: float
    reason: str


class Guard:
    """The bounds of one model's instances; starts from neutral weights. Called once a second."""

    def __init__(self, settings: GuardSettings, clock: Clock, real: bool = True) -> None:
        """`real`: the weights reach a balancer; in shadow mode they do not, and tell nothing about what steering costs."""
        self._settings, self._clock, self._real = settings, clock, real
        self._breaker = Breaker(settings, clock)
        self._pace = Pace(settings)
        self._capacity = Capacity()
        self._since = clock.monotonic()
        self._last = -math.inf
        self.refused = 0
        """Wishes that were no weight."""

    def bound(self, state: State, wish: Callable[[], Vector], hold: str = "") -> list[Verdict]:
        """One verdict an instance, in their order. With `hold`, a reason, all are neutral at once and nothing is wished for."""
        now = self._clock.monotonic()
        elapsed, self._last = now - self._last, now
        before = self._pace.enter(state.ids, forget=elapsed > SILENCE_SECONDS)
        wished = np.full(len(state), np.nan) if hold else self._sound(wish(), len(state))
        hold = hold or self._breaker.judge(state, self._real and bool((before < 1).any()))
        if not hold and now < self._since + MEASURE_SECONDS:
            hold = "measuring at neutral weights first"
        load = self._capacity.observe(state, now, self._settings.stale_seconds)
        if hold:
            self._pace.neutral(now)
            return [Verdict(i, w, 1.0, hold) for i, w in zip(state.ids, wished.tolist(), strict=True)]
        spare = Spare(len(state), load, self._settings)
        aim, reasons = self._aim(state, wished, spare, now)
        after = self._pace.step(aim, now, min(elapsed, 1.0), reasons, spare)
        return [Verdict(*v) for v in zip(state.ids, wished.tolist(), after.tolist(), reasons, strict=True)]

    def _sound(self, wished: Vector, size: int) -> Vector:
        """The wishes that are weights; NaN for the others, which are counted."""
        if wished.shape != (size,):
            self.refused += size
            return np.full(size, np.nan)
        sound = (wished >= 0) & (wished <= 1)
        self.refused += int((~sound).sum())
        return np.where(sound, wished, np.nan)

    def _aim(self, state: State, wished: Vector, spare: Spare, now: float) -> tuple[Aim, list[str]]:
        """Where the weights may go, each for itself and all together, and why."""
        settings = self._settings
        stale = ~(state.age_seconds <= settings.stale_seconds)
        healthy = ~stale & ~state.degraded
        none = (wished == 0) & healthy & spare.known
        least = np.where(none & ~_probed(state.ids, now), 0, settings.weight_min)
        target = np.where(np.isnan(wished) | stale, 1, np.maximum(wished, least))
        best = np.zeros(len(state), dtype=bool)
        if not healthy.any():
            target[:] = 1
        elif target[healthy].max() < 1:
            best = healthy & (target == target[healthy].max())
            target[best] = 1
        rank = target + 2 * ~state.degraded
        weight = 1 - spare.granted(np.zeros_like(target), 1 - target, rank, settings.capacity_margin / 2)
        reasons = self._reasons(state, wished, stale, healthy)
        for k in np.flatnonzero(best).tolist():
            reasons[k] = "best of the healthy: neutral"
        for k in np.flatnonzero(weight > target + 1e-9).tolist():
            reasons[k] = join(reasons[k], HELD)
        sick = state.degraded | (np.nan_to_num(state.error_ratio) >= ERRORS_SICK)
        return Aim(state.ids, weight, rank, stale | best, sick, least), reasons

    def _reasons(self, state: State, wished: Vector, stale: NDArray[np.bool_], healthy: NDArray[np.bool_]) -> list[str]:
        """In words, and without counting seconds down: a reason that changes is a new snapshot."""
        out = []
        for k in range(len(state)):
            if stale[k]:
                out.append(f"telemetry over {self._settings.stale_seconds:.0f} s old: neutral")
            elif math.isnan(wished[k]):
                out.append("policy wished for no weight: neutral")
            elif state.degraded[k]:
                mechanism = state.mechanisms[k].replace("_", " ") or "cause not known yet"
                nowhere = "" if healthy.any() else "; nowhere to go: neutral"
                out.append(f"degraded: {mechanism} ({state.incidents[k]}){nowhere}")
            else:
                out.append("the policy wants it to have less" if wished[k] < 1 else "")
        return out


def _probed(ids: tuple[str, ...], now: float) -> NDArray[np.bool_]:
    """Whose turn it is to be asked, though it has no weight: not all at once."""
    turns = np.asarray([zlib.crc32(i.encode()) for i in ids]) % PROBE_EVERY_SECONDS
    return np.asarray((now + turns) % PROBE_EVERY_SECONDS < PROBE_SECONDS)
