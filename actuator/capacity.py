"""How much each instance can carry, from what it is seen to carry: requests per second / the share of it that is busy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.state import State, Vector

MEMORY_SECONDS = 900.0
"""How long an estimate holds for an instance that tells nothing new: it has too little to do."""
BUSY_LEAST = 0.3
"""An instance that is less busy is believed to carry as much more as if it were that busy, and no more: from there on, what else it
would run into is not seen. What it carries then shows whether there is more."""
ERRORS_FAILING = 0.05
"""Who fails so often cannot carry what it gets."""
_SMOOTH_SECONDS = 10.0
_ERRORS_OF = 30.0
"""Over so many requests errors are averaged, beyond what the collector does."""
_RISE_SECONDS = 3.0
"""A load that rises is believed sooner than one that falls."""
_RATE, _UTILISATION, _INSIDE, _QUEUE, _WORKED, _ERRORS, _MEASURED, _MEASURED_AT, _LEAST, _LEAST_AT = range(10)
_NOTHING = np.asarray([np.nan, np.nan, np.nan, np.nan, np.nan, 0, 0, -np.inf, 0, -np.inf])


@dataclass(frozen=True, slots=True)
class Load:
    """What one model's instances carry, and could; requests per second. Arrays [instances]."""

    requests_per_second: float
    """All of them together, errors too: what is to be carried."""
    known: NDArray[np.bool_]
    """Of whom it is known what they can be counted on for."""
    low: Vector
    """What each can be counted on to answer well; 0 where not known."""
    high: Vector
    """What each might; infinite where nothing has shown its limit."""
    errors: Vector
    """Which share of its requests each fails, as was told last."""


class Capacity:
    """Remembers what each instance has shown.

    r requests a second by an instance that is busy for a share u of the time: it can carry r / u (the utilisation law, Denning and
    Buzen 1978). What is seen now replaces what was seen before, since capacity goes as well as comes.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Vector] = {}
        self._load = math.nan
        self._last = -math.inf

    def observe(self, state: State, now: float, stale_seconds: float) -> Load:
        """What is known with this state; called about once a second. `now`: monotonic seconds."""
        elapsed, self._last = min(max(0.0, now - self._last), MEMORY_SECONDS), now
        weight = 1 - math.exp(-elapsed / _SMOOTH_SECONDS)
        rows = np.asarray([self._memory.get(i, _NOTHING) for i in state.ids]).T
        fresh = state.age_seconds <= stale_seconds
        rate, latency = state.requests_per_second, state.latency_seconds
        inside = np.where(np.isnan(state.in_flight), rate * latency, state.in_flight)
        # Smoothed before anything is made of them: a queue is there or not, and the greater of two noisy numbers is too great.
        heard = {_RATE: rate, _UTILISATION: state.utilisation, _INSIDE: inside, _QUEUE: state.queue}
        heard[_WORKED] = rate * state.service_seconds
        for row, value in heard.items():
            smooth = np.where(np.isnan(rows[row]), value, rows[row] + weight * (value - rows[row]))
            rows[row] = np.where(fresh, smooth, rows[row])
        share = busy(rows[_UTILISATION], rows[_INSIDE], rows[_QUEUE], rows[_WORKED], state.workers)
        # Who gets few requests fails few: what it did before is what it would do.
        told = np.isfinite(state.error_ratio + rate) & fresh
        heard_of = elapsed * np.where(told, rate, 0) / _ERRORS_OF
        news = 1 - np.exp(-np.minimum(heard_of, 50))  # exp(-50) is nothing, and no underflow
        rows[_ERRORS] += np.where(told, news * (state.error_ratio - rows[_ERRORS]), 0)
        _conclude(rows, share, fresh & np.isfinite(rows[_RATE] + share), now)
        # What a degraded instance could not carry it cannot carry until it is well again, however little it gets meanwhile.
        rows[_MEASURED_AT] = np.where(state.degraded & (rows[_MEASURED] > 0), now, rows[_MEASURED_AT])
        self._memory = dict(zip(state.ids, rows.T.copy(), strict=True))
        return _load(rows, self._smooth(float(np.nansum(rate[fresh])), elapsed), now)

    def _smooth(self, load: float, elapsed: float) -> float:
        last = load if math.isnan(self._load) else self._load
        self._load = last + (1 - math.exp(-elapsed / (_RISE_SECONDS if load > last else _SMOOTH_SECONDS))) * (
            load - last
        )
        return self._load


def busy(utilisation: Vector, inside: Vector, queue: Vector, worked: Vector, workers: Vector) -> Vector:
    """The share of each instance that is busy, in (0, 1]; NaN where not known. The scarcest of its means counts.

    `utilisation` is of its CPU limit or GPU, and `workers` those that can take a request. `worked` of them are at work: requests per
    second times what one takes, which is counted. Where the runtime does not tell, or answers nothing, they are as many of the requests
    `inside` as do not wait in the `queue`, which is looked at once a second, and a few looks tell little. Where it is not known how many
    wait, c workers with L inside are taken to be busy for min(L / c, L / (L + 1)): exact for one worker and random arrivals (M/M/1),
    and a little too much for more.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        workers = np.where(workers > 0, workers, np.nan)
        at_most = np.fmin(inside / workers, np.where(np.isnan(workers), np.nan, inside / (inside + 1)))
        looked = np.where(np.isnan(queue), at_most, np.maximum((inside - queue) / workers, 0))
        by_workers = np.where(np.isnan(worked), looked, worked / workers)
        # More requests wait than are worked on: whatever it lacks, it is full.
        full = np.where(np.isnan(workers) & (queue >= 1) & (queue > inside / 2), 1.0, np.nan)
    share = np.fmax(np.fmax(utilisation, by_workers), full)
    return np.minimum(np.where(share > 0, share, np.nan), 1)


def _conclude(rows: Vector, share: Vector, seen: NDArray[np.bool_], now: float) -> None:
    """Where an instance is busy enough its capacity is measured; else it is at least so much."""
    enough = seen & (share >= BUSY_LEAST)
    rows[_MEASURED] = np.where(enough, rows[_RATE] / np.maximum(share, BUSY_LEAST), rows[_MEASURED])
    rows[_MEASURED_AT] = np.where(enough, now, rows[_MEASURED_AT])
    rows[_LEAST] = np.where(enough, 0, rows[_LEAST])
    least = rows[_RATE] / BUSY_LEAST
    more = seen & ~enough & ((least >= rows[_LEAST]) | (now - rows[_LEAST_AT] >= MEMORY_SECONDS))
    rows[_LEAST] = np.where(more, least, rows[_LEAST])
    rows[_LEAST_AT] = np.where(more, now, rows[_LEAST_AT])


def _load(rows: Vector, load: float, now: float) -> Load:
    measured = np.where(now - rows[_MEASURED_AT] < MEMORY_SECONDS, rows[_MEASURED], 0)
    least = np.where(now - rows[_LEAST_AT] < MEMORY_SECONDS, rows[_LEAST], 0)
    low = np.maximum(measured, least)
    high = np.where((measured > 0) & (measured >= least), measured, np.inf)
    well = 1 - rows[_ERRORS]
    high = np.where(rows[_ERRORS] >= ERRORS_FAILING, well * np.nan_to_num(rows[_RATE]), high)
    return Load(load, low > 0, low * well, high, rows[_ERRORS])
