"""Whether a treatment is worse than none, asked as often as one likes: a randomised test by betting.

Two windows follow each other; a fair coin decides in which of them there is the treatment. D is how much more it cost, as a
logarithm. Where the treatment changes nothing the coin alone gives D its sign, whatever the two windows were like: then 1 + tanh(c D) is
1 in the mean, for every c > 0 (de la Peña 1999, on symmetric variables), and the product over pairs is wealth in a fair game. Wealth that
starts at 1 ever reaches 1 / α with a probability of at most α (Ville 1939). Nothing is assumed of how costs are distributed, how they
depend on each other, or how they change with the hour. Where the treatment is better than none D is smaller, and so is the wealth.

Several c are bet on, since it is not known how much worse it may be; and a part of the stake is kept for later, since a treatment may
become worse after it was better for long: before pair j, 1 / (j + 1) of what is kept is put in (after Shin, Ramdas and Rinaldo 2024,
e-detectors). Time and memory are constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SCALES = (1.0, 3.0, 10.0, 30.0)
"""The values of c: they suit a treatment that is worse by some 30 to 1 % where noise is as large."""
_EXCESS_MAX = 5.0
"""Beyond it a pair is as good as lost, and one pair is not to end the game."""


@dataclass(slots=True)
class Evidence:
    """The wealth of one who bets that the treatment is worse."""

    pairs: int = 0
    excess_sum: float = 0.0
    _kept: float = 1.0
    _staked: list[float] = field(default_factory=lambda: [0.0] * len(SCALES))

    @property
    def value(self) -> float:
        """At least 0, 1 at first. It reaches 1 / α, at any time, with a probability of at most α if the treatment is not worse."""
        return self._kept + sum(self._staked)

    @property
    def excess(self) -> float:
        """The mean of what was added; NaN before."""
        return self.excess_sum / self.pairs if self.pairs else math.nan

    def add(self, excess: float) -> None:
        """One pair: how much more the treatment cost, as the logarithm of a ratio. Raises ValueError where it is not finite."""
        if not math.isfinite(excess):
            raise ValueError(f"excess: {excess} is not finite; leave out pairs in which a cost is not known")
        self.pairs += 1
        self.excess_sum += excess
        stake = self._kept / (self.pairs + 1)
        self._kept -= stake
        bounded = max(-_EXCESS_MAX, min(excess, _EXCESS_MAX))
        self._staked = [
            (staked + stake / len(SCALES)) * (1 + math.tanh(scale * bounded))
            for staked, scale in zip(self._staked, SCALES, strict=True)
        ]
