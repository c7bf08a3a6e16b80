"""What policies remember of each instance: averages over the last seconds, in which every request counts once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.state import State, Vector
from trimtab.detector.history import MERGE_SECONDS

STALE_SECONDS = 10.0
_SERVICE = 4
"""The column of service times; the next one is of how many requests."""
_BAND, _NOISE = 0.1, 3.0
"""An instance has turned slow when it is slower by 10 % and three standard errors, where times vary by as much as they are long."""
HOLD_SECONDS = 300
"""Who has told nothing for longer may be well again, and is as good as unknown: it gets requests by which that is seen."""


@dataclass(frozen=True, slots=True)
class Averages:
    """Each float64 [instances]; NaN where nothing is known."""

    requests: Vector
    """How many requests the averages rest on."""
    requests_per_second: Vector
    latency_seconds: Vector
    service_seconds: Vector
    """Without waiting: as the runtime tells, else the latency shared among those in flight (see `service`)."""
    error_ratio: Vector
    utilisation: Vector
    workers: Vector
    """As the runtime tells, else 1."""
    total_per_second: float
    """Requests of all instances together, whoever had them."""


class Recent:
    """Averages with a memory that fades; instances that are gone are forgotten."""

    def __init__(self, memory: float, hold: bool = False, restart: bool = False) -> None:
        """`memory` in (0, 1): what a second is worth a second later. With `hold` it fades only as news come: of who is drained is known
        what was known last, for `HOLD_SECONDS`. With `restart` the averages of an instance that turns slow start anew: what was before
        is not true any more."""
        self._memory, self._hold, self._restart = memory, hold, restart
        self._sums: dict[str, Vector] = {}
        self._quiet: dict[str, int] = {}
        """For how many seconds there has been no news."""
        self._total = self._seconds = 0.0

    def observe(self, state: State) -> Averages:
        """Called once a second. What is older than `STALE_SECONDS` adds nothing."""
        rate = state.requests_per_second
        known = np.isfinite(rate) & (rate > 0) & (state.age_seconds <= STALE_SECONDS)
        self._quiet = {i: 0 if k else self._quiet.get(i, 0) + 1 for i, k in zip(state.ids, known.tolist(), strict=True)}
        self._sums = {i: sums for i, sums in self._sums.items() if self._quiet.get(i, 0) <= HOLD_SECONDS}
        rate = np.where(known, rate, 0)
        rows = [np.where(known, 1.0, 0), rate]
        for values in (
            state.latency_seconds,
            service(state),
            np.nan_to_num(state.error_ratio),
            state.utilisation,
            state.workers,
        ):
            told = known & np.isfinite(values)
            rows += [np.where(told, rate * values, 0), np.where(told, rate, 0)]
        now = np.asarray(rows).T
        nothing, fade = np.zeros(now.shape[1]), np.where(known | (not self._hold), self._memory, 1.0)
        sums = np.asarray([self._sums.get(i, nothing) for i in state.ids]).reshape(now.shape) * fade[:, None] + now
        if self._restart:
            newest = now * MERGE_SECONDS
            sums = np.where(_turned(sums, newest)[:, None], newest, sums)
        self._sums = dict(zip(state.ids, sums, strict=True))
        self._total = self._total * self._memory + float(rate.sum())
        self._seconds = self._seconds * self._memory + 1
        mean = [_ratio(sums[:, k], sums[:, k + 1]) for k in range(2, sums.shape[1], 2)]
        latency, service_seconds, errors, utilisation, workers = mean
        requests = np.where(sums[:, 1] > 0, sums[:, 1], np.nan)
        return Averages(
            requests=requests,
            requests_per_second=_ratio(sums[:, 1], sums[:, 0]),
            latency_seconds=latency,
            service_seconds=service_seconds,
            error_ratio=errors,
            utilisation=utilisation,
            workers=np.where(workers >= 1, workers, 1),
            total_per_second=self._total / self._seconds,
        )


def _turned(sums: Vector, newest: Vector) -> NDArray[np.bool_]:
    """bool [instances]: whose newest service time alone is above its average by more than chance is likely to do."""
    with np.errstate(divide="ignore", invalid="ignore"):
        slower = np.log(
            _ratio(newest[:, _SERVICE], newest[:, _SERVICE + 1]) / _ratio(sums[:, _SERVICE], sums[:, _SERVICE + 1])
        )
        turned: NDArray[np.bool_] = slower > _BAND + _NOISE / np.sqrt(newest[:, _SERVICE + 1])
    return turned


def service(state: State) -> Vector:
    """float64 [instances]: what a request takes by itself, in seconds.

    Where the runtime does not tell: who arrives finds as many in flight as there are on average (Poisson arrivals see time averages), and
    waits for them; so a latency of T with N in flight was 1 + N services long.
    """
    shared = state.latency_seconds / (1 + np.nan_to_num(state.in_flight))
    return np.where(np.isfinite(state.service_seconds), state.service_seconds, shared)


def _ratio(total: Vector, count: Vector) -> Vector:
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
