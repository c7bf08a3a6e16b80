"""The circuit breaker: steering must not make a model's requests dearer than they were at neutral weights."""

from __future__ import annotations

import math
from collections import deque

from trimtab.actuator.cost import Spent, spent
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import State, Vector
from trimtab.agent.clock import Clock

WINDOW_SECONDS = 10.0
"""How long steering must have been worse before the breaker opens, and how much of the neutral time is the reference."""
_RECENT_SECONDS = 3.0
_SETTLE_SECONDS = 3.0
"""Requests that were under way before weights moved are not judged."""
_REQUESTS_MIN = 30.0
"""Fewer requests say nothing."""
_OPEN_SECONDS_MAX = 3600.0
_FORGIVEN_AFTER = 10
"""A breaker that stayed closed for this many times `breaker_seconds` starts from there again."""


class Breaker:
    """Told once a second what requests cost; says why weights must be neutral, or nothing.

    The reference is the dearer of the last 10 and the last 3 seconds at neutral weights: a fault that has just begun, and that
    steering is about to answer, is part of the conditions. So are errors: who is drained because it fails would fail its neutral share.
    At neutral again, it is measured anew: where that is no cheaper, a fault that grew was to blame and not the steering, and the
    breaker closes at once.
    """

    def __init__(self, settings: GuardSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._neutral: deque[tuple[float, Spent]] = deque()
        self._steered: deque[tuple[float, Spent]] = deque()
        self._steering_since: float | None = None
        self._reference = Spent()
        self._opened_at = self._open_until = -math.inf
        self._tripped_cost = math.nan
        self._open_seconds = settings.breaker_seconds
        self._why = ""

    def judge(self, state: State, steering: bool, errors: Vector) -> str:
        """The reason to be neutral, or "". `steering`: whether any weight in force is not neutral; `errors`: float64 [instances], the
        last known error ratios."""
        now = self._clock.monotonic()
        if now < self._open_until:
            self._sample(self._neutral, state, now)
            if not self._innocent(now):
                return self._why
            self._open_until = -math.inf
        if not steering:
            self._steering_since = None
            self._sample(self._neutral, state, now)
            return ""
        if self._steering_since is None:
            self._begin(now)
        self._sample(self._steered, state, now)
        settled = now >= (self._steering_since or now) + _SETTLE_SECONDS + WINDOW_SECONDS
        return self._trip(now, float(errors.mean())) if settled else ""

    def _begin(self, now: float) -> None:
        """Weights leave neutral: what was seen until now is what steering is compared with."""
        both = [_total(self._neutral, now - seconds) for seconds in (WINDOW_SECONDS, _RECENT_SECONDS)]
        known = [spent for spent in both if math.isfinite(spent.cost(_REQUESTS_MIN))]
        self._reference = max(known, key=lambda spent: spent.cost(_REQUESTS_MIN), default=self._reference)
        self._steering_since = now
        self._neutral.clear()
        self._steered.clear()

    def _innocent(self, now: float) -> bool:
        """Whether neutral weights turned out to be no cheaper than the steering that they replaced."""
        settled = now >= self._opened_at + _SETTLE_SECONDS + WINDOW_SECONDS
        neutral = _total(self._neutral, now - WINDOW_SECONDS).cost(_REQUESTS_MIN)
        return settled and self._tripped_cost <= neutral * (1 + self._settings.breaker_margin)

    def _trip(self, now: float, errors: float) -> str:
        cost = _total(self._steered, now - WINDOW_SECONDS).cost(_REQUESTS_MIN)
        reference = self._reference.with_errors(errors).cost(_REQUESTS_MIN)
        if not cost > reference * (1 + self._settings.breaker_margin):
            return ""
        again = now < self._open_until + _FORGIVEN_AFTER * self._settings.breaker_seconds
        longer = min(self._open_seconds * 2, max(_OPEN_SECONDS_MAX, self._settings.breaker_seconds))
        self._open_seconds = longer if again else self._settings.breaker_seconds
        self._opened_at, self._open_until = now, now + self._open_seconds
        self._steering_since, self._tripped_cost = None, cost
        costs = f"a request cost {cost * 1e3:.0f} ms while steering and {reference * 1e3:.0f} ms at neutral"
        self._why = f"breaker: {costs}; neutral for {self._open_seconds:.0f} s"
        return self._why

    @staticmethod
    def _sample(into: deque[tuple[float, Spent]], state: State, now: float) -> None:
        into.append((now, spent(state)))
        while into[0][0] <= now - WINDOW_SECONDS:
            into.popleft()


def _total(samples: deque[tuple[float, Spent]], since: float) -> Spent:
    return sum((s for at, s in samples if at > since), Spent())
