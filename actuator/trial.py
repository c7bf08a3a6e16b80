"""Steering on trial: now and then it is compared with neutral weights, and it is suspended when it is shown to be worse."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from trimtab.actuator.cost import Spent, spent
from trimtab.actuator.evidence import Evidence
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import State

ALPHA = 0.01
"""The probability with which steering that is not worse is ever suspended, from one suspension to the next."""
PHASE_SECONDS = 10.0
"""How long each of the two windows of a pair lasts: three seconds for requests that were under way, then what the collector puts
together into one figure (five seconds), and how late that is."""
READ_SECONDS = 1.5
"""What is read at the end of a window is of this window alone."""
_REQUESTS_MIN = 12.0
"""Fewer say nothing. Two readings of requests per second, each a mean over five seconds: that is thirty requests."""
_SLOWER_AFTER = 10
"""Pairs after which they become half as frequent, as long as nothing speaks against steering."""
INTERVAL_SECONDS_MAX = 1200.0
_SUSPICIOUS = 2.0
"""Evidence from which on pairs are as frequent as at first."""
SUSPENDED_SECONDS = 3600.0
"""How long steering is suspended; doubled each time it is shown to be worse again soon."""
SUSPENDED_SECONDS_MAX = 86400.0
_GAP_SECONDS_MAX = 3.0


@dataclass(slots=True)
class _Pair:
    start: float
    neutral_first: bool
    spent: list[Spent] = field(default_factory=lambda: [Spent(), Spent()])


class Trial:
    """Asked once a second whether weights are to be neutral in this one. `why` is why steering is suspended, or "".

    What is compared: the policy's weights, and neutral ones for all that no incident names; who is degraded stays drained in both, so
    that nobody is sent there to find out.
    """

    def __init__(self, settings: GuardSettings, chance: np.random.Generator) -> None:
        self._settings, self._chance = settings, chance
        self._evidence = Evidence()
        self._pair: _Pair | None = None
        self._next_at: float | None = None
        self._last = -math.inf
        self._until = -math.inf
        self._suspended_seconds = 0.0
        self._why = ""

    def why(self, now: float) -> str:
        """Why steering is suspended, or ""."""
        return self._why if now < self._until else ""

    @property
    def neutral(self) -> bool:
        """Whether weights were to be neutral since it was last asked."""
        return self._pair is not None and self._is_neutral(self._pair, self._last)

    def cancel(self) -> None:
        """What is going on counts for nothing: something else moved the weights."""
        self._pair = None

    def turn(self, state: State, now: float, steered: bool, safe: bool) -> bool:
        """Whether weights are to be neutral for the next second.

        `steered`: whether the policy's weights differ from neutral ones; `safe`: whether neutral ones would harm nobody badly.
        """
        gap, self._last = now - self._last, now
        if not safe or gap > _GAP_SECONDS_MAX:
            self.cancel()
        if self._next_at is None:
            self._next_at = now + self._pause() if steered else None
        if self._pair is None and safe and steered and self._next_at is not None and now >= self._next_at:
            self._pair = _Pair(now, bool(self._chance.random() < 0.5))
            return self._is_neutral(self._pair, now)
        if self._pair is None:
            return False
        self._read(self._pair, state, now)
        if now - self._pair.start >= 2 * PHASE_SECONDS:
            self._conclude(self._pair, now)
            return False
        return self._is_neutral(self._pair, now)

    @staticmethod
    def _is_neutral(pair: _Pair, now: float) -> bool:
        return (now - pair.start < PHASE_SECONDS) == pair.neutral_first

    @staticmethod
    def _read(pair: _Pair, state: State, now: float) -> None:
        """What comes in now is of the window before now."""
        age = now - pair.start
        window = 0 if age <= PHASE_SECONDS else 1
        if age > (window + 1) * PHASE_SECONDS - READ_SECONDS:
            pair.spent[window] = pair.spent[window] + spent(state)

    def _conclude(self, pair: _Pair, now: float) -> None:
        self._pair = None
        costs = [one.cost(_REQUESTS_MIN) for one in pair.spent]
        neutral, steered = costs if pair.neutral_first else costs[::-1]
        if steered > 0 and neutral > 0:
            self._evidence.add(math.log(steered / neutral) - math.log1p(self._settings.trial_margin))
        self._next_at = now + self._pause()
        if self._evidence.value >= 1 / ALPHA:
            self._suspend(now)

    def _pause(self) -> float:
        """At random, so that nothing that comes by the minute is always met by the same weights."""
        first = self._settings.trial_seconds
        calm = self._evidence.value < _SUSPICIOUS
        slower = 2.0 ** min(self._evidence.pairs // _SLOWER_AFTER, 10) if calm else 1.0
        wait = min(first * slower, max(first, INTERVAL_SECONDS_MAX))
        return float(wait * self._chance.uniform(0.5, 1.5))

    def _suspend(self, now: float) -> None:
        again = now < self._until + 2 * self._suspended_seconds
        self._suspended_seconds = (
            min(2 * self._suspended_seconds, SUSPENDED_SECONDS_MAX) if again else SUSPENDED_SECONDS
        )
        self._until = now + self._suspended_seconds
        found, pairs = self._evidence, self._evidence.pairs
        more = math.expm1(found.excess + math.log1p(self._settings.trial_margin))
        self._why = (
            f"trial: requests cost {more:.0%} more while steered than at neutral weights, in {pairs} pairs of windows;"
            f" neutral for {self._suspended_seconds / 3600:.0f} h"
        )
        self._evidence, self._next_at = Evidence(), None
