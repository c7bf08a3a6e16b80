"""What a run meant for the users, and how a policy compares with what was done, over the same requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.replay.play import Played
from trimtab.actuator.replay.scene import Scene
from trimtab.actuator.state import Vector

NEUTRAL_MIN = 0.999
"""A weight below is not neutral."""
# Student's t for 95 % on both sides, by degrees of freedom from 1.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
SEEDS_MAX = len(_T) + 1


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and half the width of its interval of 95 % confidence; NaN with one seed."""

    mean: float
    half: float


@dataclass(frozen=True, slots=True)
class Run:
    """What the requests that arrived from the onset on had of one run."""

    requests: int
    mean_seconds: float
    """Of answers without error, and of how long those waited that nobody has answered."""
    p99_seconds: float
    errors: int
    hit: float
    """Slower than the 95th percentile before the onset, or an error; beyond the share that was so before. It may be negative."""
    first_change_seconds: float
    """When a weight first left neutral, after the onset; negative: before; NaN: never."""
    lowest_weight: float
    """Since the onset."""
    lowest_instance: int


@dataclass(frozen=True, slots=True)
class Row:
    """One policy over all seeds."""

    policy: str
    requests: float
    mean_seconds: Interval
    p99_seconds: Interval
    errors: Interval
    hit: Interval
    hit_more: Interval
    """Than as it was, over the same requests."""
    mean_more_seconds: Interval
    first_change_seconds: float
    """The median over seeds; NaN where most did nothing."""
    lowest_weight: float
    """Of the first seed; so the instance."""
    lowest_instance: str


@dataclass(frozen=True, slots=True)
class Before:
    """What was usual before the onset, as it was; the same for all runs of a seed."""

    p95_seconds: float
    hit_share: float
    """Of the requests: slower than that, or an error."""


def before(scene: Scene, as_it_was: Played) -> Before:
    """Infinity and 0 where no request was answered."""
    here = as_it_was.arrived < scene.onset_second
    latency, failed = as_it_was.latency_seconds[here], as_it_was.failed[here]
    good = latency[~failed]
    p95_seconds = float(np.quantile(good, 0.95)) if len(good) else math.inf
    return Before(p95_seconds, float(_hit(latency, failed, p95_seconds).mean()) if len(latency) else 0.0)


def judge(scene: Scene, played: Played, usual: Before) -> Run:
    """One run."""
    here = played.arrived >= scene.onset_second
    latency, failed = played.latency_seconds[here], played.failed[here]
    good = latency[~failed]
    hit = _hit(latency, failed, usual.p95_seconds)
    weights = played.weights[scene.onset_second :]
    lowest = int(weights.min(axis=0).argmin())
    moved = np.flatnonzero((played.weights < NEUTRAL_MIN).any(axis=1))
    return Run(
        requests=int(here.sum()),
        mean_seconds=float(good.mean()) if len(good) else math.nan,
        p99_seconds=float(np.quantile(good, 0.99)) if len(good) else math.nan,
        errors=int(failed.sum()),
        hit=float(hit.sum() - usual.hit_share * len(hit)),
        first_change_seconds=float(moved[0] - scene.onset_second) if len(moved) else math.nan,
        lowest_weight=float(weights[:, lowest].min()),
        lowest_instance=lowest,
    )


def rows(scene: Scene, runs: Mapping[str, Sequence[Run]], baseline: str) -> list[Row]:
    """A row a policy, in the order of `runs`; differences are to `baseline`, seed by seed."""
    base = runs[baseline]
    out = []
    for name, some in runs.items():
        firsts = [r.first_change_seconds for r in some]
        did = sum(map(math.isfinite, firsts)) * 2 > len(firsts)
        out.append(
            Row(
                policy=name,
                requests=float(np.mean([r.requests for r in some])),
                mean_seconds=interval([r.mean_seconds for r in some]),
                p99_seconds=interval([r.p99_seconds for r in some]),
                errors=interval([r.errors for r in some]),
                hit=interval([r.hit for r in some]),
                hit_more=interval([a.hit - b.hit for a, b in zip(some, base, strict=True)]),
                mean_more_seconds=interval([a.mean_seconds - b.mean_seconds for a, b in zip(some, base, strict=True)]),
                first_change_seconds=float(np.nanmedian(firsts)) if did else math.nan,
                lowest_weight=some[0].lowest_weight,
                lowest_instance=scene.recording.instances[some[0].lowest_instance],
            )
        )
    return out


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return Interval(float(found.mean()), math.nan)
    return Interval(float(found.mean()), float(_T[len(found) - 2] * found.std(ddof=1) / math.sqrt(len(found))))


def _hit(latency: Vector, failed: NDArray[np.bool_], p95_seconds: float) -> NDArray[np.bool_]:
    return np.asarray((latency > p95_seconds) | failed)
