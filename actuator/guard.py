"""The guard: the bounds between what a policy wishes for and what reaches a balancer. It trusts no policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trimtab.actuator.aim import aim
from trimtab.actuator.breaker import Breaker
from trimtab.actuator.capacity import Capacity
from trimtab.actuator.orders import Orders, orders
from trimtab.actuator.pace import Pace
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.spare import Spare
from trimtab.actuator.state import State, Vector
from trimtab.agent.clock import Clock

MEASURE_SECONDS = 5.0
"""A model is first seen at neutral weights: the breaker compares with that."""
SILENCE_SECONDS = 5.0
"""After so long without a heartbeat the dead man's switch has put weights back to neutral."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard let through for one instance. `wished` is NaN where the policy was not asked or made no sense."""

    instance: str
    wished: float
    weight: float
    reason: str
    ordered: bool = False
    """Whether a person set it: no bound but those of `Orders` is on it."""


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

    def bound(
        self, state: State, wish: Callable[[], Vector], hold: str = "", ordered: Orders | None = None
    ) -> list[Verdict]:
        """One verdict an instance, in their order. With `hold`, a reason, all are neutral at once and nothing is wished for.

        What is `ordered` is so at once, whatever the state, the policy and `hold` say.
        """
        now, ordered = self._clock.monotonic(), ordered or orders((), state)
        elapsed, self._last = now - self._last, now
        before = self._pace.enter(state.ids, forget=elapsed > SILENCE_SECONDS)
        wished = np.full(len(state), np.nan) if hold else self._sound(wish(), len(state))
        hold = hold or self._breaker.judge(state, self._real and bool((before < 1).any()))
        if not hold and now < self._since + MEASURE_SECONDS:
            hold = "measuring at neutral weights first"
        load = self._capacity.observe(state, now, self._settings.stale_seconds)
        if hold:
            after, reasons = self._pace.neutral(now, ordered.weight), [hold] * len(state)
        else:
            spare = Spare(len(state), load, self._settings)
            target, reasons = aim(state, wished, ordered, spare, now)
            after = self._pace.step(target, now, min(elapsed, 1.0), reasons, spare)
        said = [own or reason for own, reason in zip(ordered.reason, reasons, strict=True)]
        rows = zip(state.ids, wished.tolist(), after.tolist(), said, ordered.given.tolist(), strict=True)
        return [Verdict(*row) for row in rows]

    def _sound(self, wished: Vector, size: int) -> Vector:
        """The wishes that are weights; NaN for the others, which are counted."""
        if wished.shape != (size,):
            self.refused += size
            return np.full(size, np.nan)
        sound = (wished >= 0) & (wished <= 1)
        self.refused += int((~sound).sum())
        return np.where(sound, wished, np.nan)
