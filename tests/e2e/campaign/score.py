"""How well a class of faults was told, and how far chance alone could have moved that."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.e2e.campaign.record import Record

_Z95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of trials. Its value and its 95 % interval are NaN where there were none."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share itself, in [0, 1]."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (1927), without correction for continuity."""
        if not self.trials:
            return math.nan, math.nan
        n, p, z2 = self.trials, self.value, _Z95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # Neither 0 nor 1 nor the share itself is left out by a rounding error.
        return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


@dataclass(frozen=True, slots=True)
class Score:
    """Of some runs."""

    runs: int
    delay_median_seconds: float
    delay_worst_seconds: float
    """From a fault to the incident that names whom it should. NaN without one."""
    recall: Share
    """Of the faults: those with an incident."""
    precision: Share
    """Of the incidents: those that name whom a fault ailed."""
    right_instance: Share
    """Of the faults with an incident: those in which it names whom it should."""
    right_mechanism: Share
    """Of the incidents that name whom they should: those that say why."""
    quiet: Share
    """Of the runs: those without a false alarm."""


def score(records: Sequence[Record]) -> Score:
    """Of the runs that could be made."""
    made = [r for r in records if not r.cannot]
    faults = [r for r in made if r.subjects]
    told = [r for r in faults if r.told]
    right = [r for r in told if r.right_instance]
    delays = [r.delay_seconds for r in right if r.delay_seconds is not None]
    return Score(
        runs=len(made),
        delay_median_seconds=statistics.median(delays) if delays else math.nan,
        delay_worst_seconds=max(delays, default=math.nan),
        recall=Share(len(told), len(faults)),
        precision=Share(len(right), sum(r.incidents for r in made)),
        right_instance=Share(len(right), len(told)),
        right_mechanism=Share(sum(r.right_mechanism for r in right), len(right)),
        quiet=Share(sum(r.incidents == r.right_instance for r in made), len(made)),
    )
