"""The guard: the bounds between what a policy wishes for and what reaches a balancer. It trusts no policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trimtab.actuator.aim import aim, lift
from trimtab.actuator.breaker import Breaker
from trimtab.actuator.capacity import Capacity
from trimtab.actuator.orders import Orders, orders
from trimtab.actuator.pace import Aim, Pace
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.spare import Spare
from trimtab.actuator.state import State, Vector
from trimtab.actuator.trial import Trial
from trimtab.agent.clock import Clock

MEASURE_SECONDS = 5.0
"""A model is first seen at neutral weights: the breaker compares with that."""
NEUTRAL_NEARLY = 0.9
"""Weights above this are as good as neutral to the breaker: while they begin to move, it still learns what neutral costs under a fault."""
SILENCE_SECONDS = 5.0
"""After so long without a heartbeat the dead man's switch has put weights back to neutral."""

_DIFFERENCE_MIN = 0.02
"""Weights that are so near to neutral are not worth a comparison."""


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

    def __init__(
        self, settings: GuardSettings, clock: Clock, real: bool = True, chance: np.random.Generator | None = None
    ) -> None:
        """`real`: the weights reach a balancer; in shadow mode they do not, and tell nothing about what steering costs. `chance`
        decides when steering is compared with neutral weights; without one it is always the same."""
        self._settings, self._clock, self._real = settings, clock, real
        self._breaker = Breaker(settings, clock)
        self._pace = Pace(settings)
        self._capacity = Capacity()
        self._trial = Trial(settings, chance or np.random.default_rng(0))
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
        if self._clock.monotonic() - now > SILENCE_SECONDS:
            hold = f"the policy took over {SILENCE_SECONDS:.0f} s: neutral"
        load = self._capacity.observe(state, now, self._settings.stale_seconds)
        if not self._trial.neutral:
            steering = self._real and bool((before < NEUTRAL_NEARLY).any())
            hold = hold or self._breaker.judge(state, steering, load.errors)
        if not hold and now < self._since + MEASURE_SECONDS:
            hold = "measuring at neutral weights first"
        if hold:
            self._trial.cancel()
            after, reasons = self._pace.neutral(now, ordered.weight), [hold] * len(state)
        else:
            spare = Spare(len(state), load, self._settings)
            target, reasons = self._tried(state, wished, ordered, spare, now)
            after = self._pace.step(target, now, min(elapsed, 1.0), reasons, spare)
        said = [own or reason for own, reason in zip(ordered.reason, reasons, strict=True)]
        rows = zip(state.ids, wished.tolist(), after.tolist(), said, ordered.given.tolist(), strict=True)
        return [Verdict(*row) for row in rows]

    def _tried(self, state: State, wished: Vector, ordered: Orders, spare: Spare, now: float) -> tuple[Aim, list[str]]:
        """Where the weights may go: to what is wished for while that is not shown to be worse than neutral weights."""
        if why := self._trial.why(now):
            target, reasons = aim(state, np.where(state.degraded, 0.0, 1.0), ordered, spare, now)
            return target, [reason or why for reason in reasons]
        target, reasons = aim(state, wished, ordered, spare, now)
        moved = ~target.fixed & ~state.degraded & (target.weight < 1)
        steered = self._real and bool((target.weight[moved] < 1 - _DIFFERENCE_MIN).any())
        # Neutral weights would send requests to who fails them.
        safe = not (moved & target.sick).any()
        if self._trial.turn(state, now, steered, safe):
            target = lift(target, reasons, state.degraded)
        return target, reasons

    def _sound(self, wished: Vector, size: int) -> Vector:
        """The wishes that are weights; NaN for the others, which are counted."""
        if wished.shape != (size,):
            self.refused += size
            return np.full(size, np.nan)
        sound = (wished >= 0) & (wished <= 1)
        self.refused += int((~sound).sum())
        return np.where(sound, wished, np.nan)
